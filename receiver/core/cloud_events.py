"""CloudEvents 1.0 over HTTP: an event as a CloudEvent, in structured and in binary mode.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

from __future__ import annotations

from urllib.parse import quote

import msgspec

STRUCTURED_TYPE = "application/cloudevents+json"
"""The content type of structured mode."""


class _Data(msgspec.Struct):
    source: str
    job_id: str | None = None


class _Event(msgspec.Struct):
    type: str
    timestamp: str
    data: msgspec.Raw


def structured(body: bytes, event_id: str) -> bytes:
    """Return a whole event as one JSON document in structured mode."""
    attributes, data = _taken_apart(body, event_id)
    return msgspec.json.encode({**attributes, "datacontenttype": "application/json", "data": data})


def binary(body: bytes, event_id: str) -> tuple[dict[str, str], bytes]:
    """Return the `ce-…` headers of binary mode, and the event's data as the body."""
    attributes, data = _taken_apart(body, event_id)
    # What a header cannot hold is percent-encoded, as the binding says; so is what would end the quoting.
    headers = {f"ce-{name}": quote(value, safe=_PLAIN) for name, value in attributes.items()}
    return headers, bytes(data)


_PLAIN = "".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("%", "")


def _taken_apart(body: bytes, event_id: str) -> tuple[dict[str, str], msgspec.Raw]:
    event = msgspec.json.decode(body, type=_Event)
    about = msgspec.json.decode(event.data, type=_Data)
    attributes = {
        "specversion": "1.0",
        "id": event_id,
        "source": f"/sources/{quote(about.source)}",
        "type": event.type,
        "time": event.timestamp,
    }
    if about.job_id:
        attributes["subject"] = about.job_id
    return attributes, event.data
