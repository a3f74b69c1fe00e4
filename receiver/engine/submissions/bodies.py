"""The bodies of submissions on their way to the provider: with a time limit for each piece, in flat memory."""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import BinaryIO

from msgspec import Struct

from receiver.core.callback import Body
from receiver.settings.model import SubmitSettings
from receiver.system.body_buffer import Receive, next_piece, too_large
from receiver.system.multipart import PIECE, read_at

START = 64 * 1024
"""Bytes of a body that are waited for before it is sent (what ends within them is known whole), and of an answer that names a job."""
Segment = bytes | tuple[int, int]
"""Literal bytes, or the start and end of a stretch of the received body."""


class Pace:
    """Times a body: each piece within `idle_seconds`, all of it within half an hour, and longer only at more than 64 KiB a second."""

    SECONDS, BYTES_PER_SECOND = 1800.0, 64 * 1024

    def __init__(self, idle_seconds: float) -> None:
        self.idle_seconds = idle_seconds
        self.until = time.monotonic() + self.SECONDS
        """When it has to have ended."""

    def came(self, piece: bytes) -> None:
        """Note a piece."""
        self.until += len(piece) / self.BYTES_PER_SECOND


class Outgoing(Struct, frozen=True):
    """The body of a request."""

    content: AsyncIterator[bytes] | None = None
    """None: there is no body."""
    headers: Mapping[str, str] = {}
    """Those that tell of it, in place of the caller's; without a length it is sent in chunks."""
    digest: str = ""
    """A hash of the caller's body, where it is known before the sending."""


def held(body: Body, segments: Sequence[Segment], content_type: str, digest: str = "") -> Outgoing:
    """Return a body that was received before the sending: literal bytes, and stretches of the received body."""
    length = sum(len(s) if isinstance(s, bytes) else s[1] - s[0] for s in segments)
    headers = {"content-type": content_type, "content-length": str(length)}
    return Outgoing(_pieces(body, segments), headers, digest or body.sha256)


async def _pieces(body: Body, segments: Sequence[Segment]) -> AsyncIterator[bytes]:
    with opened(body) as file:
        for segment in segments:
            if isinstance(segment, bytes):
                yield segment
                continue
            for at in range(*segment, PIECE):
                read = partial(read_at, file, at, min(PIECE, segment[1] - at))
                yield read() if body.path is None else await asyncio.to_thread(read)


def opened(body: Body) -> BinaryIO:
    """Return a received body as a file. Raises `OSError`."""
    return io.BytesIO(body.load()) if body.path is None else open(body.path, "rb")


class Stream:
    """A caller's body as it comes: counted, hashed, and limited in bytes and time."""

    def __init__(
        self, receive: Receive, length: int | None, settings: SubmitSettings, count: Callable[[int], None]
    ) -> None:
        """`count` is called with the length of each piece. Raises `BodyTooLarge` for a length over the limit."""
        self._receive, self._length, self._count = receive, length, count
        self._pace, self._most = Pace(settings.idle_seconds), settings.max_body_bytes
        self._left = self._most
        if (length or 0) > self._most:
            raise too_large(self._most)
        self._digest = hashlib.sha256()
        self._more = True

    async def outgoing(self, ended: Callable[[str], Awaitable[None]] | None) -> Outgoing:
        """Return what is sent of it, once its start is here; `ended` sees the hash of a longer body before its last piece goes out."""
        start = bytearray()
        while self._more and len(start) < START:
            start += await self._next()
        content = self._pieces(bytes(start), ended if self._more else None)
        headers = {} if self._length is None else {"content-length": str(self._length)}
        return Outgoing(content if start else None, headers, "" if self._more else await self.digest())

    async def digest(self) -> str:
        """Return its hash; what was not read yet is read, and not sent any more."""
        while self._more:
            await self._next()
        return self._digest.hexdigest()

    async def _pieces(
        self, held: bytes, ended: Callable[[str], Awaitable[None]] | None
    ) -> AsyncIterator[bytes]:
        while self._more:
            if piece := await self._next():
                yield held
                held = piece
        if ended is not None:
            await ended(self._digest.hexdigest())
        yield held

    async def _next(self) -> bytes:
        piece, self._more = await next_piece(self._receive, self._pace.until, self._pace.idle_seconds)
        self._left -= len(piece)
        if self._left < 0:
            raise too_large(self._most)
        self._digest.update(piece)
        self._pace.came(piece)
        self._count(len(piece))
        return piece
