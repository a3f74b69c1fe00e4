"""What two processes do with one pickup in the same moment, over PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from receiver.core.work import PickupSettled, PickupState
from receiver.storage.store import pickups
from receiver.storage.store.postgres import PostgresStore
from receiver.storage.store.store import Store
from tests.contract.pickup_suite import deferral, held_pickup, pickup, settlement
from tests.contract.store_suite import T0
from tests.support.postgres import database


@pytest.fixture
async def stores() -> AsyncIterator[list[Store]]:
    with database() as url:
        made: list[Store] = [PostgresStore(url) for _ in range(2)]
        for one in made:
            await one.open()
        yield made
        for one in made:
            await one.close()


async def test_a_callback_for_a_pickup_that_ends_in_that_moment_is_fetched_by_a_new_one(
    stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The intake has seen the pickup stand, and a worker elsewhere gives it up before the intake can hand the link over."""
    intake, worker = stores
    held = await held_pickup(worker, pickup("k"))
    loop, reschedule = asyncio.get_running_loop(), pickups._reschedule
    settled: list[PickupSettled] = []

    def late(*args: object) -> None:
        if not settled:
            ending = worker.settle_pickup(settlement(held, PickupState.GONE))
            settled.append(asyncio.run_coroutine_threadsafe(ending, loop).result(10))
        reschedule(*args)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(pickups, "_reschedule", late)
    news = deferral("k", at=T0 + 50)
    told = await intake.defer(news)
    assert settled[0].held
    assert told.pickup_id == news.pickup.id
    fetched = await intake.pickup(news.pickup.id)
    assert (fetched.state, fetched.due_at, fetched.target) == (
        PickupState.PENDING,
        T0 + 50,
        news.pickup.target,
    )
