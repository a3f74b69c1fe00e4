"""The way out to a provider: asks, downloads and streams through the guarded client. Implements `fetch.Fetch`.

What the far side does is a value: an answer or a failure. A 2xx reply must come whole. Of any other the status is the answer,
and what comes of its body in a moment is kept: a broken error page must not hide that it was a 404. The one exception that
leaves here is `Unavailable`, when our own disk cannot take a download.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from receiver.core.fetch import Downloaded, Failed, FetchResponse, ServerSentEvent, Stream
from receiver.core.retry import retry_after
from receiver.core.work import OutcomeKind
from receiver.outbound.client import USER_AGENT, Egress, Failure, ReplyBroken, Resolve
from receiver.outbound.guard import Target, follow, listed, target
from receiver.settings.model import SourceSettings
from receiver.system.body_buffer import BodyBuffer
from receiver.system.codings import CodingBroken, Inflater, coding

if TYPE_CHECKING:
    from receiver.outbound.streams import Incoming

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_WIRE_SHARE = 1000
_WIRE_SLACK = 256 * 1024
"""A body may be so much (and a thousandth) longer on the wire than its limit: what the client holds unread, and what a coding
adds to bytes that it cannot shorten."""


class Limits(Struct, frozen=True, kw_only=True):
    """How long, and how much."""

    attempt_seconds: float = 120.0
    """For a whole `download` or `stream`."""
    ask_seconds: float = 30.0
    """For a whole `ask`, and for the head of a download; less when `attempt_seconds` is."""
    idle_seconds: float = 10.0
    """Between two pieces of a body."""
    error_seconds: float = 2.0
    """For the whole body of a reply that is no 2xx."""
    document_bytes: int = 1024 * 1024
    """`ask`, and a reply that is no event stream."""
    error_bytes: int = 16 * 1024
    """Kept of a download's reply that is not 200."""
    stream_bytes: int = 16 * 1024 * 1024
    redirects: int = 5


class _Stop(Exception):
    """A body that goes no further."""

    def __init__(self, failed: Failed) -> None:
        self.failed = failed


