"""A lane: claims ahead, works, settles, hands back. Deliveries and pickups run in the same kind of lane. Sees ports only.

A lane claims in batches, ahead of its workers by one batch: when half of that is used, it claims again. It looks when it is
woken (something was recorded), when the next row falls due, and once a second in any case, since another process may
have recorded something.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from receiver.core.errors import StoreUnavailable, Unavailable
from receiver.core.observe import Observer

POLL_SECONDS = 1.0
"""Longest time between two looks of an idle lane."""
SHORTEST_NAP = 0.01
"""Seconds before another look when something is due and could not be claimed (another worker has it)."""
SETTLE_SECONDS = 3.0
"""How long a stop waits, beyond its grace, for attempts that were made to be settled."""
HAND_BACK_SECONDS = 2.0
"""How long a stop waits for claims to be handed back; a quarter of that when the store was silent before."""
SLACK_SECONDS = 15.0
"""What a lease must have left beyond the timeout when an attempt begins: time to settle, clocks that differ."""
OVERRUN_SECONDS = 5.0
"""How far past its timeout an attempt may run before it is stopped; it should never come to that."""
FIRST_PAUSE, LAST_PAUSE = 0.1, 5.0
"""Seconds between tries of a store that is out: doubled each time, up to a half shorter by chance."""

Clock = Callable[[], int]
"""Gives the time in epoch milliseconds."""
C = TypeVar("C")
M = TypeVar("M")
T = TypeVar("T")


class StoreWatch:
    """Notes once that the store is out, and once that it is back; `part` begins the names of both log lines."""

    def __init__(self, observer: Observer, part: str) -> None:
        self._observer = observer
        self._part = part
        self._out = False

    def failed(self, error: StoreUnavailable) -> None:
        """Say that it is out, unless that is known."""
        if not self._out:
            self._out = True
            self._observer.note("warning", f"{self._part}.store_unavailable", error=error.message)

    def worked(self) -> None:
        """Say that it is back, if it was out."""
        if self._out:
            self._out = False
            self._observer.note("info", f"{self._part}.store_recovered")


def pauses() -> Iterator[float]:
    """Yield the seconds to wait before each further try of a store that is out."""
    pause = FIRST_PAUSE
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2 * pause, LAST_PAUSE)


async def insist(call: Callable[[], Awaitable[T]], watch: StoreWatch, seconds: float) -> T | None:
    """Return what `call` returns, tried for `seconds` while the store is out; None when that was not enough."""
    wait = pauses()
    deadline = time.monotonic() + seconds
    while True:
        try:
            result = await call()
        except StoreUnavailable as error:
            watch.failed(error)
        else:
            watch.worked()
            return result
        pause = next(wait)
        if time.monotonic() + pause >= deadline:
            return None
        await asyncio.sleep(pause)


class Work(Protocol[C, M]):
    """What a lane does: `C` is a claim, `M` an attempt that was made and is to be settled."""

    name: str
    concurrency: int

    async def claim(self, now: int, limit: int) -> list[C]:
        """Take up to `limit` rows that are due. Raises `StoreUnavailable`."""

    async def next_due(self) -> int | None:
        """Return when the next row is due. Raises `StoreUnavailable`."""

    async def hand_back(self, claims: list[C], now: int) -> None:
        """Give up claims, unattempted and uncounted. Raises `StoreUnavailable`."""

    def covered(self, claim: C, now: int) -> bool:
        """Tell whether the lease outlasts an attempt that begins now; waiting ahead may have used it up."""

    async def make(self, claim: C, clock: Clock) -> M:
        """Make one attempt. Records nothing: cancelled, it never was."""

    async def settle(self, made: M, clock: Clock) -> int | None:
        """Record the attempt; return when the row is due again, if ever."""

    def put_off(self, claim: C, error: Unavailable) -> None:
        """Note that a part of ours is out, so that no attempt could be made; the row is due again when its lease ends."""

    def bug(self, step: str, error: Exception) -> None:
        """Note a fault of our own in `claim` or `work`."""


class Runner(Generic[C, M]):
    """One lane at work."""

    def __init__(self, work: Work[C, M], watch: StoreWatch, clock: Clock) -> None:
        self.look = asyncio.Event()
        """Set when there may be something to claim."""
        self._job = work
        self._watch = watch
        self._clock = clock
        self._ahead: asyncio.Queue[C] = asyncio.Queue()
        self._low = work.concurrency // 2
        self._more = False
        """More is due than was claimed: look again as soon as half of what is ahead is used."""
        self._stopping = asyncio.Event()
        self._feeder: asyncio.Task[None] | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._making: dict[int, C] = {}
        """What each worker, by its number, attempts."""
        self._settling: set[int] = set()
        self._unmade: list[C] = []
        """Claims whose attempt was stopped."""

    def start(self) -> None:
        """Begin."""
        name = self._job.name
        self._feeder = asyncio.create_task(self._feed(), name=f"lane {name}")
        for number in range(self._job.concurrency):
            task = asyncio.create_task(self._work(number), name=f"lane {name} {number}")
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
                self._job.bug("claim", error)
                await _within(self._stopping.wait(), POLL_SECONDS)
            else:
                if not self.look.is_set():
                    await _within(self.look.wait(), nap)

    async def _claim_ahead(self) -> float | None:
        """Claim what there is room for; return the seconds until the next look (None: when half of it is used)."""
        room = self._job.concurrency - self._ahead.qsize()
        claims = await self._job.claim(self._clock(), room)
        self._more = len(claims) == room
        for claim in claims:
            self._ahead.put_nowait(claim)
        if self._more:
            return None
        if self.look.is_set():
            return 0.0
        due_at = await self._job.next_due()
        if due_at is None:
            return POLL_SECONDS
        return min(POLL_SECONDS, max(SHORTEST_NAP, (due_at - self._clock()) / 1000))

    # ------------------------------------------------------------ attempting

    async def _work(self, number: int) -> None:
        while not self._stopping.is_set():
            claim = await self._ahead.get()
            if self._more and self._ahead.qsize() <= self._low:
                self.look.set()
            try:
                if self._job.covered(claim, self._clock()):
                    await self._attempt(number, claim)
                else:
                    await self._hand_back([claim])
                    self.look.set()
            except Unavailable as error:
                self._job.put_off(claim, error)
            except Exception as error:  # a bug in a store or an observer must not end the worker
                self._job.bug("work", error)

    async def _attempt(self, number: int, claim: C) -> None:
        self._making[number] = claim
        try:
            made = await self._job.make(claim, self._clock)
        except asyncio.CancelledError:
            self._unmade.append(claim)
            raise
        finally:
            del self._making[number]
        self._settling.add(number)
        try:
            due_at = await self._job.settle(made, self._clock)
        finally:
            self._settling.discard(number)
        if due_at is not None and due_at <= self._clock() + POLL_SECONDS * 1000:
            self.look.set()  # the lane would sleep past it

    async def step(self, now: int) -> int:
        """Claim, attempt and settle everything due at `now`."""
        claims: list[C] = []
        while batch := await self._job.claim(now, 256):
            claims += batch
        left = iter(claims)

        async def some() -> None:
            for claim in left:
                made = await self._job.make(claim, lambda: now)
                await self._job.settle(made, lambda: now)

        await asyncio.gather(*(some() for _ in range(min(len(claims), self._job.concurrency))))
        return len(claims)

    # ------------------------------------------------------------ stopping

    async def stop(self, grace_seconds: float) -> None:
        """Claim no more, give attempts under way `grace_seconds` to end, stop the rest; hand back what was not attempted."""
        self._stopping.set()
        self.look.set()
        if self._feeder is None:
            return
        for number, task in enumerate(self._workers):
            if number not in self._making and number not in self._settling:
                task.cancel()
        # A claim under way is awaited, not cancelled: what it takes is handed back.
        await _ended([self._feeder, *self._workers], grace_seconds)
        for number in self._making:
            self._workers[number].cancel()
        ended = await _ended([self._feeder, *self._workers], SETTLE_SECONDS)
        for task in (self._feeder, *self._workers):
            task.cancel()
        await asyncio.gather(self._feeder, *self._workers, return_exceptions=True)
        with suppress(asyncio.QueueEmpty):
            while True:
                self._unmade.append(self._ahead.get_nowait())
        if self._unmade:
            # Where the store says nothing, the leases bring them back.
            await _within(self._hand_back(self._unmade), HAND_BACK_SECONDS * (1 if ended else 0.25))
            self._unmade = []

    async def _hand_back(self, claims: list[C]) -> None:
        try:
            await self._job.hand_back(claims, self._clock())
        except StoreUnavailable as error:  # they are due again when their lease ends
            self._watch.failed(error)


async def _within(signal: Awaitable[object], seconds: float | None) -> None:
    """Wait for a signal, `seconds` at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await signal


async def _ended(tasks: list[asyncio.Task[None]], seconds: float) -> bool:
    """Wait until all have ended, `seconds` at most; return whether they have."""
    return not (await asyncio.wait(tasks, timeout=seconds))[1]
