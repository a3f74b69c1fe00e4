"""A load generator on bare asyncio protocols: each connection sends one request after the other, keep-alive.

    python -m bench.load PORT[,PORT…] CONNECTIONS SECONDS PATH KIND

KIND is `listen` (Deepgram speech-to-text with Basic Auth, each with a request id of its own), `speech` (Deepgram
text-to-speech, 8 KB of MP3), `long` (the same, 200 KB) or `deapi` (signed). The connections are spread over the ports.
Prints one JSON line: requests, seconds, statuses, and the latencies' p50 and p99 in milliseconds.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import hmac
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import cycle
from pathlib import Path

BASIC = "bench:bench-password"
SECRET = "bench-secret-0123456789abcdefghijklmnop"
MOST_PER_SECOND = {"listen": 12_000, "deapi": 12_000, "speech": 6_000, "long": 600}
_WORDS = "The order that was placed this morning is ready to be picked up. " * 18


def listen(number: str) -> tuple[str, bytes]:
    """Return headers and body of a speech-to-text callback of about 2 KB."""
    body = json.dumps(
        {
            "metadata": {
                "request_id": number,
                "sha256": "154e291ecfa8be6ab8343560bcc109008fa7853eb5372533e8efdefc9b504c33",
                "created": "2026-11-21T01:02:03.456Z",
                "duration": 19.4,
                "channels": 1,
                "models": ["30089e05-99d1-4376-b32e-c263170674af"],
                "model_info": {"30089e05-99d1-4376-b32e-c263170674af": {"name": "general", "version": "1"}},
            },
            "results": {
                "channels": [{"alternatives": [{"transcript": _WORDS, "confidence": 0.99, "words": []}]}]
            },
        }
    ).encode()
    return f"content-type: application/json\r\n{_authorization()}", body


@cache
def _authorization() -> str:
    return f"authorization: Basic {base64.b64encode(BASIC.encode()).decode()}\r\n"


@cache
def _sound() -> bytes:
    return (Path(__file__).resolve().parents[1] / "receiver/demo/samples/speech.mp3").read_bytes()


def speech(number: str) -> tuple[str, bytes]:
    """Return headers and body of a text-to-speech callback: 8 KB of audio, the request id in a header."""
    return f"content-type: audio/mpeg\r\n{_authorization()}dg-request-id: {number}\r\n", _sound()


def long(number: str) -> tuple[str, bytes]:
    """Return headers and body of a text-to-speech callback of 200 KB."""
    headers, body = speech(number)
    return headers, body * 25


def deapi(number: str) -> tuple[str, bytes]:
    """Return headers and body of a signed deAPI callback."""
    body = json.dumps(
        {
            "event": "job.completed",
            "delivery_id": number,
            "timestamp": "2026-11-21T01:02:03.456Z",
            "data": {
                "job_request_id": number,
                "status": "done",
                "previous_status": "processing",
                "job_type": "txt2audio",
                "result_url": f"https://results.example.test/{number}.mp3?signature=" + "a" * 1500,
                "processing_time_ms": 45000,
            },
        }
    ).encode()
    stamp = str(int(time.time()))
    digest = hmac.digest(SECRET.encode(), f"{stamp}.".encode() + body, "sha256").hex()
    proof = f"x-deapi-timestamp: {stamp}\r\nx-deapi-signature: sha256={digest}\r\n"
    return f"content-type: application/json\r\n{proof}", body


def requests(path: str, kind: str, count: int) -> Iterator[bytes]:
    """Make `count` requests ahead of time: what the generator computes while it measures, it takes from the measured."""
    prefix = os.urandom(6).hex()
    made = []
    for number in range(count):
        headers, body = KINDS[kind](f"{prefix}-{number}")
        head = f"POST {path} HTTP/1.1\r\nhost: b\r\n{headers}content-length: {len(body)}\r\n\r\n"
        made.append(head.encode() + body)
    return iter(made)


class Connection(asyncio.Protocol):
    """One connection that always has a request under way, until the time is over or the requests are used up."""

    def __init__(self, waiting: Iterator[bytes], until: float, results: Results) -> None:
        self._waiting, self._until, self._results = waiting, until, results
        self._buffer = b""
        self._sent = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def start(self) -> None:
        self._next(time.perf_counter())

    def _next(self, now: float) -> None:
        request = next(self._waiting, None) if now < self._until else None
        if request is None:
            self._transport.close()
            return
        self._sent = now
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self._buffer.lower().find(b"content-length:")
        length = int(self._buffer[at + 15 : self._buffer.find(b"\r\n", at)])
        if len(self._buffer) < end + 4 + length:
            return
        now = time.perf_counter()
        self._results.note(int(self._buffer[9:12]), now - self._sent)
        self._buffer = self._buffer[end + 4 + length :]
        self._next(now)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Results:
    """What was answered, and how fast."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.latencies: list[float] = []

    def note(self, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        self.latencies.append(seconds)


KINDS = {"listen": listen, "speech": speech, "long": long, "deapi": deapi}


async def main(ports: list[int], connections: int, seconds: float, path: str, kind: str) -> None:
    """Load and print."""
    results = Results()
    loop = asyncio.get_running_loop()
    waiting = requests(path, kind, int(seconds * MOST_PER_SECOND[kind]))
    until = time.perf_counter() + 3600
    protocols = [
        (await loop.create_connection(lambda: Connection(waiting, until, results), "127.0.0.1", port))[1]
        for port, _ in zip(cycle(ports), range(connections), strict=False)
    ]
    gc.freeze()
    began = time.perf_counter()
    for protocol in protocols:
        protocol._until = began + seconds
        protocol.start()
    await asyncio.gather(*(protocol.done for protocol in protocols))
    took = time.perf_counter() - began
    ordered = sorted(results.latencies)
    print(
        json.dumps(
            {
                "requests": len(ordered),
                "seconds": took,
                "rate": len(ordered) / took,
                "statuses": {str(key): value for key, value in results.statuses.items()},
                "p50_ms": 1000 * ordered[len(ordered) // 2],
                "p99_ms": 1000 * ordered[int(len(ordered) * 0.99)],
            }
        )
    )


if __name__ == "__main__":
    ports = [int(port) for port in sys.argv[1].split(",")]
    asyncio.run(main(ports, int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5]))
