"""Delivers events: each destination has a lane that claims due deliveries, sends them and settles them. Sees ports only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from receiver.core.destinations import (
    PLAIN,
    DestinationState,
    SendingRules,
    Walk,
    is_failure,
    probe_wait,
    reported,
)
from receiver.core.errors import StoreUnavailable, Unavailable
from receiver.core.event_json import Fields
from receiver.core.observe import AttemptReport, Observer
from receiver.core.own_events import Routed, destination_event, transition
from receiver.core.retry import RetryPolicy
from receiver.core.work import Claimed, DeliveryState, Outcome, OutcomeKind, Settlement
from receiver.engine.gate import DestinationGate
from receiver.engine.worker import (
    LANE_TIMING,
    SLACK_SECONDS,
    Clock,
    LaneContext,
    Lanes,
    LaneTiming,
    LaneWork,
    QueuePort,
    StoreWatch,
)
from receiver.outbound.destinations import Destination
from receiver.storage.store.store import Store
from receiver.system.background import Background

_BLOCKED_MS = 250
"""How long an ordered lane waits before it looks for deliveries that another process may have unblocked."""
LOOK_SECONDS = 0.5
"""Seconds between two reads of the destinations' states, which other processes and persons change."""
LEVELS = {"failing": "warning", "recovered": "info", "disabled": "error"}
"""The log levels of what becomes of a destination."""
RECOVER_AT_ONCE, RECOVER_SECONDS = 100, 1.0
"""How many dead letters of an outage are replayed at once, and the pause before the next ones."""


class DeliveryTerms(Struct, frozen=True):
    """The settings by which one destination is served."""

    destination: Destination
    policy: RetryPolicy
    concurrency: int
    timeout_seconds: float
    """Time limit of `destination.send`."""
    breaker_failures: int = 0
    """Failures in a row after which deliveries are held; 0 is never."""
    recover: bool = False
    """Whether deliveries that died in an outage are replayed after it."""
    rules: SendingRules = PLAIN
    data: Fields | None = None
    """The fields of an event's data that are sent; None is all."""

    @property
    def lease(self) -> float:
        """Seconds that a claim holds: a wait as long as one attempt, and the attempt."""
        return 2 * self.needed

    @property
    def needed(self) -> float:
        """Seconds that a lease must still hold for an attempt to begin."""
        return self.timeout_seconds + SLACK_SECONDS


class Relay(Lanes[Claimed, Settlement]):
    """All destinations' lanes, and what is known of the destinations."""

    def __init__(
        self,
        store: Store,
        lanes: Mapping[str, DeliveryTerms],
        observer: Observer,
        render: Callable[..., bytes],
        clock: Clock,
        worker: str,
        timing: LaneTiming = LANE_TIMING,
        routed: Routed = lambda *_: (),
    ) -> None:
        """`worker` names this process in claims; no two processes have the same. `routed` is for events about destinations."""
        self._context = LaneContext(observer, StoreWatch(observer, "relay"), clock, worker, timing)
        self._store, self._routed = store, routed
        self._background = Background()
        self._sending = {
            name: Sending(name, terms, store, render, self._context, self._reported)
            for name, terms in lanes.items()
        }
        super().__init__(self._sending.values())

    def expect(self, destinations: Iterable[str]) -> Callable[[str], None]:
        """Let idle lanes claim within the transaction that records an event for these destinations.

        Call the returned function with the event's id after the commit: it wakes the lanes that did not get the event.
        """
        known = self._lanes
        claims = [(lane, lane.expect()) for name in destinations if (lane := known.get(name)) is not None]

        def recorded(event_id: str) -> None:
            for lane, claim in claims:
                if claim is None or not _has(claim, event_id):
                    lane.poll.set()

        return recorded

    def start(self) -> None:
        """Begin to claim and attempt, and to look at the destinations' states."""
        super().start()
        self._background.start(self._keep_looking())

    async def stop(self, grace_seconds: float) -> None:
        """Claim no more, give attempts under way `grace_seconds` to end, stop the rest; release what was not attempted."""
        await super().stop(grace_seconds)
        await self._background.stop()

    async def _keep_looking(self) -> None:
        while True:
            with suppress(StoreUnavailable):  # the lanes tell that it is out
                await self._look(self._context.clock())
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self, now: int) -> None:
        """Read the destinations' states from the store; replay dead letters of outages that ended."""
        states = await self._store.destinations(now)
        for name, sending in self._sending.items():
            if sending.lane.rules.order is not None:
                crowded = await self._store.crowded(name, sending.lane.rules, now)
                sending.walk = (sending.walk or Walk()) if crowded else None
            state = states.get(name) or DestinationState(name=name)
            if state != sending.gate.state:
                sending.gate.learn(state)
                self.wake([name])
            if sending.recovers(state, now):
                again_at = now + round(RECOVER_SECONDS * 1000)
                if await self._store.recover(name, limit=RECOVER_AT_ONCE, now=now, again_at=again_at):
                    self.wake([name])

    async def _reported(self, sending: Sending, claim: Claimed, outcome: Outcome, now: int) -> None:
        """Update the destination's health in the store after an attempt, and report a change of status."""
        terms = sending.lane
        change = partial(
            reported,
            outcome=outcome,
            now=now,
            limit=terms.breaker_failures,
            probe=claim.probe,
            recover=terms.recover,
        )
        tell = partial(destination_event, now=now, routed=self._routed)
        try:
            changed = await self._store.change_destination(sending.name, change, now=now, tell=tell)
        except StoreUnavailable as error:  # the next attempt says it again
            self._context.watch.failed(error)
            return
        sending.gate.learn(changed.after)
        if kind := transition(changed.before, changed.after):
            failures = {"failures": changed.after.failures} if kind == "failing" else {}
            note = self._context.observer.note
            note(LEVELS[kind], f"relay.destination_{kind}", destination=sending.name, **failures)
        if changed.event is not None:
            self.wake(changed.event.destinations)


