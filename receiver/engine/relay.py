"""The road out: each destination has a lane of its own that renders events, sends them and settles. Sees ports only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from receiver.core.errors import ConfigError, Unavailable
from receiver.core.event import Event
from receiver.core.observe import AttemptReport, Observer
from receiver.core.retry import RetryPolicy
from receiver.core.work import Claimed, DeliveryState, Outcome, OutcomeKind, Settlement
from receiver.engine.worker import (
    LANE_TIMING,
    SLACK_SECONDS,
    ClaimPort,
    Clock,
    LaneContext,
    Lanes,
    LaneTiming,
    LaneWork,
    StoreWatch,
)
from receiver.outbound.destinations import Destination
from receiver.storage.store.store import Store

Made = tuple[Settlement, float]
"""What to settle, and the seconds that the attempt took."""


@dataclass(frozen=True, slots=True)
class DeliveryTerms:
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


class Relay(Lanes[Claimed, Made]):
    """All destinations' lanes."""

    def __init__(
        self,
        store: Store,
        lanes: Mapping[str, DeliveryTerms],
        observer: Observer,
        render: Callable[[Event], bytes],
        clock: Clock,
        worker: str,
        timing: LaneTiming = LANE_TIMING,
    ) -> None:
        """`worker` names this process in claims; no two processes have the same."""
        context = LaneContext(observer, StoreWatch(observer, "relay"), clock, worker, timing)
        super().__init__(Sending(name, lane, store, render, context) for name, lane in lanes.items())


class Sending(LaneWork[Claimed, Made]):
    """The deliveries of one destination."""

    part, lane_key, id_key = "relay", "destination", "delivery_id"

    def __init__(
        self,
        name: str,
        lane: DeliveryTerms,
        store: Store,
        render: Callable[[Event], bytes],
        context: LaneContext,
    ) -> None:
        super().__init__(name, lane, ClaimPort(store.claim, store.release, store.next_due), context)
        self._lane = lane
        self._store = store
        self._render = render

    async def make(self, claim: Claimed, clock: Clock) -> Made:
        """Send once. Raises `Unavailable` when no link could be made: our own trouble uses up no attempt."""
        started_at, began = clock(), time.perf_counter()
        lane = self._lane
        try:
            async with asyncio.timeout(lane.timeout_seconds + self.context.timing.overrun):
                body = self._render(claim.event)
                outcome = await lane.destination.send(claim.event.id, body, timestamp=started_at)
        except TimeoutError:
            outcome = Outcome(kind=OutcomeKind.TIMEOUT, detail="the destination's own timeout did not hold")
        except Unavailable:
            raise
        except Exception as error:  # a bug of ours must not stop the lane
            self.note_bug(claim, error)
            outcome = Outcome(kind=OutcomeKind.UNREACHABLE, detail="internal error")
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

    async def settle(self, made: Made, clock: Clock) -> int | None:
        """Record the attempt, for as long as the lease lasts if the store is out, and report it."""
        settlement, seconds = made
        claim, kind = settlement.claim, settlement.outcome.kind
        held = await self.insist(self._store.settle, settlement, claim, kind.value, clock)
        self.context.observer.attempt(
            AttemptReport(
                destination=claim.destination,
                delivery_id=claim.id,
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
        return settlement.due_at


def _consequence(
    policy: RetryPolicy, claim: Claimed, outcome: Outcome, clock: Clock
) -> tuple[DeliveryState, int | None]:
    if outcome.kind is OutcomeKind.DELIVERED:
        return DeliveryState.DELIVERED, None
    delay = policy.next_delay(claim.attempts + 1 - claim.round_start, outcome)
    if delay is None:
        return DeliveryState.DEAD, None
    return DeliveryState.PENDING, clock() + round(delay * 1000)
