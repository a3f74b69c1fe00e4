"""What every store must do about age: each sentence of `prune`, as a test. The fixture `store` is given elsewhere."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from receiver.core.errors import NotFound
from receiver.core.event import Recording
from receiver.core.retention import Prune, Pruned, Walk
from receiver.core.work import DeliveryFilter, DeliveryState, PickupFilter, PickupState
from receiver.storage.store.store import Store
from tests.contract.erase_suite import EraseSuite
from tests.contract.pickup_suite import (
    answering,
    deferral,
    expectation,
    held_pickup,
    pickup,
    result_of,
)
from tests.contract.pickup_suite import claim as claim_pickups
from tests.contract.pickup_suite import settlement as pickup_settlement
from tests.contract.store_suite import LEASE, T0, claim, end, one_delivery, recording, settlement
from tests.support.kept_events import kept_events

AGE = 1000
LATER = T0 + AGE
"""What was made at T0 is old now: the batches below remove what was made before LATER."""
DEAD, DELIVERED = DeliveryState.DEAD, DeliveryState.DELIVERED


async def prune(store: Store, walk: Walk, *, before: int = LATER, dead_before: int = LATER) -> Pruned:
    """One batch that holds all."""
    return await store.prune(Prune(walk=walk, before=before, dead_before=dead_before))


async def all_walks(store: Store, before: int = LATER) -> dict[Walk, int]:
    """Every walk once; how much each removed."""
    return {walk: (await prune(store, walk, before=before, dead_before=before)).count for walk in Walk}


async def ended_event(store: Store, wanted: Recording, state: DeliveryState = DELIVERED) -> str:
    """Record an event for `app`, deliver it or let it die, return its id."""
    recorded = await store.record(wanted)
    for held in await claim(store, now=wanted.event.recorded_at):
        await store.settle(settlement(held, state, at=wanted.event.recorded_at))
    return recorded.event_id


class AgeSuite:
    """Each walk removes what is old and has ended."""

    async def test_an_empty_store_has_nothing_to_remove(self, store: Store) -> None:
        for walk in Walk:
            assert await prune(store, walk) == Pruned(count=0, after=None)

    async def test_old_bodies_go_and_young_ones_stay(self, store: Store) -> None:
        old, young = recording(body=b"old"), recording(body=b"young", at=LATER)
        for one in (old, young):
            await store.record(one)
        assert (await prune(store, Walk.BODIES)).count == 1
        assert [await store.body(one.event.id) for one in (old, young)] == [None, b"young"]
        assert (await prune(store, Walk.BODIES)).count == 0

    async def test_the_body_of_a_callback_that_waits_for_its_result_stays(self, store: Store) -> None:
        wanted = deferral()
        await store.defer(wanted)
        assert (await prune(store, Walk.BODIES)).count == 0
        (held,) = await claim_pickups(store)
        await store.settle_pickup(pickup_settlement(held))
        assert (await prune(store, Walk.BODIES)).count == 1

    async def test_a_body_that_came_late_for_an_old_pickup_is_young(self, store: Store) -> None:
        """Its id is of the pickup's millisecond; its age counts from its arrival."""
        await store.add_pickup(pickup("k"))
        await store.defer(deferral("k", at=LATER))
        (held,) = await claim_pickups(store, now=LATER)
        await store.settle_pickup(pickup_settlement(held))
        assert (await prune(store, Walk.BODIES)).count == 0

    async def test_attempts_of_what_was_delivered_go_and_those_of_dead_letters_stay(
        self, store: Store
    ) -> None:
        delivered = await one_delivery(store)
        await end(store, DELIVERED)
        dead = await one_delivery(store)
        await end(store, DEAD)
        assert (await prune(store, Walk.ATTEMPTS)).count == 1
        assert await store.attempts(delivered) == []
        assert [one.number for one in await store.attempts(dead)] == [1]
        assert (await store.delivery(delivered)).attempts == 1

    async def test_attempts_are_as_old_as_the_end_of_their_delivery(self, store: Store) -> None:
        delivery = await one_delivery(store)
        (held,) = await claim(store)
        await store.settle(settlement(held, DeliveryState.PENDING, due_at=T0 + 1))
        await end(store, DELIVERED, now=LATER)
        assert (await prune(store, Walk.ATTEMPTS)).count == 0
        assert len(await store.attempts(delivery)) == 2
        assert (await prune(store, Walk.ATTEMPTS, before=LATER + 100)).count == 2

    async def test_attempts_of_pickups_go_when_these_have_ended(self, store: Store) -> None:
        busy = await held_pickup(store)
        await store.settle_pickup(pickup_settlement(busy, PickupState.PENDING, due_at=T0 + 9))
        done = await held_pickup(store)
        await store.settle_pickup(pickup_settlement(done))
        assert (await prune(store, Walk.PICKUP_ATTEMPTS)).count == 1
        assert len(await store.pickup_attempts(busy.pickup.id)) == 1
        assert await store.pickup_attempts(done.pickup.id) == []

    async def test_old_audio_leaves_its_event_and_gives_the_keys(self, store: Store) -> None:
        old, young = recording("app"), recording(at=LATER)
        await ended_event(store, old)
        await store.record(young)
        assert await prune(store, Walk.AUDIO) == Pruned(count=1, after=None, blob_keys=_keys(old))
        assert await store.event(old.event.id) == replace(old.event, blob_key=None)
        assert await store.event(young.event.id) == young.event

    async def test_an_object_that_two_events_link_to_goes_with_the_second(self, store: Store) -> None:
        first, second = recording(), recording(at=LATER)
        second = replace(second, event=replace(second.event, blob_key=first.event.blob_key))
        for one in (first, second):
            await store.record(one)
        for before, freed in ((LATER, ()), (LATER + 1, _keys(first))):
            found = await prune(store, Walk.AUDIO, before=before)
            assert (found.count, found.blob_keys) == (1, freed)

    async def test_dead_letters_go_by_the_time_at_which_they_died(self, store: Store) -> None:
        early = await one_delivery(store)
        await end(store, DEAD)
        late = await one_delivery(store)
        await end(store, DEAD, now=LATER)
        assert (await prune(store, Walk.DEAD_LETTERS)).count == 1
        with pytest.raises(NotFound):
            await store.delivery(early)
        assert await store.attempts(early) == []
        assert (await store.delivery(late)).state is DEAD

    async def test_old_events_go_with_all_that_hangs_on_them(self, store: Store) -> None:
        old, young = recording("app"), recording("app", at=LATER)
        await ended_event(store, old)
        await ended_event(store, young)
        (delivery,) = await store.deliveries(DeliveryFilter(event_id=old.event.id))
        found = await prune(store, Walk.EVENTS)
        assert found == Pruned(count=1, after=None, blob_keys=_keys(old))
        assert [one.id for one in await kept_events(store)] == [young.event.id]
        assert await store.attempts(delivery.id) == []
        assert [one.event_id for one in await store.deliveries(DeliveryFilter())] == [young.event.id]
        again = recording(key=old.callback.idempotency_key, at=LATER + 1)
        assert (await store.record(again)).event_id == again.event.id  # its callback row is gone as well

    async def test_an_event_stays_while_a_dead_letter_of_its_own_is_young(self, store: Store) -> None:
        await ended_event(store, recording("app"), DEAD)
        assert (await prune(store, Walk.EVENTS, dead_before=0)).count == 0
        assert (await prune(store, Walk.EVENTS, dead_before=LATER)).count == 1
        assert await store.deliveries(DeliveryFilter()) == []

    async def test_pickups_go_with_their_attempts_when_they_have_ended(self, store: Store) -> None:
        waits, done = await held_pickup(store), await held_pickup(store)
        await store.settle_pickup(pickup_settlement(done))
        assert (await prune(store, Walk.PICKUPS)).count == 1
        assert [one.id for one in await store.pickups(PickupFilter())] == [waits.pickup.id]
        assert await store.pickup_attempts(done.pickup.id) == []

    async def test_a_callback_whose_event_never_came_goes_once_its_pickup_has_ended(
        self, store: Store
    ) -> None:
        """Its pickup was answered by another callback, so no event has the id that it was told."""
        await store.add_pickup(expectation())
        wanted = deferral("token:t", callback="c")
        await store.defer(wanted)
        await store.record(answering(at=T0 + 5))
        assert (await prune(store, Walk.CALLBACKS)).count == 1
        again = await store.defer(deferral("other", callback="c", at=LATER))
        assert again.status.value == "recorded"

    async def test_callbacks_of_events_are_no_leftovers(self, store: Store) -> None:
        await store.record(recording())
        await store.defer(deferral())
        assert (await prune(store, Walk.CALLBACKS)).count == 0


