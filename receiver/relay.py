"""The road out (floor 6): each destination has a lane of its own that claims, attempts and settles. Sees ports only.

A lane claims in batches, ahead of its workers by one batch: when half of that is used, it claims again. It looks when it is
woken (an event was recorded), when the next delivery falls due, and once a second in any case, since another process may
have recorded something.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress

from receiver.attempts import Attempts, Clock, Lane, StoreWatch, pauses
from receiver.delivery import Claimed
from receiver.errors import StoreUnavailable
from receiver.model import Event
from receiver.observe import Observer
from receiver.store.base import Store

POLL_SECONDS = 1.0
"""Longest time between two looks of an idle lane."""
SHORTEST_NAP = 0.01
"""Seconds before another look when something is due and could not be claimed (another worker has it)."""
SETTLE_SECONDS = 5.0
"""How long a stop waits, beyond its grace, for attempts that were made to be settled."""


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
        self._store = store
        self._observer = observer
        watch = StoreWatch(observer)
        attempts = Attempts(store, observer, render, watch)
        self._runners = {
            name: _Runner(name, lane, store, attempts, watch, observer, clock, worker)
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


class _Runner:
    """One lane at work."""

    def __init__(
        self,
        name: str,
        lane: Lane,
        store: Store,
        attempts: Attempts,
        watch: StoreWatch,
        observer: Observer,
        clock: Clock,
        worker: str,
    ) -> None:
        self.look = asyncio.Event()
        """Set when there may be something to claim."""
        self._lane = lane
        self._name = name
        self._store = store
        self._attempts = attempts
        self._watch = watch
        self._observer = observer
        self._clock = clock
        self._worker = worker
        self._ahead: asyncio.Queue[Claimed] = asyncio.Queue()
        self._low = lane.concurrency // 2
        self._more = False
        """More is due than was claimed: look again as soon as half of what is ahead is used."""
        self._stopping = asyncio.Event()
        self._feeder: asyncio.Task[None] | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._sending: dict[int, Claimed] = {}
        """What each worker, by its number, is sending."""
        self._settling: set[int] = set()
        self._unmade: list[Claimed] = []
        """Claims whose attempt was stopped."""

    def start(self) -> None:
        """Begin."""
        self._feeder = asyncio.create_task(self._feed(), name=f"relay {self._name}")
        for number in range(self._lane.concurrency):
            task = asyncio.create_task(self._work(number), name=f"relay {self._name} {number}")
            self._workers.append(task)

    # ------------------------------------------------------------ claiming

    async def _feed(self) -> None:
        wait = pauses()
        while not self._stopping.is_set():
            self.look.clear()
            if self._ahead.qsize() > self._low:
                self._more = True
                await self.look.wait()
                continue
            try:
                nap = await self._claim_ahead()
                self._watch.worked()
                wait = pauses()
            except StoreUnavailable as error:
                self._watch.failed(error)
                await _within(self._stopping.wait(), next(wait))
            except Exception as error:  # a bug in a store must not end the lane
                self._note_bug("relay.claim_failed", error)
                await _within(self._stopping.wait(), POLL_SECONDS)
            else:
                if not self.look.is_set():
                    await _within(self.look.wait(), nap)

    async def _claim_ahead(self) -> float | None:
        """Claim what there is room for; return the seconds until the next look (None: when half of it is used)."""
        room = self._lane.concurrency - self._ahead.qsize()
        claims = await self._claim(self._clock(), room)
        self._more = len(claims) == room
        for claim in claims:
            self._ahead.put_nowait(claim)
        if self._more:
            return None
        if self.look.is_set():
            return 0.0
        due_at = await self._store.next_due(self._name)
        if due_at is None:
            return POLL_SECONDS
        return min(POLL_SECONDS, max(SHORTEST_NAP, (due_at - self._clock()) / 1000))

    async def _claim(self, now: int, limit: int) -> list[Claimed]:
        lease_until = now + round(self._lane.lease * 1000)
        return await self._store.claim(
            self._name, worker=self._worker, limit=limit, now=now, lease_until=lease_until
        )

    # ------------------------------------------------------------ attempting

    async def _work(self, number: int) -> None:
        while not self._stopping.is_set():
            claim = await self._ahead.get()
            if self._more and self._ahead.qsize() <= self._low:
                self.look.set()
            try:
                if self._covered(claim):
                    await self._attempt(number, claim)
                else:
                    await self._hand_back([claim])
                    self.look.set()
            except Exception as error:  # a bug in a store or an observer must not end the worker
                self._note_bug("relay.worker_failed", error)

    def _covered(self, claim: Claimed) -> bool:
        """Tell whether the lease outlasts an attempt that begins now; waiting ahead may have used it up."""
        return claim.lease_until - self._clock() >= self._lane.needed * 1000

    async def _attempt(self, number: int, claim: Claimed) -> None:
        self._sending[number] = claim
        try:
            settlement, seconds = await self._attempts.make(self._lane, claim, self._clock)
        except asyncio.CancelledError:
            self._unmade.append(claim)
            raise
        finally:
            del self._sending[number]
        self._settling.add(number)
        try:
            await self._attempts.settle(settlement, seconds, self._clock)
        finally:
            self._settling.discard(number)
        due_at = settlement.due_at
        if due_at is not None and due_at <= self._clock() + POLL_SECONDS * 1000:
            self.look.set()  # the lane would sleep past it

    async def step(self, now: int) -> int:
        """Claim, attempt and settle everything due at `now`."""
        claims: list[Claimed] = []
        while batch := await self._claim(now, 256):
            claims += batch
        left = iter(claims)

        async def some() -> None:
            for claim in left:
                settlement, seconds = await self._attempts.make(self._lane, claim, lambda: now)
                await self._attempts.settle(settlement, seconds, lambda: now)

        await asyncio.gather(*(some() for _ in range(min(len(claims), self._lane.concurrency))))
        return len(claims)

    # ------------------------------------------------------------ stopping

    async def stop(self, grace_seconds: float) -> None:
        """End, see `Relay.stop`."""
        self._stopping.set()
        self.look.set()
        if self._feeder is None:
            return
        for number, task in enumerate(self._workers):
            if number not in self._sending and number not in self._settling:
                task.cancel()
        # A claim under way is awaited, not cancelled: what it takes is handed back.
        await _ended([self._feeder, *self._workers], grace_seconds)
        for number in self._sending:
            self._workers[number].cancel()
        await _ended([self._feeder, *self._workers], SETTLE_SECONDS)
        for task in (self._feeder, *self._workers):
            task.cancel()
        await asyncio.gather(self._feeder, *self._workers, return_exceptions=True)
        with suppress(asyncio.QueueEmpty):
            while True:
                self._unmade.append(self._ahead.get_nowait())
        if self._unmade:
            await self._hand_back(self._unmade)
            self._unmade = []

    async def _hand_back(self, claims: list[Claimed]) -> None:
        try:
            await self._store.release(claims, now=self._clock())
        except StoreUnavailable as error:  # they are due again when their lease ends
            self._watch.failed(error)

    def _note_bug(self, event: str, error: Exception) -> None:
        self._observer.note("error", event, destination=self._name, error=type(error).__name__)


async def _within(signal: Awaitable[object], seconds: float | None) -> None:
    """Wait for a signal, `seconds` at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await signal


async def _ended(tasks: list[asyncio.Task[None]], seconds: float) -> None:
    await asyncio.wait(tasks, timeout=seconds)
