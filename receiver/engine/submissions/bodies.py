"""The bodies of submissions on their way to the provider: with a time limit for each piece, in flat memory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from receiver.core.callback import Body
from receiver.system.body_buffer import Receive, next_piece, too_large

PIECE = 256 * 1024
"""The most bytes of a held body that are read at once."""
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


class Outgoing:
    """The body of a request; without `content` it is empty. `limit` is the time of the whole request, and runs anew with each piece."""

    def __init__(
        self,
        content: AsyncIterator[bytes] | None = None,
        length: int | None = None,
        *,
        content_type: str | None = None,
        digest: str = "",
    ) -> None:
        """Without a `length` in bytes it is sent in chunks; `content_type` stands in place of the caller's. `digest` is a hash
        of the caller's body, where it is not that of its bytes.
        """
        self.content, self.length = content, length
        self.content_type, self.digest = content_type, digest
        self.limit = asyncio.Timeout(None)  # made in a thread, where there is no loop
        self.error: Exception | None = None
        """The error that ended the body early."""

    async def timed(
        self, content: AsyncIterator[bytes], idle_seconds: float, answer_seconds: float
    ) -> AsyncIterator[bytes]:
        """Yield it: the provider takes each piece within `idle_seconds`, and answers within `answer_seconds`."""
        try:
            self.wait(None)
            async for piece in content:
                self.wait(idle_seconds)
                yield piece
                self.wait(None)  # the next piece has a time of its own
            self.wait(answer_seconds)
        except Exception as error:
            self.error = error
            raise

    def wait(self, seconds: float | None) -> None:
        """Set the time limit of the request, from now; None is no limit."""
        # A provider may answer before it has read all: then the limit has ended, and the body still goes out.
        with contextlib.suppress(RuntimeError):
            self.limit.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)


def held_body(
    body: Body, segments: Sequence[Segment], *, content_type: str | None = None, digest: str = ""
) -> Outgoing:
    """Return a body that was received before the sending: literal bytes, and stretches of the received body."""
    length = sum(len(s) if isinstance(s, bytes) else s[1] - s[0] for s in segments)
    return Outgoing(_pieces(body, segments), length, content_type=content_type, digest=digest)


async def _pieces(body: Body, segments: Sequence[Segment]) -> AsyncIterator[bytes]:
    for segment in segments:
        if isinstance(segment, bytes):
            yield segment
            continue
        for at in range(*segment, PIECE):
            size = min(PIECE, segment[1] - at)
            in_memory = body.path is None
            yield (
                read_piece(body, at, size)
                if in_memory
                else await asyncio.to_thread(read_piece, body, at, size)
            )


def read_piece(body: Body, at: int, size: int) -> bytes:
    """Return some bytes of a body. Raises `OSError`."""
    if body.path is None:
        return body.load()[at : at + size]
    fd = os.open(body.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size, at)
    finally:
        os.close(fd)


class Stream(Outgoing):
    """A caller's body as it comes: counted and hashed, its last piece held back until `ended` has seen its hash."""

    def __init__(
        self,
        receive: Receive,
        length: int | None,
        *,
        most: int,
        idle_seconds: float,
        count: Callable[[int], None],
    ) -> None:
        """`most` is the limit in bytes; `count` is called with the length of each piece."""
        super().__init__(self._pieces(), length)
        self._receive, self._most, self._count = receive, most, count
        self._pace = Pace(idle_seconds)
        self._first, self._size = b"", 0
        self._digest = hashlib.sha256()
        self.ended: Callable[[str], Awaitable[None]] | None = None
        self.more = True
        """More of the body may still come."""

    async def begin(self) -> bool:
        """Wait for the first piece; return False when the body is empty. Raises `BodyTooLarge` for a length over the limit."""
        if self.length is not None and self.length > self._most:
            raise too_large(self._most)
        while self.more and not self._first:
            self._first = await self._next()
        return bool(self._first)

    async def whole_digest(self) -> str:
        """Return its hash: it is read to its end, and not sent any more, unless its first piece is all of it."""
        while self.more:
            await self._next()
        return self._digest.hexdigest()

    async def _pieces(self) -> AsyncIterator[bytes]:
        held = self._first
        while self.more:
            piece = await self._next()
            if piece:
                yield held
                held = piece
        if self.ended is not None:
            await self.ended(self._digest.hexdigest())
        yield held

    async def _next(self) -> bytes:
        pace = self._pace
        piece, self.more = await next_piece(self._receive, pace.until, pace.idle_seconds)
        self._size += len(piece)
        if self._size > self._most:
            raise too_large(self._most)
        self._digest.update(piece)
        pace.came(piece)
        self._count(len(piece))
        return piece
