"""The application: a real HTTP server on loopback that checks each signature, tells the oracle, and can have bad times."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Self

from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from chaos.oracle import Oracle


class Destination:
    """Listens on 127.0.0.1 at a free port; `manner` is `well`, `hang`, `fail` (500) or `trickle`."""

    def __init__(self, secret: str) -> None:
        self._webhook = Webhook(secret)
        self._manner = "well"
        self._over = asyncio.Event()
        self._runner = web.ServerRunner(web.Server(self._handle), handle_signals=False, shutdown_timeout=0.1)
        self.oracle = Oracle()
        self.forged = 0
        """Requests whose signature is not right."""
        self.refused = 0
        """Requests that found a bad time."""
        self.audio: dict[str, tuple[str, int]] = {}
        """SHA-256 and size by URI, of every file that an event names."""
        self.port = 0

    def behave(self, manner: str) -> None:
        """Change how requests are answered; those that hang are let go."""
        self._manner = manner
        self._over.set()
        self._over = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=512).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.behave("well")
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        over = self._over
        if self._manner == "well":
            return self._take(request, body)
        self.refused += 1
        match self._manner:
            case "hang":
                await over.wait()
            case "trickle" if isinstance(wire := request.transport, asyncio.Transport):
                wire.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
                while not over.is_set() and not wire.is_closing():
                    wire.write(b"a")
                    await asyncio.sleep(0.1)
                wire.abort()
        return web.Response(status=500)

    def _take(self, request: web.BaseRequest, body: bytes) -> web.Response:
        try:
            self._webhook.verify(body, dict(request.headers))
        except WebhookVerificationError:
            self.forged += 1
            return web.Response(status=401)
        data: dict[str, Any] = json.loads(body)["data"]
        self.oracle.deliver(data["job_id"], request.headers["webhook-id"], time.monotonic())
        for kind in ("audio", "document", "file", "media"):
            found = data.get(kind)
            if isinstance(found, dict) and str(found.get("uri", "")).startswith("s3://"):
                self.audio[found["uri"]] = (found["sha256"], found["bytes"])
        return web.Response(text="ok")
