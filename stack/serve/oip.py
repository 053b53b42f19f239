"""The Open Inference Protocol, version 2, over HTTP: the routes of kserve/open-inference-protocol,
specification/protocol/inference_rest.md, and how this server describes itself.

    GET  /v2                                           name, version, extensions
    GET  /v2/health/live                               200 while the process answers
    GET  /v2/health/ready                              200 while requests are accepted, 503 while it stops
    GET  /v2/models/{model}[/versions/{version}]       the tensors of a model
    GET  /v2/models/{model}[/versions/{version}]/ready
    POST /v2/models/{model}[/versions/{version}]/infer
    GET  /openapi.json                                 all routes, with the features of this package

Models and their tensors: `stack.serve.oip_models`. A version is one of the numbers that the server has loaded; without
one the header `x-stack-version` and the server's labels choose, as for the other routes. Health is told to everybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import perf_counter

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stack import __version__
from stack.export.package import GraphFormat
from stack.serve.app import LABEL, VERSION_HEADER, Front, json_response
from stack.serve.oip_codec import Asked, Output, Spec, parse, write
from stack.serve.oip_models import (
    Model,
    answer_score,
    answer_users,
    models_of,
    score_of,
    tensors_of,
    users_of,
)
from stack.serve.openapi import describe
from stack.serve.request import RequestError
from stack.serve.service import Served

JSON_SIZE_HEADER = "inference-header-content-length"
SERVER = "stack"
EXTENSIONS = ["binary_tensor_data"]
PLATFORMS = {GraphFormat.onnx: "onnxruntime_onnx", GraphFormat.aoti: "pytorch_aotinductor"}


def oip_routes(front: Front) -> list[Route]:
    """For `stack.serve.app.build_app`."""
    oip = _Oip(front)
    routes = [
        Route("/v2", oip.server),
        Route("/v2/health/live", oip.live),
        Route("/v2/health/ready", oip.ready),
        Route("/openapi.json", oip.openapi),
    ]
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes += [
            Route(path, oip.model),
            Route(f"{path}/ready", oip.model_ready),
            Route(f"{path}/infer", oip.infer, methods=["POST"]),
        ]
    return routes


class _Oip:
    """The endpoints. All raise `RequestError`: 401 without a token, 404 for a model or version that there is not."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._service = front.service
        self._models: dict[str, dict[str, Model]] = {}
        """By digest of the package."""

    async def server(self, request: Request) -> Response:
        self._front.allow(request)
        return _json({"name": SERVER, "version": __version__, "extensions": EXTENSIONS})

    async def live(self, _: Request) -> Response:
        return _json({"live": True})

    async def ready(self, _: Request) -> Response:
        """The protocol's body says `live`; here it says `ready` too, as the status does."""
        ready = self._is_ready()
        return _json({"live": True, "ready": ready}, 200 if ready else 503)

    async def model(self, request: Request) -> Response:
        self._front.allow(request)
        served, model, _ = self._asked_model(request)
        return _json(
            {
                "name": model.name,
                "versions": self._versions_of(model),
                "platform": PLATFORMS[served.predictor.graph_format],
                "inputs": _told(model.inputs.values()),
                "outputs": _told(model.outputs.values()),
            }
        )  # fmt: skip

    async def model_ready(self, request: Request) -> Response:
        self._front.allow(request)
        _, model, _ = self._asked_model(request)
        ready = self._is_ready()
        return _json({"name": model.name, "ready": ready}, 200 if ready else 503)

    async def infer(self, request: Request) -> Response:
        """Raises: `RequestError` 400, 408, 413, 415 and 422 for a body, 429 where too many are under way, besides."""
        front = self._front
        with front.admitted(request):
            body = await front.read(request)
            start = perf_counter()
            served, model, label = self._asked_model(request)
            request.scope[LABEL] = label
            asked = parse(body, request.headers.get(JSON_SIZE_HEADER))
            outputs, unknown = self._answers(served, model, asked)
            response = _response(served, model, asked, outputs)
            front.metrics.seconds.labels(request.scope["route"].path).observe(perf_counter() - start)
        front.metrics.requests.labels(request.scope["route"].path, label, "200").inc()
        front.metrics.count_unknown(unknown)
        return response

    async def openapi(self, request: Request) -> Response:
        self._front.allow(request)
        served, _ = self._service.pick(request.headers.get(VERSION_HEADER))
        return _json(describe(served.predictor.manifest, served.decoder.limits, served.number))

    def _answers(self, served: Served, model: Model, asked: Asked) -> tuple[list[Output], dict[str, int]]:
        """The outputs asked for, in that order, and how many ids of each feature were unknown."""
        if asked.model_name not in (None, model.name):
            raise RequestError(422, f"the body is for the model {asked.model_name!r}, its address for {model.name!r}")
        for name in asked.outputs:
            if name not in model.outputs:
                raise RequestError(422, f"model {model.name!r} has no output {name!r}: {', '.join(model.outputs)}")
        wanted = asked.outputs or dict.fromkeys(model.outputs, asked.binary)
        manifest, limits = served.predictor.manifest, served.decoder.limits
        tensors = tensors_of(model, asked.inputs, limits)
        if model.group is None:
            users = users_of(model, tensors, manifest, limits)
            arrays, unknown = answer_users(served, users, list(wanted))
        else:
            score = score_of(model, tensors, manifest, limits, list(wanted))
            arrays, unknown = answer_score(self._service, served, score)
        return [Output(name=name, array=arrays[name], binary=binary) for name, binary in wanted.items()], unknown

    def _asked_model(self, request: Request) -> tuple[Served, Model, str]:
        """The version and model of an address, and the label that the version goes by."""
        version, name = request.path_params.get("version"), request.path_params["model"]
        if version is not None and not version.isdecimal():
            raise RequestError(
                404, f"version {version[:40]!r} is not a number: leave it out for the one that is stable"
            )
        served, label = self._service.pick(version or request.headers.get(VERSION_HEADER))
        models = self._models_of(served)
        if name not in models:
            raise RequestError(404, f"there is no model {name[:80]!r}: {', '.join(models)}")
        return served, models[name], label

    def _models_of(self, served: Served) -> dict[str, Model]:
        if served.package not in self._models:
            loaded = {one.package for one in self._service.versions.values()}
            self._models = {digest: models for digest, models in self._models.items() if digest in loaded}
            self._models[served.package] = models_of(served.predictor.manifest)
        return self._models[served.package]

    def _versions_of(self, model: Model) -> list[str]:
        versions = self._service.versions
        return [str(number) for number in sorted(versions) if model.name in self._models_of(versions[number])]

    def _is_ready(self) -> bool:
        return not self._front.stopping and self._service.labels is not None


def _told(specs: Iterable[Spec]) -> list[dict[str, object]]:
    return [{"name": spec.name, "datatype": spec.datatype.value, "shape": spec.shape} for spec in specs]


def _response(served: Served, model: Model, asked: Asked, outputs: Sequence[Output]) -> Response:
    body, json_size = write(model.name, str(served.number), asked, outputs)
    if json_size is None:
        return json_response(body)
    return Response(body, media_type="application/octet-stream", headers={JSON_SIZE_HEADER: str(json_size)})


def _json(found: object, status: int = 200) -> Response:
    return json_response(msgspec.json.encode(found), status)
