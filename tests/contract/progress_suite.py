"""What every store must do with what is told of a job while its pickup goes on. The fixture `store` is given elsewhere."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from receiver.core.errors import StoreUnavailable
from receiver.core.event import Recorded, Recording, RecordStatus, Stage
from receiver.core.retention import Erasure, Subject, SubjectKind
from receiver.core.work import ClaimedPickup, DeliveryFilter, OutcomeKind, PickupSettled, PickupSettlement
from receiver.storage.store.store import Store
from tests.contract.pickup_suite import (
    COLLECTING,
    DUPLICATE,
    PENDING,
    RECORDED,
    answering,
    claim,
    expectation,
    held_pickup,
    pickup,
    result_of,
    settlement,
)
from tests.contract.store_suite import T0, recording
from tests.support.kept_events import kept_events


def progress(*destinations: str, key: str | None = None, at: int = T0 + 9) -> Recording:
    """The recording of what is told of a job that goes on."""
    return recording(
        *destinations,
        source="deapi",
        event_type="speech.processing",
        key=key,
        job_id="job",
        ref="r",
        stage=Stage.PROGRESS,
        at=at,
    )


def goes_on(held: ClaimedPickup, *told: Recording) -> PickupSettlement:
    """A settlement after which the pickup is due again."""
    return settlement(held, PENDING, OutcomeKind.NOT_YET, due_at=T0, progress=told)


class ProgressSuite:
    """`settle_pickup` with what is told of a job that goes on."""

    async def test_what_is_told_is_written_with_the_settlement_and_the_pickup_goes_on(
        self, store: Store
    ) -> None:
        held = await held_pickup(store)
        told = [progress("app", "audit"), progress()]
        done = await store.settle_pickup(goes_on(held, *told))
        recorded = tuple(Recorded(status=RECORDED, event_id=one.event.id) for one in told)
        assert done == PickupSettled(held=True, progress=recorded)
        assert [await store.event(one.event.id) for one in told] == [one.event for one in told]
        owed = await store.deliveries(DeliveryFilter())
        assert {(one.event_id, one.destination) for one in owed} == {
            (told[0].event.id, "app"),
            (told[0].event.id, "audit"),
        }
        assert (await store.pickup(held.pickup.id)).state is PENDING

    @pytest.mark.parametrize("by", ["lease", "answer", "erasure"])
    async def test_who_lost_the_claim_tells_nothing(self, store: Store, by: str) -> None:
        """To another worker, to the callback that was expected, or to an erasure: event, delivery and callback row stay out."""
        watch = replace(expectation(), ref="r", due_at=T0)
        held = await held_pickup(store, watch)
        if by == "lease":
            await claim(store, now=held.lease_until)
        elif by == "answer":
            await store.record(answering())
        else:
            whose = Subject(kind=SubjectKind.REF, key="r")
            await store.erase(Erasure(subject=whose, tombstone_id="tmb_1", digest="", now=T0))
        before = await kept_events(store)
        done = await store.settle_pickup(goes_on(held, progress("app", key="half")))
        assert done == PickupSettled(held=False)
        assert await kept_events(store) == before
        assert await store.deliveries(DeliveryFilter()) == []
        assert not (await store.traces(Subject(kind=SubjectKind.JOB, key="job"), limit=9)).event_ids
        assert (await store.record(progress(key="half"))).status is RECORDED

    async def test_what_was_told_before_is_a_duplicate_and_the_attempt_counts(self, store: Store) -> None:
        first = progress("app", key="half")
        await store.settle_pickup(goes_on(await held_pickup(store), first))
        (held,) = await claim(store)
        done = await store.settle_pickup(goes_on(held, progress("app", key="half")))
        assert done.progress == (Recorded(status=DUPLICATE, event_id=first.event.id),)
        assert len(await store.deliveries(DeliveryFilter())) == 1
        assert (await store.pickup(held.pickup.id)).attempts == 2

    async def test_progress_after_the_jobs_end_is_late_and_for_nobody(self, store: Store) -> None:
        held = await held_pickup(store)
        await store.record(recording(source="deapi", job_id="job"))
        done = await store.settle_pickup(goes_on(held, progress("app")))
        assert [one.status for one in done.progress] == [RecordStatus.LATE]
        assert len(await kept_events(store)) == 2
        assert await store.deliveries(DeliveryFilter()) == []

    async def test_what_is_told_with_the_pickups_end_comes_before_it(self, store: Store) -> None:
        held = await held_pickup(store)
        end = result_of(held, "app")
        end = replace(end, event=replace(end.event, job_id="job"))
        done = await store.settle_pickup(settlement(held, recording=end, progress=(progress("app"),)))
        assert done.recorded == Recorded(status=RECORDED, event_id=end.event.id)
        assert [one.status for one in done.progress] == [RECORDED]
        assert len(await store.deliveries(DeliveryFilter())) == 2

    async def test_what_many_tell_at_once_is_answered_to_each(self, store: Store) -> None:
        await asyncio.gather(*(store.add_pickup(pickup()) for _ in range(12)))
        held = await claim(store, limit=12)
        told = [[progress("app", key=f"{number // 2}")] * (number % 3) for number in range(12)]
        done = await asyncio.gather(
            *(store.settle_pickup(goes_on(one, *its)) for one, its in zip(held, told, strict=True))
        )
        assert [len(one.progress) for one in done] == [len(its) for its in told]
        recorded = {one.event_id for each in done for one in each.progress if one.status is RECORDED}
        assert recorded == {one.event_id for each in done for one in each.progress}
        assert len(await store.deliveries(DeliveryFilter())) == len(recorded) == 6

    async def test_an_event_id_that_is_taken_refuses_the_whole_settlement(self, store: Store) -> None:
        held = await held_pickup(store)
        other, told = recording(), progress("app")
        await store.record(replace(other, event=replace(other.event, id=told.event.id)))
        with pytest.raises(StoreUnavailable, match="its id is already there"):
            await store.settle_pickup(goes_on(held, told))
        assert (await store.pickup(held.pickup.id)).state is COLLECTING
