"""What the descriptions of all routes are made of: operations, the statuses they answer with, ids and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stack.data.schema import Feature
from stack.export.lookup import MAX_TEXT_BYTES
from stack.export.package import PackageManifest
from stack.serve.request import MAX_NUMBER, MAX_SECONDS

Json = dict[str, Any]
JSON = "application/json"
_ERRORS = {
    400: "The body is not what its headers say, or not JSON in UTF-8.",
    401: "A bearer token is needed.",
    404: "There is no such version or model, or no vector of the user is kept.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body has a content-encoding: send it plain.",
    422: "The request does not fit this package: the text says where.",
    429: "Too many requests are under way.",
    500: "The server's fault: its log says more.",
    503: "No package is loaded yet.",
}
GET_ERRORS = (401, 404, 500, 503)
POST_ERRORS = tuple(_ERRORS)
_RETRY = {"retry-after": {"description": "Seconds.", "schema": {"type": "string"}}}
_HEADERS = {
    401: {"www-authenticate": {"description": "Bearer.", "schema": {"type": "string"}}},
    429: _RETRY,
    503: _RETRY,
}
VERSION_PARAMETER: Json = {
    "name": "x-stack-version",
    "in": "header",
    "required": False,
    "description": "Which version answers: stable, canary, or the number of one that is loaded.",
    "schema": {"type": "string", "pattern": "^(stable|canary|[0-9]{1,9})$"},
    "example": "stable",
}
ERROR: Json = {
    "type": "object",
    "properties": {"error": {"type": "string", "description": "One line."}},
    "required": ["error"],
    "additionalProperties": False,
}
INT64: Json = {"type": "integer", "format": "int64", "minimum": -(1 << 63), "maximum": (1 << 63) - 1}
NUMBER: Json = {"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER}
SECONDS: Json = {"type": "integer", "format": "int64", "minimum": 0, "maximum": MAX_SECONDS}
TEXT: Json = {"type": "string", "maxLength": MAX_TEXT_BYTES}


def get(
    name: str, summary: str, ok: Json, *, parameters: Sequence[Json] = (), errors: Sequence[int] = GET_ERRORS
) -> Json:
    """A GET operation: `ok` is the schema of what it answers."""
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            "parameters": list(parameters),
            "responses": {"200": answer("Found.", ok)} | refusals(errors),
        }
    }


def post(
    name: str, summary: str, body: Json, answers: Mapping[str, Json], *, parameters: Sequence[Json], example: Json
) -> Json:
    """A POST operation: `body` is the schema of its JSON, `answers` the responses beside the errors."""
    return {
        "post": {
            "operationId": name,
            "summary": summary,
            "parameters": list(parameters),
            "requestBody": {"required": True, "content": {JSON: {"schema": body, "example": example}}},
            "responses": dict(answers) | refusals(POST_ERRORS),
        }
    }


def answer(description: str, schema: Json) -> Json:
    """A response with a JSON body."""
    return {"description": description, "content": {JSON: {"schema": schema}}}


def refusals(statuses: Sequence[int]) -> Json:
    """The error responses of these statuses, by status."""
    return {
        str(status): answer(_ERRORS[status], {"$ref": "#/components/schemas/Error"})
        | ({"headers": _HEADERS[status]} if status in _HEADERS else {})
        for status in statuses
    }


def closed(properties: Mapping[str, Json], *, required: Sequence[str] = ()) -> Json:
    """An object with these properties alone."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


def whole(properties: Mapping[str, Json]) -> Json:
    """An object with all of these properties and no other."""
    return closed(properties, required=list(properties))


def array(items: Json, *, most: int | None = None, exactly: int | None = None, least: int = 0) -> Json:
    """A list of `items`."""
    bounds = {} if most is None else {"maxItems": most}
    bounds |= {"minItems": least} if least else {}
    bounds |= {} if exactly is None else {"minItems": exactly, "maxItems": exactly}
    return {"type": "array", "items": items, **bounds}


def or_null(schema: Json) -> Json:
    return {**schema, "type": [schema["type"], "null"]}


def raw_id(manifest: PackageManifest, feature: Feature) -> Json:
    """An id as the log had it."""
    return TEXT if manifest.ids[feature.table].text else INT64


def example_id(manifest: PackageManifest, feature: Feature, number: int) -> int | str:
    """An id that need not be known."""
    return f"{feature.name}-{number}" if manifest.ids[feature.table].text else number
