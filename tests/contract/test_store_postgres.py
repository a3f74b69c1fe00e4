"""The store in PostgreSQL keeps the port's promises, also between processes and after a kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from receiver.core.destinations import SendingRules
from receiver.core.errors import ConfigError, StoreUnavailable
from receiver.core.event import EventSearch, RecordStatus
from receiver.core.work import Claimed, DeliveryFilter
from receiver.storage.store.postgres import PostgresBackend, PostgresStore
from receiver.storage.store.statements import migrations
from receiver.storage.store.store import Store
from tests.contract.bulk_suite import BulkSuite
from tests.contract.listing_suite import ListingSuite
from tests.contract.pickup_event_suite import PickupSuite
from tests.contract.retention_suite import RetentionSuite
from tests.contract.store_suite import (
    T0,
    StoreSuite,
    claim,
    one_delivery,
    recording,
    settlement,
    walk_while_recording,
)
from tests.contract.submission_suite import SubmissionSuite
from tests.contract.takeover_suite import NOTHING, TakeoverSuite
from tests.contract.token_suite import TokenSuite
from tests.support.kept_events import kept_events
from tests.support.patience import PATIENCE
from tests.support.postgres import database, execute, own_database, shared

ALL = list(migrations("BYTEA"))


@pytest.fixture
def url() -> Iterator[str]:
    with database() as made:
        yield made


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    made = PostgresStore(url)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def other(store: PostgresStore, url: str) -> AsyncIterator[Store]:
    made = PostgresStore(url)
    made.takeover_seconds = store.takeover_seconds = 0.0
    await made.open()
    yield made
    await made.close()


class TestPostgresListings(ListingSuite):
    """The suite of pages."""


class TestPostgresTakeover(TakeoverSuite):
    """The suite of processes that ended."""


async def test_a_process_whose_connections_broke_is_back_before_it_counts_as_dead(
    store: Store, other: Store, url: str
) -> None:
    other.takeover_seconds = 2.0
    await store.take_over(now=T0)
    await one_delivery(store)
    (held,) = await claim(store)
    execute(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    assert await other.take_over(now=T0) == NOTHING
    assert await other.take_over(now=T0) == NOTHING, "free, but only just"
    await store.take_over(now=T0)
    other.takeover_seconds = 0.0
    assert await other.take_over(now=T0) == NOTHING
    assert await store.settle(settlement(held))


class TestPostgresStore(StoreSuite):
    """The suite, over a server."""


async def test_a_walk_while_several_processes_record_misses_nothing(url: str) -> None:
    """Their transactions commit in another order than they begin."""
    stores: list[Store] = [PostgresStore(url) for _ in range(4)]
    for one in stores:
        await one.open()
    await walk_while_recording(stores * 4)
    for one in stores:
        await one.close()


async def test_positions_go_on_above_those_of_a_database_that_was_copied(url: str, store: Store) -> None:
    """The copy counts its transactions anew."""
    first = recording("app")
    await store.record(first)
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE events SET position = position + 1000000")
    await store.close()
    await store.open()
    second = recording("app")
    await store.record(second)
    ids = [one.event.id for one in await store.search(EventSearch(newest_first=True))]
    assert ids == [second.event.id, first.event.id]


class TestPostgresBulk(BulkSuite):
    """The suite of operations on many rows."""


class TestPostgresPickups(PickupSuite):
    """The suite of pickups."""


class TestPostgresSubmissions(SubmissionSuite):
    """The suite of submissions."""


class TestPostgresTokens(TokenSuite):
    """The suite of short callback tokens."""


class TestPostgresRetention(RetentionSuite):
    """The suite of age and erasure."""


async def test_text_that_databases_cannot_hold_is_kept_as_near_as_can_be(store: Store) -> None:
    wanted = recording("app", job_id="lone \ud800", ref="nul \0", key="k \ud800")
    await store.record(wanted)
    found = await store.event(wanted.event.id)
    assert (found.job_id, found.ref) == ("lone ?", "nul \ufffd")
    assert len(await kept_events(store, job_id="lone \ud800")) == 1
    again = await store.record(recording("app", key="k \ud800"))
    assert again.event_id == wanted.event.id


async def test_text_sorts_by_its_bytes_whatever_the_database_is_used_to() -> None:
    """Ids are compared with texts that end in `~`; where a language decides the order, that comes before a letter."""
    name = shared().new_database()
    language = "LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"
    with contextlib.suppress(
        psycopg.errors.FeatureNotSupported
    ):  # a server without languages: the columns tell
        shared().execute(f"CREATE DATABASE {name}_icu TEMPLATE template0 {language}")
        shared().drop_database(name)
        name += "_icu"
    url = shared().url(name)
    store = PostgresStore(url)
    try:
        await store.migrate()
        await store.open()
        kept = [recording("b", body=b"one"), recording("B", body=b"two"), recording("_", body=b"three")]
        for one in kept:
            await store.record(one)
        assert [await store.body(one.event.id) for one in kept] == [b"one", b"two", b"three"]
        assert [one.name for one in (await store.stats(T0)).due] == ["B", "_", "b"]
        columns = (
            "SELECT DISTINCT collation_name FROM information_schema.columns "
            "WHERE data_type = 'text' AND table_schema = 'public' AND table_name <> 'migrations'"
        )
        assert execute(url, columns) == [("C",)]
    finally:
        await store.close()
        shared().drop_database(name)


async def test_a_database_that_does_not_hold_all_of_unicode_is_refused() -> None:
    name = shared().new_database()
    shared().drop_database(name)
    shared().execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    with pytest.raises(ConfigError, match="ENCODING 'UTF8'"):
        await PostgresStore(shared().url(name)).migrate()
    shared().drop_database(name)


# ---------------------------------------------------------------- several processes


async def test_claims_of_several_stores_never_overlap(store: Store, url: str) -> None:
    others = [PostgresStore(url) for _ in range(3)]
    for other in others:
        await other.open()
    await asyncio.gather(*(store.record(recording("app")) for _ in range(200)))
    batches = await asyncio.gather(*(claim(one, limit=5) for _ in range(15) for one in (store, *others)))
    for other in others:
        await other.close()
    ids = [one.id for batch in batches for one in batch]
    assert len(ids) == len(set(ids)) == 200


async def test_of_many_stores_that_record_one_key_exactly_one_does(store: Store, url: str) -> None:
    """Those that come second wait for the first one's commit and get its event."""
    other = PostgresStore(url)
    await other.open()
    for round_ in range(10):
        same = [recording("app", key=f"k{round_}", second_key=f"s{round_}") for _ in range(16)]
        answers = await asyncio.gather(
            *((store, other)[number % 2].record(one) for number, one in enumerate(same))
        )
        (first,) = [one for one in answers if one.status is RecordStatus.RECORDED]
        assert {one.event_id for one in answers} == {first.event_id}
    await other.close()
    assert len(await store.deliveries(DeliveryFilter(limit=100))) == 10