class UnderWaySuite:
    """What is under way is never touched, whatever its age."""

    async def test_nothing_of_a_pending_delivery_goes(self, store: Store) -> None:
        wanted = recording("app", body=b"kept")
        await store.record(wanted)
        assert set((await all_walks(store, T0 + 10**12)).values()) == {0}
        assert await store.body(wanted.event.id) == b"kept"

    async def test_nothing_of_a_claimed_delivery_goes_and_it_can_be_settled(self, store: Store) -> None:
        wanted = recording("app", "other")
        await store.record(wanted)
        for held in await claim(store, "other"):
            await store.settle(settlement(held, DELIVERED))
        (held,) = await claim(store)
        # The other's delivery has ended, so its attempt may go.
        counts = await all_walks(store, T0 + 10**12)
        assert {walk for walk, count in counts.items() if count} == {Walk.ATTEMPTS}
        assert len(await store.deliveries(DeliveryFilter())) == 2
        assert await store.settle(settlement(held))

    async def test_nothing_of_a_delivery_that_will_be_tried_again_goes(self, store: Store) -> None:
        await store.record(recording("app"))
        (held,) = await claim(store)
        await store.settle(settlement(held, DeliveryState.PENDING, due_at=T0 + 10**11))
        assert set((await all_walks(store, T0 + 10**12)).values()) == {0}
        assert len(await store.attempts(held.id)) == 1

    async def test_nothing_of_a_replayed_delivery_goes(self, store: Store) -> None:
        await ended_event(store, recording("app"), DEAD)
        (dead,) = await store.deliveries(DeliveryFilter())
        await store.replay([dead.id], now=T0 + 5)
        assert set((await all_walks(store, T0 + 10**12)).values()) == {0}
        assert len(await claim(store, now=T0 + 5)) == 1

    @pytest.mark.parametrize("claimed", [False, True])
    async def test_nothing_of_a_pickup_under_way_goes(self, store: Store, claimed: bool) -> None:
        wanted = deferral()
        await store.defer(wanted)
        held = await claim_pickups(store) if claimed else []
        assert set((await all_walks(store, T0 + 10**12)).values()) == {0}
        held = held or await claim_pickups(store)
        result = result_of(held[0], "app")
        result = replace(result, callback=replace(result.callback, body=None))
        settled = await store.settle_pickup(pickup_settlement(held[0], recording=result))
        assert settled.held
        assert await store.body(wanted.pickup.event_id) == b"told"

    async def test_in_the_end_nothing_is_left(self, store: Store) -> None:
        """Whatever the order in which the walks come."""
        await store.add_pickup(expectation())
        await store.record(answering("app"))
        await store.defer(deferral())
        for held in await claim_pickups(store):
            await store.settle_pickup(pickup_settlement(held, recording=result_of(held, "app", "other")))
        for destination in ("app", "other"):
            for owed in await claim(store, destination, now=T0 + LEASE):
                await store.settle(settlement(owed, DELIVERED if destination == "app" else DEAD))
        for walk in reversed(Walk):
            await prune(store, walk, before=T0 + 10 * LEASE, dead_before=T0 + 10 * LEASE)
        assert await kept_events(store) == []
        assert await store.pickups(PickupFilter()) == []
        assert await store.deliveries(DeliveryFilter()) == []
        assert set((await all_walks(store, T0 + 10**12)).values()) == {0}


