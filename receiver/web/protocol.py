"""The HTTP connection: limits for slow senders (Slowloris) and slow readers, and load shedding as soon as a request's head
is read.

system/body_buffer.py limits slow bodies, and the waiting room of engine/overload.py limits their number.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from receiver.engine.intake import METHODS, OVERLOADED
from receiver.web.callbacks import EXCHANGE, PREFIX, Lines, lines_and_body
from receiver.web.connections import DEFAULT_CONNECTIONS, Connections, Turns
from receiver.web.refused_body import RefusedBody

if TYPE_CHECKING:
    from uvicorn._types import (
        ASGI3Application,
        ASGIReceiveCallable,
        ASGISendCallable,
        ASGISendEvent,
        Scope,
    )

    from receiver.app.wiring import Receiver
    from receiver.web.reloading import Serving


_READ_BYTES = 64 * 1024
"""Most bytes of one read, a quarter of asyncio's own: per connection, they wait in memory until the disk has taken the
bytes before.
"""
_FIRST_SLICE_BYTES, _NEXT_SLICE_BYTES = 4096, 1024
"""Bytes that are parsed at once: the first of a read, and the first after a turn; doubled each time while the slices have
few parts. What is left of a body of known length is one part.
"""
_SLICE_PARTS = 100
"""Parts (header lines, pieces of a body) in one slice from which the connection has to wait for its turn."""
HEAD_LINES = 200
"""Most header lines of a request; aiohttp, too, takes no more than 128."""
HEAD_BYTES = 64 * 1024
"""Most bytes of a request line with its headers; the parser itself has no limit."""
_UNREAD_SECONDS = 30.0
"""How long a peer may leave an answer unread once the socket's buffers are full."""
_TOO_MANY_LINES = f"The request has more than {HEAD_LINES} header lines."
_INVALID = (400, "Invalid HTTP request received.")
_READ, _HEAD, _REST, _NEXT = "read", "head", "rest", "next"
"""What a peer may owe: to read its answer, the rest of a head, of the body of an answered request, or the next request."""
_DECISIVE = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
"""Headers that say for whom a request is and where it ends: read otherwise by a proxy before us, they would let two requests pass for one."""
_PREFIX = PREFIX.encode()
_OFFER = (b"upgrade", b"http2-settings")
_METHODS = tuple(method.encode() for method in METHODS)


def _refusal() -> bytes:
    """Return the headers and body of the answer to a refused callback, which are always the same."""
    lines, body = lines_and_body(OVERLOADED)
    return b"".join(b"%b: %b\r\n" % line for line in lines) + b"\r\n" + body


_REFUSAL = _refusal()


class _Flow(FlowControl):
    """Resumes reading when the received bytes were taken, but not while the connection waits for its turn."""

    def __init__(self, connection: Protocol, transport: Transport) -> None:
        super().__init__(transport)
        self._connection = connection

    def resume_reading(self) -> None:
        if self._connection.waits_for_turn:
            self.read_paused = False
        else:
            super().resume_reading()


def protocol(
    serving: Serving, *, intake: bool = True, max_connections: int = DEFAULT_CONNECTIONS
) -> type[Protocol]:
    """Return the protocol of a process; with `intake` it takes callbacks."""

    class ProcessProtocol(Protocol):
        _connections = Connections(max_connections)
        _turns = Turns()
        _serving = serving if intake else None
        head_seconds = serving.receiver.timing.head_seconds

    return ProcessProtocol


