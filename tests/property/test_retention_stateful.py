"""Whatever happened before: a sweep takes nothing that is under way, in the end takes everything, and two stores agree."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from receiver.core.errors import NotFound
from receiver.core.retention import Erasure, Prune, Subject, SubjectKind, Walk
from receiver.core.work import (
    Claimed,
    ClaimedPickup,
    Deferral,
    DeliveryFilter,
    DeliveryState,
    PickupFilter,
    PickupState,
)
from receiver.storage.store.sqlite import SqliteStore
from receiver.storage.store.store import Store
from tests.contract.pickup_suite import draft_of, pickup, result_of
from tests.contract.pickup_suite import settlement as pickup_settlement
from tests.contract.store_suite import LEASE, T0, recording, settlement
from tests.support.embedded import migrated
from tests.support.examples import examples
from tests.support.kept_events import kept_events
from tests.support.memory import MemoryStore

T = TypeVar("T")
PICKUPS = PickupFilter(limit=1000)
DELIVERIES = DeliveryFilter(limit=1000)
WAITS = (DeliveryState.PENDING, DeliveryState.DELIVERING)
REFS = st.sampled_from((None, "r0", "r1"))
JOBS = st.sampled_from((None, "j0", "j1"))
SUBJECTS = st.one_of(
    st.builds(Subject, kind=st.just(SubjectKind.REF), key=st.sampled_from(("r0", "r1"))),
    st.builds(
        Subject,
        kind=st.just(SubjectKind.JOB),
        key=st.sampled_from(("j0", "j1")),
        source=st.sampled_from((None, "deapi")),
    ),
)


class RetentionMachine(RuleBasedStateMachine):
    """Drives both stores alike. Delivery ids are each store's own, so deliveries are told by event and destination."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.now = T0
        self.number = 0
        self.blobs: set[str] = set()
        """Objects that lie in the blob store."""
        self.pickup_claims: list[tuple[ClaimedPickup, ClaimedPickup]] = []

    @initialize()
    def begin(self) -> None:
        self.real: Store = SqliteStore(migrated(Path(self.folder.name) / "receiver.db"))
        self.model: Store = MemoryStore()
        for store in (self.real, self.model):
            self.run(store.open())
            self.run(store.migrate())

    def run(self, call: Awaitable[T]) -> T:
        return self.loop.run_until_complete(call)

    def teardown(self) -> None:
        self.end()
        self.run(self.real.close())
        self.loop.close()
        self.folder.cleanup()

    def tick(self) -> int:
        """Ids of one millisecond are in no order, so each operation has its own."""
        self.now += 1
        return self.now

    # ------------------------------------------------------------ what may happen

    @rule(key=st.integers(0, 5), ref=REFS, job=JOBS, to=st.sampled_from(((), ("app",), ("app", "b"))))
    def record(self, key: int, ref: str | None, job: str | None, to: tuple[str, ...]) -> None:
        wanted = recording(*to, source="deapi", key=f"c{key}", ref=ref, job_id=job, at=self.tick())
        self.blobs.add(str(wanted.event.blob_key))
        assert self.run(self.real.record(wanted)) == self.run(self.model.record(wanted))

    @rule(key=st.integers(0, 2), callback=st.integers(0, 5), ref=REFS, job=JOBS, second=st.booleans())
    def defer(self, key: int, callback: int, ref: str | None, job: str | None, second: bool) -> None:
        at = self.tick()
        made = replace(pickup(f"k{key}", at=at, job_id=job, ref=ref), draft=draft_of(f"k{key}", at))
        keys = recording(
            source="deapi", key=f"c{callback}", second_key=f"k{key}" if second else None, at=at, body=b"told"
        )
        wanted = Deferral(callback=keys.callback, pickup=made)
        assert self.run(self.real.defer(wanted)) == self.run(self.model.defer(wanted))

    @rule(limit=st.integers(1, 3))
    def claim_pickups(self, limit: int) -> None:
        until = self.now + LEASE
        real, model = (
            self.run(store.claim_pickups("deapi", worker="w", limit=limit, now=self.now, lease_until=until))
            for store in (self.real, self.model)
        )
        assert [one.pickup.id for one in real] == [one.pickup.id for one in model]
        self.pickup_claims += zip(real, model, strict=True)

    @rule(
        data=st.data(),
        state=st.sampled_from((PickupState.COLLECTED, PickupState.GONE, PickupState.PENDING)),
        failed=st.booleans(),
    )
    def settle_pickup(self, data: st.DataObject, state: PickupState, failed: bool) -> None:
        if not self.pickup_claims:
            return
        real, model = data.draw(st.sampled_from(self.pickup_claims))
        at, due_at, made = self.tick(), None, None
        if state is PickupState.PENDING:
            due_at = at + 5
        else:
            event_type = "speech.failed" if failed else "speech.completed"
            made = result_of(real, "app", event_type=event_type)
            made = replace(made, event=replace(made.event, recorded_at=at))
            self.blobs.add(str(made.event.blob_key))
        answers = [
            self.run(
                store.settle_pickup(pickup_settlement(held, state, due_at=due_at, recording=made, at=at))
            )
            for store, held in ((self.real, real), (self.model, model))
        ]
        assert answers[0] == answers[1]

    @rule(
        state=st.sampled_from((DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.PENDING, None)),
        to=st.sampled_from(("app", "b")),
    )
    def attempt(self, state: DeliveryState | None, to: str) -> None:
        """Claim all that is due, and settle it; with no state the worker is lost."""
        at = self.tick()
        due_at = at + 5 if state is DeliveryState.PENDING else None
        for store in (self.real, self.model):
            for held in self.claims(store, to):
                if state is not None:
                    assert self.run(store.settle(settlement(held, state, due_at=due_at, at=at)))

    def claims(self, store: Store, to: str) -> list[Claimed]:
        until = self.now + LEASE
        return self.run(store.claim(to, worker="w", limit=1000, now=self.now, lease_until=until))

    @rule(to=st.sampled_from(("app", "b")))
    def replay(self, to: str) -> None:
        at = self.tick()
        for store in (self.real, self.model):
            found = self.run(store.deliveries(DELIVERIES))
            self.run(store.replay([one.id for one in found if one.destination == to], now=at))

    @rule(by=st.sampled_from((5, 100, LEASE)))
    def time_passes(self, by: int) -> None:
        self.now += by

    @rule(
        walk=st.sampled_from(Walk),
        old=st.integers(0, 150),
        dead=st.integers(0, 150),
        limit=st.sampled_from((1, 2, 3, 100)),
        crash=st.booleans(),
    )
    def prune(self, walk: Walk, old: int, dead: int, limit: int, crash: bool) -> None:
        """One walk in batches; a crash after a commit forgets which objects were to be deleted."""
        asked = Prune(walk=walk, before=self.now - old, dead_before=self.now - dead, limit=limit)
        under_way = self.under_way()
        found = [self.whole_walk(store, asked) for store in (self.real, self.model)]
        # Deliveries sort by ids of each store's own, and batches of them differ; sums do not.
        assert found[0] == found[1]
        assert self.under_way() == under_way
        if not crash:
            self.blobs -= set(found[0][1])

    def whole_walk(self, store: Store, asked: Prune) -> tuple[int, list[str]]:
        count, after = 0, ""
        keys: list[str] = []
        while True:
            done = self.run(
                store.prune(
                    Prune(
                        walk=asked.walk,
                        before=asked.before,
                        dead_before=asked.dead_before,
                        limit=asked.limit,
                        after=after,
                    )
                )
            )
            count += done.count
            keys += done.blob_keys
            if done.after is None:
                return count, sorted(keys)
            after = done.after

    @rule(whose=SUBJECTS)
    def erase(self, whose: Subject) -> None:
        at = self.tick()
        self.number += 1
        asked = Erasure(
            subject=whose, tombstone_id=f"tmb_{self.number:05}", digest=whose.digest("s"), now=at, limit=1000
        )
        assert self.run(self.real.traces(whose, limit=1000)) == self.run(self.model.traces(whose, limit=1000))
        real, model = self.run(self.real.erase(asked)), self.run(self.model.erase(asked))
        assert real == model
        self.blobs -= set(real.blob_keys)
        assert not self.run(self.real.traces(whose, limit=1000))

    # ------------------------------------------------------------ what must hold

    def under_way(self) -> list[object]:
        """Return all that waits or is being worked on, and the bodies and objects that hang on it."""
        found: list[object] = []
        for one in self.run(self.real.deliveries(DELIVERIES)):
            if one.state in WAITS:
                event = self.run(self.real.event(one.event_id))
                found += [one, event, self.body(one.event_id), self.run(self.real.attempts(one.id))]
        for waiting in self.run(self.real.pickups(PICKUPS)):
            if waiting.due_at is not None:
                found += [waiting, self.run(self.real.pickup_attempts(waiting.id))]
        return found

    def body(self, event_id: str) -> bytes | None:
        try:
            return self.run(self.real.body(event_id))
        except NotFound:
            return None

    @invariant()
    def both_show_the_same(self) -> None:
        events = self.run(kept_events(self.real))
        assert events == self.run(kept_events(self.model))
        for one in events:
            assert self.run(self.real.body(one.id)) == self.run(self.model.body(one.id))
        shown = [
            sorted(
                (o.event_id, o.destination, o.state.value, o.attempts)
                for o in self.run(s.deliveries(DELIVERIES))
            )
            for s in (self.real, self.model)
        ]
        assert shown[0] == shown[1]
        ids = [[o.id for o in self.run(s.pickups(PICKUPS))] for s in (self.real, self.model)]
        assert ids[0] == ids[1]
        assert self.run(self.real.tombstones()) == self.run(self.model.tombstones())

    @invariant()
    def what_an_event_links_to_is_there(self) -> None:
        linked = {one.blob_key for one in self.run(kept_events(self.real)) if one.blob_key is not None}
        assert linked <= self.blobs
        assert self.run(self.real.known_blobs(sorted(self.blobs))) == linked

    def end(self) -> None:
        """Everything ends, time passes, and nothing is left; what a crash left behind is an orphan."""
        self.now += 10 * LEASE
        for to in ("app", "b"):
            self.attempt(DeliveryState.DELIVERED, to)
        self.claim_pickups(1000)
        for real, model in self.pickup_claims:
            done = self.tick()
            for store, held in ((self.real, real), (self.model, model)):
                self.run(store.settle_pickup(pickup_settlement(held, PickupState.GONE, at=done)))
        self.now += 10 * LEASE
        for walk in Walk:
            self.prune(walk, 0, 0, 7, False)
        self.both_show_the_same()
        assert self.run(kept_events(self.real)) == []
        assert self.run(self.real.deliveries(DELIVERIES)) == []
        assert self.run(self.real.pickups(PICKUPS)) == []
        assert self.run(self.real.known_blobs(sorted(self.blobs))) == set()


RetentionMachine.TestCase.settings = settings(
    max_examples=examples(8), stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRetention = RetentionMachine.TestCase
