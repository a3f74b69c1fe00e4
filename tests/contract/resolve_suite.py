"""How a callback answers the expectation of it in every store: `record` with `answered`, sentence by sentence."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from receiver.core.event import Answered, Stage
from receiver.core.work import PickupFilter, PickupSettled
from receiver.storage.store.store import Store
from tests.contract.pickup_suite import (
    COLLECTED,
    DUPLICATE,
    GONE,
    PENDING,
    RECORDED,
    answering,
    claim,
    expectation,
    held_pickup,
    result_of,
    settlement,
)
from tests.contract.store_suite import T0, recording
from tests.support.kept_events import kept_events


class ResolveSuite:
    """`record` with `answered`."""

    async def test_a_final_answer_ends_the_expectation_with_its_event(self, store: Store) -> None:
        watch = expectation()
        await store.add_pickup(watch)
        told = answering("app")
        await store.record(told)
        assert await store.pickup(watch.id) == replace(
            watch,
            state=COLLECTED,
            event_id=told.event.id,
            job_id="job",
            due_at=None,
            updated_at=T0 + 5,
            last_outcome="answered",
        )

    async def test_an_answer_that_came_first_as_a_duplicate_names_the_first_event(self, store: Store) -> None:
        """The first copy had no token to tell whom it answers."""
        first = recording(source="deapi", key="k")
        await store.record(first)
        watch = expectation()
        await store.add_pickup(watch)
        assert (await store.record(answering(key="k"))).status is DUPLICATE
        assert (await store.pickup(watch.id)).event_id == first.event.id

    async def test_word_of_progress_only_brings_the_job_id(self, store: Store) -> None:
        watch = expectation()
        await store.add_pickup(watch)
        await store.record(answering(final=False, job_id=None))
        assert await store.pickup(watch.id) == watch
        await store.record(answering(final=False, job_id="first"))
        await store.record(answering(final=False, job_id="second", at=T0 + 5))
        assert await store.pickup(watch.id) == replace(watch, job_id="first", updated_at=T0 + 5)

    async def test_progress_and_end_at_once_are_both_heard(self, store: Store) -> None:
        watch = expectation()
        await store.add_pickup(watch)
        both = (answering(final=False, job_id="first"), answering(job_id="second"), answering())
        await asyncio.gather(*(store.record(one) for one in both))
        shown = await store.pickup(watch.id)
        assert (shown.state, shown.job_id, shown.event_id) == (COLLECTED, "first", both[1].event.id)

    async def test_a_second_answer_changes_nothing(self, store: Store) -> None:
        await store.add_pickup(expectation())
        await store.record(answering())
        (before,) = await store.pickups(PickupFilter())
        await store.record(answering())
        assert await store.pickups(PickupFilter()) == [before]

    async def test_an_answer_takes_the_pickup_from_whoever_asks_the_provider(self, store: Store) -> None:
        await store.add_pickup(expectation())
        (held,) = await claim(store, now=T0 + 600_000)
        told = answering()
        await store.record(told)
        late = settlement(held, recording=result_of(held))
        assert await store.settle_pickup(late) == PickupSettled(held=False)
        assert await kept_events(store) == [told.event]
        assert (await store.pickup(held.pickup.id)).claimed_by is None

    async def test_an_answer_after_the_end_turns_what_was_gone_into_collected(self, store: Store) -> None:
        watch = expectation()
        await store.add_pickup(watch)
        (held,) = await claim(store, now=T0 + 600_000)
        overdue = result_of(held, "app", event_type="callback.overdue")
        await store.settle_pickup(settlement(held, GONE, recording=overdue))
        told = answering()
        assert (await store.record(told)).status is RECORDED
        shown = await store.pickup(watch.id)
        assert (shown.state, shown.event_id, shown.last_outcome) == (COLLECTED, told.event.id, "late")
        assert len(await kept_events(store)) == 2

    async def test_a_gone_pickup_stays_gone_when_another_of_its_key_stands(self, store: Store) -> None:
        gone, standing = expectation(), expectation(at=T0 + 1)
        await store.settle_pickup(settlement(await held_pickup(store, gone, now=T0 + 600_000), GONE))
        await store.add_pickup(standing)
        for _ in range(2):
            await store.record(answering())
            states = [one.state for one in await store.pickups(PickupFilter())]
            assert states == [COLLECTED, GONE]

    async def test_of_several_gone_the_last_is_answered(self, store: Store) -> None:
        for number in range(2):
            made = expectation(at=T0 + number)
            held = await held_pickup(store, made, now=T0 + 700_000)
            await store.settle_pickup(settlement(held, GONE))
        await store.record(answering())
        assert [one.state for one in await store.pickups(PickupFilter())] == [COLLECTED, GONE]

    async def test_an_answer_reaches_only_the_source_and_token_that_it_names(self, store: Store) -> None:
        others = [expectation("other"), replace(expectation(), source="playht")]
        for one in others:
            await store.add_pickup(one)
        assert (await store.record(answering())).status is RECORDED
        assert [await store.pickup(one.id) for one in others] == others

    async def test_many_answers_at_once_each_reach_their_own(self, store: Store) -> None:
        for number in range(20):
            await store.add_pickup(expectation(str(number)))
        told = [answering(which=str(number)) for number in range(20)]
        await asyncio.gather(*(store.record(one) for one in told))
        ends = {one.key: one.event_id for one in await store.pickups(PickupFilter())}
        assert ends == {f"token:{number}": one.event.id for number, one in enumerate(told)}

    async def test_late_progress_is_told_to_the_expectation_all_the_same(self, store: Store) -> None:
        watch = expectation()
        await store.add_pickup(watch)
        await store.record(recording(source="deapi", job_id="j"))
        late = recording(source="deapi", job_id="j", stage=Stage.PROGRESS)
        answered = Answered(key=watch.key, final=False, job_id="j")
        await store.record(replace(late, answered=answered))
        shown = await store.pickup(watch.id)
        assert (shown.state, shown.job_id) == (PENDING, "j")
