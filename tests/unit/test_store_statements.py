"""What the statements cost: each that runs often finds its rows by an index."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest

from receiver.core.event import EventSearch
from receiver.core.submission import SubmissionFilter, SubmissionState
from receiver.core.work import PickupFilter
from receiver.storage.store import sqlite
from receiver.storage.store.events import TROUBLED, search
from receiver.storage.store.pickups import pickups
from receiver.storage.store.sqlite import SqliteStore
from receiver.storage.store.statements import Dialect, Row, Value, migrations, statement, statement_of_rows
from receiver.storage.store.submissions import submissions
from tests.contract.store_suite import recording
from tests.support.kept_events import kept_events


@pytest.fixture
def connection() -> apsw.Connection:
    made = apsw.Connection(":memory:")
    for text in migrations("BLOB").values():
        made.execute(text)
    return made


def plan(connection: apsw.Connection, text: str, params: object) -> str:
    """Return what SQLite intends to do."""
    rows = connection.execute("EXPLAIN QUERY PLAN " + text, params)  # type: ignore[arg-type]
    return "\n".join(str(row[3]) for row in rows)


def test_a_claim_reads_only_what_waits_and_need_not_sort(connection: apsw.Connection) -> None:
    text = statement("due_deliveries")
    found = plan(
        connection, text, {"queue": "app", "now": 1, "limit": 5, "held": "app", "apart": 0, "full": 0}
    )
    assert "SEARCH d USING INDEX deliveries_due (destination=? AND due_at<?)" in found
    assert "SEARCH h USING INDEX sqlite_autoindex_destinations_1" in found
    assert "TEMP B-TREE" not in found


def test_a_claim_of_pickups_reads_only_what_waits_and_need_not_sort(connection: apsw.Connection) -> None:
    text = statement("due_pickups")
    found = plan(connection, text, {"queue": "deapi", "now": 1, "limit": 5})
    assert "SEARCH d USING INDEX pickups_due (source=? AND due_at<?)" in found
    assert "TEMP B-TREE" not in found


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("next_due_pickups", "pickups_due"),
        ("count_due_pickups", "pickups_due"),
        ("attempts_of_pickups", "sqlite_autoindex_pickup_attempts_1"),
        ("reschedule_pickup", "sqlite_autoindex_pickups_1"),
        ("supersede_pickup", "sqlite_autoindex_pickups_1"),
        ("event_type", "sqlite_autoindex_events_1"),
        ("awaited_or_erased", "pickups_event"),
        ("awaited_or_erased", "sqlite_autoindex_callbacks_1"),
        ("callback_body", "sqlite_autoindex_callbacks_1"),
        ("next_due_deliveries", "deliveries_due"),
        ("count_due_deliveries", "deliveries_due"),
        ("count_dead", "deliveries_dead"),
        ("first_event", "callbacks_second_key"),
        ("callback_between_keys", "callbacks_key"),
        ("attempts_of_deliveries", "sqlite_autoindex_attempts_1"),
        ("trim_rejections", "rejections_source"),
    ],
)
def test_a_frequent_statement_uses_its_index(connection: apsw.Connection, name: str, index: str) -> None:
    params = dict.fromkeys(
        (
            *("queue", "now", "source", "idempotency_key", "second_key", "delivery_id", "keep"),
            *("id", "target", "draft", "job_id", "event_id", "first", "beyond", "pickup_id", "deadline_at"),
            *("ref", "format", "state", "kind"),
        ),
        1,
    )
    conditions = "token_id IS NULL" if name == "trim_rejections" else ""
    assert index in plan(connection, statement(name, conditions), params)


@pytest.mark.parametrize(
    ("name", "width", "table"),
    [
        ("claim_deliveries", 4, "deliveries"),
        ("settle_deliveries", 7, "deliveries"),
        ("release_deliveries", 3, "deliveries"),
        ("replay_deliveries", 2, "deliveries"),
        ("ended_jobs", 2, "events"),
        ("existing_pickups", 2, "pickups"),
        ("drop_pickups", 1, "pickups"),
        ("resolve_pickups", 5, "pickups"),
        ("resolve_gone_pickups", 5, "pickups"),
        ("claim_pickups", 4, "pickups"),
        ("settle_pickups", 8, "pickups"),
        ("release_pickups", 3, "pickups"),
    ],
)
def test_a_statement_of_rows_finds_each_by_an_index(
    connection: apsw.Connection, name: str, width: int, table: str
) -> None:
    found = plan(connection, statement_of_rows(name, 3), (1,) * width * 3)
    assert f"SEARCH {table}" in found
    assert f"SCAN {table}" not in found


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ("job_id = :x", "events_job"),
        ("ref = :x", "events_ref"),
        ("recorded_at >= :x", "events_recorded_at"),
        ("(recorded_at, id) < (:x, 'evt')", "events_recorded_at"),
        ("TRUE", "events_recorded_at"),
    ],
)
def test_a_filtered_listing_uses_an_index(connection: apsw.Connection, wanted: str, index: str) -> None:
    assert index in plan(connection, statement("list_events", wanted), {"x": 1, "limit": 5})


@pytest.mark.parametrize(("name", "index"), [("resolve_pickups", "key"), ("resolve_gone_pickups", "gone")])
def test_an_answer_finds_its_pickup_by_the_key(connection: apsw.Connection, name: str, index: str) -> None:
    found = plan(connection, statement_of_rows(name, 2), (1,) * 10)
    assert f"INDEX pickups_{index} (source=? AND key=?" in found
    assert "SCAN gone" not in found
    assert "SCAN other" not in found


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ("job_id = :x", "pickups_job"),
        ("ref = :x", "pickups_ref"),
        ("source = :x AND key = :x AND state <> 'gone'", "pickups_key"),
    ],
)
def test_a_listing_of_pickups_uses_an_index(connection: apsw.Connection, wanted: str, index: str) -> None:
    assert index in plan(connection, statement("list_pickups", wanted), {"x": 1, "limit": 5})


async def test_a_recording_that_answers_nothing_asks_no_pickup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain road in costs what it did."""
    ran: list[str] = []
    real = sqlite.SqliteSession.run_rows

    def run_rows(self: sqlite.SqliteSession, name: str, rows: Sequence[Sequence[Value]]) -> list[Row]:
        ran.append(name)
        return real(self, name, rows)

    store = SqliteStore(str(tmp_path / "r.db"))
    await store.open()
    await store.migrate()
    monkeypatch.setattr(sqlite.SqliteSession, "run_rows", run_rows)
    await store.record(recording("app"))
    await store.close()
    assert ran == ["insert_callbacks", "insert_events", "insert_deliveries"]


