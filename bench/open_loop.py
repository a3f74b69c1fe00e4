"""An open-loop load generator: callbacks arrive at a fixed rate, whatever became of those before.

    python -m bench.open_loop PORT KIND RATExSECONDS[,RATExSECONDS…]
    python -m bench.open_loop PORT KIND CONNECTIONScSECONDS

The first form goes through phases of arrivals a second. An arrival takes a connection that is idle, or opens another (2,000 at
most), as a provider does that calls from many machines; who has no answer 10 s after the arrival hangs up. Latencies count from
the arrival that was meant, so a generator that is late itself flatters nobody. The second form is a closed loop: each
connection always has one request under way. KIND is `listen` (2 KB of JSON), or `speech`, `audio` or `large` (8 KB, 96 KB or
960 KB of MP3).

Prints `{}` when it begins, and at the end one JSON line: `records` as [arrival, seconds, status] with the status 0 for who hung up and -1 for a connection
that broke, `without_retry_after`, the connections that were opened, and how late the generator was.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from itertools import count

from bench.load import listen, speech

PATIENCE = 10.0
"""Seconds until the client hangs up: Deepgram's."""
HUNG_UP, BROKEN = 0, -1
_MOST_CONNECTIONS = 2_000
_TICK = 0.001
_MARK = "N" * 24
_PIECES = {"speech": 1, "audio": 12, "large": 120}
"""Pieces of 8 KB in a body of audio."""


def template(kind: str) -> tuple[bytes, bytes]:
    """Return what precedes and what follows the 24 characters by which requests differ."""
    headers, body = listen(_MARK) if kind == "listen" else speech(_MARK)
    body *= _PIECES.get(kind, 1)
    head = f"POST /callbacks/deepgram HTTP/1.1\r\nhost: b\r\n{headers}content-length: {len(body)}\r\n\r\n"
    before, _, after = (head.encode() + body).partition(_MARK.encode())
    return before, after


class Generator:
    """Sends arrivals and notes what became of them."""

    def __init__(self, port: int, kind: str) -> None:
        self._port = port
        self._before, self._after = template(kind)
        self._names: Iterator[bytes] = (
            f"{prefix}{number:012x}".encode() for prefix in (os.urandom(6).hex(),) for number in count()
        )
        self.idle: list[Connection] = []
        self.waiting: deque[float] = deque()
        """Arrivals without a connection."""
        self._under_way: deque[tuple[float, Connection]] = deque()
        self.records: list[tuple[float, float, int]] = []
        self.without_retry_after = 0
        self.opened = self.open = 0
        self.lateness: list[float] = []
        self.again = False
        """A closed loop: who was answered sends the next."""
        self._opening: set[asyncio.Task[None]] = set()

    def request(self) -> bytes:
        """Return the next request."""
        return b"".join((self._before, next(self._names), self._after))

    def note(self, arrival: float, status: int) -> None:
        """Keep what became of an arrival."""
        self.records.append((arrival, time.perf_counter() - arrival, status))

    def arrive(self, arrival: float) -> None:
        """Send on an idle connection, or on a new one."""
        self.lateness.append(time.perf_counter() - arrival)
        if self.idle:
            self._send(self.idle.pop(), arrival)
            return
        self.waiting.append(arrival)
        if self.open < _MOST_CONNECTIONS:
            self.connect()

    def connect(self) -> None:
        """Open one connection more."""
        self.open += 1
        self.opened += 1
        task = asyncio.get_running_loop().create_task(self._connect())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: Connection(self), "127.0.0.1", self._port
            )
        except OSError:
            self.open -= 1
            if self.waiting:
                self.note(self.waiting.popleft(), BROKEN)

    def take(self, connection: Connection) -> None:
        """Give a connection that is free its next arrival."""
        if self.waiting:
            self._send(connection, self.waiting.popleft())
        elif self.again:
            self._send(connection, time.perf_counter())
        else:
            self.idle.append(connection)

    def _send(self, connection: Connection, arrival: float) -> None:
        connection.send(arrival, self.request())
        if not self.again:
            self._under_way.append((arrival, connection))

    def hang_up(self, now: float) -> None:
        """Give up what arrived too long ago."""
        while self._under_way and self._under_way[0][0] < now - PATIENCE:
            arrival, connection = self._under_way.popleft()
            if connection.arrival == arrival:
                connection.give_up()
        while self.waiting and self.waiting[0] < now - PATIENCE:
            self.note(self.waiting.popleft(), HUNG_UP)

    async def phases(self, plan: list[tuple[float, float]]) -> None:
        """Let callbacks arrive, then wait for the last."""
        start = time.perf_counter()
        for rate, seconds in plan:
            due, end = start, start + seconds
            while due < end:
                now = time.perf_counter()
                while due < end and due <= now:
                    self.arrive(due)
                    due += 1 / rate
                self.hang_up(now)
                await asyncio.sleep(_TICK)
            start = end
        await self.quiet()

    async def closed(self, connections: int, seconds: float) -> None:
        """Keep every connection busy for a while."""
        self.again = True
        for _ in range(connections):
            self.connect()
        await asyncio.sleep(seconds)
        self.again = False

    async def quiet(self) -> None:
        """Wait until everything was answered or given up."""
        while self.waiting or any(one.arrival == arrival for arrival, one in self._under_way):
            self.hang_up(time.perf_counter())
            await asyncio.sleep(0.01)


class Connection(asyncio.Protocol):
    """One connection with one request under way at a time."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._buffer = b""
        self.arrival: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._generator.take(self)

    def send(self, arrival: float, request: bytes) -> None:
        self.arrival = arrival
        self._transport.write(request)

    def give_up(self) -> None:
        self._end(HUNG_UP)
        self._transport.abort()

    def _end(self, status: int) -> None:
        if self.arrival is not None:
            self._generator.note(self.arrival, status)
            self.arrival = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        whole = end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(self._buffer) < whole:
            return
        status = int(head[9:12])
        if status == 503 and b"\r\nretry-after:" not in head:
            self._generator.without_retry_after += 1
        self._end(status)
        self._buffer = self._buffer[whole:]
        if b"\r\nconnection: close" in head:
            self._transport.close()
        else:
            self._generator.take(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._generator.open -= 1
        self._end(BROKEN)
        if self in self._generator.idle:
            self._generator.idle.remove(self)


async def main(port: int, kind: str, what: str) -> None:
    """Generate and print."""
    generator = Generator(port, kind)
    gc.freeze()
    gc.disable()
    print("{}", flush=True)
    began = time.perf_counter()
    if "c" in what:
        connections, seconds = what.split("c")
        await generator.closed(int(connections), float(seconds))
    else:
        await generator.phases([(float(r), float(s)) for r, s in (one.split("x") for one in what.split(","))])
    late = sorted(generator.lateness) or [0.0]
    told = {
        "records": [(round(at - began, 5), round(s, 5), status) for at, s, status in generator.records],
        "without_retry_after": generator.without_retry_after,
        "opened": generator.opened,
        "late_p99_ms": 1000 * late[int(0.99 * len(late))],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
