"""What every store must do when a subject is erased. The fixture `store` is given elsewhere."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from receiver.core.errors import NotFound
from receiver.core.event import RecordStatus, new_id
from receiver.core.retention import (
    CallbackKeys,
    Erased,
    Erasure,
    Prune,
    Subject,
    SubjectKind,
    Tombstone,
    Traces,
    Walk,
)
from receiver.core.work import DeliveryFilter, DeliveryState, PickupFilter, PickupSettled, PickupState
from receiver.storage.store.store import Store
from tests.contract.pickup_suite import answering, deferral, expectation, pickup, result_of
from tests.contract.pickup_suite import claim as claim_pickups
from tests.contract.pickup_suite import settlement as pickup_settlement
from tests.contract.store_suite import T0, claim, recording, settlement
from tests.support.kept_events import kept_events

NOW = T0 + 5000
REF, JOB, EVENT = SubjectKind.REF, SubjectKind.JOB, SubjectKind.EVENT


def subject(kind: SubjectKind, key: str, source: str | None = None) -> Subject:
    return Subject(kind=kind, key=key, source=source)


async def erase(
    store: Store, whose: Subject, *, journaled: tuple[CallbackKeys, ...] = (), tombstone: str | None = None
) -> Erased:
    """One batch that holds all."""
    return await store.erase(
        Erasure(
            subject=whose,
            tombstone_id=tombstone or new_id("tmb", NOW),
            digest=whose.digest("s"),
            now=NOW,
            journaled=journaled,
        )
    )


class EraseSuite:
    """`traces`, `erase` and `tombstones`."""

    async def test_nothing_is_found_of_nobody(self, store: Store) -> None:
        await store.record(recording(ref="r", job_id="j"))
        for whose in (subject(REF, "x"), subject(JOB, "x"), subject(EVENT, "evt_x")):
            assert await store.traces(whose, limit=10) == Traces()
            assert (await erase(store, whose)).traces == Traces()
        assert await store.tombstones() == []

    async def test_a_refs_events_go_with_all_that_hangs_on_them_and_others_stay(self, store: Store) -> None:
        mine, other = recording("app", ref="r", job_id="j"), recording("app", ref="other", job_id="k")
        await store.record(mine)
        for held in await claim(store):
            await store.settle(settlement(held, DeliveryState.DEAD))
        await store.record(other)
        (dead,) = await store.deliveries(DeliveryFilter(event_id=mine.event.id))
        found = await store.traces(subject(REF, "r"), limit=10)
        erased = await erase(store, subject(REF, "r"))
        assert erased == Erased(traces=found, blob_keys=(str(mine.event.blob_key),))
        assert (found.event_ids, found.deliveries, found.jobs) == ((mine.event.id,), 1, (("deepgram", "j"),))
        assert await store.attempts(dead.id) == []
        with pytest.raises(NotFound):
            await store.event(mine.event.id)
        with pytest.raises(NotFound):
            await store.body(mine.event.id)
        assert [one.event_id for one in await store.deliveries(DeliveryFilter())] == [other.event.id]
        assert await store.body(other.event.id) is not None

    async def test_a_refs_jobs_go_too_where_a_callback_had_no_ref(self, store: Store) -> None:
        for ref, job in (("r", "j"), (None, "j"), ("other", "j"), (None, "k")):
            await store.record(recording(ref=ref, job_id=job))
        await store.add_pickup(pickup(source="deepgram", job_id="j"))
        erased = await erase(store, subject(REF, "r"))
        assert (len(erased.traces.event_ids), len(erased.traces.pickup_ids)) == (2, 1)
        assert {(one.ref, one.job_id) for one in await kept_events(store)} == {
            ("other", "j"),
            (None, "k"),
        }

    async def test_a_job_may_be_one_sources(self, store: Store) -> None:
        for source in ("deepgram", "deapi"):
            await store.record(recording(source=source, job_id="j"))
        await erase(store, subject(JOB, "j", "deapi"))
        assert [one.source for one in await kept_events(store)] == ["deepgram"]
        await erase(store, subject(JOB, "j"))
        assert await kept_events(store) == []

    async def test_the_same_callback_is_a_duplicate_afterwards_and_not_stored(self, store: Store) -> None:
        mine = recording("app", key="k", second_key="s", ref="r")
        await store.record(mine)
        await erase(store, subject(REF, "r"))
        for again in (recording("app", key="k", ref="r"), recording("app", second_key="s", ref="r")):
            found = await store.record(again)
            assert (found.status, found.event_id) == (RecordStatus.DUPLICATE, mine.event.id)
        assert await kept_events(store) == []
        assert await store.traces(subject(REF, "r"), limit=10) == Traces()

    async def test_the_keys_go_in_their_time(self, store: Store) -> None:
        """They count from the erasure, and no other walk takes them."""
        await store.record(recording(key="k", ref="r"))
        await erase(store, subject(REF, "r"))
        for walk in Walk:
            before = NOW if walk is Walk.KEYS else NOW + 10**12
            assert (await store.prune(Prune(walk=walk, before=before))).count == 0
        assert (await store.prune(Prune(walk=Walk.KEYS, before=NOW + 1))).count == 1
        assert (await store.record(recording(key="k"))).status is RecordStatus.RECORDED

    async def test_a_claimed_delivery_of_it_can_not_be_settled(self, store: Store) -> None:
        await store.record(recording("app", ref="r"))
        (held,) = await claim(store)
        await erase(store, subject(REF, "r"))
        assert not await store.settle(settlement(held))
        assert await claim(store, now=T0 + 10**9) == []

    @pytest.mark.parametrize("claimed", [False, True])
    async def test_a_pickup_under_way_ends_without_an_event(self, store: Store, claimed: bool) -> None:
        wanted = deferral("k", callback="c")
        await store.defer(wanted)
        held = await claim_pickups(store) if claimed else []
        erased = await erase(store, subject(JOB, "job"))
        assert (len(erased.traces.pickup_ids), len(erased.traces.callbacks)) == (1, 1)
        for one in held:
            settled = await store.settle_pickup(pickup_settlement(one, recording=result_of(one, "app")))
            assert settled == PickupSettled(held=False)
        assert await kept_events(store) == []
        assert await store.pickups(PickupFilter()) == []
        assert await store.next_due_pickup("deapi") is None
        again = await store.defer(deferral("k", callback="c"))
        assert again.status is RecordStatus.DUPLICATE
        assert await store.pickups(PickupFilter()) == []

    async def test_the_result_of_an_ended_order_is_a_duplicate_when_it_is_called_back(
        self, store: Store
    ) -> None:
        """There was no callback yet: the pickup had been ordered by hand."""
        made = pickup("k", job_id="j", source="deepgram")
        await store.add_pickup(made)
        await erase(store, subject(JOB, "j"))
        for again in (recording(key="k"), recording(second_key="k")):
            found = await store.record(again)
            assert (found.status, found.event_id) == (RecordStatus.DUPLICATE, made.event_id)

    async def test_asking_for_an_erased_result_again_makes_no_event(self, store: Store) -> None:
        await store.add_pickup(pickup("k", job_id="j"))
        await erase(store, subject(JOB, "j"))
        await store.add_pickup(pickup("k", job_id="j", at=NOW))
        (held,) = await claim_pickups(store, now=NOW)
        settled = await store.settle_pickup(pickup_settlement(held, recording=result_of(held, "app")))
        assert settled.recorded is not None
        assert settled.recorded.status is RecordStatus.DUPLICATE
        assert await kept_events(store) == []

    async def test_a_callback_whose_pickup_another_answered_goes_too(self, store: Store) -> None:
        """It leads to an event that never came; only the pickup's key still tells whose it was."""
        await store.add_pickup(expectation())
        lost = deferral("token:t", second_key="token:t")
        await store.defer(lost)
        await store.record(answering(at=T0 + 5))
        (told,) = await store.pickups(PickupFilter())
        assert told.state is PickupState.COLLECTED
        erased = await erase(store, subject(JOB, "job"))
        assert lost.callback.idempotency_key in {
            one.idempotency_key for one in erased.traces.callbacks.values()
        }
        assert (
            await store.prune(Prune(walk=Walk.BODIES, before=NOW))
        ).count == 1  # the answer's own: it has no job

    async def test_one_event_goes_with_its_pickup_and_the_jobs_others_stay(self, store: Store) -> None:
        await store.record(recording(source="deapi", job_id="job"))
        wanted = deferral()
        await store.defer(wanted)
        (held,) = await claim_pickups(store)
        await store.settle_pickup(pickup_settlement(held, recording=result_of(held, "app")))
        erased = await erase(store, subject(EVENT, held.pickup.event_id))
        assert erased.traces.event_ids == (held.pickup.event_id,)
        assert erased.traces.pickup_ids == (held.pickup.id,)
        assert len(await kept_events(store)) == 1

    async def test_an_event_that_is_still_awaited_can_be_erased(self, store: Store) -> None:
        wanted = deferral()
        await store.defer(wanted)
        erased = await erase(store, subject(EVENT, wanted.pickup.event_id))
        assert erased.traces.pickup_ids == (wanted.pickup.id,)
        assert len(erased.traces.callbacks) == 1

    async def test_an_object_that_another_event_links_to_stays(self, store: Store) -> None:
        mine, other = recording(ref="r"), recording(ref="other")
        other = replace(other, event=replace(other.event, blob_key=mine.event.blob_key))
        for one in (mine, other):
            await store.record(one)
        assert (await erase(store, subject(REF, "r"))).blob_keys == ()
        assert (await erase(store, subject(REF, "other"))).blob_keys == (mine.event.blob_key,)

    async def test_callbacks_that_lie_in_a_journal_are_duplicates_when_they_come_again(
        self, store: Store
    ) -> None:
        lies = CallbackKeys(
            source="deepgram", idempotency_key="k", second_key=None, event_id=new_id("evt", NOW)
        )
        assert await store.traces(subject(REF, "r"), limit=1) == Traces()
        await erase(store, subject(REF, "r"), journaled=(lies, lies))
        found = await store.record(recording(key="k"))
        assert (found.status, found.event_id) == (RecordStatus.DUPLICATE, lies.event_id)
        (stone,) = await store.tombstones()
        assert stone.journal_entries == 2

    async def test_a_tombstone_adds_up_and_tells_nobody_whose_it_was(self, store: Store) -> None:
        whose = subject(REF, "somebody@example.com")
        for n in range(3):
            await store.record(recording("app", ref=whose.key, job_id=f"j{n}"))
        found = 0
        while (
            erased := await store.erase(
                Erasure(
                    subject=whose,
                    tombstone_id="tmb_1",
                    digest=whose.digest("s"),
                    of_jobs=("of j0",),
                    now=NOW,
                    limit=2,
                )
            )
        ).traces:
            found += len(erased.traces.event_ids)
        assert found == 3
        expected = Tombstone(
            id="tmb_1",
            kind="ref",
            digest=whose.digest("s"),
            erased_at=NOW,
            events=3,
            callbacks=3,
            deliveries=3,
            pickups=0,
            blobs=3,
        )
        assert await store.tombstones(whose.digest("s")) == [expected]
        assert await store.tombstones(whose.digest("other secret")) == []
        assert await store.tombstones() == [expected], "what a person asked for"
        assert [one.kind for one in await store.tombstones("of j0")] == ["job_of_ref"], "what it led to"
        assert "somebody" not in repr(expected)
