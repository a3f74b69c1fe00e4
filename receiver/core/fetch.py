"""The network as provider adapters see it: a port and its values. Pure, no I/O.

Failures are values, not exceptions. A reply with any status is an answer; the adapter decides its meaning.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from msgspec import Struct

from receiver.core.callback import HeldBody
from receiver.core.errors import ReceiverError
from receiver.core.work import OutcomeKind


class Failed(Struct, frozen=True, kw_only=True):
    """An attempt that failed; it is made again after a while, until the pickup's deadline."""

    kind: OutcomeKind
    """`REFUSED`, `TIMEOUT`, `UNREACHABLE`, `BLOCKED` or `UNUSABLE`."""
    detail: str
    """For a person; names host and port, never the rest of a URL."""
    status: int | None = None
    retry_after: float | None = None
    """Seconds that the server's `Retry-After` names."""
    too_large: bool = False
    """The bytes were over the limit: another try would find the same."""


class FetchResponse(Struct, frozen=True, kw_only=True):
    """The far side answered."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case; of a name that came twice, the first."""
    body: bytes = b""
    """`ask`: the whole body. `download`: up to 16 KiB of it, when the status is not 200."""

    @property
    def retry_after(self) -> float | None:
        """Seconds that `Retry-After` asks for (whole seconds; dates are turned into seconds by the fetcher)."""
        value = self.headers.get("retry-after", "")
        return float(value) if value.isascii() and value.isdigit() else None


class Downloaded(Struct, frozen=True, kw_only=True):
    """A body, whole, counted and hashed, in a temporary place; the caller of `download` discards it."""

    headers: Mapping[str, str]
    body: HeldBody


class ServerSentEvent(Struct, frozen=True, kw_only=True):
    """One event of a `text/event-stream`."""

    event: str
    """`message` when the stream gave no name."""
    data: str


class Stream(Protocol):
    """A reply of which the events are read as they come."""

    @property
    def response(self) -> FetchResponse:
        """Status and headers; the body only when it is no event stream with status 200 or 201."""

    def events(self) -> AsyncIterator[ServerSentEvent | Failed]:
        """Yield events until the stream ends; a connection that breaks or falls silent yields one `Failed`, last."""


class KeysNeeded(ReceiverError):
    """The provider's public keys have to be fetched before the callback can be checked."""

    def __init__(self, fetch: Callable[[Fetch, int], Awaitable[bool]]) -> None:
        """`fetch(fetch, now)` gets the keys, unless that was just tried, and returns whether any are known."""
        super().__init__()
        self.fetch = fetch


class Fetch(Protocol):
    """The way out to a provider, guarded (addresses, sizes, times), for one source."""

    async def ask(self, url: str, *, headers: Mapping[str, str]) -> FetchResponse | Failed:
        """GET a small document (1 MiB at most) from the provider's API. Never redirected: the headers hold a key."""

    async def download(
        self, url: str, *, hosts: Sequence[str], limit: int, headers: Mapping[str, str] | None = None
    ) -> Downloaded | FetchResponse | Failed:
        """GET a result: `Downloaded` for 200, `FetchResponse` for any other status.

        `hosts` are the host names that `url` and every redirect may have, with all below them; `*` is any. `limit` in
        bytes, after a content coding is undone. With `headers` (they hold a key) nothing is redirected.
        """

    def stream(
        self, url: str, *, headers: Mapping[str, str], idle_seconds: float
    ) -> AbstractAsyncContextManager[Stream | Failed]:
        """GET a `text/event-stream`. Never redirected. Silence of `idle_seconds` is a failure."""
