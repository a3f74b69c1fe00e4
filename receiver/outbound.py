"""What leaves over HTTP and what comes back (floor 2): the port of the one outbound client, and its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from receiver.model import OutcomeKind

RESPONSE_LIMIT = 16 * 1024
"""Bytes of a reply's body that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The far side answered: its status line and headers arrived."""

    status: int
    headers: Mapping[str, str]
    """Names compare without regard to case."""
    body: bytes
    """At most `RESPONSE_LIMIT` bytes, and what came of them in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """No answer came."""

    kind: OutcomeKind
    """`TIMEOUT`, `UNREACHABLE` or `BLOCKED`."""
    detail: str
    """For a person; names host and port, never the rest of the URL."""


class Outbound(Protocol):
    """The outbound client of one destination: its address guard, its timeout, its connections."""

    async def open(self) -> None:
        """Make ready to send. Raises `ConfigError`."""

    async def close(self) -> None:
        """Let go of connections."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply | Failure:
        """Send one POST, never redirected, and return what came of it; raises only when cancelled.

        The status line and headers are the answer: once they are here, what the body does changes nothing.
        """
