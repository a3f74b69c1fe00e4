"""Which client for the relay: POST 2 KB of JSON, keep-alive, 64 in flight, to a sink in another process on loopback.

    python -m bench.http_clients [--requests 8000] [--in-flight 64] [--rounds 3]

Prints, for each client, requests a second, CPU of this process for each request, and the ratio to a bare aiohttp loop.
The rounds are interleaved, and the best of each client counts: the machine may be shared.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection

import aiohttp
import httpx2

from receiver.outbound.client import Egress
from receiver.system.http1 import Reply

BODY = b'{"type":"speech.completed","data":{"x":"' + b"a" * 2000 + b'"}}'
HEADERS = {"content-type": "application/json", "webhook-id": "evt_1", "webhook-timestamp": "1"}
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: text/plain\r\n\r\nok"

Post = Callable[[], Awaitable[int]]


class Sink(asyncio.Protocol):
    """Answers 200 to every request, at the least cost: it reads heads, content lengths and nothing else."""

    def __init__(self) -> None:
        self._pending = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while (end := self._pending.find(b"\r\n\r\n")) >= 0:
            head = self._pending[:end].lower()
            _, _, rest = head.partition(b"content-length:")
            whole = end + 4 + int(rest.split(b"\r\n", 1)[0] or 0)
            if len(self._pending) < whole:
                return
            self._pending = self._pending[whole:]
            assert self._transport is not None
            self._transport.write(ANSWER)


def serve(port: Connection) -> None:
    """Run the sink in this process and tell its port; ends with the process."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """httpx2's API over aiohttp's connections."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        async with self._session.request(
            request.method, str(request.url), data=request.content, headers=request.headers.multi_items()
        ) as reply:
            return httpx2.Response(
                reply.status, headers=list(reply.headers.items()), content=await reply.read()
            )


@asynccontextmanager
async def bare_aiohttp(url: str, in_flight: int) -> AsyncIterator[Post]:
    """aiohttp, used directly."""
    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:

        async def post() -> int:
            async with session.post(url, data=BODY, headers=HEADERS, allow_redirects=False) as reply:
                await reply.read()
                return reply.status

        yield post


@asynccontextmanager
async def plain_httpx2(url: str, in_flight: int) -> AsyncIterator[Post]:
    """httpx2 on its own transport."""
    limits = httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    async with httpx2.AsyncClient(limits=limits, trust_env=False, timeout=15) as client:

        async def post() -> int:
            return (await client.post(url, content=BODY, headers=HEADERS)).status_code

        yield post


@asynccontextmanager
async def httpx2_over_aiohttp(url: str, in_flight: int) -> AsyncIterator[Post]:
    """httpx2 on a transport of aiohttp connections."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight)) as session,
        httpx2.AsyncClient(transport=AiohttpTransport(session), trust_env=False, timeout=15) as client,
    ):

        async def post() -> int:
            return (await client.post(url, content=BODY, headers=HEADERS)).status_code

        yield post


@asynccontextmanager
async def own(url: str, in_flight: int) -> AsyncIterator[Post]:
    """The client of deliveries, address guard included."""
    client = Egress(timeout_seconds=15, connections=in_flight, allow=["127.0.0.0/8"])
    await client.open()
    request = client.prepared(url, HEADERS)

    async def post() -> int:
        reply = await client.post(request, {}, BODY)
        assert isinstance(reply, Reply), reply
        return reply.status

    yield post
    await client.close()


CLIENTS = {
    "receiver's own": own,
    "aiohttp": bare_aiohttp,
    "httpx2": plain_httpx2,
    "httpx2 over aiohttp": httpx2_over_aiohttp,
}


async def drive(post: Post, requests: int, in_flight: int) -> tuple[float, float]:
    """Return wall seconds and CPU seconds for `requests` posts."""
    left = iter(range(requests))

    async def worker() -> None:
        for _ in left:
            assert await post() == 200

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return time.perf_counter() - wall, time.process_time() - cpu


async def measure(url: str, requests: int, in_flight: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Return for each client its best requests a second and the CPU milliseconds of a request."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for name, client in CLIENTS.items():
            async with client(url, in_flight) as post:
                await drive(post, in_flight * 2, in_flight)
                wall, cpu = await drive(post, requests, in_flight)
            found = (requests / wall, cpu / requests * 1000)
            best[name] = max(best.get(name, found), found)
    return best


def main() -> None:
    """Start the sink, measure, print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=8000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    sink = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    sink.start()
    try:
        url = f"http://127.0.0.1:{ours.recv()}/hooks"
        table = asyncio.run(measure(url, chosen.requests, chosen.in_flight, chosen.rounds))
    finally:
        sink.terminate()
        sink.join()
    base = table["aiohttp"][0]
    print(f"{'client':24}{'requests/s':>12}{'CPU ms each':>14}{'ratio':>8}")
    for name, (rate, cpu) in table.items():
        print(f"{name:24}{rate:12.0f}{cpu:14.3f}{rate / base:8.2f}")


if __name__ == "__main__":
    main()