class Exchange:
    """A direct path for a callback's request and answer around ASGI's messages, each of which costs a wait or a system call."""

    def __init__(self, connection: Protocol, cycle: RequestResponseCycle, serving: Serving) -> None:
        self._connection, self._cycle, self._serving = connection, cycle, serving

    def body(self) -> bytes | None:
        """Return the body, once, if it came whole with its head, as short ones do; None when it has to be received."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected:
            return None
        body = bytes(cycle.body)
        cycle.body = bytearray()  # a connection keeps its cycle until the next request
        return body

    def answer(self, status: int, lines: Lines, body: bytes) -> bool:
        """Send a whole answer; return False while the peer does not read earlier ones."""
        connection, cycle = self._connection, self._cycle
        if connection.flow.write_paused:
            return False
        if cycle.disconnected:
            return True
        cycle.keep_alive = cycle.keep_alive and not (_unasked(cycle) or self._serving.receiver.stopping)
        content = connection.top(status)
        for name, value in lines:
            content += (name, b": ", value, b"\r\n")
        content += (b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n", body)
        connection.transport.write(b"".join(content))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            connection.transport.close()
        cycle.on_response()
        return True


def _unasked(cycle: RequestResponseCycle) -> bool:
    """Tell whether the sender still waits for `100 Continue`: it sends no body now, and what follows would be taken for it."""
    return cycle.waiting_for_100_continue and cycle.more_body


async def _answered_unasked(
    cycle: RequestResponseCycle,
    app: ASGI3Application,
    scope: Scope,
    receive: ASGIReceiveCallable,
    send: ASGISendCallable,
) -> None:
    """Call `app`; an answer before it asked for the body ends the connection."""

    async def sent(message: ASGISendEvent) -> None:
        cycle.keep_alive = cycle.keep_alive and not _unasked(cycle)
        await send(message)

    await app(scope, receive, sent)


class Protocol(HttpToolsProtocol):
    """One connection.

    Load shedding happens here, as soon as a callback's head is read. Refusing in the application costs a third of accepting
    a callback: at three times the capacity, refusals alone would take all the time. The body of a refused callback is read
    and dropped: closing the connection before its end could keep the answer from the sender.
    """

    _serving: ClassVar[Serving | None] = None
    """Holds the receiver that takes callbacks, with the present settings; None if this process takes none."""
    _connections: ClassVar[Connections] = Connections(DEFAULT_CONNECTIONS)
    _turns: ClassVar[Turns] = Turns()
    head_seconds: ClassVar[float] = 15.0
    """Seconds from a head's first byte to its last.

    A connection without a byte is kept as long as one between two requests: load balancers open some ahead. Each connection
    takes a file descriptor, of which many systems give a process 1,024: peers that never end their heads would take them all.
    """
    _plain = 0
    """Bytes since the end of the last request's head, or the last piece of a body."""
    _had_body = False
    _length = 0
    """The `Content-Length` in the head; 0 without one."""
    _body_left = 0
    """Bytes of the body that are still to come by its `Content-Length`."""
    _begun = False
    """A head has begun, and has not ended."""
    _in_body = False
    """A head ended, and its body has not."""
    _named = False
    """The head has a `Host`."""
    _unfit = _INVALID
    """The answer to a head that cannot be taken."""
    offered = False
    """The last head offers a protocol upgrade, and is parsed again without the offer."""
    _refused = False
    """The last request was refused, or is dropped."""
    _closing = False
    """The connection is closed after the refused request."""
    _dropping = False
    """No more requests are taken: the connection closes, at once or after the present answers."""
    _owes = ""
    """What the peer owes now, in a time of its own: `_READ`, `_HEAD`, `_REST` or `_NEXT`; "" for nothing."""
    _until = 0.0
    """When that time is over."""
    _timer: TimerHandle | None = None
    """Looks at that time. One serves the whole connection: making and ending one for each request costs too much."""
    _parts = 0
    """Header lines and pieces of a body in the slice that is parsed."""
    _unparsed: bytes | None = None
    """Bytes that wait for the connection's turn; None if none do."""

    @property
    def waits_for_peer(self) -> bool:
        """True unless a whole request came and is not answered yet."""
        return self._is_answered() or (self._in_body and not self.pipeline)

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # uvicorn narrows the parameter of asyncio's in the same way
        """Wait for the first head to begin, for a while."""
        super().connection_made(transport)
        self.flow = _Flow(self, transport)
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]  # of asyncio's sockets, not of its interface
        self._connections.add(self)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer and the last request."""
        self._connections.remove(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().connection_lost(exc)
        self.cycle = self.scope = None  # type: ignore[assignment]  # as before the first one

    # ------------------------------------------------------------ what comes

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._connections.touch(self)
        self._take(data, _FIRST_SLICE_BYTES)

    def _take(self, data: bytes, size: int) -> None:
        """Parse in slices, the first of this size, and let a connection with too many parts in one of them wait for its turn."""
        at = 0
        while at < len(data):
            self._parts = 0
            end = at + max(size, self._body_left)
            self._take_slice(data[at:end])
            at, size = end, 2 * size
            if self.transport.is_closing():
                return
            if self._parts > _SLICE_PARTS:
                self._unparsed = data[at:]
                self.transport.pause_reading()
                self._turns.add(self)
                return
        if self._refused and self._body_left > 0:
            self.transport.set_protocol(RefusedBody(self, self._body_left))

    def end_refused_body(self) -> None:
        """Take the next request. The parser still waits for the body, which it did not see: another one begins."""
        self._begin_parser()
        self._body_left = self._plain = 0
        self.on_message_complete()
        self._watch()

    def _begin_parser(self) -> None:
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own

    @property
    def waits_for_turn(self) -> bool:
        """True while nothing is read because of what came in tiny parts."""
        return self._unparsed is not None

    def go_on(self) -> None:
        """Take what waited for this turn, and read on."""
        waited, self._unparsed = self._unparsed or b"", None
        if self.transport.is_closing():
            return
        self._take(waited, _NEXT_SLICE_BYTES)
        if not (self.waits_for_turn or self.flow.read_paused):
            self.transport.resume_reading()

    def _take_slice(self, data: bytes) -> None:
        """Parse, and refuse what is no request, and a head that does not end or has too many lines."""
        self._had_body = False
        try:
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as offer:
                self._ignore_offer(data[offer.args[0] :])
        except HttpParserError:
            self._end_with(*self._unfit)
            return
        self._plain = 0 if self._had_body else self._plain + len(data)
        if self.transport.is_closing():
            return
        lines = len(self.headers or ())
        self._parts += lines
        if self._begun and lines > HEAD_LINES:
            self._end_with(400, _TOO_MANY_LINES)
        elif self._plain > HEAD_BYTES:
            self._end_with(400, "The request's headers are too long.")
        else:
            self._watch()

    def _ignore_offer(self, rest: bytes) -> None:
        """Ignore an offer to change the protocol, as a server may (RFC 9110, 7.8), and parse the rest. Raises `HttpParserError`.

        The parser takes all that follows the head of such a request for the other protocol's bytes. So the request is read
        anew, without the offer.
        """
        if not self.offered:  # CONNECT
            self._unsupported_upgrade_warning()
            return
        again = self._without_offer()
        self._begin_parser()
        try:
            self.parser.feed_data(again + rest)
        except HttpParserUpgrade as offer:  # of a later request in the same slice
            self._ignore_offer((again + rest)[offer.args[0] :])

    def _without_offer(self) -> bytes:
        """Return the head that came last, without its offer to change the protocol."""
        lines = [
            b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        ]
        for name, value in self.headers:
            words = value.split(b",") if name == b"connection" else (value,)
            if name not in _OFFER:
                kept = b",".join([word for word in words if word.strip().lower() not in _OFFER])
                lines.append(b"%b: %b" % (name, kept))
        return b"\r\n".join(lines) + b"\r\n\r\n"

    # ------------------------------------------------------------ time

    def _is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]  # annotated as never None, and None until the first request

    def _watch(self) -> None:
        """Give the peer its time for what it owes now; system/body_buffer.py limits that of a body that is not answered yet."""
        if self.flow.write_paused:
            owes, seconds = _READ, _UNREAD_SECONDS
        elif self._begun:
            owes, seconds = _HEAD, self.head_seconds
        else:
            owes, seconds = (_REST if self._in_body else _NEXT), float(self.timeout_keep_alive)
            if not self._is_answered():
                owes = ""
        if owes == self._owes:  # and its time goes on, whatever comes of it
            return
        self._owes = owes
        if owes:
            self._until = self.loop.time() + seconds
            if self._timer is not None and self._timer.when() > self._until:
                self._timer.cancel()
                self._timer = None
            if self._timer is None:
                self._timer = self.loop.call_at(self._until, self._look)

    def _look(self) -> None:
        """End the connection if its time is over, and look again in time if not."""
        self._timer = None
        if not self._owes or (self.transport.is_closing() and self._owes is not _READ):
            return
        if self._owes is _HEAD and self._until <= self.loop.time() and not self._is_answered():
            # The request before it is still being answered, and an answer to this one would come in between.
            self._until += self.head_seconds
        if self._until > self.loop.time():
            self._timer = self.loop.call_at(self._until, self._look)
        elif self._owes is _READ:
            self.transport.abort()
        elif self._owes is _HEAD:
            self._end_with(408, "The request's headers took too long.")
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """The peer does not read: wait for it, for a while."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The peer reads again."""
        super().resume_writing()
        self._watch()

    # ------------------------------------------------------------ requests

    def on_message_begin(self) -> None:
        """A head begins; if it does not end in the same slice, it is timed."""
        self._begun, self._named, self._length = True, False, 0
        if self._owes is not _READ:
            self._owes = ""
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line, of a head or of a trailer. Raises `ValueError`, which ends the connection."""
        name = name.lower()
        if name in _DECISIVE and self._begun:
            self._decide(name, value.strip().lower())
        self.headers.append((name, value))

    def _decide(self, name: bytes, value: bytes) -> None:
        """Refuse a second `Host` (RFC 9112, 3.2), and codings of the transfer other than chunked (6.1)."""
        if name == b"expect":
            self.expect_100_continue = self.expect_100_continue or value == b"100-continue"
        elif name == b"content-length":
            self._length = int(value)
        elif name == b"host":
            if self._named:
                self._refuse_head(400, "The request has two Host headers.")
            self._named = True
        elif value != b"chunked":
            self._refuse_head(
                501, "The Transfer-Encoding is not understood: send chunked, or a Content-Length."
            )

    def _refuse_head(self, status: int, message: str) -> None:
        self._unfit = (status, message)
        raise ValueError(message)

    def on_headers_complete(self) -> None:
        """The head ended: begin, or refuse. Raises `ValueError`, which ends the connection, when it is unfit."""
        self._parts += len(self.headers)
        if len(self.headers) > HEAD_LINES:
            self._refuse_head(400, _TOO_MANY_LINES)
        if not self._named and self.parser.get_http_version() == "1.1":
            self._refuse_head(400, "The request has no Host header.")
        self.offered = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self.offered:
            return
        self.headers = []  # of its trailer, which says nothing: a proxy vouches for what stands in the head
        self._plain = 0
        self._begun, self._in_body, self._body_left = False, True, self._length
        if self.pipeline:  # one request waits for the answer to another already
            self.pipeline[0][0].keep_alive = False
        self._dropping = self._dropping or bool(self.pipeline) or self.transport.is_closing()
        self._refused = self._dropping
        if self._dropping:
            return
        serving = self._serving
        if serving is None or not self.url.startswith(_PREFIX) or self.parser.get_method() not in _METHODS:
            super().on_headers_complete()
        # A request that came before the last answer was given waits for it; the intake refuses it then, if need be.
        elif self._is_answered() and serving.receiver.intake.sheds(
            self._source(), self.parser.get_method().decode()
        ):
            self._refuse(serving.receiver)
        else:
            super().on_headers_complete()
            self.scope["state"][EXCHANGE] = Exchange(self, self.cycle, serving)

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self._had_body = True
        self._body_left -= len(body)
        self._parts += 1
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request ended."""
        if self.offered:
            return
        self._in_body = False
        self._parts += len(self.headers)
        if not self._refused:
            super().on_message_complete()
        elif self._closing:
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if cycle.waiting_for_100_continue:
            app = partial(_answered_unasked, cycle, app)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Begin the request that waited for this answer, or wait for the next."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._watch()

    # ------------------------------------------------------------ answers

    def top(self, status: int) -> list[bytes]:
        """Return the first lines of an answer."""
        content = [STATUS_LINE[status]]
        for name, value in self.server_state.default_headers:
            content += (name, b": ", value, b"\r\n")
        return content

    def _end_with(self, status: int, message: str) -> None:
        """Answer a head that is not taken, and end the connection."""
        self.logger.warning(message)
        kind = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(b"".join([*self.top(status), kind % len(message), message.encode()]))
        self.transport.close()

    def _source(self) -> str:
        return self.url[len(_PREFIX) :].partition(b"?")[0].partition(b"/")[0].decode("latin-1")

    def _refuse(self, receiver: Receiver) -> None:
        self._refused = True
        # A sender that waits for `100 Continue` sends no body now: what follows would be no body. One that reads no answers
        # gets no more of them: they would wait in memory.
        self._closing = (
            self.expect_100_continue
            or self.flow.write_paused
            or receiver.stopping
            or self.parser.get_http_version() == "1.0"
            or not self.parser.should_keep_alive()
        )
        content = self.top(OVERLOADED.status)
        if self._closing:
            content.append(b"connection: close\r\n")
        content.append(_REFUSAL)
        self.transport.write(b"".join(content))
