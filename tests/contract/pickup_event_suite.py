"""How pickups, callbacks and events meet in every store: deferrals, results and answers, sentence by sentence."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from receiver.core.errors import NotFound, StoreUnavailable
from receiver.core.event import Recorded, RecordStatus, Stage, new_id
from receiver.core.work import Deferral, DeliveryFilter, PickupFilter, PickupSettled, PickupState
from receiver.storage.store.store import Store
from tests.contract.pickup_suite import (
    COLLECTED,
    COLLECTING,
    DUPLICATE,
    GONE,
    RECORDED,
    AddSuite,
    PickupClaimSuite,
    claim,
    deferral,
    ended,
    expectation,
    held_pickup,
    pickup,
    result_of,
    settlement,
)
from tests.contract.progress_suite import ProgressSuite
from tests.contract.resolve_suite import ResolveSuite
from tests.contract.store_suite import T0, recording
from tests.support.kept_events import kept_events


class DeferSuite:
    """`defer`."""

    async def test_progress_after_a_deferral_is_late(self, store: Store) -> None:
        """A job that was only handed over may still tell of progress."""
        wanted = deferral()
        ended = replace(wanted.pickup, job_id="ended")
        await store.defer(Deferral(callback=wanted.callback, pickup=ended))
        await store.add_pickup(pickup(job_id="running"))
        for job_id, status in (("ended", RecordStatus.LATE), ("running", RECORDED)):
            told = recording(
                "app", source=wanted.pickup.source, job_id=job_id, stage=Stage.PROGRESS, at=T0 + 1
            )
            assert (await store.record(told)).status is status

    async def test_a_deferral_writes_callback_and_pickup_and_no_event(self, store: Store) -> None:
        wanted = deferral()
        made = wanted.pickup
        recorded = Recorded(status=RECORDED, event_id=made.event_id, pickup_id=made.id)
        assert await store.defer(wanted) == recorded
        assert await store.pickup(made.id) == made
        assert await kept_events(store) == []
        with pytest.raises(NotFound):
            await store.body(made.event_id)
        (held,) = await claim(store)
        assert held.pickup == made

    async def test_a_known_callback_is_a_duplicate_and_writes_nothing(self, store: Store) -> None:
        first = deferral("k", callback="c")
        await store.defer(first)
        for again in (deferral("k", callback="c", at=T0 + 1), deferral("other", callback="c", at=T0 + 1)):
            answer = await store.defer(again)
            assert (answer.status, answer.event_id) == (DUPLICATE, first.pickup.event_id)
        assert await store.pickups(PickupFilter()) == [first.pickup]

    async def test_a_duplicate_names_the_pickup_when_it_stands_under_the_same_key(self, store: Store) -> None:
        first = deferral("k", callback="c")
        await store.defer(first)
        assert (await store.defer(deferral("k", callback="c"))).pickup_id == first.pickup.id
        await store.add_pickup(pickup("other"))
        assert (await store.defer(deferral("other", callback="c"))).pickup_id is None

    async def test_the_same_second_key_is_a_duplicate(self, store: Store) -> None:
        first = deferral(second_key="s")
        await store.defer(first)
        assert (await store.defer(deferral(second_key="s"))).event_id == first.pickup.event_id
        recorded = await store.record(recording(source="deapi", second_key="s"))
        assert (recorded.status, recorded.event_id) == (DUPLICATE, first.pickup.event_id)

    async def test_deferring_the_very_same_again_is_a_duplicate_of_itself(self, store: Store) -> None:
        wanted = deferral()
        first, again = await asyncio.gather(store.defer(wanted), store.defer(wanted))
        assert again == replace(first, status=DUPLICATE)

    async def test_of_many_at_once_with_one_key_one_pickup_is_made(self, store: Store) -> None:
        """Two different callbacks and their copies, about one result."""
        same = [deferral("k", callback=f"c{number % 2}") for number in range(8)]
        answers = await asyncio.gather(*(store.defer(one) for one in same))
        assert {one.event_id for one in answers} == {same[0].pickup.event_id}
        assert sorted(one.status for one in answers) == [DUPLICATE] * 6 + [RECORDED] * 2
        assert [one.id for one in await store.pickups(PickupFilter())] == [same[0].pickup.id]

    async def test_a_duplicate_does_not_lend_its_pickup_to_another_callback(self, store: Store) -> None:
        """The first of two with one result is known already: the pickup is that of the second."""
        await store.record(recording(source="deapi", key="c"))
        known, fresh = deferral("k", callback="c"), deferral("k")
        answers = await asyncio.gather(store.defer(known), store.defer(fresh))
        assert [one.status for one in answers] == [DUPLICATE, RECORDED]
        assert await store.pickups(PickupFilter()) == [fresh.pickup]

    async def test_a_waiting_pickup_takes_over_what_the_callback_tells_and_is_due_at_once(
        self, store: Store
    ) -> None:
        asked = replace(pickup("k", due_at=T0 + 60_000), target=None)
        await store.add_pickup(asked)
        told = deferral("k", at=T0 + 50)
        answer = await store.defer(told)
        assert answer == Recorded(status=RECORDED, event_id=asked.event_id, pickup_id=asked.id)
        assert await store.pickups(PickupFilter()) == [
            replace(
                asked,
                target=told.pickup.target,
                draft=told.pickup.draft,
                job_id="job",
                deadline_at=max(asked.deadline_at, told.pickup.deadline_at),
                due_at=T0 + 50,
                updated_at=T0 + 50,
            )
        ]

    async def test_a_job_id_that_is_known_stays(self, store: Store) -> None:
        asked = pickup("k", job_id="first")
        await store.add_pickup(asked)
        await store.defer(deferral("k"))
        assert (await store.pickup(asked.id)).job_id == "first"

    @pytest.mark.parametrize("state", [COLLECTING, COLLECTED])
    async def test_a_pickup_that_is_under_way_learns_the_link_and_one_that_is_collected_is_left_as_it_is(
        self, store: Store, state: PickupState
    ) -> None:
        held = await held_pickup(store, pickup("k"))
        if state is COLLECTED:
            await store.settle_pickup(settlement(held, recording=result_of(held)))
        before = await store.pickup(held.pickup.id)
        told = deferral("k", at=T0 + 1)
        answer = await store.defer(told)
        assert answer == Recorded(status=RECORDED, event_id=held.pickup.event_id, pickup_id=held.pickup.id)
        (after,) = await store.pickups(PickupFilter())
        if state is COLLECTING:
            learned = (told.pickup.target, told.pickup.draft, told.pickup.job_id)
            assert (after.target, after.draft, after.job_id) == learned
            assert (after.state, after.due_at, after.claimed_by) == (PickupState.PENDING, T0 + 1, None)
            # What an attempt found that knew nothing of the link ends nothing.
            stale = result_of(held, event_type="speech.failed", key=f"pickup:{held.pickup.id}")
            done = await store.settle_pickup(settlement(held, GONE, recording=stale))
            assert done == PickupSettled(held=False)
            assert await kept_events(store) == []
        else:
            assert after == before

    async def test_beside_one_that_is_gone_a_new_pickup_is_made(self, store: Store) -> None:
        held = await held_pickup(store, pickup("k"))
        await store.settle_pickup(settlement(held, GONE))
        told = deferral("k", at=T0 + 1)
        assert (await store.defer(told)).pickup_id == told.pickup.id

    async def test_a_deferral_answers_an_expectation_with_the_event_to_come(self, store: Store) -> None:
        watch = expectation()
        await store.add_pickup(watch)
        told = deferral(at=T0 + 5, which="t")
        await store.defer(told)
        shown = await store.pickup(watch.id)
        assert (shown.state, shown.event_id) == (COLLECTED, told.pickup.event_id)
        assert (shown.due_at, shown.last_outcome) == (None, "answered")

    async def test_a_duplicate_deferral_answers_with_the_first_ones_event(self, store: Store) -> None:
        first = deferral(callback="c")
        await store.defer(first)
        watch = expectation()
        await store.add_pickup(watch)
        await store.defer(deferral(callback="c", which="t"))
        assert (await store.pickup(watch.id)).event_id == first.pickup.event_id


class ResultSuite:
    """`settle_pickup` with the event that ends it."""

    async def test_settling_with_a_result_writes_event_deliveries_and_body(self, store: Store) -> None:
        held = await held_pickup(store)
        wanted = result_of(held, "app", "audit")
        done = await store.settle_pickup(settlement(held, recording=wanted))
        event_id = held.pickup.event_id
        assert done == PickupSettled(held=True, recorded=Recorded(status=RECORDED, event_id=event_id))
        assert await store.event(event_id) == wanted.event
        assert await store.body(event_id) == b"fetched"
        owed = await store.deliveries(DeliveryFilter(event_id=event_id))
        assert {(one.destination, one.due_at) for one in owed} == {("app", T0 + 9), ("audit", T0 + 9)}
        shown = await store.pickup(held.pickup.id)
        assert (shown.state, shown.event_id, shown.attempts) == (COLLECTED, event_id, 1)
        again = await store.record(recording(source="deapi", key=held.pickup.key))
        assert (again.status, again.event_id) == (DUPLICATE, event_id)

    async def test_a_result_for_no_destination_is_recorded_all_the_same(self, store: Store) -> None:
        held = await held_pickup(store)
        await store.settle_pickup(settlement(held, recording=result_of(held)))
        assert [one.id for one in await kept_events(store)] == [held.pickup.event_id]
        assert await store.deliveries(DeliveryFilter()) == []

    async def test_a_deferred_callback_leads_to_the_event_and_keeps_its_body(self, store: Store) -> None:
        """Also when the pickup was there before it, with an event of another moment."""
        before = pickup("asked before")
        await store.add_pickup(before)
        first = deferral("told first", second_key="told first", at=T0 + 1)
        later = deferral("asked before", second_key="asked before", at=T0 + 2)
        for told in (first, later):
            await store.defer(told)
        for held in await claim(store, now=T0 + 9):
            done = await store.settle_pickup(settlement(held, recording=result_of(held, "app")))
            assert done.recorded == Recorded(status=RECORDED, event_id=held.pickup.event_id)
            assert await store.body(held.pickup.event_id) == b"told"
        assert {one.id for one in await kept_events(store)} == {
            before.event_id,
            first.pickup.event_id,
        }
        again = deferral(callback=later.callback.idempotency_key)
        assert (await store.defer(again)).event_id == before.event_id

    async def test_of_several_callbacks_behind_one_event_the_first_received_is_its_body(
        self, store: Store
    ) -> None:
        made = [deferral("k", at=T0 + number) for number in range(6)]
        for number in (2, 0, 5, 1, 4, 3):
            await store.defer(made[number])
        told = replace(made[0].callback, idempotency_key="first of all", received_at=T0 - 1, body=b"first")
        await store.defer(Deferral(callback=replace(told, id=new_id("cb", T0)), pickup=made[3].pickup))
        (held,) = await claim(store, now=T0 + 9)
        await store.settle_pickup(settlement(held, recording=result_of(held)))
        assert await store.body(held.pickup.event_id) == b"first"

    async def test_a_result_that_a_callback_brought_before_is_a_duplicate(self, store: Store) -> None:
        held = await held_pickup(store, pickup("k"))
        first = recording("app", source="deapi", key="k", at=T0 + 3)
        await store.record(first)
        done = await store.settle_pickup(settlement(held, recording=result_of(held, "app")))
        assert done.recorded == Recorded(status=DUPLICATE, event_id=first.event.id)
        assert await kept_events(store) == [first.event]
        assert len(await store.deliveries(DeliveryFilter())) == 1
        shown = await store.pickup(held.pickup.id)
        assert (shown.state, shown.event_id, shown.attempts) == (COLLECTED, first.event.id, 1)

    @pytest.mark.parametrize("key", ["k", "a key of the failure's own"])
    async def test_a_failure_is_a_duplicate_of_a_result_and_the_pickup_ends_collected(
        self, store: Store, key: str
    ) -> None:
        held = await held_pickup(store, pickup("k"))
        first = recording(source="deapi", key="k", at=T0 + 3)
        await store.record(first)
        failed = result_of(held, event_type="speech.failed", key=key)
        done = await store.settle_pickup(settlement(held, GONE, recording=failed))
        assert done.recorded == Recorded(status=DUPLICATE, event_id=first.event.id)
        shown = await store.pickup(held.pickup.id)
        assert (shown.state, shown.event_id, shown.due_at) == (COLLECTED, first.event.id, None)

    async def test_a_result_that_another_callback_waits_for_is_a_duplicate(self, store: Store) -> None:
        awaited = deferral("one name", second_key="k")
        await store.defer(awaited)
        await claim(store)
        held = await held_pickup(store, pickup("another name"))
        done = await store.settle_pickup(settlement(held, recording=result_of(held, key="k")))
        assert done.recorded == Recorded(status=DUPLICATE, event_id=awaited.pickup.event_id)
        assert (await store.pickup(held.pickup.id)).event_id == awaited.pickup.event_id

    async def test_a_result_after_a_failure_is_recorded(self, store: Store) -> None:
        first = await ended(store, pickup("k"), GONE, "speech.failed")
        again = pickup("k", at=T0 + 1)
        second = await ended(store, again, COLLECTED, "speech.completed")
        assert second == Recorded(status=RECORDED, event_id=again.event_id)
        assert first is not None
        assert {one.type for one in await kept_events(store)} == {
            "speech.failed",
            "speech.completed",
        }
        assert await store.body(again.event_id) == b"fetched"
        assert len(await store.deliveries(DeliveryFilter())) == 2

    async def test_a_failure_under_its_own_key_does_not_stand_in_a_late_results_way(
        self, store: Store
    ) -> None:
        await store.defer(deferral("k", second_key="k"))
        (held,) = await claim(store)
        failed = result_of(held, event_type="speech.failed", key=f"pickup:{held.pickup.id}")
        failed = replace(failed, callback=replace(failed.callback, received_at=T0 - 9, body=None))
        done = await store.settle_pickup(settlement(held, GONE, recording=failed))
        assert done.recorded == Recorded(status=RECORDED, event_id=held.pickup.event_id)
        assert await store.body(held.pickup.event_id) == b"told"
        again = pickup("k", at=T0 + 1)
        assert await ended(store, again, COLLECTED, "speech.completed") == Recorded(
            status=RECORDED, event_id=again.event_id
        )

    async def test_each_failure_of_a_result_asked_for_again_is_recorded(self, store: Store) -> None:
        for number in range(3):
            done = await ended(store, pickup("k", at=T0 + number), GONE, "speech.failed")
            assert done is not None
            assert done.status is RECORDED
        assert len(await kept_events(store)) == 3

    async def test_a_failure_that_was_pushed_while_it_was_asked_for_is_told_once(self, store: Store) -> None:
        held = await held_pickup(store, pickup("k"))
        pushed = recording(
            source=held.pickup.source, key="delivery", second_key="f", event_type="speech.failed", at=T0 + 5
        )
        await store.record(pushed)
        failed = result_of(held, event_type="speech.failed", key="f")
        done = await store.settle_pickup(settlement(held, GONE, recording=failed))
        assert done.recorded == Recorded(status=DUPLICATE, event_id=pushed.event.id)
        assert len(await kept_events(store)) == 1

    async def test_a_failure_by_both_roads_is_no_obstacle_to_a_later_success(self, store: Store) -> None:
        """The pickup stays gone, so that a result that is called back after all is fetched, and may be asked for again."""
        held = await held_pickup(store, pickup("k"))
        pushed = recording(
            source=held.pickup.source, key="delivery", second_key="f", event_type="speech.failed", at=T0 + 5
        )
        await store.record(pushed)
        failed = result_of(held, event_type="speech.failed", key="f")
        await store.settle_pickup(settlement(held, GONE, recording=failed))
        ended = await store.pickup(held.pickup.id)
        assert (ended.state, ended.event_id, ended.due_at) == (GONE, pushed.event.id, None)
        succeeded = deferral("k", at=T0 + 50)
        told = await store.defer(succeeded)
        assert (told.status, told.pickup_id) == (RECORDED, succeeded.pickup.id)
        assert await store.next_due_pickup(held.pickup.source) == T0 + 50

    async def test_what_nobody_awaits_any_more_is_no_obstacle_to_a_later_success(self, store: Store) -> None:
        """A callback that told of success led to the pickup that met the failure: its event never came."""
        await store.defer(deferral("k"))
        (failing,) = await claim(store)
        pushed = recording(
            source=failing.pickup.source, key="d", second_key="f", event_type="speech.failed", at=T0 + 5
        )
        await store.record(pushed)
        failed = result_of(failing, event_type="speech.failed", key="f")
        await store.settle_pickup(settlement(failing, GONE, recording=failed))
        asked, new = await store.add_pickup(pickup("k", at=T0 + 50))
        assert new
        (again,) = await claim(store, now=T0 + 50)
        done = await store.settle_pickup(settlement(again, recording=result_of(again, "app")))
        assert done.recorded == Recorded(status=RECORDED, event_id=asked.event_id)
        assert {one.id for one in await kept_events(store)} == {pushed.event.id, asked.event_id}

    async def test_a_callback_brings_a_pickup_the_ref_and_format_that_it_lacks(self, store: Store) -> None:
        bare = replace(pickup("bare"), ref=None, format={})
        mine = replace(pickup("mine"), ref="order-1", format={"encoding": "mp3"})
        for one in (bare, mine):
            await store.add_pickup(one)
            news = deferral(one.key)
            told = replace(news.pickup, ref="order-2", format={"sample_rate": 8000})
            await store.defer(Deferral(callback=news.callback, pickup=told))
        for one, kept in (
            (bare, ("order-2", {"sample_rate": 8000})),
            (mine, ("order-1", {"encoding": "mp3"})),
        ):
            found = await store.pickup(one.id)
            assert (found.ref, found.format) == kept

    @pytest.mark.parametrize("state", [COLLECTED, GONE])
    async def test_a_result_is_not_taken_for_another_event_of_the_same_id(
        self, store: Store, state: PickupState
    ) -> None:
        """That would end the pickup without an event; refused, it is attempted again, and somebody hears of it."""
        held = await held_pickup(store)
        other = recording()
        await store.record(replace(other, event=replace(other.event, id=held.pickup.event_id)))
        with pytest.raises(StoreUnavailable, match="its id is already there"):
            await store.settle_pickup(settlement(held, state, recording=result_of(held, "app")))
        assert (await store.pickup(held.pickup.id)).state is COLLECTING
        assert await store.deliveries(DeliveryFilter()) == []

    async def test_many_settled_at_once_are_each_written(self, store: Store) -> None:
        await asyncio.gather(*(store.add_pickup(pickup()) for _ in range(30)))
        held = await claim(store, limit=30)
        done = await asyncio.gather(
            *(
                store.settle_pickup(settlement(one, recording=result_of(one, "app") if number % 2 else None))
                for number, one in enumerate(held)
            )
        )
        assert all(one.held for one in done)
        assert len(await kept_events(store)) == 15
        assert len(await store.pickups(PickupFilter(state=COLLECTED))) == 30


class PickupSuite(AddSuite, PickupClaimSuite, DeferSuite, ResultSuite, ProgressSuite, ResolveSuite):
    """All of it."""
