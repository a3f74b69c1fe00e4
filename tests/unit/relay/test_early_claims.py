"""A lane with nothing to do claims in the very transaction that records an event for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from receiver.core.retry import policy
from receiver.core.work import Claimed, DeliveryState
from receiver.engine.relay import DeliveryTerms, Relay
from receiver.engine.worker import LaneTiming
from receiver.storage.store.store import Store
from tests.contract.store_suite import T0, recording
from tests.support.relaying import Gated, Heard, Now, deliveries, only, render, running


def counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[list[Claimed]]:
    """Return a list to which each claim of this store adds what it got."""
    got: list[list[Claimed]] = []
    claim: Callable[..., Awaitable[list[Claimed]]] = store.claim

    def counting(*args: object, **more: object) -> Awaitable[list[Claimed]]:
        claiming = claim(*args, **more)
        if isinstance(claiming, asyncio.Future):
            claiming.add_done_callback(lambda done: got.append(done.result()))
        return claiming

    monkeypatch.setattr(store, "claim", counting)
    return got


def relay_to(store: Store, destination: Gated, concurrency: int = 4) -> Relay:
    terms = DeliveryTerms(destination, policy("deepgram"), concurrency, 5)
    return Relay(store, {"app": terms}, Heard(), render, Now(T0), "w", LaneTiming(poll=3600.0))


async def idle(store: Store, got: list[list[Claimed]]) -> None:
    """Return when the lane has found nothing and looked for what is due next."""
    while not got:
        await asyncio.sleep(0)
    await store.next_due("app")  # queued behind the lane's own look
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@pytest.mark.parametrize("any_store", ["sqlite", "postgres"], indirect=True)
async def test_what_is_recorded_for_an_idle_lane_is_claimed_with_it_and_not_looked_for_again(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = counted(any_store, monkeypatch)
    destination = Gated()
    relay = relay_to(any_store, destination)
    async with running(relay):
        await idle(any_store, got)
        for _ in range(3):
            recorded = relay.expect(["app"])
            told = await any_store.record(recording("app"))
            assert got[-1][0].event.id == told.event_id, "the claim has come with the record"
            recorded(told.event_id)
            destination.permits.release()
            while (await deliveries(any_store))[0].state is not DeliveryState.DELIVERED:
                await asyncio.sleep(0)
        assert [len(claims) for claims in got] == [0, 1, 1, 1]


async def test_an_expected_event_that_did_not_come_keeps_nothing_from_being_claimed_later(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself the lane would look only an hour later."""
    got = counted(any_store, monkeypatch)
    destination = Gated()
    destination.permits.release()
    relay = relay_to(any_store, destination)
    async with running(relay):
        await idle(any_store, got or [[]])
        relay.expect(["app", "unknown"])
        recorded = relay.expect(["app"])
        await idle(any_store, [[]])  # what the first of them claimed was taken: nothing
        told = await any_store.record(recording("app"))
        recorded(told.event_id)
        while (await only(any_store)).state is not DeliveryState.DELIVERED:
            await asyncio.sleep(0.001)


async def test_what_a_lane_claimed_early_while_it_was_being_stopped_is_released(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = counted(any_store, monkeypatch)
    destination = Gated()
    relay = relay_to(any_store, destination)
    relay.start()
    await idle(any_store, got or [[]])
    stopping = asyncio.create_task(relay._lanes["app"].stop(0.05))
    await asyncio.sleep(0)
    relay.expect(["app"])  # the lane has not noticed yet that it is to stop
    await any_store.record(recording("app"))
    await stopping
    await relay.stop(0)
    row = await only(any_store)
    assert (row.state, row.attempts) == (DeliveryState.PENDING, 0)
    assert await any_store.claim("app", worker="x", limit=1, now=T0, lease_until=T0 + 1000)
