"""The AsyncAPI 3.0 document: the events that applications receive, and the two ways they come, made from the structs that are sent.

https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from receiver import __version__
from receiver.core.event import EVENT_TYPES
from receiver.core.event_json import EventDocument

_HEADERS = {
    "webhook-id": "The event's id; the same at each attempt.",
    "webhook-timestamp": "When this attempt was made, in seconds since 1970.",
    "webhook-signature": "By Standard Webhooks: `v1,` and base64, one for each secret, separated by blanks.",
}


@cache
def asyncapi() -> dict[str, Any]:
    """Return the description of the events."""
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
