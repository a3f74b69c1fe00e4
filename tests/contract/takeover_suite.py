"""Claims of a process that has ended are due at once; those of one that lives, however slow, are its own until the lease ends.

A store's own file gives the fixtures `store` and `other`: two processes' stores over one database.
"""

from __future__ import annotations

import asyncio

from receiver.core.work import DeliveryState, PickupState, TakenOver
from receiver.storage.store.store import Store
from tests.contract import pickup_suite
from tests.contract.store_suite import LEASE, T0, claim, one_delivery, settlement
from tests.support.patience import PATIENCE

NOTHING = TakenOver()


async def die(store: Store) -> None:
    """End as a process does that is killed: what it claimed stays claimed, what it locked does not."""
    await store.close()


async def taken_over(store: Store, now: int) -> TakenOver:
    """Return what is taken over, as soon as the server has noticed that the other's session ended."""
    async with asyncio.timeout(PATIENCE):
        while (taken := await store.take_over(now=now)) == NOTHING:
            pass
    return taken


class TakeoverSuite:
    """The promises."""

    async def test_claims_of_a_process_that_has_ended_are_due_at_once(
        self, store: Store, other: Store
    ) -> None:
        await store.take_over(now=T0)
        await other.take_over(now=T0)
        await one_delivery(store)
        await store.add_pickup(pickup_suite.pickup("k", source="deapi"))
        (held,) = await claim(store)
        (held_pickup,) = await store.claim_pickups(
            "deapi", worker="w", limit=9, now=T0, lease_until=T0 + LEASE
        )
        await die(store)
        assert await taken_over(other, T0 + 5) == TakenOver(destinations=("app",), sources=("deapi",))
        shown = await other.delivery(held.id)
        assert (shown.state, shown.attempts, shown.due_at) == (DeliveryState.PENDING, 0, T0 + 5)
        pickup = await other.pickup(held_pickup.id)
        assert (pickup.state, pickup.attempts, pickup.due_at) == (PickupState.PENDING, 0, T0 + 5)
        assert await other.take_over(now=T0 + 6) == NOTHING

    async def test_claims_of_a_process_that_lives_stay_its_own(self, store: Store, other: Store) -> None:
        await store.take_over(now=T0)
        await one_delivery(store)
        (held,) = await claim(store)
        for _ in range(3):
            assert await other.take_over(now=T0 + 5) == NOTHING
        assert await claim(other, now=T0 + 5) == []
        assert await store.settle(settlement(held))

    async def test_a_process_that_was_only_cut_off_cannot_settle_what_was_taken_over(
        self, store: Store, other: Store
    ) -> None:
        await store.take_over(now=T0)
        await other.take_over(now=T0)
        await one_delivery(store)
        (held,) = await claim(store)
        await die(store)
        await taken_over(other, T0 + 5)
        await store.open()
        assert not await store.settle(settlement(held))
        (again,) = await claim(other, now=T0 + 5)
        assert not await store.settle(settlement(held))
        assert await other.settle(settlement(again))

    async def test_without_a_lock_the_lease_decides(self, store: Store, other: Store) -> None:
        """A process that has none, or an older version's, is not known to be dead."""
        await one_delivery(store)
        await claim(store)
        await die(store)
        await other.take_over(now=T0)
        assert await other.take_over(now=T0 + 5) == NOTHING
        assert await claim(other, now=T0 + LEASE - 1) == []
        assert len(await claim(other, now=T0 + LEASE)) == 1
