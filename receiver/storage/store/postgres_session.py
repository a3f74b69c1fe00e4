"""The statements over one connection to PostgreSQL, and the difference between its clock and ours."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

from psycopg import errors

from receiver.core.errors import ConfigError
from receiver.storage.store.postgres_connection import Connection
from receiver.storage.store.statements import (
    ADVICE,
    Dialect,
    Row,
    Session,
    Value,
    due_column,
    returns_rows,
    statement,
    statement_of_rows,
    storable,
)

UNBOUNDED_SECONDS = 30 * 86_400.0
"""A migration may be under way for as long as it takes; that the server is gone is noticed all the same."""
_MIGRATING = 0x72656376
"""The advisory lock that one process at a time migrates under: `recv` in letters."""

_LOCK_ORDER: Mapping[str, Callable[[Sequence[Value]], Any]] = {
    "insert_callbacks": itemgetter(1, 2),
    "insert_pickups": itemgetter(1, 3),
    "resolve_pickups": itemgetter(0, 1),
    "resolve_gone_pickups": itemgetter(0, 1),
}
_BY_ID = ("settle_", "release_", "replay_", "drop_", "forget_", "erase_")
"""Statements that may wait for another process's rows take them in one order, so that two do not wait for each other."""

_ALONG_THE_INDEX = frozenset({"due_deliveries", "due_deliveries_in_order", "due_pickups"})
_PLANNER = "SELECT set_config('enable_sort', $1, true), set_config('enable_bitmapscan', $1, true)"


_LIVING = 0x72656376
"""The class of the advisory locks that processes hold for as long as they live: `recv` in letters."""
_HELD = """
SELECT objid::bigint, pid = pg_backend_pid()
FROM pg_locks
WHERE
    locktype = 'advisory'
    AND classid = $1
    AND objsubid = 2
    AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_OFFSET = "(SELECT last FROM event_positions)"
_DIALECT = Dialect(
    lock="FOR UPDATE OF d SKIP LOCKED",
    or_rollback="",
    position=f"{_OFFSET} + CAST(CAST(pg_current_xact_id() AS TEXT) AS BIGINT)",
    end=f"{_OFFSET} + CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS TEXT) AS BIGINT)",
    horizon=f"{_OFFSET} + CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS TEXT) AS BIGINT)",
    among_ids="= ANY (ARRAY(SELECT json_array_elements_text(CAST(:ids AS JSON))))",
)
"""Transactions commit in another order than they begin, but none below the snapshot's `xmin` is still under way."""


EVERY_SECONDS = 60.0
"""Seconds between measurements; a change of this machine's clock triggers one as well."""
BAND_MS = 2_000
"""Clocks that differ by less count as the same: a lease has slack for that, and measuring is not exact."""
_STEP_MS = 500
_EXACT_MS = 1_000
_NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"