class BatchSuite:
    """Batches are bounded, go on where they ended, and may be done by many at once."""

    async def test_a_batch_looks_at_no_more_than_its_limit_and_the_next_goes_on(self, store: Store) -> None:
        """Also past those that have to stay."""
        busy = {4, 5, 6, 7, 8}
        wanted = [recording(*(["app"] if n in busy else []), at=T0 + n) for n in range(12)]
        for one in wanted:
            await store.record(one)
        found, after = [], ""
        while True:
            done = await store.prune(Prune(walk=Walk.EVENTS, before=LATER, after=after, limit=3))
            found.append(done.count)
            if done.after is None:
                break
            after = done.after
        assert found == [3, 1, 0, 3, 0]
        assert {one.id for one in await kept_events(store)} == {wanted[n].event.id for n in busy}

    async def test_dead_letters_and_bodies_go_in_batches(self, store: Store) -> None:
        for _ in range(5):
            await store.record(recording("app"))
        for held in await claim(store):
            await store.settle(settlement(held, DEAD))
        for walk in (Walk.DEAD_LETTERS, Walk.BODIES):
            counts = []
            for _ in range(4):
                done = await store.prune(Prune(walk=walk, before=LATER, limit=2))
                counts.append((done.count, done.after is None))
            assert counts == [(2, False), (2, False), (1, True), (0, True)]

    async def test_batches_at_once_remove_each_thing_once(self, store: Store) -> None:
        wanted = [recording("app", at=T0 + n) for n in range(40)]
        for one in wanted:
            await ended_event(store, one)
        found = await asyncio.gather(*(prune(store, Walk.EVENTS) for _ in range(4)))
        assert sum(one.count for one in found) == 40
        freed = [key for one in found for key in one.blob_keys]
        assert sorted(freed) == sorted(key for one in wanted for key in _keys(one))

    async def test_keys_that_an_event_links_to_are_known(self, store: Store) -> None:
        wanted = [recording() for _ in range(3)]
        for one in wanted[:2]:
            await store.record(one)
        asked = [key for one in wanted for key in _keys(one)]
        assert await store.known_blobs([*asked, "never"]) == set(asked[:2])
        assert await store.known_blobs([]) == set()


def _keys(one: Recording) -> tuple[str, ...]:
    return () if one.event.blob_key is None else (one.event.blob_key,)


class RetentionSuite(AgeSuite, UnderWaySuite, BatchSuite, EraseSuite):
    """All of it."""
