"""`/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from starlette.responses import JSONResponse, Response

from receiver.core.destinations import DestinationStatus
from receiver.core.errors import THREAD_ERRORS, ReceiverError, StoreUnavailable
from receiver.engine.holds import destination_states
from receiver.settings.load import local_folders
from receiver.system.files import scarce

if TYPE_CHECKING:
    from starlette.requests import Request

    from receiver.app.wiring import Receiver
    from receiver.core.destinations import DestinationState
    from receiver.core.work import StoreStats

T = TypeVar("T")
_PING_SECONDS = 2.0
_STATS_SECONDS = 5.0
_PAUSES = 9.0
"""Times that a page took to make, before the next one is made: at most a tenth of the processor's time goes there."""
_LONGEST_PAUSE = 1.0


class _Page:
    """One page for all who ask while it is to be made; those who ask while it is being made share the next.

    So whoever asks again and again, by many connections, costs no more than a few; and no page is older than its question.
    """

    def __init__(self, make: Callable[[], Awaitable[bytes]]) -> None:
        self._make = make
        self._making = asyncio.Lock()
        self._next: asyncio.Task[bytes] | None = None
        self._rested = 0.0

    async def get(self) -> bytes:
        if self._next is None:
            self._next = asyncio.create_task(self._made())
        return await asyncio.shield(self._next)

    async def _made(self) -> bytes:
        now = asyncio.get_running_loop().time
        async with self._making:
            await asyncio.sleep(max(0.0, self._rested - now()))
            self._next, began = None, now()
            try:
                return await self._make()
            finally:
                self._rested = now() + min(_LONGEST_PAUSE, _PAUSES * (now() - began))


class Health:
    """Answers the probes."""

    def __init__(self, receiver: Receiver, *, intake: bool = True) -> None:
        """Without `intake` there is no journal to ping."""
        self._receiver = receiver
        self._intake = intake
        self._pings: dict[str, Callable[[], Awaitable[object]]] = {
            "store": receiver.store.ping,
            "blobs": receiver.blobs.ping,
            "relay": self._oldest_delivery,
            "collector": self._oldest_pickup,
        }
        if intake:
            self._pings["journal"] = receiver.journal.ping
        self._last: tuple[int, dict[str, str]] | None = None
        self._asking = asyncio.Lock()
        self._metrics = _Page(self._exposition)

    async def live(self, request: Request) -> Response:
        """Answer 200 while the process answers at all."""
        return JSONResponse({"status": "ok"})

    async def taking(self, request: Request) -> Response:
        """Answer 200 while a load balancer should send callbacks here, else 503.

        Pings no part: while the store is out, callbacks are still taken into the journal, so an outage must not make a
        load balancer send them elsewhere.
        """
        if self._receiver.stopping or not self._intake:
            status = "stopping" if self._receiver.stopping else "takes no callbacks"
            return JSONResponse({"status": status}, status_code=503)
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Answer 200 when every port works and nothing has been due for too long, else 503 with the reasons.

        The number of callbacks in the journal is shown, and makes nothing unready: they wait because another part is out.
        """
        async with self._asking:
            now = self._receiver.clock()
            if (
                self._last is None
                or not 0 <= now - self._last[0] < self._receiver.timing.ready_seconds * 1000
            ):
                names = list(self._pings)
                results = await asyncio.gather(*(self._ping(name) for name in names))
                self._last = (now, dict(zip(names, results, strict=True)))
            parts = self._last[1]
        status = "ok" if all(result == "ok" for result in parts.values()) else "unready"
        if self._receiver.stopping:
            status = "stopping"
        answer: dict[str, object] = {"status": status, "parts": parts}
        warnings = await self._of_disks(scarce)
        if warnings:  # while there is room, it makes nothing unready
            answer["warnings"] = warnings
        if self._intake:
            journal = self._receiver.journal
            answer["journal"] = {
                "depth": journal.depth,
                "oldest_age_seconds": round(journal.oldest_age_seconds, 3),
            }
        return JSONResponse(answer, status_code=200 if status == "ok" else 503)

    async def _of_disks(self, look: Callable[[Mapping[str, str]], T]) -> T | None:
        """Return what `look` says of this machine's folders; None when a disk, or a thread, cannot be had in time."""
        with contextlib.suppress(TimeoutError, *THREAD_ERRORS):
            async with asyncio.timeout(_PING_SECONDS):
                return await asyncio.to_thread(look, local_folders(self._receiver.settings))
        return None

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

    async def _oldest_delivery(self) -> None:
        # Deliveries to removed destinations are ignored: nothing will ever send them. Those to a destination that fails, or
        # that a person stopped, wait for that, and no other machine would do better.
        receiver, now = self._receiver, self._receiver.clock()
        states = await destination_states(receiver.store, receiver.settings.destinations, now=now)
        active = {state.name for state in states if state.status is DestinationStatus.ACTIVE}
        stats = await receiver.store.stats(now)
        for row in stats.due:
            if row.name in active:
                self._refuse_old(f"a delivery to {row.name}", row.oldest_due_at)

    async def _oldest_pickup(self) -> None:
        known = self._receiver.settings.sources
        stats = await self._receiver.store.stats(self._receiver.clock())
        for row in stats.pickups:
            if row.name in known:
                self._refuse_old(f"a pickup of {row.name}", row.oldest_due_at)

    def _refuse_old(self, name: str, due_at: int) -> None:
        """Raise `ReceiverError` for what has been due for too long."""
        limit = self._receiver.settings.server.ready_due_age_seconds
        if self._receiver.clock() - due_at > limit * 1000:
            raise ReceiverError(f"{name} has been due for over {limit:g} s: are workers running?")

    async def metrics(self, request: Request) -> Response:
        """Answer with the Prometheus exposition text; the store's gauges keep their last value while it is out."""
        return Response(await self._metrics.get(), media_type=self._receiver.metrics.content_type)

    async def _exposition(self) -> bytes:
        receiver = self._receiver
        now = receiver.clock()
        stats: StoreStats | None = None
        states: list[DestinationState] = []
        try:
            async with asyncio.timeout(_STATS_SECONDS):
                stats = await receiver.store.stats(now)
                states = await destination_states(receiver.store, receiver.settings.destinations, now=now)
        except (TimeoutError, StoreUnavailable):
            pass
        receiver.metrics.journal(receiver.journal.depth, receiver.journal.oldest_age_seconds)
        await self._of_disks(receiver.metrics.disks)
        receiver.metrics.destinations(states)
        settings = receiver.settings
        return receiver.metrics.render(stats, tuple(settings.destinations), tuple(settings.sources), now)
