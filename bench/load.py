"""A load generator on bare asyncio protocols: each connection sends one request after the other, keep-alive.

    python -m bench.load PORT CONNECTIONS SECONDS PATH KIND

KIND is `listen` (Deepgram speech-to-text with Basic Auth, each with a request id of its own) or `deapi` (signed). Prints one
JSON line: requests, seconds, statuses, and the latencies' p50 and p99 in milliseconds.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import os
import sys
import time
from collections import Counter

BASIC = "bench:bench-password"
SECRET = "bench-secret-0123456789abcdefghijklmnop"
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
    return f"authorization: Basic {base64.b64encode(BASIC.encode()).decode()}\r\n", body


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
    return f"x-deapi-timestamp: {stamp}\r\nx-deapi-signature: sha256={digest}\r\n", body


class Connection(asyncio.Protocol):
    """One connection that is never idle until `until`."""

    def __init__(self, path: str, kind: str, until: float, results: Results) -> None:
        self._path, self._make, self._until, self._results = path, KINDS[kind], until, results
        self._buffer = b""
        self._sent = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def _next(self) -> None:
        if time.perf_counter() >= self._until:
            self._transport.close()
            return
        headers, body = self._make(self._results.name())
        self._sent = time.perf_counter()
        self._transport.write(
            f"POST {self._path} HTTP/1.1\r\nhost: b\r\ncontent-type: application/json\r\n{headers}"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self._buffer.lower().find(b"content-length:")
        length = int(self._buffer[at + 15 : self._buffer.find(b"\r\n", at)])
        if len(self._buffer) < end + 4 + length:
            return
        self._results.note(int(self._buffer[9:12]), time.perf_counter() - self._sent)
        self._buffer = self._buffer[end + 4 + length :]
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Results:
    """What was answered, and how fast."""

    def __init__(self) -> None:
        self._prefix, self._count = os.urandom(6).hex(), 0
        self.statuses: Counter[int] = Counter()
        self.latencies: list[float] = []

    def name(self) -> str:
        self._count += 1
        return f"{self._prefix}-{self._count}"

    def note(self, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        self.latencies.append(seconds)


KINDS = {"listen": listen, "deapi": deapi}


async def main(port: int, connections: int, seconds: float, path: str, kind: str) -> None:
    """Load and print."""
    results = Results()
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    protocols = [
        (
            await loop.create_connection(
                lambda: Connection(path, kind, began + seconds, results), "127.0.0.1", port
            )
        )[1]
        for _ in range(connections)
    ]
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
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5]))
