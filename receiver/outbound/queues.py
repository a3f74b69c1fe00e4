"""What destinations have in common that are queues: what a message says, what is too large, one connection for all messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from receiver.core.message import About
from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.signing import Keys

TOO_LARGE = "name fewer fields in the destination's `data`, then replay it"
"""What to do about an event that a queue does not take whole."""
T = TypeVar("T")


def attributes(keys: Keys, event: About, event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return what a message says beside its body: the headers of Standard Webhooks, and what the event is."""
    return keys.headers(event_id, timestamp, body) | event.attributes


def too_large(size: int, limit: int) -> Outcome | None:
    """Return the outcome of a message that is over the queue's limit in bytes; None when it is not."""
    if size <= limit:
        return None
    detail = f"the message has {size:,} bytes and the queue takes {limit:,}: {TOO_LARGE}"
    return Outcome(kind=OutcomeKind.TOO_LARGE, detail=detail)


def refused(detail: str) -> Outcome:
    """Return the outcome of a message that the far side does not take."""
    return Outcome(kind=OutcomeKind.REFUSED, detail=detail)


class Link(Generic[T]):
    """One connection, made when it is needed, and again after it was dropped."""

    def __init__(self, connect: Callable[[], Awaitable[T]], hang_up: Callable[[T], Awaitable[None]]) -> None:
        self._connect, self._hang_up = connect, hang_up
        self._one = asyncio.Lock()
        self._link: T | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def get(self) -> T:
        """Return the connection. Raises what connecting raises."""
        async with self._one:
            if self._link is None:
                self._link = await self._connect()
            return self._link

    def drop(self, link: T | None) -> None:
        """Use a connection no more, and hang up."""
        if link is not None and link is self._link:
            self._link = None
            self.end(link)

    def end(self, link: T) -> None:
        """Hang up, without waiting for it."""
        task = asyncio.create_task(self._end(link))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Hang up."""
        self.drop(self._link)
        await asyncio.gather(*self._ending)

    async def _end(self, link: T) -> None:
        try:
            async with asyncio.timeout(_END_SECONDS):
                await self._hang_up(link)
        except Exception:  # it is gone already, or says nothing more
            return


_END_SECONDS = 2.0
"""How long the far side has for a last word."""


def placed(pattern: str, event_type: str, source: str) -> str:
    """Return a subject or routing key for an event. Raises `ValueError` for a place in braces that there is not."""
    made = pattern.replace("{type}", event_type).replace("{source}", source)
    if "{" in made or "}" in made:
        raise ValueError("write {type} or {source}, and nothing else in braces")
    return made
