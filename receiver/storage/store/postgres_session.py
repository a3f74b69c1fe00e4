"""The shared statements over one PostgreSQL connection."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import psycopg
from psycopg import errors

from receiver.storage.store import schema
from receiver.storage.store.postgres_connect import Connection
from receiver.storage.store.sql import Row, Value, clean_value
from receiver.storage.store.statements import Statements

ROWS_AT_ONCE = 128
UNBOUNDED_SECONDS = 30 * 86_400.0
"""A migration may be under way for as long as it takes; that the server is gone is noticed all the same."""
_MIGRATING = 0x72656376
"""The advisory lock that one process at a time migrates under: `recv` in letters."""

_LOCK_ORDER: Mapping[str, Callable[[Sequence[Value]], Any]] = {
    "insert_callbacks": itemgetter(2, 3),
    "insert_pickups": itemgetter(1, 3),
    "answer_pickups": itemgetter(0, 1),
    "answer_gone_pickups": itemgetter(0, 1),
}
_BY_ID = ("settle_", "release_", "replay_", "drop_", "forget_", "erase_")
"""Statements that may wait for another process's rows take them in one order, so that two do not wait for each other."""

_ALONG_THE_INDEX = frozenset({"due_deliveries", "due_pickups"})
_PLANNER = "SELECT set_config('enable_sort', $1, true), set_config('enable_bitmapscan', $1, true)"


class News:
    """For whom something was recorded, and is due: what other processes are told."""

    def __init__(self) -> None:
        self.destinations: set[str] = set()
        self.sources: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self.destinations or self.sources)

    def add(self, other: News) -> None:
        """Take over what `other` holds."""
        self.destinations |= other.destinations
        self.sources |= other.sources


class PostgresStatements(Statements):
    """The statements with PostgreSQL's lock clause and its numbered parameters."""

    def __init__(self) -> None:
        super().__init__(lock="FOR UPDATE OF d SKIP LOCKED", placeholder="$")
        self._named: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {}

    def named(self, name: str, wanted: str) -> tuple[str, tuple[str, ...]]:
        """Return the statement, and the names of its parameters in their order."""
        key = (name, wanted)
        if key not in self._named:
            names: list[str] = []

            def number(match: re.Match[str]) -> str:
                if match[1] not in names:
                    names.append(match[1])
                return f"${names.index(match[1]) + 1}"

            text = re.sub(r":(\w+)", number, self.text(name, wanted))
            self._named[key] = (text, tuple(names))
        return self._named[key]


class PostgresSession:
    """The statements over one connection, inside a transaction that the backend began.

    `shift` are the milliseconds by which the database's clock is ahead of ours: what decides when a row is due is kept in
    the database's time, for all processes alike.
    """

    _statements = PostgresStatements()

    def __init__(self, connection: Connection, shift: int = 0, *, writes: bool = True) -> None:
        self._connection = connection
        self._shift = shift
        self._writes = writes
        self.news = News()
        self._numbered: psycopg.Cursor[Any] | None = None

    def transaction_id(self) -> str | None:
        """Return the server's number for the transaction, None when it wrote nothing or broke before that was told."""
        if self._numbered is None or self._numbered.pgresult is None:
            return None
        row = self._numbered.fetchone()
        return None if row is None else str(row[0])

    def run(self, name: str, params: Mapping[str, Value], wanted: str = "") -> list[Row]:
        """Run a statement and return its rows."""
        if name == "create_migrations" and self._migrated_before():
            return []  # creating, even if it is there, takes a right that the user may do without
        if name == "ping":
            self._number()
        text, names = self._statements.named(name, wanted)
        if self._shift and "now" in params:
            params = {**params, "now": self._there(params["now"])}
        try:
            with self._in_order(name):
                return self._execute(name, text, [params[one] for one in names])
        except errors.UndefinedTable:
            if name == "list_migrations":
                raise schema.empty() from None
            raise

    def run_rows(self, name: str, rows: Sequence[Sequence[Value]]) -> list[Row]:
        """Run a statement with rows of parameters, in pieces whose sizes are powers of two: few forms to prepare."""
        order = _LOCK_ORDER.get(name) or (itemgetter(0) if name.startswith(_BY_ID) else None)
        if order is not None:
            rows = sorted(rows, key=order)
        due = self._statements.due_column(name)
        if self._shift and due is not None:
            rows = [(*row[:due], self._there(row[due]), *row[due + 1 :]) for row in rows]
        self._note(name, rows)
        if rows:
            self._number()
        found: list[Row] = []
        start = 0
        while start < len(rows):
            size = min(ROWS_AT_ONCE, 1 << (len(rows) - start).bit_length() - 1)
            flat = list(chain.from_iterable(rows[start : start + size]))
            found += self._execute(name, self._statements.rows(name, size), flat)
            start += size
        return found

    def script(self, text: str) -> None:
        """Run a migration. Text sorts by its bytes, as it does in SQLite, whatever the database's own order."""
        text = re.sub(r"\bTEXT\b", 'TEXT COLLATE "C"', text)
        for statement in re.split(r";\s*(?:\n|$)", text):
            if re.sub(r"--.*", "", statement).strip():
                self._connection.execute(statement, prepare=False)

    def alone(self) -> None:
        """Keep other processes from migrating until the transaction ends."""
        # Building an index may take longer than any statement of ours; waiting for a lock would hold up everybody else.
        self._connection.execute("SET LOCAL statement_timeout = 0", prepare=False)
        self._connection.execute("SET LOCAL lock_timeout = 0", prepare=False)
        self._connection.execute(f"SELECT pg_advisory_xact_lock({_MIGRATING})", prepare=False)
        self._connection.execute("SET LOCAL lock_timeout = '4s'", prepare=False)
        self._connection.answer_seconds = UNBOUNDED_SECONDS

    def _number(self) -> None:
        """Ask for the transaction's number, once."""
        if self._numbered is None and self._writes:
            self._numbered = self._connection.execute("SELECT pg_current_xact_id()::text")

    def _execute(self, name: str, text: str, values: list[Value]) -> list[Row]:
        # Numbers go as text, and the server reads them as what the column is: each statement has one form only.
        given = [str(value) if isinstance(value, int) else value for value in values]
        try:
            cursor = self._connection.execute(text, given, binary=True)
        except (UnicodeEncodeError, psycopg.DataError) as error:
            if isinstance(error, psycopg.DataError) and error.sqlstate is not None:
                raise
            # Nothing was sent. What somebody asks for may be any text; looking first costs each callback.
            cursor = self._connection.execute(text, [clean_value(value) for value in given], binary=True)
        if not self._statements.answers(name):
            return []  # not waited for: the next statement that answers, or the commit, tells if it failed
        found = cursor.fetchall()
        return self._here(found, cursor.description) if self._shift else found

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
        found = self._connection.execute("SELECT to_regclass('migrations')::text", prepare=False).fetchone()
        return bool(found and found[0])

    def _note(self, name: str, rows: Sequence[Sequence[Value]]) -> None:
        if name == "insert_deliveries":
            self.news.destinations |= {str(row[2]) for row in rows}
        elif name == "insert_pickups":
            self.news.sources |= {str(row[1]) for row in rows}

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