class Fetcher:
    """The way out of one source."""

    def __init__(
        self,
        egress: Egress,
        bodies: BodyBuffer,
        *,
        name: str,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`egress` belongs to the fetcher from here on; `clock` (seconds since 1970) reads the dates of `Retry-After`."""
        self._egress = egress
        self._bodies = bodies
        self.name = name
        """The source's name in the configuration."""
        self._limits = limits or Limits()
        self._clock = clock

    @classmethod
    def create(
        cls, settings: SourceSettings, bodies: BodyBuffer, *, resolve: Resolve | None = None
    ) -> Fetcher:
        """Return the fetcher of a source; downloads go to `spool`. `resolve` replaces the system's resolver."""
        egress = Egress(
            timeout_seconds=settings.attempt_seconds,
            connections=2
            * settings.pickup_concurrency,  # an event stream may still be open during the download
            allow=settings.allow,
            ca_file=settings.ca_file,
            resolve=resolve,
        )
        limits = Limits(attempt_seconds=settings.attempt_seconds)
        return cls(egress, bodies, name=settings.name, limits=limits)

    async def open(self) -> None:
        """Make ready to ask; connects to nothing. Raises `ConfigError` when `ca_file` cannot be used."""
        await self._egress.open()

    async def close(self) -> None:
        """Let go of connections."""
        await self._egress.close()

    # ------------------------------------------------------------ the port

    async def ask(self, url: str, *, headers: Mapping[str, str]) -> FetchResponse | Failed:
        """GET a document of at most 1 MiB, in at most 30 s; see `Fetch.ask`."""
        limits = self._limits
        deadline = _Deadline(min(limits.ask_seconds, limits.attempt_seconds), limits.idle_seconds)
        reply = await self._get(target(url), headers, "application/json", deadline.total)
        if isinstance(reply, Failed):
            return reply
        try:
            if not 200 <= reply.status < 300:
                return await self._beginning(reply, limits.document_bytes)
            body = await _Body(reply, limits.document_bytes, deadline).whole()
        except _Stop as stop:
            return _passing(stop.failed)
        finally:
            reply.close()
        return FetchResponse(status=reply.status, headers=self._headers(reply), body=body)

    async def download(
        self, url: str, *, hosts: Sequence[str], limit: int, headers: Mapping[str, str] | None = None
    ) -> Downloaded | FetchResponse | Failed:
        """GET a result into the spool; see `Fetch.download`. Raises `Unavailable` when the disk cannot take it.

        Up to 5 redirects are followed, each judged as the first URL was, and never from https to http.
        """
        limits = self._limits
        deadline = _Deadline(limits.attempt_seconds, limits.idle_seconds)
        secure, where = False, ""
        for _ in range(limits.redirects + 1):
            place = _permitted(target(url), hosts, secure)
            seconds = min(deadline.left(), limits.ask_seconds)
            reply = await self._get(place, headers or {}, "*/*", seconds)
            if isinstance(reply, Failed):
                return reply
            location = reply.headers.get("location") if reply.status in _REDIRECTS and not headers else None
            try:
                if location is None:
                    return await self._take(reply, limit, deadline)
            finally:
                reply.close()
            secure, where = isinstance(place, Target) and place.secure, reply.where
            url = follow(url, location)
        detail = f"{where} leads through more than {limits.redirects} redirects"
        return Failed(kind=OutcomeKind.REFUSED, detail=detail, status=reply.status)

    @asynccontextmanager
    async def stream(
        self, url: str, *, headers: Mapping[str, str], idle_seconds: float
    ) -> AsyncIterator[Stream | Failed]:
        """GET a `text/event-stream`, 16 MiB of it at most; see `Fetch.stream`."""
        deadline = _Deadline(self._limits.attempt_seconds, idle_seconds)
        reply = await self._get(target(url), headers, "text/event-stream", min(deadline.total, idle_seconds))
        if isinstance(reply, Failed):
            yield reply
            return
        try:
            media_type = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
            if reply.status in (200, 201) and media_type == "text/event-stream":
                response = FetchResponse(status=reply.status, headers=self._headers(reply))
                body = _Body(reply, self._limits.stream_bytes, deadline, cut_off=OutcomeKind.UNREACHABLE)
                yield _Events(response, body)
            else:
                yield _Events(await self._beginning(reply, self._limits.document_bytes), None)
        finally:
            reply.close()

    # ------------------------------------------------------------ the parts

    async def _get(
        self, place: Target | str, headers: Mapping[str, str], accept: str, seconds: float
    ) -> Incoming | Failed:
        if isinstance(place, str):
            return Failed(kind=OutcomeKind.BLOCKED, detail=place)
        sent = {"accept": accept, "accept-encoding": "identity", "user-agent": USER_AGENT}
        sent |= {name.lower(): value for name, value in headers.items()}
        reply = await self._egress.get(place, sent, seconds=seconds)
        if isinstance(reply, Failure):
            return Failed(kind=reply.kind, detail=reply.detail)
        return reply

    async def _take(
        self, reply: Incoming, limit: int, deadline: _Deadline
    ) -> Downloaded | FetchResponse | Failed:
        if reply.status != 200:
            return await self._beginning(reply, self._limits.error_bytes)
        incoming = _Body(reply, limit, deadline)
        try:
            incoming.check_length()
            async with aclosing(incoming.pieces()) as pieces:
                ample = deadline.total + 60  # the pieces are timed already
                body = await self._bodies.read(_as_asgi(pieces), limit=limit, total=ample, idle=ample)
        except _Stop as stop:
            return stop.failed
        if not body.size:
            body.discard()
            return Failed(kind=OutcomeKind.UNUSABLE, detail="the result is empty", status=reply.status)
        return Downloaded(headers=self._headers(reply), body=body)

    async def _beginning(self, reply: Incoming, limit: int) -> FetchResponse:
        """Answer with what comes of the body in a moment."""
        kept = bytearray()
        seconds = self._limits.error_seconds
        try:
            body = _Body(reply, sys.maxsize, _Deadline(seconds, seconds))
            async with aclosing(body.pieces()) as pieces:
                async for piece in pieces:
                    kept += piece
                    if len(kept) >= limit:
                        break
        except _Stop:
            pass  # the status is the answer, with or without the rest of the body
        return FetchResponse(status=reply.status, headers=self._headers(reply), body=bytes(kept[:limit]))

    def _headers(self, reply: Incoming) -> dict[str, str]:
        """Return the reply's headers, with `Retry-After` in seconds, or without one that says nothing."""
        headers = dict(reply.headers)
        text = headers.pop("retry-after", None)
        seconds = None if text is None else retry_after(text, self._clock())
        if seconds is not None:
            headers["retry-after"] = str(seconds)
        return headers


class _Events:
    """A `Stream`."""

    def __init__(self, response: FetchResponse, body: _Body | None) -> None:
        self.response = response
        """Status and headers; a body only where there are no events."""
        self._body = body

    async def events(self) -> AsyncIterator[ServerSentEvent | Failed]:
        """Yield the events as they come; see `Stream.events`."""
        if self._body is None:
            return
        reader = EventReader()
        try:
            async for piece in self._body.pieces():
                for event in reader.feed(piece):
                    yield event
        except LineTooLong as error:
            yield Failed(kind=OutcomeKind.UNUSABLE, detail=str(error), status=self.response.status)
        except _Stop as stop:
            yield _passing(stop.failed)


class _Deadline:
    """When a whole request must be done, and how long the far side may be silent."""

    def __init__(self, total: float, idle: float) -> None:
        self.total = total
        self.idle = idle
        self._end = time.monotonic() + total

    def left(self) -> float:
        return self._end - time.monotonic()


def _permitted(place: Target | str, hosts: Sequence[str], secure: bool) -> Target | str:
    """Return `place`, or why no result may come from it; `secure`: what led here was https."""
    if isinstance(place, str):
        return place
    if secure and not place.secure:
        return f"a redirect leads from https to http, at {place.where}"
    if not listed(place.host, hosts):
        return f"{place.where} is not one of the hosts that results may come from"
    return place


class _Body:
    """The body of a reply: timed, bounded, its coding undone. A body that goes no further is a `_Stop`."""

    def __init__(
        self, reply: Incoming, limit: int, deadline: _Deadline, *, cut_off: OutcomeKind = OutcomeKind.UNUSABLE
    ) -> None:
        """`limit` in bytes; `cut_off` is what a body that ends too early is."""
        self._reply, self._limit, self._deadline, self._cut_off = reply, limit, deadline, cut_off

    async def whole(self) -> bytes:
        """Return all of it."""
        self.check_length()
        async with aclosing(self.pieces()) as pieces:
            return b"".join([piece async for piece in pieces])

    def check_length(self) -> None:
        """Stop when `Content-Length` alone says that it is too large; of a coded body it says too little."""
        if not self._reply.headers.get("content-encoding") and (self._reply.length or 0) > self._limit:
            raise self._too_large()

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield it as it comes."""
        named = self._reply.headers.get("content-encoding", "")
        code = coding(named)
        if code is None:
            raise self._stop(f"sends a content coding that is not understood: {named[:40]!a}")
        inflater = Inflater(code) if code else None
        size = 0
        try:
            while data := await self._next():
                for piece in inflater.feed(data) if inflater else (data,):
                    size += len(piece)
                    if size > self._limit:
                        raise self._too_large()
                    yield piece
                if self._reply.received > self._limit + self._limit // _WIRE_SHARE + _WIRE_SLACK:
                    raise self._too_large()
            if inflater and self._reply.received:
                inflater.finish()
        except CodingBroken as error:
            raise self._stop(f"says {code}, but {error}") from None

    async def _next(self) -> bytes:
        reply, deadline = self._reply, self._deadline
        left = deadline.left()
        try:
            async with asyncio.timeout(min(left, deadline.idle)):
                return await reply.read()
        except TimeoutError:
            whole = f"was not done in {deadline.total:g} s"
            silent = f"sent nothing for {deadline.idle:g} s"
            raise self._stop(whole if left <= deadline.idle else silent, OutcomeKind.TIMEOUT) from None
        except ReplyBroken:
            of = "" if reply.length is None else f" of {reply.length}"
            text = f"the body of {reply.where} was cut off after {reply.received}{of} bytes"
            raise _Stop(Failed(kind=self._cut_off, detail=text, status=reply.status)) from None

    def _stop(self, text: str, kind: OutcomeKind = OutcomeKind.UNUSABLE) -> _Stop:
        return _Stop(Failed(kind=kind, detail=f"{self._reply.where} {text}", status=self._reply.status))

    def _too_large(self) -> _Stop:
        return _Stop(replace(self._stop(f"sends more than {self._limit} bytes").failed, too_large=True))


def _passing(failed: Failed) -> Failed:
    """Return a failure of a document or stream as a passing one: a document that is too long may be a proxy's error page."""
    return replace(failed, too_large=False)


def _as_asgi(pieces: AsyncIterator[bytes]) -> Callable[[], Any]:
    """Return pieces as ASGI's `receive` gives a request's body, which is how the body buffer reads it."""

    async def receive() -> MutableMapping[str, Any]:
        piece = await anext(pieces, b"")
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    return receive


# ---------------------------------------------------------------- what bodies are written in


MAX_LINE = 64 * 1024
"""The longest line, in bytes."""
_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


class LineTooLong(ValueError):
    """A line of the stream is longer than `MAX_LINE`."""


class EventReader:
    """Turns pieces of bytes into events. An event that no blank line ended is dropped with the reader."""

    def __init__(self, *, max_line: int = MAX_LINE) -> None:
        self._max_line = max_line
        self._line = bytearray()
        self._first = True
        self._after_cr = False
        self._event = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that `data` completes. Raises `LineTooLong`."""
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")  # the second half of a line's end
        self._after_cr = self._after_cr or data.endswith(b"\r")
        start = 0
        for end in _LINE_END.finditer(data):
            self._add(data[start : end.start()])
            start = end.end()
            event = self._take(bytes(self._line))
            self._line.clear()
            if event is not None:
                yield event
        self._add(data[start:])

    def _add(self, part: bytes) -> None:
        if len(self._line) + len(part) > self._max_line:
            raise LineTooLong(f"a line of the stream is over {self._max_line} bytes")
        self._line += part

    def _take(self, line: bytes) -> ServerSentEvent | None:
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        if name == b"data":
            self._data.append(text)
        elif name == b"event":
            self._event = text
        return None  # `id` and `retry` serve reconnecting; an empty name is a comment

    def _dispatch(self) -> ServerSentEvent | None:
        event, data = self._event or "message", "\n".join(self._data)
        whole = bool(self._data)
        self._event, self._data = "", []
        return ServerSentEvent(event=event, data=data) if whole else None
