"""A sink in a process of its own that answers 200 at the least cost and counts.

    python -m bench.sink

Prints its port. Each line on standard input (`expect N`) is answered, once N requests came since the last such line, with one
JSON line: the perf_counter times (machine-wide on Linux) of the first and the last of them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: text/plain\r\n\r\nok"


class Count:
    """Requests so far."""

    def __init__(self) -> None:
        self.first = self.last = 0.0
        self.seen = 0
        self.wanted: int | None = None
        self.reached = asyncio.Event()

    def one(self) -> None:
        now = time.perf_counter()
        if self.seen == 0:
            self.first = now
        self.last = now
        self.seen += 1
        if self.wanted is not None and self.seen >= self.wanted:
            self.reached.set()


class Sink(asyncio.Protocol):
    """Reads heads and content lengths, nothing else."""

    def __init__(self, count: Count) -> None:
        self._count = count
        self._pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while (end := self._pending.find(b"\r\n\r\n")) >= 0:
            _, _, rest = self._pending[:end].lower().partition(b"content-length:")
            whole = end + 4 + int(rest.split(b"\r\n", 1)[0] or 0)
            if len(self._pending) < whole:
                return
            self._pending = self._pending[whole:]
            self._transport.write(_ANSWER)
            self._count.one()


async def main() -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    count = Count()
    server = await loop.create_server(lambda: Sink(count), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        count.wanted = int(line.split()[1])
        if count.seen >= count.wanted:
            count.reached.set()
        await count.reached.wait()
        print(json.dumps({"first": count.first, "last": count.last, "seen": count.seen}), flush=True)
        count.seen, count.wanted = 0, None
        count.reached.clear()


if __name__ == "__main__":
    asyncio.run(main())
