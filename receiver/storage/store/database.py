"""What the store needs of a database: `Database` opens connections, `Backend` is one of them, `Session` a transaction on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

V = TypeVar("V", bound=msgspec.Struct)
Value = str | int | float | bytes | None
Row = Sequence[Any]
Notified = Callable[[Iterable[str], Iterable[str]], None]
"""Called with destinations and sources for which another process recorded something."""


class Session(Protocol):
    """A transaction that the backend began: runs the statements of `statements.sql` by name."""

    def run(self, name: str, params: Mapping[str, Value], conditions: str = "") -> list[Row]:
        """Run a statement and return its rows; `conditions` fill the WHERE of a listing."""

    def run_rows(self, name: str, rows: Sequence[Sequence[Value]]) -> list[Row]:
        """Run a statement that takes rows of parameters, however many, and return its rows; without any, nothing is run."""

    def script(self, text: str) -> None:
        """Run a migration."""

    def lock_migrations(self) -> None:
        """Keep other processes from migrating until the transaction ends."""


class Backend(Protocol):
    """One connection, made when it is first needed and again after a failure; used by one thread only."""

    def begin(self, lock_seconds: float | None = None) -> Session:
        """Begin a transaction, (re)connecting first where needed; wait less long for locks, if given."""

    def commit(self) -> None:
        """Make it durable."""

    def rollback(self) -> None:
        """Undo it. Must not raise."""

    def trouble(self, error: Exception) -> tuple[Exception, bool]:
        """Return the error for the callers, and whether it concerns all of them. Drops a connection not to be trusted."""

    def again(self, error: Exception) -> bool:
        """Whether the same may be tried again at once: nothing of it was done, and chance made it fail."""

    def housekeeping(self, *, idle: bool) -> None:
        """Do what need not be done while callers wait. Must not raise."""

    def close(self) -> None:
        """Disconnect. Must not raise."""

    def abandon(self) -> None:
        """Have what is under way in the backend's own thread fail soon, and nothing begin. Called from another thread."""


class Database(Protocol):
    """Where a store's tables are: everything that differs between databases."""

    shared: bool
    """Processes of many machines use it. A person migrates it, since older programs may be running on it."""
    migrations: Mapping[str, str]
    """The migrations of this program for this database, name to text."""
    close_seconds: float | None
    """How long closing waits for what is under way on a connection; None where no wait is long."""

    @property
    def skew_ms(self) -> int | None:
        """Milliseconds by which its clock is ahead of ours, as last measured, small ones 0; None where it has no clock."""

    def connect(self, *, writes: bool) -> Backend:
        """Return a backend that writes, or one that only reads."""

    def listen(self, notified: Notified) -> None:
        """Call `notified` in the event loop when another process records something, until `stop_listening`."""

    async def stop_listening(self) -> None:
        """End what `listen` began, if anything."""


def value_of(kind: type[V], row: Row) -> V:
    """Return the value whose fields the columns of a row are, in their order."""
    return msgspec.convert(dict(zip(kind.__struct_fields__, row, strict=True)), kind)


def clean(text: str | None) -> str | None:
    """Return `text` as both databases can hold it: no lone surrogates, no NUL (JSON from a provider may have them)."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def clean_value(value: Value) -> Value:
    """Return a parameter as both databases can hold it."""
    return clean(value) if isinstance(value, str) else value
