"""One attempt of a delivery: render, send, decide, settle. Sees ports only."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from receiver.core.errors import ConfigError, Unavailable
from receiver.core.event import Event
from receiver.core.observe import AttemptReport, Observer
from receiver.core.retry import RetryPolicy
from receiver.core.work import Claimed, DeliveryState, Outcome, OutcomeKind, Settlement
from receiver.engine.worker import OVERRUN_SECONDS, SLACK_SECONDS, Clock, Runner, StoreWatch, insist
from receiver.outbound.destinations.base import Destination
from receiver.storage.store.store import Store


@dataclass(frozen=True, slots=True)
class Lane:
    """How one destination is served, apart from all others."""

    destination: Destination
    policy: RetryPolicy
    concurrency: int
    timeout_seconds: float
    """The longest that `destination.send` takes."""
    lease_seconds: float | None = None
    """How long a claim holds; None for twice the timeout and 30 s."""

    def __post_init__(self) -> None:
        if self.lease <= self.needed:
            raise ConfigError(
                f"destinations.{self.destination.name}: a lease of {self.lease:g} s does not cover the timeout "
                f"and {SLACK_SECONDS:g} s; lower timeout_seconds"
            )

    @property
    def lease(self) -> float:
        """Seconds that a claim holds."""
        return 2 * self.timeout_seconds + 30 if self.lease_seconds is None else self.lease_seconds

    @property
    def needed(self) -> float:
        """Seconds that a lease must still hold for an attempt to begin."""
        return self.timeout_seconds + SLACK_SECONDS


class Attempts:
    """Makes attempts and settles them."""

    def __init__(
        self, store: Store, observer: Observer, render: Callable[[Event], bytes], watch: StoreWatch
    ) -> None:
        self._store = store
        self._observer = observer
        self._render = render
        self._watch = watch

    async def make(self, lane: Lane, claim: Claimed, clock: Clock) -> tuple[Settlement, float]:
        """Send once; return what to settle and the seconds it took. Records nothing: cancelled, it never was.

        Raises `Unavailable` when a part of ours is out and nothing could be sent.
        """
        started_at, began = clock(), time.perf_counter()
        try:
            async with asyncio.timeout(lane.timeout_seconds + OVERRUN_SECONDS):
                body = self._render(claim.event)
                outcome = await lane.destination.send(claim.event.id, body, timestamp=started_at)
        except TimeoutError:
            outcome = Outcome(kind=OutcomeKind.TIMEOUT, detail="the destination's own timeout did not hold")
        except Unavailable:  # no link could be made: our own trouble uses up no attempt
            raise
        except Exception as error:  # a bug of ours must not stop the lane
            outcome = self._internal_error(claim, error)
        seconds = time.perf_counter() - began
        state, due_at = _consequence(lane.policy, claim, outcome, clock)
        settlement = Settlement(
            claim=claim,
            started_at=started_at,
            duration_ms=int(seconds * 1000),
            outcome=outcome,
            state=state,
            due_at=due_at,
        )
        return settlement, seconds

    async def settle(self, settlement: Settlement, seconds: float, clock: Clock) -> None:
        """Record the attempt, for as long as the lease lasts if the store is out, and report it."""
        held = await self._settled(settlement, clock)
        claim = settlement.claim
        self._observer.attempt(
            AttemptReport(
                destination=claim.destination,
                delivery_id=claim.delivery_id,
                event_id=claim.event.id,
                event_type=claim.event.type,
                number=claim.attempts + 1,
                outcome=settlement.outcome,
                seconds=seconds,
                state=settlement.state.value if held else "lost",
                due_at=settlement.due_at if held else None,
                waited_seconds=(settlement.started_at - claim.event.recorded_at) / 1000,
            )
        )

    async def _settled(self, settlement: Settlement, clock: Clock) -> bool:
        claim = settlement.claim
        left = (claim.lease_until - clock()) / 1000
        held = await insist(lambda: self._store.settle(settlement), self._watch, left)
        if held is None:
            self._observer.note(
                "error",
                "relay.settle_given_up",
                destination=claim.destination,
                delivery_id=claim.delivery_id,
                outcome=settlement.outcome.kind.value,
            )
        return bool(held)

    def _internal_error(self, claim: Claimed, error: Exception) -> Outcome:
        frames = traceback.extract_tb(error.__traceback__)
        self._observer.note(
            "error",
            "relay.internal_error",
            destination=claim.destination,
            delivery_id=claim.delivery_id,
            error=type(error).__name__,  # its text may hold what must not be logged
            at=f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "",
        )
        return Outcome(kind=OutcomeKind.UNREACHABLE, detail="internal error")


def _consequence(
    policy: RetryPolicy, claim: Claimed, outcome: Outcome, clock: Clock
) -> tuple[DeliveryState, int | None]:
    if outcome.kind is OutcomeKind.DELIVERED:
        return DeliveryState.DELIVERED, None
    delay = policy.next_delay(claim.attempts + 1 - claim.round_start, outcome)
    if delay is None:
        return DeliveryState.DEAD, None
    return DeliveryState.PENDING, clock() + round(delay * 1000)


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
