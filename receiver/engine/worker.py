"""A lane: it claims what is due for one destination or one source, attempts it, settles it. Sees ports only.

Deliveries and pickups run in the same kind of lane. A claimed row goes

    due ──claim──▶ ahead ──▶ attempt ──▶ settle ──▶ done, or due again later
                     │          │          └─ the claim was lost, or the store is out until the lease ends: due again
                     │          └─ stopped, or a part of ours is out: due again, uncounted
                     └─ stopped, or the lease has too little left: released, due at once

A lane claims in batches, ahead of its workers by one batch: when half of that is used, it claims again. It polls when it is
woken (something was recorded), when the next row falls due, and once a second in any case, since another process may
have recorded something. A lane that has nothing to do claims in the very transaction that records something for it.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from msgspec import Struct

from receiver.core.errors import StoreUnavailable, Unavailable
from receiver.core.observe import Observer
from receiver.core.work import Claimed, ClaimedPickup, PickupSettlement, Settlement
from receiver.engine.gate import Gate

SLACK_SECONDS = 15.0
"""Time that a lease must have beyond the timeout when an attempt begins: for settling, and for clocks that differ."""

Clock = Callable[[], int]
"""Gives the time in epoch milliseconds."""


class LaneTiming(Struct, frozen=True, kw_only=True):
    """How long a lane waits, in seconds."""

    poll: float = 1.0
    """The longest time between two polls of an idle lane."""
    shortest_nap: float = 0.01
    """The shortest time between polls while a due row cannot be claimed, because another worker has it."""
    settle: float = 3.0
    """How long a stop waits, after its grace time, for finished attempts to be settled."""
    release: float = 1.0
    """How long a stop waits for claims to be released."""
    overrun: float = 5.0
    """How far past its timeout an attempt may run before it is cancelled; only a bug lets it come to that."""
    first_pause: float = 0.1
    last_pause: float = 5.0
    """The longest pause between retries during a store outage: doubled each time, and up to a half shorter by chance."""

    def pauses(self) -> Iterator[float]:
        """Yield the seconds to wait before each further try of a store that is out."""
        pause = self.first_pause
        while True:
            yield pause * random.uniform(0.5, 1.0)
            pause = min(2 * pause, self.last_pause)


LANE_TIMING = LaneTiming()


class StoreWatch:
    """Logs the begin and the end of a store outage, once each; `part` begins the names of both log lines."""

    def __init__(self, observer: Observer, part: str) -> None:
        self._observer = observer
        self._part = part
        self.out = False

    def failed(self, error: StoreUnavailable) -> None:
        """Log the outage, unless that was done."""
        if not self.out:
            self.out = True
            self._observer.note("warning", f"{self._part}.store_unavailable", error=error.message)

    def worked(self) -> None:
        """Log that the store is back, if it was out."""
        if self.out:
            self.out = False
            self._observer.note("info", f"{self._part}.store_recovered")


class Terms(Protocol):
    """The settings of one lane."""

    @property
    def concurrency(self) -> int:
        """Attempts at the same time."""

    @property
    def lease(self) -> float:
        """Seconds that a claim holds."""

    @property
    def needed(self) -> float:
        """Seconds that a lease must still hold for an attempt to begin."""


C = TypeVar("C", bound=Claimed | ClaimedPickup)
S = TypeVar("S", bound=Settlement | PickupSettlement)


class QueuePort(Struct, Generic[C, S], frozen=True):
    """The store's methods for one kind of work."""

    claim: Callable[..., Awaitable[list[C]]]
    settle: Callable[[S], Awaitable[Any]]
    release: Callable[..., Awaitable[int]]
    next_due: Callable[[str], Awaitable[int | None]]


class LaneContext(Struct, frozen=True):
    """What all lanes of one kind share; `worker` names this process in claims, and no two processes have the same."""

    observer: Observer
    watch: StoreWatch
    clock: Clock
    worker: str
    timing: LaneTiming = LANE_TIMING


