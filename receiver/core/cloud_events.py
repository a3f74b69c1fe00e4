"""CloudEvents 1.0 over HTTP: an event as a CloudEvent, in structured and in binary mode.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from receiver.core.event_attributes import about

STRUCTURED_TYPE = "application/cloudevents+json"
"""The content type of structured mode."""


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
    event = about(body)
    attributes = {
        "specversion": "1.0",
        "id": event_id,
        "source": f"/sources/{quote(event.source)}",
        "type": event.type,
        "time": event.time,
    }
    if event.job_id:
        attributes["subject"] = event.job_id
    return attributes, event.data