class Skew:
    """How far the database's clock is ahead of ours, in milliseconds; shared by the connections of one store."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._measured_at: float | None = None
        self._set_to = 0
        self.shift = 0
        """What to add to our time; 0 while the clocks count as the same."""

    def forget(self) -> None:
        """Measure at the next occasion: another server may have another clock."""
        self._measured_at = None

    def measure(self, connection: Connection) -> None:
        """Measure, when it is time for that."""
        before, at = self._clock(), time.monotonic()
        stepped = abs(before - int(at * 1000) - self._set_to) > _STEP_MS
        if self._measured_at is not None and not stepped and at - self._measured_at < EVERY_SECONDS:
            return
        row = connection.execute(_NOW).fetchone()
        after = self._clock()
        if row is None or after - before > _EXACT_MS:
            return  # too slow to be exact; the next transaction tries again
        ahead = int(row[0]) - (before + after) // 2
        if abs(ahead) < BAND_MS:
            self.shift = 0
        elif abs(ahead - self.shift) > _STEP_MS:
            # A smaller difference is the one that is known: what was written by it must be read by it.
            self.shift = ahead
        self._measured_at, self._set_to = at, before - int(at * 1000)


@cache
def named(name: str, conditions: str = "") -> tuple[str, tuple[str, ...]]:
    """Return a statement with numbered parameters, and their names in this order."""
    names: dict[str, str] = {}
    text = re.sub(
        r":(\w+)",
        lambda match: names.setdefault(match[1], f"${len(names) + 1}"),
        statement(name, conditions, _DIALECT),
    )
    return text, tuple(names)


@cache
def numbered(name: str, count: int) -> str:
    """Return a statement for `count` rows of parameters, which are numbered."""
    numbers = itertools.count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", statement_of_rows(name, count, _DIALECT))


class PostgresSession(Session):
    """The statements over one connection, inside a transaction that the backend began.

    `shift` are the milliseconds by which the database's clock is ahead of ours: what decides when a row is due is kept in
    the database's time, for all processes alike.
    """

    rows_at_once = 128

    def __init__(self, connection: Connection, shift: int = 0) -> None:
        self._connection = connection
        self._shift = shift
        self.changes: set[tuple[str, str]] = set()
        """For which `destination` or `source` something was recorded: what other processes are notified of."""

    def run(self, name: str, params: Mapping[str, Value], conditions: str = "") -> list[Row]:
        """Run a statement and return its rows."""
        if name == "create_migrations" and self._migrated_before():
            return []  # creating, even if it is there, takes a right that the user may do without
        text, names = named(name, conditions)
        if self._shift and "now" in params:
            params = {**params, "now": self._there(params["now"])}
        values = storable(params[parameter] for parameter in names)
        try:
            with self._in_order(name):
                return self._execute(name, text, values)
        except errors.UndefinedTable:
            if name == "list_migrations":
                raise ConfigError(f"store.url: the database has no tables yet: {ADVICE}") from None
            raise

    def run_rows(self, name: str, rows: Sequence[Sequence[Value]]) -> list[Row]:
        """Run a statement that takes rows of parameters; those that others may hold too are taken in one order."""
        order = _LOCK_ORDER.get(name) or (itemgetter(0) if name.startswith(_BY_ID) else None)
        if order is not None:
            rows = sorted(rows, key=order)
        due = due_column(name)
        if self._shift and due is not None:
            rows = [(*row[:due], self._there(row[due]), *row[due + 1 :]) for row in rows]
        if name == "insert_deliveries":
            self.changes |= {("destination", str(row[2])) for row in rows}
        elif name == "insert_pickups":
            self.changes |= {("source", str(row[1])) for row in rows}
        return super().run_rows(name, rows)

    def _run_piece(self, name: str, size: int, values: list[Value]) -> Iterable[Row]:
        return self._execute(name, numbered(name, size), values)

    def begin_recording(self) -> None:
        """Do nothing: the database numbers its transactions itself."""

    def script(self, text: str) -> None:
        """Run a migration. Text sorts by its bytes, as it does in SQLite, whatever the database's own order."""
        text = re.sub(r"\bTEXT\b", 'TEXT COLLATE "C"', text)
        for part in re.split(r";\s*(?:\n|$)", text):
            if re.sub(r"--.*", "", part).strip():
                self._connection.execute(part, prepare=False)

    def lock_migrations(self) -> None:
        """Keep other processes from migrating until the transaction ends."""
        # Building an index may take longer than any statement of ours; waiting for a lock would hold up everybody else.
        self._connection.execute("SET LOCAL statement_timeout = 0", prepare=False)
        self._connection.execute("SET LOCAL lock_timeout = 0", prepare=False)
        self._connection.execute(f"SELECT pg_advisory_xact_lock({_MIGRATING})", prepare=False)
        self._connection.execute("SET LOCAL lock_timeout = '4s'", prepare=False)
        self._connection.answer_seconds = UNBOUNDED_SECONDS

    def lock_deliveries(self) -> None:
        """Wait for transactions that write deliveries, and keep others from it until this one ends."""
        self._connection.execute("LOCK TABLE deliveries IN SHARE ROW EXCLUSIVE MODE", prepare=False)

    def free_locks(self, own: str, named: Collection[str]) -> set[str]:
        """Hold a lock, and return those of others that no session holds; none where this session has not held its own before.

        Sessions share a lock: one that broke may hold it on the server for a while beside the one that came after it.
        """
        rows = self._connection.execute(_HELD, [str(_LIVING)], binary=True).fetchall()
        number = int(own, 16)
        if (number, True) not in rows:
            signed = number - (number >> 31 << 32)
            self._connection.execute(f"SELECT pg_advisory_lock_shared({_LIVING}, {signed})", prepare=False)
            return set()
        held = {row[0] for row in rows}
        return {name for name in named if int(name, 16) not in held}

    def _execute(self, name: str, text: str, values: list[Value]) -> list[Row]:
        # Numbers go as text, and the server reads them as what the column is: each statement has one form only.
        values = [str(value) if isinstance(value, int) else value for value in values]
        cursor = self._connection.execute(text, values, binary=True)
        if not returns_rows(name):
            return []  # not waited for: the next statement that answers, or the commit, raises if it failed
        results = cursor.fetchall()
        return self._here(results, cursor.description) if self._shift else results

    @contextlib.contextmanager
    def _in_order(self, name: str) -> Iterator[None]:
        """Have a claim walk along the index and stop at its limit, whatever the planner thinks of the number of rows due.

        Sorting all that is due would make each claim cost as much as the whole backlog.
        """
        if name not in _ALONG_THE_INDEX:
            yield
            return
        self._connection.execute(_PLANNER, ["off"])
        yield
        self._connection.execute(_PLANNER, ["on"])

    def _migrated_before(self) -> bool:
        row = self._connection.execute("SELECT to_regclass('migrations')::text", prepare=False).fetchone()
        return bool(row and row[0])

    # ------------------------------------------------------------ the database's time

    def _there(self, value: Value) -> Value:
        return value + self._shift if isinstance(value, int) else value

    def _here(self, rows: list[Row], columns: Sequence[Any] | None) -> list[Row]:
        """Return rows with the times at which something is due in our own time (`min` is of such times only)."""
        due = next((n for n, column in enumerate(columns or ()) if column.name in {"due_at", "min"}), None)
        if due is None:
            return rows
        return [
            row if row[due] is None else (*row[:due], row[due] - self._shift, *row[due + 1 :]) for row in rows
        ]
