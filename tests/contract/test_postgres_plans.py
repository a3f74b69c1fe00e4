"""PostgreSQL finds the rows that an attempt changes by their ids, whatever it knows of the tables."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from receiver.storage.store.postgres_connection import Connection, connect, parse
from receiver.storage.store.postgres_session import numbered
from tests.support.postgres import database

_ROWS = 64
_WAITING = """
INSERT INTO deliveries (id, event_id, destination, due_at, created_at, updated_at)
SELECT 'dlv_' || i, 'evt_' || i, 'app', 1, 1, 1 FROM generate_series(1, 500) AS i;
INSERT INTO pickups (
    id, source, kind, key, target, event_id, draft, format, deadline_at, state, due_at, created_at, updated_at, last_detail
)
SELECT 'pku_' || i, 'deapi', 'fetch', i, '', '', '', '{}', 9, 'pending', 1, 1, 1, '' FROM generate_series(1, 500) AS i;
ANALYZE
"""


@pytest.fixture(scope="module", params=["empty", "waiting"])
def connection(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """One with tables that are new, and one whose statistics were made when nothing was claimed: as at a backlog's begin."""
    with database() as url:
        if request.param == "waiting":
            with psycopg.connect(url, autocommit=True) as filling:
                filling.execute(_WAITING)
        made = connect(parse(url), writes=True)
        made.execute("SET plan_cache_mode = force_generic_plan", prepare=False)
        yield made
        made.close()


@pytest.mark.parametrize("table", ["deliveries", "pickups"])
@pytest.mark.parametrize("name", ["claim", "settle", "release"])
def test_a_row_is_found_by_its_id(connection: Connection, name: str, table: str) -> None:
    text = numbered(f"{name}_{table}", _ROWS)
    unknown = ", ".join(["NULL"] * text.count("$"))
    connection.execute(f"PREPARE asked AS {text}", prepare=False)
    plan = connection.execute(f"EXPLAIN EXECUTE asked ({unknown})", prepare=False).fetchall()
    connection.execute("DEALLOCATE asked", prepare=False)
    steps = [row[0].strip() for row in plan]
    at = next(n for n, step in enumerate(steps) if f"using {table}_pkey" in step)
    assert steps[at + 1].startswith("Index Cond: (id = "), steps
