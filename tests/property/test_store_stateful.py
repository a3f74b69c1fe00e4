"""Whatever is done in whatever order, the stores in SQLite and in PostgreSQL answer as the one in memory does, and keeps the rules."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from receiver.core.destinations import ACTIONS, PLAIN, DestinationState, Rate, SendingRules, Walk, reported
from receiver.core.event import Stage
from receiver.core.work import Claimed, Delivery, DeliveryFilter, DeliveryState, Outcome, OutcomeKind
from receiver.storage.store.postgres import PostgresStore
from receiver.storage.store.sqlite import SqliteStore
from receiver.storage.store.store import Store
from tests.contract.store_suite import LEASE, T0, recording, settlement
from tests.support.embedded import migrated
from tests.support.examples import examples
from tests.support.kept_events import kept_events
from tests.support.memory import MemoryStore
from tests.support.postgres import database

T = TypeVar("T")
DESTINATIONS = ("app", "audit")
ALL = DeliveryFilter(limit=1000)

Pair = tuple[Claimed, Claimed]
OUTCOMES = (
    Outcome(kind=OutcomeKind.DELIVERED, status=200),
    Outcome(kind=OutcomeKind.REFUSED, status=422),
    Outcome(kind=OutcomeKind.REFUSED, status=503, retry_after=LEASE / 2000),
    Outcome(kind=OutcomeKind.TIMEOUT),
    Outcome(kind=OutcomeKind.GONE, status=410),
)
CHANGES: tuple[Callable[..., DestinationState], ...] = (
    *(action.change for action in ACTIONS.values()),
    *(
        partial(reported, outcome=outcome, limit=2, probe=probe, recover=True)
        for outcome in OUTCOMES
        for probe in (False, True)
    ),
)
"""What persons and attempts make of a destination."""
RULES = (
    PLAIN,
    SendingRules(probing=True),
    SendingRules(rate=Rate(LEASE * 400, 2)),
    SendingRules(order="job"),
    SendingRules(order="job", dead_block=True, rate=Rate(LEASE * 2000, 3)),
    SendingRules(order="ref"),
    SendingRules(order="job", dead_block=True, walk=Walk()),
)


def name_of(one: Delivery | Claimed) -> tuple[str, str]:
    """Event and destination: what both stores call a delivery, whose ids differ."""
    event_id = one.event_id if isinstance(one, Delivery) else one.event.id
    return event_id, one.destination


class StoreMachine(RuleBasedStateMachine):
    """Drives both stores alike."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.now = T0
        self.claims: list[Pair] = []
        """Every claim ever made, lost and outlived ones included."""

    @initialize()
    def begin(self) -> None:
        self.real: Store = self.made()
        self.model = MemoryStore()
        stores: tuple[Store, ...] = (self.real, self.model)
        for store in stores:
            self.run(store.open())
            self.run(store.migrate())

    def made(self) -> Store:
        return SqliteStore(migrated(Path(self.folder.name) / "receiver.db"))

    def run(self, call: Awaitable[T]) -> T:
        return self.loop.run_until_complete(call)

    def teardown(self) -> None:
        self.drain()
        self.run(self.real.close())
        self.loop.close()
        self.folder.cleanup()

    # ------------------------------------------------------------ what may happen

    @rule(
        key=st.integers(0, 5),
        second=st.one_of(st.none(), st.integers(0, 3)),
        job=st.integers(0, 2),
        stage=st.sampled_from(Stage),
        to=st.sets(st.sampled_from(DESTINATIONS)),
    )
    def record(self, key: int, second: int | None, job: int, stage: Stage, to: set[str]) -> None:
        wanted = recording(
            *sorted(to),
            key=f"k{key}",
            second_key=None if second is None else f"s{second}",
            job_id=f"j{job}",
            ref=f"r{job % 2}",
            stage=stage,
            at=self.now,
        )
        # Ids of one millisecond are in no order, and which callback was the first must not hang on that.
        self.now += 1
        assert self.run(self.real.record(wanted)) == self.run(self.model.record(wanted))

    @rule(destination=st.sampled_from(DESTINATIONS), change=st.sampled_from(CHANGES))
    def destination_changes(self, destination: str, change: Callable[..., DestinationState]) -> None:
        def changed(state: DestinationState) -> DestinationState:
            return change(state, self.now)

        for store in (self.real, self.model):
            self.run(store.change_destination(destination, changed, now=self.now, tell=lambda *_: None))

    @rule(destination=st.sampled_from(DESTINATIONS), limit=st.integers(1, 2))
    def recover(self, destination: str, limit: int) -> None:
        again_at = self.now + 1
        counts = [
            self.run(store.recover(destination, limit=limit, now=self.now, again_at=again_at))
            for store in (self.real, self.model)
        ]
        assert counts[0] == counts[1]

    @rule(destination=st.sampled_from(DESTINATIONS), limit=st.integers(1, 4), rules=st.sampled_from(RULES))
    def claim(self, destination: str, limit: int, rules: SendingRules = PLAIN) -> None:
        until = self.now + LEASE
        due = [at for at, _ in self.model._claimable(destination, limit, self.now, rules)]
        before = self.by_name(self.real)
        taken = self.run(
            self.real.claim(
                destination, worker="w", limit=limit, now=self.now, lease_until=until, rules=rules
            )
        )
        self.model._spend(destination, len(taken), self.now, until, rules)
        assert [before[name_of(one)].due_at for one in taken] == due, "the oldest, in order"
        # Which of those due at the same moment are taken is free, so the model takes the very same.
        same = self.by_name(self.model)
        for one in taken:
            other = self.model._take(same[name_of(one)].id, one.claimed_by, self.now, until)
            assert (one.attempts, one.round_start, one.event) == (
                other.attempts,
                other.round_start,
                other.event,
            )
            self.claims.append((one, other))

    @rule(data=st.data(), how=st.sampled_from(["delivered", "retry", "dead"]), wait=st.integers(0, LEASE))
    def settle(self, data: st.DataObject, how: str, wait: int) -> None:
        if self.claims:
            pair = data.draw(st.sampled_from(self.claims))
            self.settle_both(pair, how, wait)

    def settle_both(self, pair: Pair, how: str, wait: int) -> None:
        due_at = self.now + wait if how == "retry" else None
        state = DeliveryState.PENDING if how == "retry" else DeliveryState(how)
        real, model = (settlement(claim, state, due_at=due_at, at=self.now) for claim in pair)
        assert self.run(self.real.settle(real)) == self.run(self.model.settle(model))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.claims:
            pairs = data.draw(st.lists(st.sampled_from(self.claims), max_size=3))
            real = self.run(self.real.release([pair[0] for pair in pairs], now=self.now))
            assert real == self.run(self.model.release([pair[1] for pair in pairs], now=self.now))

    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        real, model = (self.by_name(store) for store in (self.real, self.model))
        if real:
            names = data.draw(st.lists(st.sampled_from(sorted(real)), max_size=3, unique=True))
            done = self.run(self.real.replay([real[name].id for name in names], now=self.now))
            expected = self.run(self.model.replay([model[name].id for name in names], now=self.now))
            assert [name for name in names if real[name].id in done] == [
                name for name in names if model[name].id in expected
            ]

    @rule(by=st.sampled_from([1, LEASE - 1, LEASE]))
    def time_passes(self, by: int) -> None:
        """Leases run out: their workers are lost, though they do not know it."""
        self.now += by

    @rule()
    def restart(self) -> None:
        self.run(self.real.close())
        self.run(self.real.open())

    # ------------------------------------------------------------ what must hold

    def by_name(self, store: Store) -> dict[tuple[str, str], Delivery]:
        return {name_of(one): one for one in self.run(store.deliveries(ALL))}

    @invariant()
    def both_show_the_same(self) -> None:
        real, model = self.by_name(self.real), self.by_name(self.model)
        assert set(real) == set(model)
        for name, one in real.items():
            other = model[name]
            assert replace(one, id="", claimed_by=None) == replace(other, id="", claimed_by=None)
            assert (one.claimed_by is None) == (other.claimed_by is None)
        assert self.run(self.real.stats(self.now)) == self.run(self.model.stats(self.now))
        states = [self.run(store.destinations(self.now)) for store in (self.real, self.model)]
        shown = [
            {
                name: replace(one, updated_at=0)
                for name, one in found.items()
                if one != DestinationState(name=name, updated_at=one.updated_at)
            }
            for found in states
        ]
        assert shown[0] == shown[1]
        assert self.run(kept_events(self.real)) == self.run(kept_events(self.model))
        for destination in DESTINATIONS:
            assert self.run(self.real.next_due(destination)) == self.run(self.model.next_due(destination))

    @invariant()
    def a_delivery_has_at_most_one_living_claim_and_dense_attempts(self) -> None:
        for one in self.run(self.real.deliveries(ALL)):
            held = [real for real, _ in self.claims if real.claimed_by == one.claimed_by]
            living = [claim for claim in held if claim.id == one.id]
            assert len(living) == (1 if one.state is DeliveryState.DELIVERING else 0)
            numbers = [attempt.number for attempt in self.run(self.real.attempts(one.id))]
            assert numbers == list(range(1, one.attempts + 1))
            assert (one.due_at is None) == (one.state in {DeliveryState.DELIVERED, DeliveryState.DEAD})

    def drain(self) -> None:
        """In the end, every event is delivered or dead at each of its destinations."""
        self.now += 10 * LEASE
        for destination in DESTINATIONS:
            for change in CHANGES[1:3]:
                self.destination_changes(destination, change)
            while True:
                before = len(self.claims)
                self.claim(destination, 100)
                if len(self.claims) == before:
                    break
                for number, pair in enumerate(self.claims[before:]):
                    self.settle_both(pair, ("delivered", "dead")[number % 2], 0)
        self.both_show_the_same()
        for one in self.run(self.real.deliveries(ALL)):
            assert one.state in {DeliveryState.DELIVERED, DeliveryState.DEAD}


StoreMachine.TestCase.settings = settings(
    max_examples=examples(8), stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStore = StoreMachine.TestCase


class PostgresStoreMachine(StoreMachine):
    """The same over PostgreSQL; the locks of several processes have tests of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()

    def made(self) -> Store:
        return PostgresStore(self.stack.enter_context(database()))

    def teardown(self) -> None:
        super().teardown()
        self.stack.close()


PostgresStoreMachine.TestCase.settings = settings(
    StoreMachine.TestCase.settings, max_examples=examples(4), stateful_step_count=30
)
TestStoreOverPostgres = PostgresStoreMachine.TestCase
