"""A standby takes over: the stores go to it by themselves, and what was acknowledged is there."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator

import pytest

from receiver.core.errors import StoreUnavailable
from receiver.storage.store.postgres import PostgresStore
from tests.contract.store_suite import recording
from tests.support.kept_events import kept_events
from tests.support.patience import PATIENCE
from tests.support.postgres import Server, execute, server


@pytest.fixture
def primary() -> Iterator[Server]:
    with server() as made:
        yield made


@pytest.fixture
def standby(primary: Server) -> Iterator[Server]:
    """It has what the primary acknowledges before that is acknowledged."""
    with primary.standby() as made:
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.execute("SELECT pg_reload_conf()")
        while primary.execute("SELECT sync_state FROM pg_stat_replication") != [("sync",)]:
            time.sleep(0.01)
        yield made


async def test_after_a_failover_all_that_was_acknowledged_is_there_and_more_is_taken(
    primary: Server, standby: Server
) -> None:
    url = (
        f"postgresql://postgres@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/postgres?connect_timeout=2"
    )
    store = PostgresStore(url, answer_seconds=3)
    await store.migrate()
    await store.open()
    acknowledged: list[str] = []
    after: list[str] = []
    promoted = False

    async def caller() -> None:
        while len(after) < 50:
            wanted = recording("app")
            while True:
                try:
                    answer = await store.record(wanted)
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.02)
            acknowledged.append(answer.event_id)
            if promoted:
                after.append(answer.event_id)

    callers = [asyncio.create_task(caller()) for _ in range(8)]
    while len(acknowledged) < 100:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(primary.stop, signal.SIGQUIT)
    await asyncio.to_thread(standby.execute, "SELECT pg_promote()")
    promoted = True
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*callers)
    kept = {str(row[0]) for row in execute(standby.url(), "SELECT id FROM events")}
    assert set(acknowledged) <= kept
    assert {one.id for one in await kept_events(store, limit=1000)} <= kept, "reading goes there as well"
    await store.close()
