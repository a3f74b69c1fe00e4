"""What removing costs: each statement of the janitor's finds its rows by an index, and none looks at a whole table."""

from __future__ import annotations

import re

import apsw
import pytest

from receiver.storage.store.statements import migrations, statement, statement_of_rows

INDEXES = {
    "old_bodies": "callbacks_bodies (id>? AND id<?)",
    "old_attempts": "sqlite_autoindex_attempts_1 (delivery_id>? AND delivery_id<?)",
    "old_pickup_attempts": "sqlite_autoindex_pickup_attempts_1 (pickup_id>? AND pickup_id<?)",
    "old_audio": "events_audio (id>? AND id<?)",
    "old_dead_letters": "deliveries_died (updated_at<?)",
    "old_events": "sqlite_autoindex_events_1 (id>? AND id<?)",
    "old_callbacks": "sqlite_autoindex_callbacks_1 (id>? AND id<?)",
    "old_pickups": "sqlite_autoindex_pickups_1 (id>? AND id<?)",
    "old_keys": "callbacks_erased (received_at<?)",
    "callbacks_between": "sqlite_autoindex_callbacks_1 (id>? AND id<?)",
}
OF_ROWS = {
    "forget_bodies": 1,
    "forget_attempts": 1,
    "forget_pickup_attempts": 1,
    "forget_audio": 1,
    "forget_dead_letters": 1,
    "forget_deliveries": 1,
    "forget_events": 1,
    "forget_callbacks": 1,
    "forget_pickups": 1,
    "known_blobs": 1,
    "known_events": 1,
    "result_keys": 1,
    "deliveries_of_events": 1,
    "callbacks_of_pickups": 2,
    "erase_deliveries": 1,
    "erase_callbacks": 2,
}
TABLES = ("callbacks", "events", "deliveries", "attempts", "pickups", "pickup_attempts")


@pytest.fixture(scope="module")
def connection() -> apsw.Connection:
    made = apsw.Connection(":memory:")
    for text in migrations("BLOB").values():
        made.execute(text)
    return made


def plan(connection: apsw.Connection, text: str, params: object) -> list[str]:
    """Return what SQLite intends to do."""
    rows = connection.execute("EXPLAIN QUERY PLAN " + text, params)  # type: ignore[arg-type]
    return [str(row[3]) for row in rows]


@pytest.mark.parametrize("name", INDEXES)
def test_a_batch_begins_where_the_one_before_ended_and_need_not_sort(
    connection: apsw.Connection, name: str
) -> None:
    text = statement(name)
    found = plan(connection, text, dict.fromkeys(re.findall(r":(\w+)", text), 1))
    assert any(INDEXES[name] in step for step in found)
    assert not [
        step for step in found if "TEMP B-TREE" in step or (step.split()[1] in TABLES and "SCAN" in step)
    ]


@pytest.mark.parametrize("count", [1, 256])
@pytest.mark.parametrize("name", OF_ROWS)
def test_rows_are_removed_one_by_one_however_many(connection: apsw.Connection, name: str, count: int) -> None:
    found = plan(connection, statement_of_rows(name, count), (1,) * count * OF_ROWS[name])
    assert not [step for step in found if step.startswith("SCAN") and step.split()[1] in TABLES]
    assert any(step.startswith(("SEARCH", "INDEX")) for step in found)
