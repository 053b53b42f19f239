"""The routes of the Open Inference Protocol as OpenAPI 3.1: paths for each model, since each has its own tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable

from stack.export.package import PackageManifest
from stack.serve.oip_codec import MAX_DIM, MAX_NAME, Datatype, Spec
from stack.serve.oip_models import LENGTHS, MAX_USERS, Model, models_of
from stack.serve.openapi_parts import (
    INT64,
    NUMBER,
    TEXT,
    VERSION_PARAMETER,
    Json,
    answer,
    array,
    closed,
    get,
    post,
    whole,
)
from stack.serve.request import Limits

_NAME: Json = {"type": "string", "maxLength": MAX_NAME}
_FLAG: Json = {"type": "boolean"}
_SIZE: Json = {"type": "integer", "minimum": 0}
_TOLD = {Datatype.INT64: INT64, Datatype.BYTES: TEXT, Datatype.FP32: NUMBER}
_JSON_SIZE: Json = {"description": "Bytes of JSON, before the binary data.", "schema": {"type": "string"}}
_VERSION: Json = {
    "name": "version",
    "in": "path",
    "required": True,
    "description": "The number of a version that is loaded.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,9}$"},
}
_EXAMPLES: dict[str, object] = {"now": 1_700_000_000, "num_events": 1, "events.time": 1_699_999_000}


def oip_paths(manifest: PackageManifest, limits: Limits) -> Json:
    """By path."""
    server = whole({"name": _NAME, "version": _NAME, "extensions": array(_NAME)})
    live, ready = whole({"live": _FLAG}), whole({"live": _FLAG, "ready": _FLAG})
    paths = {
        "/v2": get("v2_server", "The server.", server, errors=(401, 500)),
        "/v2/health/live": get("v2_live", "Whether the process answers.", live, errors=(500,)),
        "/v2/health/ready": get("v2_ready", "Whether requests are accepted.", ready, errors=(500,)),
    }
    paths["/v2/health/ready"]["get"]["responses"]["503"] = answer("They are not.", ready)
    for model in models_of(manifest).values():
        path = f"/v2/models/{model.name}"
        paths |= _of_model(model, limits, path, model.name, VERSION_PARAMETER)
        paths |= _of_model(model, limits, f"{path}/versions/{{version}}", f"{model.name}_version", _VERSION)
    return paths


def _of_model(model: Model, limits: Limits, path: str, name: str, version: Json) -> Json:
    ready = whole({"name": {"const": model.name}, "ready": _FLAG})
    tensors = array(_metadata())
    described = {"versions": array(_NAME), "platform": _NAME, "inputs": tensors, "outputs": tensors}
    metadata = whole({"name": {"const": model.name}, **described})
    paths = {
        path: get(f"v2_{name}", "The model's tensors.", metadata, parameters=[version]),
        f"{path}/ready": get(f"v2_{name}_ready", "Whether the model answers.", ready, parameters=[version]),
        f"{path}/infer": post(
            f"v2_{name}_infer",
            "Inference. Tensors may follow the JSON as binary data, with the header inference-header-content-length.",
            _request(model, limits),
            {"200": _answer(model)},
            parameters=[version],
            example={"id": "1", "inputs": list(_example(model))},
        ),
    }
    unavailable = paths[f"{path}/ready"]["get"]["responses"]["503"]["content"]["application/json"]
    unavailable["schema"] = {"anyOf": [ready, unavailable["schema"]]}
    return paths


def _request(model: Model, limits: Limits) -> Json:
    one = {"name": {"enum": list(model.outputs)}, "parameters": closed({"binary_data": _FLAG})}
    return closed(
        {
            "id": {"type": ["string", "null"], "maxLength": MAX_NAME},
            "model_name": {"enum": [model.name, None]},
            "parameters": closed({"binary_data_output": _FLAG}),
            "inputs": {
                "type": "array",
                "items": {"anyOf": [_input(spec, limits) for spec in model.inputs.values()]},
                "minItems": 1,
            },
            "outputs": array(closed(one, required=["name"]), most=len(model.outputs)),
        },
        required=["inputs"],
    )  # fmt: skip


def _input(spec: Spec, limits: Limits) -> Json:
    most = {"B": MAX_USERS, "L": limits.num_events, "E": limits.num_candidates}
    sizes = [
        {"const": dim} if isinstance(dim, int) else {**_SIZE, "maximum": most.get(dim, MAX_DIM)} for dim in spec.dims
    ]  # fmt: skip
    flat = array(_TOLD[spec.datatype])
    data = flat if len(spec.dims) == 1 else {"anyOf": [flat, array(flat)]}
    shape = {"type": "array", "prefixItems": sizes, "minItems": len(sizes), "maxItems": len(sizes)}
    told: Json = {
        "name": {"const": spec.name},
        "datatype": {"const": spec.datatype.value},
        "shape": shape,
        "data": data,
    }
    return closed({**told, "parameters": closed({})}, required=list(told))


def _answer(model: Model) -> Json:
    outputs = {"anyOf": [_output(spec) for spec in model.outputs.values()]}
    told = {"model_name": {"const": model.name}, "model_version": _NAME, "outputs": array(outputs)}
    found = answer(
        "The outputs, as JSON, or as JSON and binary data.", closed({**told, "id": _NAME}, required=list(told))
    )
    found["content"]["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return {**found, "headers": {"inference-header-content-length": _JSON_SIZE}}


def _output(spec: Spec) -> Json:
    told = {
        "name": {"const": spec.name},
        "datatype": {"const": spec.datatype.value},
        "shape": array(_SIZE, exactly=len(spec.dims)),
        "data": array({"type": "number"}),
    }
    return closed(told, required=list(told))


def _metadata() -> Json:
    shape = array({"type": "integer", "minimum": -1})
    return whole({"name": _NAME, "datatype": {"enum": [one.value for one in Datatype]}, "shape": shape})


def _example(model: Model) -> Iterable[Json]:
    """One user with one event, and one candidate, an id of each feature."""
    for spec in model.inputs.values():
        if spec.name == "vector":
            continue
        if spec.name.endswith(LENGTHS):
            one: object = 1
        else:
            one = {Datatype.INT64: 1, Datatype.BYTES: "a", Datatype.FP32: 0.5}[spec.datatype]
        one = _EXAMPLES.get(spec.name, one)
        shape = [dim if isinstance(dim, int) else 1 for dim in spec.dims]
        yield {"name": spec.name, "datatype": spec.datatype.value, "shape": shape, "data": [one] * math.prod(shape)}
