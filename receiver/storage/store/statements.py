"""The named statements of `statements.sql`, the transaction that runs them, and the migrations that make their tables."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import Any, ClassVar, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar

import msgspec

from receiver.core.errors import ConfigError

R = TypeVar("R")
T = TypeVar("T")
V = TypeVar("V", bound=msgspec.Struct)
P = ParamSpec("P")
Value = str | int | float | bytes | None
Row = Sequence[Any]

# ---------------------------------------------------------------- texts

_ROWS = re.compile(r"\{(rows|insert):([^}]*)\}")
_SECTION = re.compile(r"^-- =+ .* =+$", re.MULTILINE)
_NAME = re.compile(r"^-- name: (\S+)$", re.MULTILINE)
_SLOTS = re.compile(r"^-- with: (.*)$", re.MULTILINE)
_CELLS = re.compile(r"(?<!\|)\|(?!\|)")


@cache
def _texts() -> dict[str, str]:
    """Return the statements by name, with the slots of their sections filled."""
    whole = files("receiver.storage.store").joinpath("statements.sql").read_text("utf-8")
    texts: dict[str, str] = {}
    for section in _SECTION.split(whole)[1:]:
        head, *parts = _NAME.split(section)
        table = [[cell.strip() for cell in _CELLS.split(line)] for line in _SLOTS.findall(head)]
        slots, fillings = (table[0], table[1:]) if table else ([], [])
        for name, commented in zip(parts[::2], parts[1::2], strict=True):
            text = re.sub(r"^--.*$", "", commented, flags=re.MULTILINE)
            for filling in fillings if slots and f"{{{slots[0]}}}" in name else [[]]:
                filled = dict(zip(slots, filling, strict=False))
                texts[_fill(name, filled)] = " ".join(_fill(text, filled).split())
    return texts


def _fill(text: str, slots: Mapping[str, str]) -> str:
    for slot, filling in slots.items():
        text = text.replace(f"{{{slot}}}", filling)
    return text


class Dialect(NamedTuple):
    """A database's own SQL: the texts for these slots in the statements."""

    lock: str = ""
    or_rollback: str = "OR ROLLBACK"
    position: str = "(SELECT last FROM event_positions)"
    end: str = "(SELECT last FROM event_positions)"
    horizon: str = "(SELECT last + 1 FROM event_positions)"
    among_ids: str = "IN (SELECT value FROM json_each(:ids))"


SQLITE = Dialect()


@cache
def statement(name: str, conditions: str = "", dialect: Dialect = SQLITE) -> str:
    """Return the statement `name`; `conditions` are those of a listing."""
    return _fill(_texts()[name], {"conditions": conditions, **dialect._asdict()}).strip()


@cache
def statement_of_rows(name: str, count: int, dialect: Dialect = SQLITE) -> str:
    """Return the statement `name` for `count` rows of parameters, each of which is a `?`."""

    def values(match: re.Match[str]) -> str:
        kind = match[1]
        columns, _, fixed = (part.strip() for part in match[2].partition(";"))
        row = ",".join("?" * len(columns.split(",")))
        if fixed:
            column, _, expression = fixed.partition("=")
            columns, row = f"{columns}, {column}", f"{row},{expression}"
        rows = ",".join([f"({row})"] * count)
        return f"({columns}) VALUES {rows}" if kind == "insert" else f"({columns}) AS (VALUES {rows})"

    return _ROWS.sub(values, statement(name, dialect=dialect))


@cache
def returns_rows(name: str) -> bool:
    """Whether the statement returns rows."""
    return re.search(r"\b(INSERT|UPDATE|DELETE|CREATE)\b(?!.*\bRETURNING\b)", _texts()[name]) is None


@cache
def due_column(name: str) -> int | None:
    """Return the place of `due_at` in the statement's rows of parameters, None when it is not among them."""
    match = _ROWS.search(_texts()[name])
    columns = [column.strip() for column in match[2].split(",")] if match else []
    return columns.index("due_at") if "due_at" in columns else None


# ---------------------------------------------------------------- the transaction


