"""The attributes of an event beside its body, for a message in a queue and for a CloudEvent."""

from __future__ import annotations

import msgspec


class _Data(msgspec.Struct):
    source: str
    job_id: str | None = None


class About(msgspec.Struct, frozen=True, kw_only=True):
    """The attributes of an event, read from its JSON body."""

    type: str
    time: str
    """RFC 3339, as the body has it."""
    source: str
    job_id: str | None
    data: msgspec.Raw
    """The event's data as it stands in the body."""

    @property
    def attributes(self) -> dict[str, str]:
        """What a message says of its event, by name: consumers filter by it without reading the body."""
        return {"event-type": self.type, "event-source": self.source, "event-time": self.time}


class _Event(msgspec.Struct):
    type: str
    timestamp: str
    data: msgspec.Raw


def about(body: bytes) -> About:
    """Return the attributes of an event from its JSON body, whether or not some of its fields were left out."""
    event = msgspec.json.decode(body, type=_Event)
    data = msgspec.json.decode(event.data, type=_Data)
    return About(
        type=event.type, time=event.timestamp, source=data.source, job_id=data.job_id, data=event.data
    )
