"""HTTP/1.1 requests over kept connections: on each one request at a time, one bounded answer to each.

Answers are parsed by llhttp. Where a connection leads, and what it trusts, is the caller's to say. There are no redirects, no
cookies and no decompression, and nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import suppress
from typing import Generic, TypeVar, cast
from weakref import WeakSet

import httptools
from msgspec import Struct

INTERIM_LIMIT = 8
"""The most 1xx answers that are waited out; RFC 9110 sets no limit, and nobody needs more than one or two."""
ANSWER_LIMIT = 128 * 1024
"""Bytes of one answer, head, framing and body, after which no more is read; the last piece may pass it."""
_PIECE = 64 * 1024
"""Bytes of a request's body that are written at once."""

K = TypeVar("K", bound=Hashable)
Connect = Callable[[K], Awaitable["Connection"]]


class Reply(Struct, frozen=True, gc=False):
    """The far side answered: its status line and headers arrived."""

    status: int
    lines: list[tuple[bytes, bytes]]
    """Its headers as they came."""
    body: bytes
    """What came of it within the request's bounds."""
    whole: bool
    """The body came to its end."""

    @property
    def headers(self) -> dict[str, str]:
        """Its headers, names in lower case; of a name that came twice, the first."""
        return {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in reversed(self.lines)
        }


class Unanswered(Exception):
    """Somebody was there, and no answer came."""


class NoAnswer(Unanswered):
    """The far side closed the connection before its answer's head was whole."""


class NotHttp(Unanswered):
    """What came is no HTTP answer, or its head has no end."""


class InterimFlood(Unanswered):
    """More 1xx answers came than are waited out."""


class Bounds(Struct, frozen=True, kw_only=True):
    """How long an answer is waited for, and how much of it is kept."""

    seconds: float
    """From the start of the request, connecting included, to the end of the answer's head."""
    answer_seconds: float = math.inf
    """From the sending of the request to the end of the answer's head."""
    body_seconds: float
    """From the end of the head to the end of the body, within `seconds`: what came by then is the body."""
    body_bytes: int