class Session(ABC):
    """A transaction that a backend began: runs the statements of `statements.sql` by name."""

    rows_at_once: ClassVar[int]
    """Rows of parameters in one statement, at most; a power of two."""

    @abstractmethod
    def run(self, name: str, params: Mapping[str, Value], conditions: str = "") -> list[Row]:
        """Run a statement and return its rows; `conditions` fill the WHERE of a listing."""

    def run_rows(self, name: str, rows: Sequence[Sequence[Value]]) -> list[Row]:
        """Run a statement that takes rows of parameters, however many, and return its rows; without any, nothing is run.

        It is run for pieces of few sizes (1, 2, 3, 4, 6, 8, 12, …), so that the database can keep each form prepared.
        """
        results: list[Row] = []
        start, left = 0, len(rows)
        while left:
            size = min(self.rows_at_once, left)
            low = max(size.bit_length() - 2, 0)
            size = size >> low << low
            values = storable(chain.from_iterable(rows[start : start + size]))
            results += self._run_piece(name, size, values)
            start, left = start + size, left - size
        return results

    @abstractmethod
    def _run_piece(self, name: str, size: int, values: list[Value]) -> Iterable[Row]:
        """Run a statement with `size` rows of parameters, one after the other in `values`."""

    @abstractmethod
    def begin_recording(self) -> None:
        """Make the position of the events that follow."""

    @abstractmethod
    def script(self, text: str) -> None:
        """Run a migration."""

    @abstractmethod
    def lock_migrations(self) -> None:
        """Keep other processes from migrating until the transaction ends."""

    @abstractmethod
    def lock_deliveries(self) -> None:
        """Wait for transactions that write deliveries, and keep others from it until this one ends."""

    @abstractmethod
    def free_locks(self, own: str, named: Collection[str]) -> set[str] | None:
        """Hold the lock `own` for as long as this process lives; return those of `named` that no process holds.

        None when this process cannot hold its own: then nothing is known of the others.
        """


def storable(values: Iterable[Value]) -> list[Value]:
    """Return parameters as both databases can hold them."""
    stored: list[Value] = []
    for value in values:
        if isinstance(value, str) and ("\0" in value or not value.isascii()):
            stored.append(clean(value))
        else:
            stored.append(value)
    return stored


def clean(text: str) -> str:
    """Return `text` without lone surrogates and NUL, which JSON from a provider may have."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def value_of(kind: type[V], row: Row) -> V:
    """Return the value whose fields the columns of a row are, in their order."""
    return msgspec.convert(dict(zip(kind.__struct_fields__, row, strict=True)), kind)


class Each(Generic[P, R]):
    """An operation that calls one function for each request of a transaction."""

    def __init__(self, function: Callable[Concatenate[Session, P], R]) -> None:
        self.one = function
        """Calls the function within a transaction that is under way."""

    def __call__(self, session: Session, requests: Sequence[Callable[[Session], R]]) -> list[R]:
        """Do all requests; return their results."""
        return [request(session) for request in requests]

    def request(self, *args: P.args, **kwargs: P.kwargs) -> Callable[[Session], R]:
        """Return a request with these arguments."""
        return lambda session: self.one(session, *args, **kwargs)


# ---------------------------------------------------------------- migrations

ADVICE = "run `receiver migrate`"
_MIGRATION = re.compile(r"(\d{4})_(?:needs_(\d{4})_)?")


@cache
def migrations(blob: str) -> Mapping[str, str]:
    """Return the migrations in their order, name to text; `blob` is the database's type for bytes."""
    folder = files("receiver.storage.store").joinpath("migrations")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return {
        name.removesuffix(".sql"): folder.joinpath(name).read_text("utf-8").replace("{blob}", blob)
        for name in names
    }


@Each
def migrate(session: Session, known: Mapping[str, str], now: int) -> list[str]:
    """Apply what is missing, in order, one process at a time; return the names."""
    session.lock_migrations()
    session.run("create_migrations", {})
    missing = sorted(set(known) - _applied(session, known))
    for name in missing:
        session.script(known[name])
        session.run("insert_migration", {"name": name, "applied_at": now})
    return missing


@Each
def check(session: Session, known: Mapping[str, str], shared: bool) -> None:
    """Raise `ConfigError` when a migration was applied that is not for this program, or one lacks in a shared database.

    A database of this machine alone may be empty, and is migrated by the program itself.
    """
    if not shared:
        session.run("create_migrations", {})
    missing = set(known) - _applied(session, known)
    if shared and missing:
        raise ConfigError(
            f"store.url: the database's schema is older than this program (it lacks {min(missing)}): {ADVICE}"
        )
    if not missing:
        session.run("raise_positions", {})


def unfit(applied: Collection[str], known: Collection[str]) -> list[str]:
    """Return those applied that a program which knows only `known` must not run on.

    It runs on what came later, unless the name says that it must know more: `0007_needs_0005_…` is for programs that have
    `0005_…`. So an old program can judge what it has never seen.
    """
    newest = max(known)[:4]
    refused = []
    for name in sorted(set(applied) - set(known)):
        match = _MIGRATION.match(name)
        if match is None or not match[1] > newest >= (match[2] or newest):
            refused.append(name)
    return refused


def _applied(session: Session, known: Collection[str]) -> set[str]:
    applied = {str(row[0]) for row in session.run("list_migrations", {})}
    refused = unfit(applied, known)
    if refused:
        raise ConfigError(
            f"store.url: the database's schema is newer than this program (it has {refused[-1]}): "
            "run the version of receiver that made it, or a later one"
        )
    return applied
