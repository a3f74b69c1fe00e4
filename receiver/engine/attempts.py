"""One attempt of a delivery: render, send, decide, settle. Sees ports only."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from receiver.core.errors import ConfigError, Unavailable
from receiver.core.event import Event
from receiver.core.observe import AttemptReport, Observer
from receiver.core.retry import RetryPolicy
from receiver.core.work import Claimed, DeliveryState, Outcome, OutcomeKind, Settlement
from receiver.engine.worker import OVERRUN_SECONDS, SLACK_SECONDS, Clock, StoreWatch, insist
from receiver.outbound.destinations.base import Destination
from receiver.storage.store.base import Store


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