def _has(claim: Awaitable[list[Claimed]], event_id: str) -> bool:
    if not isinstance(claim, asyncio.Future) or not claim.done() or claim.cancelled() or claim.exception():
        return False
    return any(claimed.event.id == event_id for claimed in claim.result())


async def _nothing() -> list[Claimed]:
    return []


class Sending(LaneWork[Claimed, Settlement]):
    """The deliveries of one destination."""

    part, lane_key, id_key = "relay", "destination", "delivery_id"
    gate: DestinationGate

    def __init__(
        self,
        name: str,
        lane: DeliveryTerms,
        store: Store,
        render: Callable[..., bytes],
        context: LaneContext,
        report: Callable[[Sending, Claimed, Outcome, int], Awaitable[None]],
    ) -> None:
        gate = DestinationGate(name, lane.concurrency, ahead=lane.rules.rate is None)
        queue = QueuePort(self._claim, store.settle, store.release, self._next_due)
        super().__init__(name, lane, queue, context, gate)
        self.lane = lane
        self.walk: Walk | None = None
        self._store = store
        self._render = render if lane.data is None else partial(render, wanted=lane.data)
        self._report = report

    def _claim(self, name: str, *, now: int, **how: Any) -> Awaitable[list[Claimed]]:
        if self.gate.opens_at(now) != now:
            return _nothing()
        rules, probing = self.lane.rules, self.gate.state.opened_at is not None
        if probing or self.walk is not None:
            rules = replace(rules, probing=probing, walk=self.walk)
        return self._store.claim(name, now=now, rules=rules, **how)

    async def _next_due(self, name: str) -> int | None:
        due_at, rules = await self._store.next_due(name), self.lane.rules
        if due_at is None:
            return None
        pauses = [_BLOCKED_MS] if rules.order else []
        if rules.rate is not None:
            pauses.append(rules.rate.apart_us // 1000)
        if pauses:  # what was not claimed just now is blocked, or has to wait for the rate
            due_at = max(due_at, self.context.clock() + min(pauses))
        return self.gate.opens_at(due_at)

    def recovers(self, state: DestinationState, now: int) -> bool:
        """Tell whether it is time to replay dead letters of the destination's outage."""
        return self.lane.recover and state.recover_from is not None and state.recover_at <= now

    async def make(self, claim: Claimed, now: int, clock: Clock) -> Settlement:
        """Send once. Raises `Unavailable` if a link cannot be made; that spends no attempt."""
        lane, began = self.lane, time.perf_counter()
        try:
            async with asyncio.timeout(lane.timeout_seconds + self.context.timing.overrun):
                body = self._render(claim.event)
                outcome = await lane.destination.send(claim.event.id, body, timestamp=now)
        except TimeoutError:
            outcome = Outcome(kind=OutcomeKind.TIMEOUT, detail="the destination's own timeout did not hold")
        except Unavailable:
            raise
        except Exception as error:  # a bug of ours must not stop the lane
            self.note_bug(claim, error)
            outcome = Outcome(kind=OutcomeKind.UNREACHABLE, detail="internal error")
        seconds = time.perf_counter() - began
        state, due_at, spent = self._consequence(claim, outcome, clock)
        return Settlement(
            claim=claim,
            started_at=now,
            seconds=seconds,
            outcome=outcome,
            state=state,
            due_at=due_at,
            spent=spent,
        )

    def _consequence(
        self, claim: Claimed, outcome: Outcome, clock: Clock
    ) -> tuple[DeliveryState, int | None, bool]:
        """Return the delivery's state, when it is due again, and whether the attempt is spent."""
        if outcome.kind is OutcomeKind.DELIVERED:
            return DeliveryState.DELIVERED, None, True
        now = clock()
        if outcome.kind is OutcomeKind.GONE:
            return DeliveryState.PENDING, now, False
        if claim.probe and is_failure(outcome):
            # Behind all that is recorded before the next probe, so that no single delivery can keep the others waiting.
            return DeliveryState.PENDING, now + round(probe_wait(self.gate.state.probes + 1) * 1000), False
        delay = self.lane.policy.next_delay(claim.attempts + 1 - claim.round_start, outcome)
        if delay is None:
            return DeliveryState.DEAD, None, True
        return DeliveryState.PENDING, now + round(delay * 1000), True

    async def settle(self, settlement: Settlement, clock: Clock) -> int | None:
        """Record the attempt, for as long as the lease lasts if the store is out, and report it."""
        claim, held = settlement.claim, await self.insist(settlement, clock)
        if self.gate.note(settlement.outcome):
            await self._report(self, claim, settlement.outcome, clock())
        self.context.observer.attempt(
            AttemptReport(
                destination=claim.destination,
                delivery_id=claim.id,
                event_id=claim.event.id,
                event_type=claim.event.type,
                number=claim.attempts + 1,
                outcome=settlement.outcome,
                seconds=settlement.seconds,
                state=settlement.state.value if held else "lost",
                due_at=settlement.due_at if held else None,
                waited_seconds=(settlement.started_at - claim.event.recorded_at) / 1000,
            )
        )
        # In order, the next event of the same job may be sent now; by a rate, some of what is due was left.
        rules = self.lane.rules
        return clock() if rules.order or rules.rate else settlement.due_at
