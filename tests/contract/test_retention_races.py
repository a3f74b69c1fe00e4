"""Sweeps of one process beside what another does, over PostgreSQL: nothing that was begun anew is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from receiver.delivery import DeliveryState
from receiver.retention import Prune, Walk
from receiver.store.base import DeliveryFilter, EventFilter, Store
from receiver.store.postgres import PostgresStore
from tests.contract.erase_suite import REF, erase, subject
from tests.contract.store_suite import T0, claim, recording, settlement
from tests.support.postgres import database

ALL = DeliveryFilter(limit=1000)
LATER = T0 + 10**9


@pytest.fixture
async def stores() -> AsyncIterator[list[Store]]:
    with database() as url:
        made: list[Store] = [PostgresStore(url) for _ in range(3)]
        for one in made:
            await one.open()
        yield made
        for one in made:
            await one.close()


async def dead_letters(store: Store, count: int) -> list[str]:
    """Events with two deliveries each, all dead."""
    await asyncio.gather(*(store.record(recording("app", "b", ref="r", at=T0 + n)) for n in range(count)))
    for to in ("app", "b"):
        held = await claim(store, to, limit=1000, now=T0 + count)
        await asyncio.gather(*(store.settle(settlement(one, DeliveryState.DEAD)) for one in held))
    return [one.id for one in await store.deliveries(ALL)]


async def walk(store: Store, which: Walk) -> int:
    done = await store.prune(Prune(walk=which, before=LATER, dead_before=LATER, limit=1000))
    return done.count


@pytest.mark.parametrize("which", [Walk.EVENTS, Walk.DEAD_LETTERS])
async def test_what_is_replayed_while_it_is_swept_is_either_whole_or_gone(
    stores: list[Store], which: Walk
) -> None:
    sweeper, other, replayer = stores
    for _ in range(5):
        ids = await dead_letters(sweeper, 20)
        *_, replayed = await asyncio.gather(
            walk(sweeper, which), walk(other, which), replayer.replay(ids[::2], now=LATER)
        )
        for delivery_id in replayed:
            left = await replayer.delivery(delivery_id)
            assert left.state is DeliveryState.PENDING
            await replayer.event(left.event_id)
        taken = [one for to in ("app", "b") for one in await claim(replayer, to, limit=1000, now=LATER)]
        assert {one.delivery_id for one in taken} == set(replayed)
        for one in taken:
            assert await replayer.settle(settlement(one, at=LATER - 100))
        await walk(sweeper, Walk.DEAD_LETTERS)
        await walk(sweeper, Walk.EVENTS)
        assert await sweeper.deliveries(ALL) == []
        assert await sweeper.events(EventFilter()) == []


async def test_an_erasure_beside_claims_and_sweeps_leaves_nothing(stores: list[Store]) -> None:
    eraser, claimer, sweeper = stores
    for _ in range(5):
        ids = await dead_letters(eraser, 20)
        await claimer.replay(ids[::2], now=T0)
        await asyncio.gather(
            erase(eraser, subject(REF, "r")),
            claim(claimer, limit=1000, now=LATER),
            walk(sweeper, Walk.EVENTS),
            walk(sweeper, Walk.ATTEMPTS),
        )
        assert not await eraser.traces(subject(REF, "r"), limit=1)
        assert await eraser.deliveries(ALL) == []
        assert await claim(claimer, "b", now=LATER + 10**9) == []
