"""The store in SQLite keeps the port's promises, also between processes and after a kill."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import stat
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest
from msgspec.structs import replace

from receiver.core.errors import ConfigError
from receiver.core.event import RecordStatus
from receiver.storage.store.sqlite import SqliteBackend, SqliteStore
from receiver.storage.store.statements import migrations
from receiver.storage.store.store import Store
from tests.contract import pickup_suite
from tests.contract.bulk_suite import BulkSuite
from tests.contract.listing_suite import ListingSuite
from tests.contract.pickup_event_suite import PickupSuite
from tests.contract.retention_suite import RetentionSuite
from tests.contract.store_suite import T0, StoreSuite, claim, one_delivery, recording
from tests.contract.submission_suite import SubmissionSuite
from tests.contract.takeover_suite import NOTHING, TakeoverSuite
from tests.contract.token_suite import TokenSuite
from tests.support.embedded import migrated
from tests.support.kept_events import kept_events


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "new" / "folder" / "receiver.db")


@pytest.fixture
async def store(path: str) -> AsyncIterator[Store]:
    made = SqliteStore(migrated(path))
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def other(store: Store, path: str) -> AsyncIterator[Store]:
    made = SqliteStore(path)
    await made.open()
    yield made
    await made.close()


class TestSqliteListings(ListingSuite):
    """The suite of pages."""


class TestSqliteTakeover(TakeoverSuite):
    """The suite of processes that ended."""


class TestSqliteStore(StoreSuite):
    """The suite, over a file."""


class TestSqliteBulk(BulkSuite):
    """The suite of operations on many rows."""


class TestSqlitePickups(PickupSuite):
    """The suite of pickups."""


class TestSqliteSubmissions(SubmissionSuite):
    """The suite of submissions."""


class TestSqliteTokens(TokenSuite):
    """The suite of short callback tokens."""


class TestSqliteRetention(RetentionSuite):
    """The suite of age and erasure."""


async def test_locks_that_killed_processes_left_are_removed_and_its_own_at_the_end(
    store: Store, path: str
) -> None:
    left = Path(f"{path}-lock-0badf00d")
    left.touch()
    await store.take_over(now=T0)
    (own,) = left.parent.glob("*-lock-*")
    assert own != left
    assert stat.S_IMODE(own.stat().st_mode) == 0o600
    await store.close()
    assert not own.exists()


async def test_where_files_cannot_be_locked_the_lease_decides(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    await store.take_over(now=T0)
    await one_delivery(store)
    (held,) = await claim(store)
    assert held.claimed_by.count(":") == 1, "it names no lock"
    assert await other.take_over(now=T0) == NOTHING


async def test_the_file_is_for_its_owner_only(store: Store, path: str) -> None:
    await store.record(recording("app"))
    for name in (path, path + "-wal", path + "-shm"):
        assert stat.S_IMODE(os.stat(name).st_mode) == 0o600


async def test_text_that_databases_cannot_hold_is_kept_as_near_as_can_be(store: Store) -> None:
    wanted = recording("app", job_id="lone \ud800", ref="nul \0", key="k \ud800")
    await store.record(wanted)
    found = await store.event(wanted.event.id)
    assert (found.job_id, found.ref) == ("lone ?", "nul \ufffd")
    assert len(await kept_events(store, job_id="lone \ud800")) == 1
    again = await store.record(recording("app", key="k \ud800"))
    assert again.event_id == wanted.event.id


async def test_a_draft_that_msgpack_cannot_hold_is_kept_as_near_as_can_be(store: Store) -> None:
    """JSON knows numbers and halves of characters that it does not."""
    odd = {"lone \ud800": [2**70, -5, 2.5, True, None, "nul \0"]}
    draft = replace(pickup_suite.draft_of("k"), provider_data=odd)
    wanted = replace(pickup_suite.pickup("k \ud800"), draft=draft, format={"lone": "\ud800"})
    await store.add_pickup(wanted)
    found = await store.pickup(wanted.id)
    kept = {"lone ?": [str(2**70), -5, 2.5, True, None, "nul \ufffd"]}
    assert found.draft == replace(draft, provider_data=kept)
    assert (found.key, found.format) == ("k ?", {"lone": "?"})
    assert await store.add_pickup(pickup_suite.pickup("k \ud800")) == (found, False)


async def test_claims_of_two_stores_on_one_file_never_overlap(store: Store, path: str) -> None:
    other = SqliteStore(path)
    await other.open()
    await asyncio.gather(*(store.record(recording("app")) for _ in range(120)))
    batches = await asyncio.gather(*(claim(one, limit=5) for _ in range(15) for one in (store, other)))
    await other.close()
    ids = [one.id for batch in batches for one in batch]
    assert len(ids) == len(set(ids)) == 120


async def test_opening_does_not_migrate(path: str) -> None:
    store = SqliteStore(path)
    await store.open()
    assert await store.migrate() == ALL
    await store.close()


async def test_stores_that_migrate_at_once_apply_each_migration_once(path: str) -> None:
    applied = await asyncio.gather(*(SqliteStore(path).migrate() for _ in range(4)))
    assert sorted(applied) == [[], [], [], ALL]


async def test_a_newer_schema_that_fits_the_program_is_used(store: Store, path: str) -> None:
    connection = apsw.Connection(path)
    connection.execute("INSERT INTO migrations (name, applied_at) VALUES ('9999_later', 1)")
    connection.close()
    older = SqliteStore(path)
    assert await older.migrate() == []
    await older.open()
    assert (await older.record(recording("app"))).status is RecordStatus.RECORDED
    await older.close()


async def test_a_newer_schema_that_leaves_no_room_for_the_program_is_refused(store: Store, path: str) -> None:
    connection = apsw.Connection(path)
    connection.execute("INSERT INTO migrations (name, applied_at) VALUES ('9999_needs_9999_later', 1)")
    connection.close()
    newer = SqliteStore(path)
    for refused in (newer.open, newer.migrate):
        with pytest.raises(ConfigError, match=r"newer.*9999_needs_9999_later"):
            await refused()


async def test_closing_empties_the_log(store: Store, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two connections that close at once each leave that to the other."""
    real = SqliteBackend.close
    both = threading.Barrier(2)
    together: list[int] = []

    def close(self: SqliteBackend) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            together.append(both.wait(0.1))
        real(self)

    monkeypatch.setattr(SqliteBackend, "close", close)
    await store.record(recording("app"))
    await store.stats(T0)
    await store.close()
    assert together == []
    assert not Path(path + "-wal").exists()


_WRITER = """
import asyncio, sys
from receiver.storage.store.sqlite import SqliteStore
from tests.contract.store_suite import recording

async def main(path):
    store = SqliteStore(path)
    await store.open()
    async def one():
        while True:
            wanted = recording("app")
            await store.record(wanted)
            print(wanted.event.id, flush=True)
    await asyncio.gather(*(one() for _ in range(16)))

asyncio.run(main(sys.argv[1]))
"""

ALL = list(migrations("BLOB"))


async def test_a_killed_process_loses_nothing_that_it_acknowledged(store: Store, path: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITER, path, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    acknowledged = [await process.stdout.readline() for _ in range(300)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [
        line for line in (await process.stdout.read()).splitlines(keepends=True) if line[-1:] == b"\n"
    ]
    await process.wait()
    for line in acknowledged:
        event = await store.event(line.decode().strip())
        assert event.recorded_at == T0
    deliveries = await claim(store, limit=100_000)
    assert {line.decode().strip() for line in acknowledged} <= {one.event.id for one in deliveries}
