"""The road out: each destination has a lane of its own, so that no slow one holds up another. Sees ports only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from receiver.core.errors import Unavailable
from receiver.core.event import Event
from receiver.core.observe import Observer
from receiver.core.work import Claimed, Settlement
from receiver.engine.attempts import Attempts, Lane
from receiver.engine.worker import Clock, Runner, StoreWatch
from receiver.storage.store.base import Store

Made = tuple[Settlement, float]
"""What to settle, and the seconds the attempt took."""


class Relay:
    """All lanes."""

    def __init__(
        self,
        store: Store,
        lanes: Mapping[str, Lane],
        observer: Observer,
        render: Callable[[Event], bytes],
        clock: Clock,
        worker: str,
    ) -> None:
        """`worker` names this process in claims; no two processes have the same."""
        watch = StoreWatch(observer, "relay")
        attempts = Attempts(store, observer, render, watch)
        self._runners = {
            name: Runner(_Sending(name, lane, store, attempts, observer, worker), watch, clock)
            for name, lane in lanes.items()
        }

    def start(self) -> None:
        """Begin to claim and send, in tasks of the running loop. The destinations are open."""
        for runner in self._runners.values():
            runner.start()

    def wake(self, destinations: Iterable[str]) -> None:
        """Tell the lanes of `destinations` that something was recorded for them."""
        for name in destinations:
            runner = self._runners.get(name)
            if runner is not None:
                runner.look.set()

    async def stop(self, grace_seconds: float) -> None:
        """Claim no more, give attempts under way `grace_seconds` to end, stop the rest; hand back what was not attempted."""
        await asyncio.gather(*(runner.stop(grace_seconds) for runner in self._runners.values()))

    async def step(self, now: int) -> int:
        """Claim everything due at `now`, attempt it once as of `now`, settle it; return how many. Not while started."""
        counts = await asyncio.gather(*(runner.step(now) for runner in self._runners.values()))
        return sum(counts)


class _Sending:
    """The work of one destination's lane."""

    def __init__(
        self, name: str, lane: Lane, store: Store, attempts: Attempts, observer: Observer, worker: str
    ) -> None:
        self.name = name
        self.concurrency = lane.concurrency
        self._lane = lane
        self._store = store
        self._attempts = attempts
        self._observer = observer
        self._worker = worker

    async def claim(self, now: int, limit: int) -> list[Claimed]:
        lease_until = now + round(self._lane.lease * 1000)
        return await self._store.claim(
            self.name, worker=self._worker, limit=limit, now=now, lease_until=lease_until
        )

    async def next_due(self) -> int | None:
        return await self._store.next_due(self.name)

    async def hand_back(self, claims: list[Claimed], now: int) -> None:
        await self._store.release(claims, now=now)

    def covered(self, claim: Claimed, now: int) -> bool:
        return claim.lease_until - now >= self._lane.needed * 1000

    async def make(self, claim: Claimed, clock: Clock) -> Made:
        return await self._attempts.make(self._lane, claim, clock)

    async def settle(self, made: Made, clock: Clock) -> int | None:
        settlement, seconds = made
        await self._attempts.settle(settlement, seconds, clock)
        return settlement.due_at

    def put_off(self, claim: Claimed, error: Unavailable) -> None:
        self._observer.note(
            "warning",
            "relay.put_off",
            destination=self.name,
            delivery_id=claim.delivery_id,
            error=error.message,
        )

    def bug(self, step: str, error: Exception) -> None:
        names = {"claim": "relay.claim_failed", "work": "relay.worker_failed"}
        self._observer.note("error", names[step], destination=self.name, error=type(error).__name__)
