"""The frame of destinations that take messages (queues, topics, streams): what a message says, and when it is too large."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

from receiver.core.event_attributes import About, about
from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.destinations import Destination
from receiver.outbound.signing import Keys
from receiver.settings.load import own_settings
from receiver.settings.model import DestinationSettings

TOO_LARGE = "name fewer fields in the destination's `data`, then replay it"
"""What to do about an event that a queue does not take whole."""


class Message(NamedTuple):
    """One event as a message."""

    event_id: str
    body: bytes
    event: About
    labels: dict[str, str]
    """What it says beside its body: the headers of Standard Webhooks, and what the event is."""


class Queue(Destination):
    """A destination that takes each event as one message."""

    def __init__(self, settings: DestinationSettings) -> None:
        super().__init__(settings)
        self._options: Any = own_settings(self.Settings, settings)
        self._keys = Keys(getattr(self._options, "secrets", ()))

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Send the event as one message, with its signature and what it is beside it."""
        event = about(body)
        labels = self._keys.headers(event_id, timestamp, body) | event.attributes
        return await self._put(Message(event_id, body, event, labels))

    @abstractmethod
    async def _put(self, message: Message) -> Outcome:
        """Make one attempt to have the far side keep a message."""


def too_large(size: int, limit: int) -> Outcome | None:
    """Return the outcome of a message that is over the queue's limit in bytes; None when it is not."""
    if size <= limit:
        return None
    detail = f"the message has {size:,} bytes and the queue takes {limit:,}: {TOO_LARGE}"
    return Outcome(kind=OutcomeKind.TOO_LARGE, detail=detail)