def with_headers(start: str, headers: Mapping[str, str]) -> str:
    """Return the start of a head with more lines. Raises `ValueError`, which may quote a header, when one cannot be sent."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if not lines.count("\r") == lines.count("\n") == lines.count("\r\n") == len(headers):
        raise ValueError("a line break")
    return start + lines


class Connection(asyncio.Protocol):
    """The client's end of one connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = self._fresh_parser()
        self._answer: asyncio.Future[Reply] | None = None
        self._room: asyncio.Future[None] | None = None
        """Waits for the far side to take what was written; None while it does."""
        self.reusable = True
        """Another request may be sent."""
        self._timer: asyncio.TimerHandle | None = None
        self._ends = math.inf
        """When the wait for what is under way ends, or the rest."""

    def _fresh_parser(self) -> httptools.HttpResponseParser:
        parser = httptools.HttpResponseParser(self)
        parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )  # as browsers and aiohttp take it
        return parser

    async def ask(self, head: bytes, body: bytes, bounds: Bounds, deadline: float) -> Reply:
        """Send a request and return its answer; `deadline` (the loop's clock) ends the wait for its head.

        Raises `TimeoutError`, `Unanswered`, `OSError`. Once the head is here it is answered, however the body ends.
        """
        self._bounds, self._deadline = bounds, deadline
        self._status, self._interim, self._seen, self._whole, self._body = 0, 0, 0, False, b""
        self._headers: list[tuple[bytes, bytes]] = []
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._answer = answer
        self.end_at(min(deadline, self._loop.time() + bounds.answer_seconds))
        try:
            self._transport.write(head + body[:_PIECE])
            if len(body) > _PIECE:
                await self._write_rest(body)
            return await answer
        except BaseException:
            self.close()
            raise

    async def _write_rest(self, body: bytes) -> None:
        view = memoryview(body)
        for start in range(_PIECE, len(body), _PIECE):
            if self._room is not None:
                await self._room
            if self._answer is None:  # the far side did not wait for the whole body
                self.close()
                return
            self._transport.write(view[start : start + _PIECE])

    def close(self) -> None:
        """Hang up, without a word to the far side."""
        self.reusable = False
        self._transport.abort()

    # ------------------------------------------------------------ what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def pause_writing(self) -> None:
        """Wait before more is written."""
        self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        """Go on writing."""
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Parse; bytes that belong to no request end the connection."""
        if self._answer is None:
            self.close()
            return
        self._seen += len(data)
        waiting = not self._status
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if not self._feed_again(data):
                self.reusable = False
                self._end(NotHttp())
                return
        if self._interim > INTERIM_LIMIT:
            self._end(InterimFlood())
        elif self._whole or len(self._body) >= self._bounds.body_bytes:
            self._end()
        elif self._seen > ANSWER_LIMIT:
            self._end(NotHttp())
        elif waiting and self._status:  # from here on the body has its own time
            self.end_at(min(self._deadline, self._loop.time() + self._bounds.body_seconds))

    def end_at(self, ends: float) -> None:
        """Set when the wait for an answer ends, or else the rest, after which it hangs up. The timer is set anew only to fire sooner: one timer serves many requests."""
        self._ends = ends
        timer = self._timer
        if timer is None or ends < timer.when():
            if timer is not None:
                timer.cancel()
            self._timer = self._loop.call_at(ends, self._look_at_time)

    def _look_at_time(self) -> None:
        self._timer = None
        if self._loop.time() < self._ends:
            self.end_at(self._ends)
        elif self._answer is None:
            self.close()
        else:
            self._end(TimeoutError())

    def _feed_again(self, data: bytes) -> bool:
        """Parse a head that says a length twice (RFC 9112, 6.3) with one of them, where it came in one piece; tell whether that could be."""
        head, gap, body = data.partition(b"\r\n\r\n")
        once = b"\r\n".join(dict.fromkeys(head.split(b"\r\n")))
        if self._status or not gap or len(once) == len(head):
            return False
        self._headers.clear()
        self._parser = self._fresh_parser()
        with suppress(httptools.HttpParserError):
            self._parser.feed_data(once + gap + body)
            return True
        return False

    def eof_received(self) -> None:
        """Send nothing more on this connection; the transport closes itself."""
        self.reusable = False

    def connection_lost(self, exc: Exception | None) -> None:
        """End the request that is under way."""
        self.reusable = False
        self._end(exc or NoAnswer())
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        del self._parser  # it knows this object

    # ------------------------------------------------------------ what the parser says

    def on_message_begin(self) -> None:
        """Note an answer that nobody asked for."""
        if self._whole:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers are none."""
        if not self._status:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Know the status, unless the answer is still to come."""
        status = self._parser.get_status_code()
        if self._status:
            return
        if 100 <= status < 200 and status != 101:
            self._interim += 1
            self._headers.clear()
        elif self._interim <= INTERIM_LIMIT:
            self._status = status

    def on_body(self, data: bytes) -> None:
        """Keep a piece."""
        if not self._whole and len(self._body) < self._bounds.body_bytes:
            self._body += data

    def on_message_complete(self) -> None:
        """Note that the answer is whole, and whether the far side keeps the connection."""
        if self._status and not self._whole:
            self._whole = True
            self.reusable &= self._parser.should_keep_alive()

    def _end(self, error: Exception | None = None) -> None:
        """End the request that is under way: with what came when its head is here, else with `error`."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if not (self._whole and self.reusable) or self._transport.get_write_buffer_size():
            self.close()
        if answer.done():  # cancelled
            return
        if self._status:
            body = self._body[: self._bounds.body_bytes]
            answer.set_result(Reply(self._status, self._headers, body, self._whole))
        else:
            answer.set_exception(error or NoAnswer())
            answer.exception()  # a request that is cancelled now will not look at it


class Connections(Generic[K]):
    """Kept connections by the place that they lead to. How many requests are under way at once is the caller's to bound."""

    def __init__(self, connect: Connect[K], idle_seconds: float) -> None:
        """`idle_seconds` is how long a connection is kept for the next request."""
        self._connect = connect
        self._idle_seconds = idle_seconds
        self._idle: dict[K, list[Connection]] = {}
        self._all: WeakSet[Connection] = WeakSet()

    async def ask(self, place: K, head: bytes, body: bytes, bounds: Bounds) -> Reply:
        """Send one request to `place` and return its answer. Raises what connecting raises, and as `Connection.ask`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + bounds.seconds
        kept = self._idle.setdefault(place, [])
        while kept and not kept[-1].reusable:
            kept.pop()
        if kept:
            connection = kept.pop()
        else:
            async with asyncio.timeout_at(deadline):
                connection = await self._connect(place)
            self._all.add(connection)
        answer = await connection.ask(head, body, bounds, deadline)
        if connection.reusable:
            connection.end_at(loop.time() + self._idle_seconds)
            kept.append(connection)
        return answer

    async def close(self) -> None:
        """Hang up, whatever is under way."""
        for connection in self._all:
            connection.close()
        await asyncio.sleep(0)  # the transports close their sockets