def test_slots_are_filled() -> None:
    claim = statement("due_deliveries", dialect=Dialect(lock="FOR UPDATE OF d SKIP LOCKED"))
    assert claim.endswith("END FOR UPDATE OF d SKIP LOCKED")
    assert "wanted (job_id, source) AS (VALUES (?,?),(?,?))" in statement_of_rows("ended_jobs", 2)


async def test_commits_do_not_copy_the_log_and_idleness_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log grows past its limit while there is work; a quiet moment empties it into the database."""
    monkeypatch.setattr(sqlite, "CHECKPOINT_PAGES", 20)
    path = tmp_path / "log.db"
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    real = sqlite.SqliteBackend.housekeeping

    def housekeeping(self: sqlite.SqliteBackend, *, idle: bool) -> None:
        real(self, idle=idle)
        if idle:
            if self._copier is not None:
                self._copier.join()
            loop.call_soon_threadsafe(done.set)

    monkeypatch.setattr(sqlite.SqliteBackend, "housekeeping", housekeeping)
    store = SqliteStore(str(path))
    await store.open()
    await store.migrate()
    await asyncio.gather(*(store.record(recording("app", body=b"x" * 20_000)) for _ in range(50)))
    assert path.stat().st_size < 500_000
    await done.wait()
    assert path.stat().st_size > 1_000_000
    await store.close()


@pytest.mark.parametrize("fails", [None, apsw.IOError, apsw.BusyError, apsw.FullError])
async def test_while_callers_come_another_thread_copies_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: type[apsw.Error] | None
) -> None:
    """The log begins afresh, and is cut, once the writer has copied the little that is left. A copy that fails costs no
    callback, and another follows.
    """
    monkeypatch.setattr(sqlite, "FORCED_PAGES", 200)
    monkeypatch.setattr(sqlite, "CHECKPOINT_PAGES", 40)
    path = tmp_path / "log.db"
    real = sqlite._copy_log
    copied_by: set[str] = set()

    def copy(connection: apsw.Connection) -> int:
        first = not copied_by
        copied_by.add(threading.current_thread().name)
        if fails is not None and first:
            raise fails
        return real(connection)

    monkeypatch.setattr(sqlite, "_copy_log", copy)
    store = SqliteStore(str(path))
    await store.open()
    await store.migrate()
    count = longest = length = 0
    while not {"store-copier", "store-writer"} <= copied_by or length >= longest:
        await store.record(recording("app", body=b"x" * 20_000))
        count += 1
        length = Path(f"{path}-wal").stat().st_size
        longest = max(longest, length)
    assert path.stat().st_size > 500_000
    assert len(await kept_events(store, limit=1000)) == count
    await store.close()


async def test_where_no_thread_can_be_started_the_log_is_copied_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "FORCED_PAGES", 50)
    monkeypatch.setattr(sqlite, "CHECKPOINT_PAGES", 20)
    refused = asyncio.Event()
    loop = asyncio.get_running_loop()

    def start(self: threading.Thread) -> None:
        loop.call_soon_threadsafe(refused.set)
        raise RuntimeError("can't start new thread")

    path = tmp_path / "log.db"
    store = SqliteStore(str(path))
    await store.open()
    await store.migrate()
    with monkeypatch.context() as short:
        short.setattr(sqlite._Copier, "start", start)
        while not refused.is_set():
            await store.record(recording("app", body=b"x" * 20_000))
        await store.record(recording("app"))
    while path.stat().st_size < 300_000:
        await store.record(recording("app", body=b"x" * 20_000))
    await store.close()


class _Asked:
    """A session that keeps what it is asked."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, Any]] = []

    def run(self, name: str, params: Any, conditions: str = "") -> list[tuple[Any, ...]]:
        self.texts.append((statement(name, conditions), params))
        return [(5, "evt_5")] if name.startswith(("place_", "position_")) else []


