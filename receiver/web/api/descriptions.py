"""The descriptions for other programs, made from the structs that are served: OpenAPI of the API, JSON Schemas and AsyncAPI of events."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver import __version__
from receiver.core.event import EVENT_TYPES
from receiver.core.event_json import EventData, EventDocument
from receiver.web.api.operation import Operation
from receiver.web.api.problems import TITLES, Problem, answer, problem
from receiver.web.api.routes import OPERATIONS
from receiver.web.views import shown_as

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_PARTS = re.compile(r"\{(\w+)\}")
_HEADERS = {
    "webhook-id": "The event's id; the same at each attempt.",
    "webhook-timestamp": "When this attempt was made, in seconds since 1970.",
    "webhook-signature": "By Standard Webhooks: `v1,` and base64, one for each secret, separated by blanks.",
}


def routes() -> list[Route]:
    """Return the routes of the documents; they hold nothing secret, so anybody may read them."""
    return [
        Route("/openapi.json", _openapi),
        Route("/asyncapi.json", _asyncapi),
        Route("/schemas/{name}", _schema),
    ]


async def _openapi(request: Request) -> Response:
    return _told(openapi)


async def _asyncapi(request: Request) -> Response:
    return _told(asyncapi)


async def _schema(request: Request) -> Response:
    name = request.path_params["name"].removesuffix(".json")
    if name not in EVENT_TYPES:
        return problem(404, f"there is no schema of {name[:100]}; there is: {', '.join(EVENT_TYPES)}")
    return _told(event_schema, name, media_type="application/schema+json")


@cache
def _told(make: Callable[..., dict[str, Any]], *of: str, media_type: str = "application/json") -> Response:
    """Return the answer with a document; encoded once, since anybody may ask for it again and again."""
    return answer(make(*of), media_type=media_type)


@cache
def event_schema(event_type: str) -> dict[str, Any]:
    """Return the JSON Schema of the events of one type."""
    schema = msgspec.json.schema(EventDocument)
    definitions = schema.pop("$defs")
    document = definitions.pop("EventDocument")
    document["properties"]["type"] = {"const": event_type}
    head = {"$schema": _DIALECT, "title": event_type}
    return {**head, **{k: v for k, v in document.items() if k != "title"}, "$defs": definitions}


@cache
def openapi() -> dict[str, Any]:
    """Return the description of the API."""
    kinds = [
        kind
        for one in OPERATIONS
        for kind in (one.query, one.body, shown_as(one.gives))
        if not isinstance(kind, str)
    ]
    kinds = [EventData, Problem, *dict.fromkeys(kind for kind in kinds if kind is not None)]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    of = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for one in OPERATIONS:
        described = _operation(one, of, components)
        paths.setdefault(f"/api/v1{one.path}", {})[one.method.lower()] = described
    queries = {one.query.__name__ for one in OPERATIONS if one.query is not None}
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": _DIALECT,
        "info": {"title": "receiver", "version": __version__},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {name: schema for name, schema in components.items() if name not in queries},
        },
    }


def _operation(one: Operation, of: dict[Any, Any], components: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", one.name.lower()).strip("_"),
        "summary": one.does,
        "description": f"Needs the scope `{one.scope}`.",
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in _PARTS.findall(one.path)
        ],
        "responses": {str(status): _success(one, status, of) for status in one.statuses}
        | {str(status): {"description": TITLES[status], "content": _PROBLEM} for status in problems(one)},
    }
    if one.query is not None:
        found = components[one.query.__name__]
        described["parameters"] += [
            {"name": name, "in": "query", "required": name in found.get("required", ()), "schema": schema}
            for name, schema in found["properties"].items()
        ]
    if one.method != "GET":
        key = {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 200}}
        described["parameters"].append(key)
    if one.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": of[one.body]}},
        }
    return described


def problems(one: Operation) -> Sequence[int]:
    """Return the statuses of the problems that an operation may answer with."""
    return sorted(
        {400, 401, 403, 500, 503, *one.problems}
        | ({404} if "{" in one.path or one.body is not None else set())
        | ({409, 422} if one.method != "GET" else set())
        | ({408, 413} if one.body is not None else set())
    )


def _success(one: Operation, status: int, of: dict[Any, Any]) -> dict[str, Any]:
    if status == 302:
        return {"description": "Found", "headers": {"location": {"schema": {"type": "string"}}}}
    if isinstance(one.gives, str):
        return {"description": "Success", "content": {one.gives: {}}}
    return {"description": "Success", "content": {"application/json": {"schema": of[shown_as(one.gives)]}}}


@cache
def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document: the events that applications receive, and the two ways they come.

    https://www.asyncapi.com/docs/reference/specification/v3.0.0
    """
    (whole,), schemas = msgspec.json.schema_components(
        [EventDocument], ref_template="#/components/schemas/{name}"
    )
    signed = {name: {"type": "string", "description": does} for name, does in _HEADERS.items()}
    messages: dict[str, Any] = {
        one: {"name": one, "payload": {"allOf": [whole, {"properties": {"type": {"const": one}}}]}}
        for one in EVENT_TYPES
    }
    headers = {"type": "object", "properties": signed, "required": list(signed)}
    delivered = {one: message | {"headers": headers} for one, message in messages.items()}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "receiver", "version": __version__},
        "defaultContentType": "application/json",
        "channels": {
            "destination": {
                "address": None,
                "description": "The URL of a destination in the settings: each event is a POST, until it is answered 2xx.",
                "messages": delivered,
            },
            "stream": {
                "address": "/api/v1/stream",
                "description": "Server-sent events named `event`, each with its cursor as `id`.",
                "messages": messages,
            },
        },
        "operations": {
            "deliver": _sent("destination", "POST"),
            "stream": _sent("stream", "GET"),
        },
        "components": {"schemas": schemas},
    }


def _sent(channel: str, method: str) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{channel}"},
        "bindings": {"http": {"method": method, "bindingVersion": "0.3.0"}},
    }
