"""Sweeps of one process beside what another does, over PostgreSQL: nothing that was begun anew is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from receiver.core.event import RecordStatus, new_id
from receiver.core.retention import CallbackKeys, Prune, Traces, Walk
from receiver.core.work import DeliveryFilter, DeliveryState
from receiver.engine.erasure import Eraser, FoundOf, Journaled
from receiver.storage.blobs.local import LocalBlobs
from receiver.storage.store.postgres import PostgresStore
from receiver.storage.store.store import Store
from tests.contract.erase_suite import REF, erase, subject
from tests.contract.store_suite import T0, claim, recording, settlement
from tests.support.kept_events import kept_events
from tests.support.postgres import database

ALL = DeliveryFilter(limit=1000)
LATER = T0 + 10**9


@pytest.fixture
def url() -> Iterator[str]:
    with database() as made:
        yield made


@pytest.fixture
async def stores(url: str) -> AsyncIterator[list[Store]]:
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


async def test_a_delivery_added_while_its_event_is_swept_has_its_event_or_is_gone(
    stores: list[Store],
) -> None:
    sweeper, first, second = stores
    for _ in range(20):
        rows = [recording(at=T0 + n) for n in range(20)]
        await asyncio.gather(*(sweeper.record(one) for one in rows))
        wanted = [(one.event.id, "app") for one in rows]
        _, one, other = await asyncio.gather(
            walk(sweeper, Walk.EVENTS),
            first.add_deliveries(wanted, now=LATER),
            second.add_deliveries(wanted, now=LATER),
        )
        assert not set(one) & set(other)
        taken = await claim(first, limit=1000, now=LATER)
        assert await first.next_due("app") == (taken[0].lease_until if taken else None), "none without event"
        assert len({held.event.id for held in taken}) == len(taken), "none is made twice"
        for held in taken:
            assert await first.settle(settlement(held, at=LATER - 100))
        await walk(sweeper, Walk.EVENTS)


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
        assert {one.id for one in taken} == set(replayed)
        for one in taken:
            assert await replayer.settle(settlement(one, at=LATER - 100))
        await walk(sweeper, Walk.DEAD_LETTERS)
        await walk(sweeper, Walk.EVENTS)
        assert await sweeper.deliveries(ALL) == []
        assert await kept_events(sweeper) == []


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


async def waiting(watch: psycopg.Connection, count: int) -> None:
    """Return once so many wait for a lock."""
    ours = b"datname = current_database() AND backend_type = 'client backend'"
    asked = b"SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND " + ours
    while (await asyncio.to_thread(watch.execute, asked)).rowcount < count:
        pass


async def test_what_a_journal_gives_up_while_its_keys_are_written_is_erased_too(
    stores: list[Store], url: str, tmp_path: Path
) -> None:
    """Nothing was found before, and its keys are known by the time they are written."""
    store, drain, _ = stores
    entry = recording("app", key="k", ref="r")
    keys = CallbackKeys(
        source=entry.event.source, idempotency_key="k", second_key=None, event_id=new_id("evt", T0)
    )
    found = FoundOf(traces=Traces(), journaled=(Journaled(stem="s", keys=keys),))
    blobs = LocalBlobs(str(tmp_path))
    await blobs.open()
    eraser = Eraser(store=store, blobs=blobs, journal=None, providers={}, secrets=("s",))
    with psycopg.connect(url) as other, psycopg.connect(url, autocommit=True) as watch:
        other.execute("LOCK TABLE deliveries IN SHARE MODE")
        draining = asyncio.create_task(drain.record(entry))
        await waiting(watch, 1)  # before its delivery, and after its callback
        erasing = asyncio.create_task(eraser.erase(subject(REF, "r"), found, now=LATER))
        await waiting(watch, 2)
        other.rollback()
        recorded, removed = await asyncio.gather(draining, erasing)
    assert (recorded.status, removed.events) == (RecordStatus.RECORDED, 1)
    assert not await drain.traces(subject(REF, "r"), limit=1)
    assert await drain.deliveries(ALL) == []
    assert (await drain.record(recording(key="k", ref="r"))).status is RecordStatus.DUPLICATE
