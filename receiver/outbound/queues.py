"""The frame of destinations that take messages (queues, topics, streams), and of those among them that are brokers: their URL,
one connection for all messages, and what its errors mean.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr, field_validator

from receiver.core.event_json import About, about
from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.client import failure_of
from receiver.outbound.destinations import Destination
from receiver.outbound.signing import Keys, Secrets
from receiver.settings.load import own_settings
from receiver.settings.model import DestinationSettings, Section

T = TypeVar("T")
_END_SECONDS = 2.0
"""How long the far side has for a last word."""


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


def refused(detail: str) -> Outcome:
    """Return the outcome of a message that the far side does not take."""
    return Outcome(kind=OutcomeKind.REFUSED, detail=detail)


def too_large(what: str, *, status: int | None = None, response: bytes = b"") -> Outcome:
    """Return the outcome of a message that is too large, and say what to do about it."""
    detail = f"{what}: name fewer fields in the destination's `data`, then replay it"
    return Outcome(kind=OutcomeKind.TOO_LARGE, status=status, detail=detail, response=response)


def over(size: int, limit: int) -> Outcome | None:
    """Return the outcome of a message that is over the queue's limit in bytes; None when it is not."""
    return (
        too_large(f"the message has {size:,} bytes and the queue takes {limit:,}") if size > limit else None
    )


# ---------------------------------------------------------------- brokers


class BrokerSettings(Section):
    """The settings that every kind of broker has."""

    schemes: ClassVar[tuple[str, ...]]
    """How its URLs begin."""
    url: SecretStr
    """Secret since it may hold credentials."""
    ca_file: str | None = None
    secrets: Secrets = ()

    @field_validator("url")
    @classmethod
    def _url(cls, value: SecretStr) -> SecretStr:
        parts = urlsplit(value.get_secret_value())
        if parts.scheme not in cls.schemes or not parts.hostname or parts.port == 0:
            begins = " or ".join(f"{scheme}://" for scheme in cls.schemes)
            raise ValueError(f"it must begin with {begins} and a host")
        return value


class Broker(Queue, Generic[T]):
    """Publishes over one connection, made when it is needed, and again after it broke."""

    def __init__(self, settings: DestinationSettings) -> None:
        super().__init__(settings)
        self._url: str = self._options.url.get_secret_value()
        self._seconds = settings.timeout_seconds
        self._where = urlsplit(self._url).netloc.rpartition("@")[2]
        self._connecting = asyncio.Lock()
        self._link: T | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @abstractmethod
    async def _connect(self) -> T:
        """Connect. Raises what connecting raises; what its library leaves open then is for `_end`."""

    @abstractmethod
    async def _hang_up(self, link: T) -> None:
        """Say a last word and close."""

    @abstractmethod
    def _broken(self, error: Exception) -> Outcome | None:
        """Return what it means that nothing connects, the connection broke, or no answer came; None for a bug."""

    def _unreached(self, error: Exception) -> Outcome:
        return failure_of(error, self._where).outcome

    async def close(self) -> None:
        """Hang up."""
        self._drop(self._link)
        await asyncio.gather(*self._ending)

    async def _work(self, work: Callable[[T], Awaitable[Outcome | None]]) -> Outcome:
        """Do something over the connection within the timeout; `work` returns what the broker says against it, if anything."""
        link = None
        try:
            async with asyncio.timeout(self._seconds):
                async with self._connecting:
                    if self._link is None:
                        self._link = await self._connect()
                    link = self._link
                return await work(link) or Outcome(kind=OutcomeKind.DELIVERED)
        except Exception as error:
            self._drop(link)
            outcome = self._broken(error)
            if outcome is None:
                raise
            return outcome

    def _drop(self, link: T | None) -> None:
        """Use a connection no more, and hang up."""
        if link is not None and link is self._link:
            self._link = None
            self._end(link)

    def _end(self, link: T) -> None:
        """Hang up, without waiting for it."""

        async def ended() -> None:
            with suppress(Exception):  # it is gone already, or says nothing more
                async with asyncio.timeout(_END_SECONDS):
                    await self._hang_up(link)

        task = asyncio.create_task(ended())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def placed(pattern: str, event_type: str, source: str) -> str:
    """Return a subject or routing key for an event. Raises `ValueError` for a place in braces that there is not."""
    made = pattern.replace("{type}", event_type).replace("{source}", source)
    if "{" in made or "}" in made:
        raise ValueError("write {type} or {source}, and nothing else in braces")
    return made
