"""A destination for tests: a real HTTP server on loopback that answers by script and keeps what it was sent."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How one request is answered."""

    status: int = 200
    body: bytes = b"ok"
    headers: Mapping[str, str] = field(default_factory=dict)
    manner: str = "whole"
    """`whole`; `hang` (nothing, until released); `hang_body` (status and headers, then nothing, until released);
    `drop` (close without an answer); `garbage` (bytes that are no HTTP); `trickle` (a header byte whenever the client's
    loop turns, without end)."""


@dataclass(frozen=True, kw_only=True)
class Received:
    """One request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    peer: tuple[str, int]
    url: str = ""
    """What the request line asked for, made whole."""
    at: float = field(default_factory=time.monotonic)
    """When it was whole, by the monotonic clock."""


class Sink:
    """Listens on 127.0.0.1 at a free port while the `async with` lasts."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.received: list[Received] = []
        self.default = Answer()
        self.script: deque[Answer] = deque()
        """Answers for the next requests, in order; `default` when there are none."""
        self.scripts: dict[str, Answer] = {}
        """Answers by path, before all others."""
        self.released = asyncio.Event()
        """Ends every hanging answer."""
        self.busy = 0
        self.most_at_once = 0
        self._came = asyncio.Condition()
        self._runner: web.ServerRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where to send."""
        return f"http://127.0.0.1:{self.port}/hooks"

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._handle), handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.released.set()
        if self._runner is not None:
            await self._runner.cleanup()

    async def stop(self) -> None:
        """Stop listening and hang up."""
        await self.__aexit__()

    async def until(self, count: int) -> None:
        """Return when `count` requests have come."""
        async with self._came:
            await self._came.wait_for(lambda: len(self.received) >= count)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.busy += 1
        self.most_at_once = max(self.most_at_once, self.busy)
        try:
            assert request.transport is not None
            if request.headers.get("expect", "").lower() == "100-continue" and request.version == (1, 1):
                assert isinstance(request.transport, asyncio.Transport)
                # Some clients wait a second for it before they send their body.
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await request.read()
            peer = request.transport.get_extra_info("peername")
            came = Received(
                method=request.method,
                path=request.path,
                headers=request.headers,
                body=body,
                peer=peer,
                url=str(request.url),
            )
            answer = self.scripts.get(request.path)
            if answer is None:
                answer = self.script.popleft() if self.script else self.default
            async with self._came:
                self.received.append(came)
                self._came.notify_all()
            return await self._answer(request, answer)
        finally:
            self.busy -= 1

    async def _answer(self, request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
        transport = request.transport
        whole = web.Response(status=answer.status, body=answer.body, headers=dict(answer.headers))
        match answer.manner:
            case "hang":
                await self.released.wait()
            case "hang_body":
                started = web.StreamResponse(status=answer.status, headers=dict(answer.headers))
                await started.prepare(request)
                await started.write(answer.body)
                await self.released.wait()
                return started
            case "drop" if transport is not None:
                transport.close()
            case "garbage" if isinstance(transport, asyncio.Transport):
                transport.write(b"220 mail.example.com ESMTP\r\n\r\n")
                transport.close()
            case "trickle" if isinstance(transport, asyncio.Transport):
                transport.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
                while not transport.is_closing() and not self.released.is_set():
                    transport.write(b"a")
                    await asyncio.sleep(0.02)
        return whole