async def test_stores_that_meet_the_same_rows_in_opposite_order_all_finish(store: Store, url: str) -> None:
    """Each transaction takes its rows in one order; where two lock each other all the same, one is repeated."""
    other = PostgresStore(url)
    await other.open()
    await asyncio.gather(*(store.record(recording("app")) for _ in range(100)))
    held = await claim(store, limit=100)
    both = [
        one.settle(settlement(each))
        for pair in zip(held, reversed(held), strict=True)
        for one, each in zip((store, other), pair, strict=True)
    ]
    answers = await asyncio.gather(*both)
    await other.close()
    assert sum(answers) == 100
    assert [len(await store.attempts(one.id)) for one in held] == [1] * 100


_WRITER = """
import asyncio, sys
from receiver.storage.store.postgres import PostgresStore
from receiver.storage.store.statements import migrations
from tests.contract.store_suite import recording
from tests.contract.token_suite import TokenSuite

async def main(url):
    store = PostgresStore(url)
    await store.open()
    async def one():
        while True:
            wanted = recording("app")
            await store.record(wanted)
            print(wanted.event.id, flush=True)
    await asyncio.gather(*(one() for _ in range(16)))

asyncio.run(main(sys.argv[1]))
"""


async def test_a_killed_process_loses_nothing_that_it_acknowledged(store: Store, url: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITER, url, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    acknowledged = [await process.stdout.readline() for _ in range(300)]
    process.send_signal(signal.SIGKILL)
    rest = (await process.stdout.read()).splitlines(keepends=True)
    acknowledged += [line for line in rest if line[-1:] == b"\n"]
    await process.wait()
    deliveries = await claim(store, limit=100_000)
    assert {line.decode().strip() for line in acknowledged} <= {one.event.id for one in deliveries}


# ---------------------------------------------------------------- the schema


async def test_a_database_without_tables_is_refused_until_it_is_migrated() -> None:
    with own_database() as url:
        store = PostgresStore(url)
        with pytest.raises(ConfigError, match="the database has no tables yet: run `receiver migrate`"):
            await store.open()
        assert await store.migrate() == ALL
        assert await store.migrate() == []
        await store.open()
        await store.close()


async def test_a_schema_that_lacks_a_migration_is_refused_with_its_name() -> None:
    with own_database(migrated=True) as url:
        execute(url, "DELETE FROM migrations WHERE name = '0002_pickups'")
        with pytest.raises(ConfigError, match=r"older.*lacks 0002_pickups.*run `receiver migrate`"):
            await PostgresStore(url).open()


async def test_a_newer_schema_that_leaves_no_room_for_the_program_is_refused() -> None:
    with own_database(migrated=True) as url:
        execute(url, "INSERT INTO migrations (name, applied_at) VALUES ('9999_needs_9999_later', 1)")
        newer = PostgresStore(url)
        for refused in (newer.open, newer.migrate):
            with pytest.raises(ConfigError, match=r"newer.*9999_needs_9999_later"):
                await refused()


async def test_stores_that_migrate_at_once_apply_each_migration_once() -> None:
    with own_database() as url:
        applied = await asyncio.gather(*(PostgresStore(url).migrate() for _ in range(4)))
        assert sorted(applied) == [[], [], [], ALL]


async def test_a_user_that_may_not_create_tables_runs_but_does_not_migrate() -> None:
    with own_database(migrated=True) as url, own_database() as empty:
        role = f"runner_{os.getpid()}"
        execute(url, f"CREATE ROLE {role} LOGIN")
        rights = f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"
        execute(url, f"REVOKE CREATE ON SCHEMA public FROM public; {rights}")
        execute(empty, "REVOKE CREATE ON SCHEMA public FROM public")
        store = PostgresStore(url.replace("postgres@", f"{role}@"))
        await store.open()
        await store.ping()
        assert await store.migrate() == []
        await store.close()
        with pytest.raises(
            StoreUnavailable, match=r"lacks a right: .*`receiver migrate` itself is for the owner"
        ):
            await PostgresStore(empty.replace("postgres@", f"{role}@")).migrate()
        execute(url, f"DROP OWNED BY {role}; DROP ROLE {role}")


class _SlowToCommit(PostgresStore):
    """What it recorded is not committed before it may."""

    may, waits = threading.Event(), threading.Event()

    def _backend(self, *, writes: bool) -> PostgresBackend:
        made = super()._backend(writes=writes)
        commit = made.commit

        def slowly() -> None:
            if made._session is not None and made._session.changes:
                self.waits.set()
                assert self.may.wait(PATIENCE)
            commit()

        made.commit = slowly  # type: ignore[method-assign] # only this one connection is to be slow
        return made


async def test_what_another_process_records_while_order_begins_is_sent_in_order(
    store: PostgresStore, url: str
) -> None:
    slow, rules = _SlowToCommit(url), SendingRules(order="job")

    async def claimed_in_order() -> list[Claimed]:
        return await store.claim("app", worker="w", limit=9, now=T0 + 9, lease_until=T0 + 99, rules=rules)

    await slow.open()
    try:
        await store.record(recording("app", job_id="j", at=T0))
        recorded = asyncio.create_task(slow.record(recording("app", job_id="j", at=T0 + 1)))
        assert await asyncio.to_thread(slow.waits.wait, PATIENCE)
        claimed = asyncio.create_task(claimed_in_order())
        waiting = "SELECT 1 FROM pg_locks WHERE relation = 'deliveries'::regclass AND NOT granted"
        while not claimed.done() and await asyncio.to_thread(execute, url, waiting) == []:
            pass
        slow.may.set()
        await recorded
        assert (len(await claimed), await claimed_in_order()) == (1, [])
    finally:
        slow.may.set()
        await slow.close()
