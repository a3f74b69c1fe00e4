"""The bodies of submissions as they go out: timed piece by piece, in flat memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

from receiver.core.callback import Body
from receiver.core.errors import BodyCutOff, BodyTooSlow
from receiver.engine.submissions.injection import read_piece
from receiver.system.files import Receive, too_large

_PIECE = 256 * 1024


class Outgoing:
    """A body that is sent. `limit` is the time of the whole request: it runs anew with each piece, and after the last one."""

    def __init__(self, length: int | None, content_type: str | None = None) -> None:
        """`content_type` replaces the caller's."""
        self.length, self.content_type = length, content_type
        self.limit = asyncio.timeout(None)
        self.idle_seconds = self.answer_seconds = 0.0
        self.waits_for_caller = False
        self.answered = False
        self.error: Exception | None = None
        """What ended it early."""

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield it piece by piece."""
        try:
            self.wait(self.idle_seconds)
            async for piece in self._content():
                self.wait(self.idle_seconds)
                yield piece
            self.wait(self.answer_seconds)
        except Exception as error:
            self.error = error
            raise

    async def _content(self) -> AsyncIterator[bytes]:
        """Yield the body, untimed. This one, of a request without a body, is empty."""
        nothing: tuple[bytes, ...] = ()
        for piece in nothing:
            yield piece

    def wait(self, seconds: float) -> None:
        """Give the request so many seconds from now on."""
        self._set(asyncio.get_running_loop().time() + seconds)

    def _set(self, when: float | None) -> None:
        # A provider may answer before it has read all: then the answer is here, and the body still goes out.
        if not self.answered and not self.limit.expired():
            self.limit.reschedule(when)


class Held(Outgoing):
    """A body that is here already: bytes, and stretches of a body that was read."""

    def __init__(
        self, body: Body, segments: tuple[bytes | tuple[int, int], ...], content_type: str | None = None
    ) -> None:
        super().__init__(sum(len(s) if isinstance(s, bytes) else s[1] - s[0] for s in segments), content_type)
        self._body, self._segments = body, segments
        self._data = b"" if body.path else body.load()

    async def _content(self) -> AsyncIterator[bytes]:
        for segment in self._segments:
            if isinstance(segment, bytes):
                yield segment
                continue
            for at in range(segment[0], segment[1], _PIECE):
                size = min(_PIECE, segment[1] - at)
                if self._body.path is None:
                    yield self._data[at : at + size]
                else:
                    yield await asyncio.to_thread(read_piece, self._body, at, size)


class Stream(Outgoing):
    """A caller's body as it comes: counted and hashed, its last piece held back until `ended` has seen its hash."""

    def __init__(
        self,
        receive: Receive,
        length: int | None,
        *,
        most: int,
        count: Callable[[int], None],
        ended: Callable[[str], Awaitable[None]],
    ) -> None:
        """`most` in bytes; `count` is told of each piece."""
        super().__init__(length)
        self._receive, self._most, self._count = receive, most, count
        self._ended: Callable[[str], Awaitable[None]] | None = ended
        self._first, self._more, self._size = b"", True, 0
        self._digest = hashlib.sha256()

    async def begin(self, idle_seconds: float) -> bool:
        """Wait for the first piece; return False when the body is empty."""
        self.idle_seconds = idle_seconds
        while self._more and not self._first:
            self._first = await self._next()
        return bool(self._first)

    def whole(self) -> str | None:
        """Return the hash of a body that was all in its first piece, so that `ended` need not be told; else None."""
        if self._more:
            return None
        self._ended = None
        return self._digest.hexdigest()

    async def drain(self, idle_seconds: float) -> str:
        """Read it to its end, and return its hash."""
        self.idle_seconds = idle_seconds
        while self._more:
            await self._next()
        return self._digest.hexdigest()

    async def _content(self) -> AsyncIterator[bytes]:
        held = self._first
        while self._more:
            piece = await self._next()
            if piece:
                yield held
                held = piece
        if self._ended is not None:
            self._set(None)  # what it waits for has a time of its own
            await self._ended(self._digest.hexdigest())
        yield held

    async def _next(self) -> bytes:
        self.waits_for_caller = True
        try:
            async with asyncio.timeout(self.idle_seconds):
                message = await self._receive()
        except TimeoutError:
            raise BodyTooSlow from None
        self.waits_for_caller = False
        if message["type"] == "http.disconnect":
            raise BodyCutOff
        piece: bytes = message.get("body", b"")
        self._more = message.get("more_body", False)
        self._size += len(piece)
        if self._size > self._most:
            raise too_large(self._most)
        self._digest.update(piece)
        self._count(len(piece))
        return piece
