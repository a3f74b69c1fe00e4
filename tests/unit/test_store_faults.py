"""The SQLite store and its disk: what fails is told apart from what is recorded, and passes without a restart."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import apsw
import pytest

from receiver.core.errors import StoreUnavailable
from receiver.core.event import Recorded, Recording, RecordStatus
from receiver.core.work import DeliveryFilter, PickupFilter, PickupSettled
from receiver.storage.store.sqlite import SqliteSession, SqliteStore
from receiver.storage.store.statements import Row, Value
from tests.contract import pickup_suite
from tests.contract.pickup_suite import deferral, held_pickup, pickup, result_of, settlement
from tests.contract.store_suite import T0, claim, recording
from tests.faultvfs import FaultVFS
from tests.support.kept_events import kept_events


@pytest.fixture
def vfs() -> FaultVFS:
    return FaultVFS()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "faults.db")


@pytest.fixture
async def store(path: str, vfs: FaultVFS) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(path, vfs=vfs.name, busy_timeout=0.2)
    await made.open()
    await made.migrate()
    yield made
    await made.close()


async def record_many(store: SqliteStore, count: int) -> tuple[list[str], list[BaseException]]:
    """Record at once; return the ids acknowledged and the errors."""
    wanted: list[Recording] = [recording("app") for _ in range(count)]
    answers = await asyncio.gather(*(store.record(one) for one in wanted), return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    return [answer.event_id for answer in answers if not isinstance(answer, BaseException)], errors


def ids_in_file(path: str) -> set[str]:
    """What another process sees."""
    connection = apsw.Connection(path)
    try:
        assert connection.execute("PRAGMA integrity_check").get == "ok"
        return {row[0] for row in connection.execute("SELECT id FROM events")}
    finally:
        connection.close()


async def test_every_answer_is_covered_by_a_sync(store: SqliteStore, vfs: FaultVFS) -> None:
    for _ in range(3):
        before = vfs.syncs
        await store.record(recording("app"))
        assert vfs.syncs > before


async def test_many_at_once_share_their_syncs(store: SqliteStore, vfs: FaultVFS) -> None:
    before = vfs.syncs
    recorded, _ = await record_many(store, 200)
    assert len(recorded) == 200
    assert vfs.syncs - before < 20


async def test_a_failed_sync_is_unavailable_and_recovers_without_a_restart(
    store: SqliteStore, vfs: FaultVFS, path: str
) -> None:
    before, _ = await record_many(store, 5)
    vfs.fail_sync = ("-wal",)
    during, errors = await record_many(store, 20)
    assert during == []
    assert len(errors) == 20
    assert {str(error) for error in errors} == {"store: the disk that holds the database reports an error"}
    assert all(isinstance(error, StoreUnavailable) for error in errors)
    with pytest.raises(StoreUnavailable):
        await store.ping()
    vfs.fail_sync = ()
    after, errors = await record_many(store, 5)
    assert errors == []
    assert {*before, *after} <= {event.id for event in await kept_events(store, limit=100)}
    assert {*before, *after} <= ids_in_file(path)


async def test_after_a_failed_sync_the_database_file_is_synced_before_anything_is_accepted(
    store: SqliteStore, vfs: FaultVFS, path: str
) -> None:
    """Pages of the failed sync may count as clean without being on the disk: the log is written out and left."""
    await record_many(store, 5)
    vfs.fail_sync = ("-wal",)
    await record_many(store, 1)
    vfs.fail_sync = (".db",)
    failures = vfs.failures
    recorded, errors = await record_many(store, 1)
    assert (recorded, len(errors)) == ([], 1)
    assert vfs.failures > failures
    vfs.fail_sync = ()
    size = Path(path).stat().st_size
    recorded, errors = await record_many(store, 1)
    assert (len(recorded), errors) == (1, [])
    assert Path(path).stat().st_size >= size
    assert Path(path + "-wal").stat().st_size < 32 + 4120 * 20  # begun afresh: only the last commit is in it


async def test_a_full_disk_is_unavailable_and_recovers(store: SqliteStore, vfs: FaultVFS, path: str) -> None:
    before, _ = await record_many(store, 5)
    vfs.full = True
    during, errors = await record_many(store, 20)
    assert during == []
    assert {str(error) for error in errors} == {"store: the disk that holds the database is full"}
    with pytest.raises(StoreUnavailable, match="full"):
        await store.ping()
    assert len(await kept_events(store)) == 5, "reading goes on"
    vfs.full = False
    after, errors = await record_many(store, 5)
    assert errors == []
    assert ids_in_file(path) == {*before, *after}


async def test_a_lock_held_by_another_is_unavailable_within_the_bound(store: SqliteStore, path: str) -> None:
    other = apsw.Connection(path)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    _, errors = await record_many(store, 10)
    assert time.monotonic() - began < 2
    assert {str(error) for error in errors} == {
        "store: another process has kept the database locked for too long"
    }
    other.execute("ROLLBACK")
    assert (await record_many(store, 1))[1] == []
    other.close()


async def test_closing_on_a_failing_disk_ends_and_loses_nothing(
    store: SqliteStore, vfs: FaultVFS, path: str
) -> None:
    recorded, _ = await record_many(store, 5)
    vfs.fail_sync = ("-wal", ".db")
    await store.close()
    assert vfs.failures > 0
    vfs.fail_sync = ()
    assert ids_in_file(path) == set(recorded)


async def test_a_claim_that_could_not_be_committed_is_not_held(store: SqliteStore, vfs: FaultVFS) -> None:
    await record_many(store, 1)
    vfs.full = True
    with pytest.raises(StoreUnavailable):
        await claim(store)
    vfs.full = False
    assert len(await claim(store)) == 1


async def test_a_result_that_could_not_be_committed_leaves_its_claim(
    store: SqliteStore, vfs: FaultVFS, path: str
) -> None:
    """All or none: attempt, consequence, callback, event and deliveries."""
    held = await held_pickup(store)
    before = await store.pickup(held.pickup.id)
    wanted = settlement(held, recording=result_of(held, "app"))
    vfs.full = True
    with pytest.raises(StoreUnavailable, match="full"):
        await store.settle_pickup(wanted)
    vfs.full = False
    assert await store.pickup(held.pickup.id) == before
    assert ids_in_file(path) == set()
    again = await store.settle_pickup(wanted)
    assert again.recorded == Recorded(status=RecordStatus.RECORDED, event_id=held.pickup.event_id)
    assert ids_in_file(path) == {held.pickup.event_id}


async def test_a_deferral_that_could_not_be_committed_leaves_nothing(
    store: SqliteStore, vfs: FaultVFS
) -> None:
    wanted = deferral()
    vfs.full = True
    with pytest.raises(StoreUnavailable):
        await store.defer(wanted)
    vfs.full = False
    assert await store.pickups(PickupFilter()) == []
    assert (await store.defer(wanted)).status is RecordStatus.RECORDED


@pytest.mark.parametrize(
    "statement", ["log_pickups", "insert_callbacks", "insert_events", "insert_deliveries"]
)
async def test_a_settlement_that_fails_midway_writes_nothing_and_harms_no_other(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    await asyncio.gather(*(store.add_pickup(pickup(at=T0 + number)) for number in range(3)))
    held = await pickup_suite.claim(store, now=T0 + 9)
    bad = held[1].pickup
    real = SqliteSession.run_rows

    def run_rows(self: SqliteSession, name: str, rows: Sequence[Sequence[Value]]) -> list[Row]:
        if name == statement and any({bad.id, bad.event_id} & set(row) for row in rows):
            raise apsw.ConstraintError
        return real(self, name, rows)

    monkeypatch.setattr(SqliteSession, "run_rows", run_rows)
    before = await store.pickup(bad.id)
    wanted = [settlement(one, recording=result_of(one, "app")) for one in held]
    answers = await asyncio.gather(*(store.settle_pickup(one) for one in wanted), return_exceptions=True)
    assert [isinstance(one, PickupSettled) for one in answers] == [True, False, True]
    assert await store.pickup(bad.id) == before
    assert await store.pickup_attempts(bad.id) == []
    assert len(await kept_events(store)) == len(await store.deliveries(DeliveryFilter())) == 2
    monkeypatch.undo()
    again = await store.settle_pickup(wanted[1])
    assert again.recorded == Recorded(status=RecordStatus.RECORDED, event_id=bad.event_id)


@pytest.mark.parametrize("statement", ["insert_callbacks", "resolve_pickups"])
async def test_a_deferral_that_fails_midway_writes_nothing(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    watch = pickup_suite.expectation()
    await store.add_pickup(watch)
    wanted = deferral(which="t")
    real = SqliteSession.run_rows

    def run_rows(self: SqliteSession, name: str, rows: Sequence[Sequence[Value]]) -> list[Row]:
        if name == statement:
            raise apsw.ConstraintError
        return real(self, name, rows)

    monkeypatch.setattr(SqliteSession, "run_rows", run_rows)
    with pytest.raises(StoreUnavailable):
        await store.defer(wanted)
    assert await store.pickups(PickupFilter()) == [watch]
    monkeypatch.undo()
    assert (await store.defer(wanted)).status is RecordStatus.RECORDED


async def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = SqliteStore(str(tmp_path / "file" / "receiver.db"))
    with pytest.raises(StoreUnavailable, match="folder"):
        await store.open()


async def test_a_file_that_is_no_database_is_unavailable_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary " * 1000)
    with pytest.raises(StoreUnavailable, match="not a database"):
        await SqliteStore(str(path)).open()
    assert path.read_text() == "dear diary " * 1000


async def test_without_tables_the_message_says_what_to_run(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "empty.db"))
    await store.open()
    for ask in (store.record(recording("app")), store.deliveries(DeliveryFilter())):
        with pytest.raises(StoreUnavailable, match="receiver migrate"):
            await ask
    await store.close()