@pytest.mark.parametrize("type_", TROUBLED)
def test_what_goes_wrong_is_found_without_a_walk_through_other_events(
    connection: apsw.Connection, type_: str
) -> None:
    asked = _Asked()
    search(asked, EventSearch(types=(type_, "callback.parked")))  # type: ignore[arg-type]
    plans = [plan(connection, text, params) for text, params in asked.texts]
    assert plans
    assert all("INDEX events_troubled" in one for one in plans)


def test_events_of_one_source_are_found_without_a_walk_through_other_events(
    connection: apsw.Connection,
) -> None:
    for more in ({}, {"types": ("speech.completed",)}, {"newest_first": True}):
        asked = _Asked()
        search(asked, EventSearch(source="deapi", **more))  # type: ignore[arg-type]
        plans = [plan(connection, text, params) for text, params in asked.texts]
        assert all("INDEX events_source (source=?" in one and "TEMP B-TREE" not in one for one in plans), (
            plans
        )


@pytest.mark.parametrize(
    ("listing", "wanted", "index"),
    [
        (pickups, PickupFilter(source="deapi"), "pickups_source (source=?"),
        (pickups, PickupFilter(source="deapi", job_id="j"), "pickups_job (job_id=?"),
        (submissions, SubmissionFilter(state=SubmissionState.OPEN), "submissions_open"),
        (submissions, SubmissionFilter(application="none"), "INDEX sqlite_autoindex_submissions_1"),
    ],
)
def test_a_page_of_a_list_goes_along_one_index(
    connection: apsw.Connection, listing: Any, wanted: Any, index: str
) -> None:
    """Or it looks at so many rows of the whole list and no further."""
    asked = _Asked()
    listing(asked, wanted)
    assert index in plan(connection, *asked.texts[0])


def test_events_since_a_time_are_looked_through_as_far_as_others_and_no_further(
    connection: apsw.Connection,
) -> None:
    """With both bounds, SQLite takes the time's and walks through all events since then."""
    asked = _Asked()
    search(asked, EventSearch(types=("speech.completed",), since=1, newest_first=True))  # type: ignore[arg-type]
    text, params = asked.texts[-1]
    assert "(position,id)>(?,?)" in plan(connection, text, params)
