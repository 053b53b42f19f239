"""What `GET /openapi.json` answers: all routes as OpenAPI 3.1, with the features, groups and tasks of one package.

What JSON Schema cannot say is in no schema, and refused with 422: that columns are of one length, that times do not
decrease and lie before `now`. All else is as strict here as the server is; tests let a fuzzer compare the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import fields

from stack.data.schema import Feature, Group
from stack.export.package import USER_HALF, Link, PackageManifest, Task, scorers_of
from stack.serve.app import Model
from stack.serve.openapi_oip import oip_paths
from stack.serve.openapi_parts import (
    ERROR,
    INT64,
    NUMBER,
    SECONDS,
    TEXT,
    VERSION_PARAMETER,
    Json,
    answer,
    array,
    closed,
    example_id,
    get,
    or_null,
    post,
    raw_id,
    whole,
)
from stack.serve.request import MAX_AGE_SECONDS, MAX_ASKED, Limits

_NOW = 1_700_000_000
_COUNT: Json = {"type": "integer", "minimum": 0}
_DIGEST: Json = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_NAME: Json = {"description": "Any name or number of the user.", "anyOf": [INT64, TEXT]}
_AGE: Json = {"type": ["number", "null"], "minimum": 0, "maximum": MAX_AGE_SECONDS}
_TYPES = {int: "integer", str: "string", bool: "boolean"}


def describe(manifest: PackageManifest, limits: Limits, version: int) -> Json:
    """The whole document, for one version. `limits`: its own, `num_events` among them."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"User vectors and scores of {manifest.name}",
            "version": str(version),
            "description": f"Package {manifest.digest[:12]} of run {manifest.lineage.run}, data until "
            f"{manifest.lineage.last_day}. Ids are raw, as the log had them; what is left out or null is unknown.",
        },
        "security": [{}, {"bearer": []}],
        "paths": {**_own_paths(), **_user_paths(manifest, limits), **oip_paths(manifest, limits)},
        "components": {
            "schemas": {"Error": ERROR},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _own_paths() -> Json:
    health = get("health", "Whether requests are answered.", closed({"status": {"const": "ok"}}), errors=(500,))
    health["get"]["responses"]["503"] = answer("No package is loaded yet, or the server stops.", {"type": "object"})
    model = get("model", "What is served.", _model(), parameters=[VERSION_PARAMETER])
    document = get("openapi", "This document.", {"type": "object"}, parameters=[VERSION_PARAMETER])
    return {"/healthz": health, "/v1/model": model, "/openapi.json": document}


def _user_paths(manifest: PackageManifest, limits: Limits) -> Json:
    requests = _Requests(manifest, limits)
    groups = manifest.schema.groups
    paths = {
        "/v1/users:embed": post(
            "embed", "The vector of a user, and the tasks about the user.", requests.user({}, ()),
            {"200": answer("The vector.", _embedding(manifest))}, parameters=[VERSION_PARAMETER],
            example=requests.user_example(),
        ),
        "/v1/users:retrieve": post(
            "retrieve", "The best items for a user.", {"anyOf": list(requests.retrievals())},
            {} if manifest.retrieval is None else {"200": answer("Best first.", _retrieved(manifest))},
            parameters=[VERSION_PARAMETER], example={**requests.user_example(), "k": 10},
        ),
    }  # fmt: skip
    if groups:
        paths["/v1/items:score"] = post(
            "score", "Scores of candidates for a user.",
            {"anyOf": [form for group in groups for form in requests.scores(group)]},
            {"200": answer("By task, in the order given.", _scores(manifest))}, parameters=[VERSION_PARAMETER],
            example={**requests.user_example(), **requests.candidates_example(groups[0])},
        )  # fmt: skip
    return paths


class _Requests:
    """Schemas and examples of bodies."""

    def __init__(self, manifest: PackageManifest, limits: Limits) -> None:
        self._manifest = manifest
        self._limits = limits

    def user(self, more: Json, required: Sequence[str]) -> Json:
        """A user with events, `more` beside."""
        schema, most = self._manifest.schema, self._limits.num_events
        events = {"time": array(SECONDS, most=most), **self._columns((*schema.event, *schema.property), most)}
        return closed(
            {
                "now": SECONDS,
                "events": closed(events, required=["time"]),
                "profile": closed(self._singles(schema.profile)),
                "query": self._query(),
                "user": {**_NAME, "anyOf": [*_NAME["anyOf"], {"type": "null"}]},
                "max_age_seconds": _AGE,
                **more,
            },
            required=["now", "events", *required],
        )

    def scores(self, group: Group) -> Iterator[Json]:
        """A user with events, and, unless candidates attend over those, a vector or the name of one that is kept."""
        most = self._limits.num_candidates
        columns = self._columns(group.candidate, most, least=1)
        if group.dense:
            columns["dense"] = or_null(closed({name: self._numbers() for name in group.dense}))
        graphs = scorers_of(self._manifest, group.name)
        tasks = [task.name for task in self._manifest.tasks if task.graph in graphs]
        more = {"group": {"const": group.name}, "candidates": {**closed(columns), "minProperties": 1}}
        required = list(more)
        more["tasks"] = or_null(array({"enum": tasks}, least=1, most=64))
        yield self.user(more, required)
        if not self._manifest.scorer_needs_states:
            vector = array(NUMBER, exactly=self._manifest.vector_dim)
            yield closed({"vector": vector, **more}, required=["vector", *required])
            yield self._named(more, required)

    def retrievals(self) -> Iterator[Json]:
        more = {"k": {"type": "integer", "minimum": 1, "maximum": MAX_ASKED}}
        yield self.user(more, ())
        yield self._named(more, ())

    def user_example(self) -> Json:
        schema, manifest = self._manifest.schema, self._manifest
        events = {
            feature.name: [self._example(feature, number) for number in (1, 2)]
            for feature in (*schema.event, *schema.property)
        }
        return {
            "now": _NOW,
            "events": {"time": [_NOW - 600, _NOW - 60], **events},
            "profile": {feature.name: self._example(feature, 1) for feature in schema.profile},
            "query": {feature.name: self._example(feature, 1) for feature in manifest.schema.query},
        }

    def candidates_example(self, group: Group) -> Json:
        candidates: Json = {
            feature.name: [self._example(feature, number) for number in (1, 2)] for feature in group.candidate
        }
        if group.dense:
            candidates["dense"] = {name: [0.5, 1.0] for name in group.dense}
        return {"group": group.name, "candidates": candidates}

    def _named(self, more: Json, required: Sequence[str]) -> Json:
        """A user whose vector is kept."""
        properties = {"user": _NAME, "max_age_seconds": _AGE, "query": self._query(), **more}
        return closed(properties, required=["user", *required])

    def _query(self) -> Json:
        return closed(self._singles(self._manifest.schema.query))

    def _columns(self, features: Sequence[Feature], most: int, *, least: int = 0) -> Json:
        return {feature.name: or_null(array(self._one(feature), most=most, least=least)) for feature in features}

    def _numbers(self) -> Json:
        return or_null(array(NUMBER, most=self._limits.num_candidates, least=1))

    def _singles(self, features: Sequence[Feature]) -> Json:
        return {feature.name: or_null(self._bag_or_id(feature)) for feature in features}

    def _one(self, feature: Feature) -> Json:
        return self._bag_or_id(feature) if feature.multi else or_null(raw_id(self._manifest, feature))

    def _bag_or_id(self, feature: Feature) -> Json:
        one = raw_id(self._manifest, feature)
        return array(one, most=self._limits.num_ids) if feature.multi else one

    def _example(self, feature: Feature, number: int) -> object:
        one = example_id(self._manifest, feature, number)
        return [one] if feature.multi else one


def _embedding(manifest: PackageManifest) -> Json:
    tasks = {task.name: _value(task) for task in manifest.tasks if task.graph == USER_HALF}
    vector = array({"type": "number"}, exactly=manifest.vector_dim)
    return _answered({"vector": vector, "tasks": whole(tasks)})


def _scores(manifest: PackageManifest) -> Json:
    tasks = {task.name: array(_value(task)) for task in manifest.tasks if task.graph != USER_HALF}
    return _answered({"scores": closed(tasks), "kept": {"type": "boolean"}})


def _retrieved(manifest: PackageManifest) -> Json:
    assert manifest.retrieval is not None
    one = TEXT if manifest.ids[manifest.retrieval.table].text else INT64
    scores = array({"type": "number"}, most=MAX_ASKED)
    return _answered({"items": array(one, most=MAX_ASKED), "scores": scores, "kept": {"type": "boolean"}})


def _answered(properties: Json) -> Json:
    unknown = {"description": "Ids without a row, by feature.", "type": "object", "additionalProperties": _COUNT}
    return whole({**properties, "unknown": unknown, "version": _COUNT, "package": _DIGEST})


def _value(task: Task) -> Json:
    if task.columns:
        return closed({name: {"type": "number"} for name in task.columns}, required=task.columns)
    return array({"type": "number"}) if task.link is Link.SOFTMAX else {"type": "number"}


def _model() -> Json:
    properties = {one.name: {"type": _TYPES[one.type]} if one.type in _TYPES else {} for one in fields(Model)}
    return whole(properties)