class LaneWork(ABC, Generic[C, S]):
    """The kind of work of a lane: `C` is the type of a claim, `S` that of the settlement of a finished attempt."""

    part: ClassVar[str]
    """Begins the names of log lines."""
    lane_key: ClassVar[str]
    id_key: ClassVar[str]
    """The names of the fields for the lane and the row in log lines."""

    def __init__(
        self, name: str, terms: Terms, queue: QueuePort[C, S], context: LaneContext, gate: Gate[C]
    ) -> None:
        self.name = name
        self.terms = terms
        self.queue = queue
        self.context = context
        self.gate = gate

    @abstractmethod
    async def make(self, claim: C, now: int, clock: Clock) -> S:
        """Make one attempt, which begins `now`. It records nothing, so a cancelled attempt leaves no trace.

        Raises `Unavailable` when a part of ours is out and nothing could be attempted: the row is due again when its lease
        ends.
        """

    @abstractmethod
    async def settle(self, settlement: S, clock: Clock) -> int | None:
        """Record the attempt and report it; return when the row is due again, if ever."""

    async def insist(self, settlement: S, clock: Clock) -> Any:
        """Settle in the store, retried during an outage until the lease ends; return what that did, else None, with a log line."""
        watch, wait, deadline = self.context.watch, None, 0.0
        while True:
            try:
                result = await self.queue.settle(settlement)
            except StoreUnavailable as error:
                watch.failed(error)
            else:
                if watch.out:
                    watch.worked()
                return result
            if wait is None:
                wait = self.context.timing.pauses()
                deadline = time.monotonic() + (settlement.claim.lease_until - clock()) / 1000
            if time.monotonic() >= deadline:
                self.note("error", "settle_given_up", settlement.claim, outcome=settlement.outcome.kind.value)
                return None
            await asyncio.sleep(next(wait))

    def note(
        self, level: str, event: str, claim: Claimed | ClaimedPickup | None = None, **fields: object
    ) -> None:
        """Log something about this lane, or one of its rows."""
        about = {self.lane_key: self.name} | ({} if claim is None else {self.id_key: claim.id})
        self.context.observer.note(level, f"{self.part}.{event}", **about, **fields)

    def note_bug(self, claim: C, error: Exception) -> None:
        """Log an exception that no attempt should raise; its text may hold what must not be logged."""
        frames = traceback.extract_tb(error.__traceback__)
        line = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        self.note("error", "internal_error", claim, error=type(error).__name__, at_line=line)


