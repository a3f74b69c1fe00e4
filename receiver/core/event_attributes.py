"""What an event says beside its body: the attributes of a message in a queue, and those of a CloudEvent.

CloudEvents 1.0 over HTTP, in structured and in binary mode:
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

from __future__ import annotations

from urllib.parse import quote

import msgspec
from msgspec import Struct, field

STRUCTURED_TYPE = "application/cloudevents+json"
"""The content type of structured mode."""
_PLAIN = "".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("%", "")


class _Data(Struct):
    source: str
    job_id: str | None = None


class About(Struct):
    """The attributes of an event, read from its JSON body."""

    type: str
    time: str = field(name="timestamp")
    """RFC 3339, as the body has it."""
    data: msgspec.Raw
    """The event's data as it stands in the body."""
    source: str = ""
    job_id: str | None = None

    @property
    def attributes(self) -> dict[str, str]:
        """What a message says of its event, by name: consumers filter by it without reading the body."""
        return {"event-type": self.type, "event-source": self.source, "event-time": self.time}


def about(body: bytes) -> About:
    """Return the attributes of an event from its JSON body, whether or not some of its fields were left out."""
    event = msgspec.json.decode(body, type=About)
    data = msgspec.json.decode(event.data, type=_Data)
    event.source, event.job_id = data.source, data.job_id
    return event


def structured(body: bytes, event_id: str) -> bytes:
    """Return a whole event as one JSON document in structured mode."""
    attributes, data = _cloud_event(body, event_id)
    return msgspec.json.encode({**attributes, "datacontenttype": "application/json", "data": data})


def binary(body: bytes, event_id: str) -> tuple[dict[str, str], bytes]:
    """Return the `ce-…` headers of binary mode, and the event's data as the body."""
    attributes, data = _cloud_event(body, event_id)
    # What a header cannot hold is percent-encoded, as the binding says; so is what would end the quoting.
    headers = {f"ce-{name}": quote(value, safe=_PLAIN) for name, value in attributes.items()}
    return headers, bytes(data)


def _cloud_event(body: bytes, event_id: str) -> tuple[dict[str, str], msgspec.Raw]:
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
