"""PostgreSQL says nothing: a stop does not wait for it, a migration does, and commits that it keeps back do not pile up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections.abc import Iterator

import psycopg
import pytest

from receiver.core.errors import StoreUnavailable
from receiver.storage.store.postgres import Pauses, PostgresStore
from receiver.storage.store.postgres_session import _MIGRATING
from receiver.storage.store.statements import migrations
from tests.contract.store_suite import recording
from tests.support.kept_events import kept_events
from tests.support.patience import PATIENCE
from tests.support.postgres import Server, execute, own_database, server


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with server() as made:
        asyncio.run(PostgresStore(made.url()).migrate())
        yield made


async def test_closing_waits_a_moment_for_a_server_that_answers_no_more(running: Server) -> None:
    store = PostgresStore(running.url())
    store.listen(lambda destinations, sources: None)
    await store.open()
    await store.record(recording("app"))
    await kept_events(store)
    running.signal_all(signal.SIGSTOP)
    try:
        asked = [asyncio.create_task(one) for one in (store.ping(), kept_events(store))]
        await asyncio.wait(asked, timeout=0.1)
        began = time.monotonic()
        await store.close()
        assert time.monotonic() - began < 3
        answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 2)
        assert [type(one) for one in answers] == [StoreUnavailable] * 2
    finally:
        running.signal_all(signal.SIGCONT)
    await store.open()
    await store.record(recording("app"))
    await kept_events(store)
    await store.close()


async def test_pauses_grow_after_commits_that_were_not_answered(
    running: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a standby that is away: connections are made more and more seldom, until a commit is answered."""
    made: list[float] = []
    real = PostgresStore._connected

    def connected(self: PostgresStore, writes: bool = False) -> object:
        made.append(time.monotonic())
        return real(self, writes)

    monkeypatch.setattr(PostgresStore, "_connected", connected)
    store = PostgresStore(running.url(), answer_seconds=0.2, pauses=Pauses(silent=0.05))
    await store.open()
    running.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    running.execute("SELECT pg_reload_conf()")
    try:
        while running.execute("SHOW synchronous_standby_names") != [("nobody",)]:
            await asyncio.sleep(0.01)
        while len(made) < 5:
            with pytest.raises(StoreUnavailable, match="does not answer"):
                await store.record(recording("app"))  # a ping waits for the last one's row
            await asyncio.sleep(0.005)
        gaps = [later - earlier - 0.2 for earlier, later in itertools.pairwise(made)][1:]
        assert [gap >= least for gap, least in zip(gaps, (0.05, 0.1, 0.2), strict=False)] == [True] * 3
    finally:
        running.execute("ALTER SYSTEM RESET synchronous_standby_names")
        running.execute("SELECT pg_reload_conf()")
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(StoreUnavailable):
                await store.ping()
                break
            await asyncio.sleep(0.01)
    await store.close()


async def test_a_migration_may_take_longer_than_any_answer() -> None:
    """It waits for another that is under way, and for its own statements; afterwards the limit holds again."""
    waited = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
        "AND clock_timestamp() - query_start > '0.6 s'"
    )
    with own_database() as url:
        store = PostgresStore(url, answer_seconds=0.2)
        with psycopg.connect(url) as other:
            other.execute(f"SELECT pg_advisory_xact_lock({_MIGRATING})".encode())
            migrating = asyncio.create_task(store.migrate())
            while not migrating.done() and not await asyncio.to_thread(execute, url, waited):
                await asyncio.sleep(0.02)
        assert await migrating == list(migrations("BYTEA"))
        await store.open()
        assert await store.migrate() == []
        with psycopg.connect(url) as other:
            other.execute("LOCK TABLE callbacks")
            with pytest.raises(StoreUnavailable, match="does not answer"):
                await store.record(recording("app"))
        await store.close()
