"""The destination's port: somewhere an event is sent, one attempt at a time."""

from __future__ import annotations

from typing import Protocol

from receiver.core.work import Outcome


class Destination(Protocol):
    """One configured destination."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""

    async def open(self) -> None:
        """Make ready to send."""

    async def close(self) -> None:
        """Let go of connections."""

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Make one attempt: sign `body` (the whole JSON event) as of `timestamp` (epoch milliseconds) and send it.

        Whatever the far side does is an `Outcome`; nothing it does is raised. Bounded in time and bytes.
        """
