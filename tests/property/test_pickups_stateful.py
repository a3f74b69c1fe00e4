"""Whatever is done with pickups in whatever order, the stores in SQLite and in PostgreSQL answer as the one in memory does."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from receiver.core.event import Answered, Stage
from receiver.core.work import (
    ClaimedPickup,
    Deferral,
    DeliveryFilter,
    OutcomeKind,
    Pickup,
    PickupFilter,
    PickupState,
)
from receiver.storage.store.postgres import PostgresStore
from receiver.storage.store.sqlite import SqliteStore
from receiver.storage.store.store import Store
from tests.contract.pickup_suite import draft_of, pickup, result_of, settlement
from tests.contract.store_suite import LEASE, T0, recording
from tests.support.embedded import migrated
from tests.support.examples import examples
from tests.support.kept_events import kept_events
from tests.support.memory import MemoryStore
from tests.support.postgres import database

T = TypeVar("T")
ALL = PickupFilter(limit=1000)
SOURCES = st.sampled_from(("deapi", "deapi", "playht"))
KEYS = st.sampled_from(("k0", "k1", "token:t"))
CALLBACKS = st.integers(0, 4)
ANSWERS = st.one_of(
    st.none(),
    st.builds(Answered, key=KEYS, final=st.booleans(), job_id=st.sampled_from((None, "j0", "j1"))),
)
ENDS = ("speech.completed", "speech.failed", None)
_ENDED = (PickupState.COLLECTED, PickupState.GONE)


class PickupMachine(RuleBasedStateMachine):
    """Drives both stores alike."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.now = T0
        self.claims: list[tuple[ClaimedPickup, ClaimedPickup]] = []
        """Every claim ever made, lost and outlived ones included."""

    @initialize()
    def begin(self) -> None:
        self.real: Store = self.made()
        self.model: Store = MemoryStore()
        for store in (self.real, self.model):
            self.run(store.open())
            self.run(store.migrate())

    def made(self) -> Store:
        return SqliteStore(migrated(Path(self.folder.name) / "receiver.db"))

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)

    def teardown(self) -> None:
        self.drain()
        self.run(self.real.close())
        self.loop.close()
        self.folder.cleanup()

    def tick(self) -> int:
        """Ids of one millisecond are in no order, so each operation has its own."""
        self.now += 1
        return self.now

    # ------------------------------------------------------------ what may happen

    @rule(source=SOURCES, key=KEYS, wait=st.integers(0, LEASE))
    def add(self, source: str, key: str, wait: int) -> None:
        at = self.tick()
        wanted = pickup(key, source=source, at=at, due_at=at + wait)
        real, model = self.run(self.real.add_pickup(wanted)), self.run(self.model.add_pickup(wanted))
        assert (unclaimed(real[0]), real[1]) == (unclaimed(model[0]), model[1])

    @rule(source=SOURCES, key=KEYS, callback=CALLBACKS, second=st.booleans(), answered=ANSWERS)
    def defer(self, source: str, key: str, callback: int, second: bool, answered: Answered | None) -> None:
        at = self.tick()
        made = pickup(key, source=source, at=at, job_id="told")
        row = recording(
            source=source, key=f"c{callback}", second_key=key if second else None, at=at, body=b"%d" % at
        ).callback
        wanted = Deferral(callback=row, pickup=replace(made, draft=draft_of(key, at)), answered=answered)
        assert self.run(self.real.defer(wanted)) == self.run(self.model.defer(wanted))

    @rule(
        source=SOURCES,
        key=st.one_of(KEYS, CALLBACKS.map("c{}".format)),
        failed=st.booleans(),
        answered=ANSWERS,
    )
    def record(self, source: str, key: str, failed: bool, answered: Answered | None) -> None:
        wanted = recording(
            "app",
            source=source,
            key=key,
            event_type="speech.failed" if failed else "speech.completed",
            stage=Stage.FINAL if answered is None or answered.final else Stage.PROGRESS,
            at=self.tick(),
        )
        wanted = replace(wanted, answered=answered)
        assert self.run(self.real.record(wanted)) == self.run(self.model.record(wanted))

    @rule(source=SOURCES, limit=st.integers(1, 3))
    def claim(self, source: str, limit: int) -> None:
        until = self.now + LEASE
        real, model = (
            self.run(store.claim_pickups(source, worker="w", limit=limit, now=self.now, lease_until=until))
            for store in (self.real, self.model)
        )
        assert [unclaimed(one.pickup) for one in real] == [unclaimed(one.pickup) for one in model]
        self.claims += zip(real, model, strict=True)

    @rule(
        data=st.data(),
        state=st.sampled_from((PickupState.PENDING, PickupState.COLLECTED, PickupState.GONE)),
        told=st.sampled_from(ENDS),
        other=st.one_of(st.none(), KEYS, st.just("own")),
        wait=st.integers(0, LEASE),
        progress=st.lists(st.tuples(CALLBACKS, st.sampled_from((None, "told", "j0"))), max_size=2),
    )
    def settle(
        self,
        data: st.DataObject,
        state: PickupState,
        told: str | None,
        other: str | None,
        wait: int,
        progress: list[tuple[int, str | None]],
    ) -> None:
        if self.claims:
            pair = data.draw(st.sampled_from(self.claims))
            self.settle_both(pair, state, told, other, wait, progress)

    def settle_both(
        self,
        pair: tuple[ClaimedPickup, ClaimedPickup],
        state: PickupState,
        told: str | None,
        other: str | None,
        wait: int,
        progress: Sequence[tuple[int, str | None]] = (),
    ) -> None:
        news = tuple(
            recording(
                "app",
                source=pair[0].pickup.source,
                key=f"c{callback}",
                event_type="speech.processing",
                job_id=job_id,
                stage=Stage.PROGRESS,
                at=self.tick(),
            )
            for callback, job_id in progress
        )
        pending = state is PickupState.PENDING
        result = None if pending or told is None else result_of(pair[0], "app", event_type=told, key=other)
        real, model = (
            settlement(
                claim,
                state,
                OutcomeKind.NOT_YET,
                due_at=self.now + wait if pending else None,
                failures=wait % 3,
                recording=result,
                progress=news,
                at=self.now,
            )
            for claim in pair
        )
        assert self.run(self.real.settle_pickup(real)) == self.run(self.model.settle_pickup(model))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.claims:
            pairs = data.draw(st.lists(st.sampled_from(self.claims), max_size=3))
            real = self.run(self.real.release_pickups([pair[0] for pair in pairs], now=self.now))
            assert real == self.run(self.model.release_pickups([pair[1] for pair in pairs], now=self.now))

    @rule(by=st.sampled_from([1, LEASE - 1, LEASE]))
    def time_passes(self, by: int) -> None:
        """Leases run out: their workers are lost, though they do not know it."""
        self.now += by

    @rule()
    def restart(self) -> None:
        self.run(self.real.close())
        self.run(self.real.open())

    # ------------------------------------------------------------ what must hold

    @invariant()
    def both_show_the_same(self) -> None:
        real, model = self.run(self.real.pickups(ALL)), self.run(self.model.pickups(ALL))
        assert [unclaimed(one) for one in real] == [unclaimed(one) for one in model]
        events = self.run(kept_events(self.real))
        assert events == self.run(kept_events(self.model))
        for event in events:
            assert self.run(self.real.body(event.id)) == self.run(self.model.body(event.id))
        assert self.owed(self.real) == self.owed(self.model)
        assert self.run(self.real.stats(self.now)) == self.run(self.model.stats(self.now))
        for source in ("deapi", "playht"):
            found = self.run(self.real.next_due_pickup(source))
            assert found == self.run(self.model.next_due_pickup(source))

    def owed(self, store: Store) -> Counter[tuple[str, str]]:
        """What is owed to whom, whatever the delivery's own id."""
        found = self.run(store.deliveries(DeliveryFilter(limit=1000)))
        return Counter((one.event_id, one.destination) for one in found)

    @invariant()
    def a_key_stands_once_and_a_pickup_has_one_living_claim_and_dense_attempts(self) -> None:
        pickups = self.run(self.real.pickups(ALL))
        standing = Counter((one.source, one.key) for one in pickups if one.state is not PickupState.GONE)
        assert set(standing.values()) <= {1}
        for one in pickups:
            assert (one.due_at is None) == (one.state in _ENDED)
            held = [real for real, _ in self.claims if real.claimed_by == one.claimed_by]
            living = [claim for claim in held if claim.pickup.id == one.id]
            assert len(living) == (1 if one.state is PickupState.COLLECTING else 0)
            attempts = self.run(self.real.pickup_attempts(one.id))
            assert attempts == self.run(self.model.pickup_attempts(one.id))
            assert [attempt.number for attempt in attempts] == list(range(1, one.attempts + 1))

    @invariant()
    def each_event_is_owed_once(self) -> None:
        assert set(self.owed(self.real).values()) <= {1}

    def drain(self) -> None:
        """In the end every pickup has ended."""
        self.now += 10 * LEASE
        for source in ("deapi", "playht"):
            before = len(self.claims)
            self.claim(source, 1000)
            for number, pair in enumerate(self.claims[before:]):
                self.settle_both(pair, _ENDED[number % 2], ENDS[number % 2], None, 0)
        self.both_show_the_same()
        for one in self.run(self.real.pickups(ALL)):
            assert one.state in _ENDED


def unclaimed(one: Pickup) -> Pickup:
    """Return the pickup without the token of its claim, which is random."""
    return one if one.claimed_by is None else replace(one, claimed_by="somebody")


PickupMachine.TestCase.settings = settings(
    max_examples=examples(6), stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPickups = PickupMachine.TestCase


class PostgresPickupMachine(PickupMachine):
    """The same over PostgreSQL; the locks of several processes have tests of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()

    def made(self) -> Store:
        return PostgresStore(self.stack.enter_context(database()))

    def teardown(self) -> None:
        super().teardown()
        self.stack.close()


PostgresPickupMachine.TestCase.settings = settings(
    PickupMachine.TestCase.settings, max_examples=examples(3), stateful_step_count=30
)
TestPickupsOverPostgres = PostgresPickupMachine.TestCase
