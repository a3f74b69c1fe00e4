"""`/healthz`, `/readyz` and `/metrics` (floor 8)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from receiver.errors import ReceiverError, StoreUnavailable

if TYPE_CHECKING:
    from starlette.requests import Request

    from receiver.delivery import StoreStats
    from receiver.wiring import Receiver

_PING_SECONDS = 2.0
_STATS_SECONDS = 5.0
_FRESH_MILLIS = 1000
"""Readiness is asked often and costs a few syncs, so an answer serves this long."""


class Health:
    """Answers the probes."""

    def __init__(self, receiver: Receiver, *, intake: bool = True) -> None:
        """Without `intake` there is no journal to ask for."""
        self._receiver = receiver
        self._pings: dict[str, Callable[[], Awaitable[object]]] = {
            "store": receiver.store.ping,
            "blobs": receiver.blobs.ping,
            "relay": self._oldest,
        }
        if intake:
            self._pings["journal"] = receiver.journal.ping
        self._last: tuple[int, dict[str, str]] | None = None
        self._asking = asyncio.Lock()

    async def live(self, request: Request) -> Response:
        """Answer 200 while the process answers at all."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Answer 200 when every port works and nothing has been due for too long, else 503 with the reasons."""
        async with self._asking:
            now = self._receiver.clock()
            if self._last is None or not 0 <= now - self._last[0] < _FRESH_MILLIS:
                names = list(self._pings)
                results = await asyncio.gather(*(self._ping(name) for name in names))
                self._last = (now, dict(zip(names, results, strict=True)))
            parts = self._last[1]
        ready = all(result == "ok" for result in parts.values())
        return JSONResponse(
            {"status": "ok" if ready else "unready", "parts": parts}, status_code=200 if ready else 503
        )

    async def _ping(self, name: str) -> str:
        try:
            async with asyncio.timeout(_PING_SECONDS):
                await self._pings[name]()
        except TimeoutError:
            return f"no answer within {_PING_SECONDS:g} s"
        except ReceiverError as error:
            return error.message
        except Exception as error:  # a probe must answer, whatever a part does
            return f"failed ({type(error).__name__})"
        return "ok"

    async def _oldest(self) -> None:
        receiver = self._receiver
        limit = receiver.settings.server.ready_due_age_seconds
        now = receiver.clock()
        for due in (await receiver.store.stats(now)).due:
            # What is owed to a destination that is configured no more waits for nobody.
            if due.destination in receiver.settings.destinations and now - due.oldest_due_at > limit * 1000:
                raise ReceiverError(
                    f"a delivery to {due.destination} has been due for over {limit:g} s: are workers running?"
                )

    async def metrics(self, request: Request) -> Response:
        """Answer with the Prometheus exposition text; the store's gauges keep their last value while it is out."""
        receiver = self._receiver
        now = receiver.clock()
        stats: StoreStats | None = None
        try:
            async with asyncio.timeout(_STATS_SECONDS):
                stats = await receiver.store.stats(now)
        except (TimeoutError, StoreUnavailable):
            pass
        receiver.metrics.journal(receiver.journal.depth, receiver.journal.oldest_age_seconds)
        text = receiver.metrics.render(stats, tuple(receiver.settings.destinations), now)
        return Response(text, media_type=receiver.metrics.content_type)