class Lane(Generic[C, S]):
    """One lane at work: a task that claims ahead, and `concurrency` workers."""

    def __init__(self, work: LaneWork[C, S]) -> None:
        self.poll = asyncio.Event()
        """Set when there may be rows to claim."""
        self._work = work
        self._queue = work.queue
        self._gate = work.gate
        self._concurrency = work.terms.concurrency
        self._needed_ms = work.terms.needed * 1000
        self._lease_ms = round(work.terms.lease * 1000)
        self._watch = work.context.watch
        self._clock = work.context.clock
        self._timing = work.context.timing
        self._ahead: asyncio.Queue[C] = asyncio.Queue()
        self._low = self._concurrency // 2
        self._more = False
        """More is due than was claimed: claim again as soon as half of what is ahead is used."""
        self._full = False
        """There was no room to claim: claim again as soon as an attempt has ended."""
        self._napping = False
        """The feeder waits, and no claimed rows wait."""
        self._early: tuple[Awaitable[list[C]], int] | None = None
        """A claim made without the feeder, which the feeder is to take, and its number of rows."""
        self._looked_at = -math.inf
        self._due_at: int | None = None
        """When the next row is due as of `_looked_at` (monotonic)."""
        self._stopping = asyncio.Event()
        self._feeder: asyncio.Task[None] | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._making: set[int] = set()
        """Numbers of the workers with a running attempt."""
        self._settling: set[int] = set()
        self._unmade: list[C] = []
        """Claims whose attempt was stopped."""

    def start(self) -> None:
        """Begin."""
        name = self._work.name
        self._feeder = asyncio.create_task(self._feed(), name=f"lane {name}")
        for number in range(self._concurrency):
            task = asyncio.create_task(self._serve(number), name=f"lane {name} {number}")
            self._workers.append(task)

    # ------------------------------------------------------------ claiming

    async def _feed(self) -> None:
        wait: Iterator[float] | None = None
        while not self._stopping.is_set():
            # Cleared before the claim, so that what is recorded while it is under way makes for another one.
            self.poll.clear()
            if self._ahead.qsize() > self._low:
                self._more = True
                await self.poll.wait()
                continue
            try:
                nap = await self._claim_ahead()
            except StoreUnavailable as error:
                self._watch.failed(error)
                wait = wait or self._timing.pauses()
                await _within(self._stopping.wait(), next(wait))
            except Exception as error:  # a bug in a store must not end the lane
                self._work.note("error", "claim_failed", error=type(error).__name__)
                await _within(self._stopping.wait(), self._timing.poll)
            else:
                wait = None
                if self._watch.out:
                    self._watch.worked()
                if not self.poll.is_set():
                    self._napping = True
                    await _within(self.poll.wait(), nap)
                    self._napping = False
        if self._early is not None:
            with suppress(StoreUnavailable):
                await self._claim_ahead()

    def expect(self) -> Awaitable[list[C]] | None:
        """Let the next recording's transaction also claim for this lane, if the lane is idle."""
        room = self._gate.room(self._ahead.qsize(), len(self._making))
        if not self._napping or room <= 0:
            return None
        self._napping = False
        claiming = self._claim(self._clock(), room)
        self._early = claiming, room
        self.poll.set()
        return claiming

    async def _claim_ahead(self) -> float | None:
        """Claim as many rows as there is room for; return the seconds until the next poll (None: when there is room again)."""
        room = self._gate.room(self._ahead.qsize(), len(self._making))
        self._full = room <= 0
        early, self._early = self._early, None
        if early is not None:
            claiming, room = early
        elif self._full:
            return None
        else:
            claiming = self._claim(self._clock(), room)
        claims = await claiming
        self._more = len(claims) == room
        for claim in claims:
            self._ahead.put_nowait(claim)
        if self._more:
            return None
        left = self._timing.poll - (time.monotonic() - self._looked_at)
        if not claims or left <= 0:  # else what was seen then still holds
            self._due_at = await self._queue.next_due(self._work.name)
            left, self._looked_at = self._timing.poll, time.monotonic()
        if self._due_at is None:
            return left
        return min(left, max(self._timing.shortest_nap, (self._due_at - self._clock()) / 1000))

    def _claim(self, now: int, limit: int) -> Awaitable[list[C]]:
        return self._queue.claim(
            self._work.name,
            worker=self._work.context.worker,
            limit=limit,
            now=now,
            lease_until=now + self._lease_ms,
        )

    # ------------------------------------------------------------ attempting

    async def _serve(self, number: int) -> None:
        while not self._stopping.is_set():
            claim = await self._ahead.get()
            if self._more and self._ahead.qsize() <= self._low:
                self.poll.set()
            try:
                now = self._clock()
                # Waiting ahead may have used the lease up: an attempt that outlasts it would be made twice.
                lasts = claim.lease_until - now >= self._needed_ms
                if lasts and self._gate.lets(claim, len(self._making), now):
                    await self._attempt(number, claim, now)
                else:
                    await self._release([claim])
                if self._full:
                    self.poll.set()
            except Unavailable as error:
                self._work.note("warning", "put_off", claim, error=error.message)
            except Exception as error:  # a bug in a store or an observer must not end the worker
                self._work.note("error", "worker_failed", error=type(error).__name__)

    async def _attempt(self, number: int, claim: C, now: int) -> None:
        self._making.add(number)
        try:
            made = await self._work.make(claim, now, self._clock)
        except asyncio.CancelledError:
            self._unmade.append(claim)
            raise
        finally:
            self._making.discard(number)
        # The attempt has ended: a stop cancels running attempts, and waits for settlements.
        self._settling.add(number)
        try:
            due_at = await self._work.settle(made, self._clock)
        finally:
            self._settling.discard(number)
        if due_at is not None and due_at <= self._clock() + self._timing.poll * 1000:
            self._looked_at = -math.inf
            self.poll.set()  # the lane would sleep past it

    # ------------------------------------------------------------ stopping

    async def stop(self, grace_seconds: float) -> None:
        """Claim no more, give attempts under way `grace_seconds` to end, stop the rest; release what was not attempted."""
        self._stopping.set()
        self.poll.set()
        if self._feeder is None:
            return
        tasks = [self._feeder, *self._workers]
        # Workers without a claim wait for ever for one. The feeder is not cancelled: its claim may be committed already, and
        # what it takes must be known here to be released.
        for number, task in enumerate(self._workers):
            if number not in self._making and number not in self._settling:
                task.cancel()
        await asyncio.wait(tasks, timeout=grace_seconds)
        # Only running attempts: cancelling a settlement would lose the record of a finished attempt.
        for number in self._making:
            self._workers[number].cancel()
        await asyncio.wait(tasks, timeout=self._timing.settle)
        for task in tasks:
            task.cancel()
        # Awaited before the queue is emptied: a worker that is cancelled here may still add its claim to `_unmade`.
        await asyncio.gather(*tasks, return_exceptions=True)
        while not self._ahead.empty():
            self._unmade.append(self._ahead.get_nowait())
        if self._unmade:
            # Where the store says nothing, the leases bring them back.
            await _within(self._release(self._unmade), self._timing.release)
            self._unmade = []

    async def _release(self, claims: list[C]) -> None:
        try:
            await self._queue.release(claims, now=self._clock())
        except StoreUnavailable as error:  # they are due again when their lease ends
            self._watch.failed(error)


class Lanes(Generic[C, S]):
    """All lanes of one kind of work, by name."""

    def __init__(self, work: Iterable[LaneWork[C, S]]) -> None:
        self._lanes: Mapping[str, Lane[C, S]] = {lane.name: Lane(lane) for lane in work}

    def start(self) -> None:
        """Begin to claim and attempt, in tasks of the running loop. What the attempts need is open."""
        for lane in self._lanes.values():
            lane.start()

    def wake(self, names: Iterable[str]) -> None:
        """Wake lanes for new rows; names of other lanes are ignored."""
        for name in names:
            lane = self._lanes.get(name)
            if lane is not None:
                lane.poll.set()

    async def stop(self, grace_seconds: float) -> None:
        """Claim no more, give attempts under way `grace_seconds` to end, stop the rest; release what was not attempted."""
        await asyncio.gather(*(lane.stop(grace_seconds) for lane in self._lanes.values()))


async def _within(signal: Awaitable[object], seconds: float | None) -> None:
    """Wait for a signal, `seconds` at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await signal
