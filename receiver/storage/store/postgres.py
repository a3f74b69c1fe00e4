"""PostgreSQL as the store's database: any number of processes, one connection each that writes, one that reads.

The statements of a transaction travel together (libpq's pipeline mode): those that answer are waited for, and the commit.
docs/adr/0014-postgresql.md says what holds when the connection, the server or a clock does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import msgspec
import psycopg
from msgspec import Struct
from psycopg import errors
from psycopg.pq import PipelineStatus, TransactionStatus

from receiver.core.clock import wall_clock
from receiver.core.errors import ReceiverError, StoreUnavailable
from receiver.storage.store import postgres_connection
from receiver.storage.store.postgres_connection import (
    ANSWER_SECONDS,
    FAILURES,
    OWN,
    Connection,
    Starved,
    connect,
    lost,
    parse,
    silent,
    unavailable,
)
from receiver.storage.store.postgres_session import PostgresSession, Skew
from receiver.storage.store.statements import Session, migrations
from receiver.storage.store.store import Notified, Store
from receiver.storage.store.writer import WAITS, Backend, Trouble, Waits


class Pauses(Struct, frozen=True, kw_only=True):
    """Seconds in which no other connection is tried; each doubles from its first value to its last."""

    first: float = 0.05
    last: float = 1.0
    """After a connection that failed."""
    silent: float = 1.0
    last_silent: float = 30.0
    """After a commit that was not answered: it may go on waiting on the server, with the connection it came by."""


PAUSES = Pauses()
LOCK_MS = 2_000
"""Time limit for a lock. All callers of this process wait behind it, so it is shorter than the time in which a callback
must be answered.
"""
TAKEOVER_SECONDS = 2.0
"""How long another process's lock must be free before the process counts as dead. A process that only lost its connection
is back earlier.
"""
CLOSE_SECONDS = 1.0
"""How long closing waits for a server that may say nothing."""

_LIMITS = "SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true)"
_STATEMENT_PER_LOCK = 50
"""A statement's limit is this many times a shortened limit for locks."""
_UNDONE = (
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.IdleInTransactionSessionTimeout,
    errors.IdleSessionTimeout,
    LookupError,
)
"""Errors after which nothing was committed. A session that the server ended because it was idle had no commit under way."""
_OF_SOME = (
    psycopg.IntegrityError,
    psycopg.DataError,
    errors.LockNotAvailable,
    errors.QueryCanceled,
    errors.InsufficientPrivilege,
    errors.UndefinedTable,
    errors.UndefinedColumn,
)
"""Errors caused by single operations: the others of the transaction may succeed without them."""


class PostgresStore(Store):
    """The store in a PostgreSQL database that `receiver migrate` has prepared. Raises `ConfigError` for an unreadable URL.

    `answer_seconds` bounds the wait for any answer of the server.
    """

    shared = True
    close_seconds = CLOSE_SECONDS
    takeover_seconds = TAKEOVER_SECONDS

    def __init__(
        self,
        url: str,
        *,
        answer_seconds: float = ANSWER_SECONDS,
        pauses: Pauses = PAUSES,
        waits: Waits = WAITS,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        self._info = parse(url)
        self._name = secrets.token_hex(6)
        self._skew = Skew(clock)
        self._answer_seconds = answer_seconds
        self._pauses = pauses
        self._listener: Listener | None = None
        super().__init__(migrations("BYTEA"), waits)

    @property
    def skew_ms(self) -> int:
        """Milliseconds by which the database's clock is ahead of ours, as last measured; small ones count as none."""
        return self._skew.shift

    def _backend(self, *, writes: bool) -> PostgresBackend:
        name = self._name if writes else None
        return PostgresBackend(lambda: self._connected(writes), self._skew, name, self._pauses)

    def _connected(self, writes: bool = False) -> Connection:
        return connect(self._info, writes=writes, answer_seconds=self._answer_seconds)

    async def open(self) -> None:
        """Connect, check the schema, and begin to listen to other processes. Raises `ConfigError`, `StoreUnavailable`."""
        await super().open()
        if self._notified is not None and self._listener is None:
            self._listener = Listener(self._connected, self._name, self._tell, asyncio.get_running_loop())

    def _tell(self, destinations: Iterable[str], sources: Iterable[str]) -> None:
        """Pass on what another process recorded, to whoever listens by now."""
        if self._notified is not None:
            self._notified(destinations, sources)

    async def close(self) -> None:
        """Close the connection that listens; finish what is queued, then disconnect."""
        listener, self._listener = self._listener, None
        if listener is not None:
            await asyncio.get_running_loop().run_in_executor(None, listener.close, CLOSE_SECONDS / 2)
        await super().close()


class PostgresBackend(Backend):
    """One connection, made when first needed and again after a failure; used by one thread only."""

    def __init__(
        self,
        connected: Callable[[], Connection],
        skew: Skew,
        name: str | None,
        pauses: Pauses = PAUSES,
    ) -> None:
        """With the name of this process it writes, and notifies other processes; without one it only reads."""
        self._connected = connected
        self._skew = skew
        self._name = name
        self._changes: set[tuple[str, str]] = set()
        """What was committed and goes with the next notification."""
        self._notified_at = 0.0
        self._connection: Connection | None = None
        self._pipeline: AbstractContextManager[psycopg.Pipeline] | None = None
        self._session: PostgresSession | None = None
        self._fresh = True
        """The connection was made for this transaction: if it breaks, it was no stale one."""
        self._committing = False
        self._failed: StoreUnavailable | None = None
        self._pauses = pauses
        self._pause, self._not_before = pauses.first, 0.0
        self._silent_pause = pauses.silent
        self._answer_seconds = 0.0
        self._abandoned = False

    def begin(self, lock_seconds: float | None = None) -> Session:
        """Connect if need be; begin a transaction if this connection writes."""
        self._committing = False
        self._fresh = self._connection is None
        connection = self._connection or self._reconnect()
        connection.answer_seconds = self._answer_seconds
        self._skew.measure(connection)
        if self._name is not None:
            pipeline = connection.pipeline()
            pipeline.__enter__()
            self._pipeline = pipeline
            connection.execute("BEGIN")
            if lock_seconds is not None:
                lock_ms = round(lock_seconds * 1000)
                statement_ms = min(_STATEMENT_PER_LOCK * lock_ms, postgres_connection.STATEMENT_MS)
                connection.execute(_LIMITS, [str(lock_ms), str(statement_ms)])
        self._session = PostgresSession(connection, self._skew.shift)
        return self._session

    def commit(self) -> None:
        """Commit. Where the answer is lost, nobody knows whether it was done: callers are refused, and a repeat is harmless."""
        if self._connection is None or self._session is None:
            return
        self._committing = True
        try:
            done = self._connection.execute("COMMIT")
            self._leave_pipeline()
        except psycopg.Error as error:
            if silent(error):
                self._failed, self._not_before = unavailable(error), time.monotonic() + self._silent_pause
                self._silent_pause = min(2 * self._silent_pause, self._pauses.last_silent)
            raise
        if done.statusmessage != "COMMIT":
            raise StoreUnavailable("store: the database undid the transaction")
        self._silent_pause = self._pauses.silent
        self._changes |= self._session.changes

    def rollback(self) -> None:
        """Undo the transaction, unless the server has."""
        connection = self._connection
        if connection is None:
            return
        with contextlib.suppress(*FAILURES):  # what it reports is the error that led here
            self._leave_pipeline()
        try:
            if connection.info.pipeline_status != PipelineStatus.OFF:
                self._drop()
            elif connection.info.transaction_status != TransactionStatus.IDLE:
                connection.execute("ROLLBACK")
        except FAILURES:
            self._drop()

    def trouble(self, error: Exception) -> Trouble:
        """Translate what the server says; drop a connection that broke, or that leads to a server of no use."""
        again = self._undone(error)
        if isinstance(error, OWN):  # from wherever it comes, what it left behind is not known
            self._drop()
            return Trouble(unavailable(error), of_all=True)
        if not isinstance(error, psycopg.Error):
            return Trouble(error, isinstance(error, ReceiverError), again)
        if lost(error):
            self._drop()
        return Trouble(unavailable(error), not isinstance(error, _OF_SOME), again)

    def _undone(self, error: Exception) -> bool:
        """Whether nothing was done, and chance made it fail: a deadlock, a connection that had broken before, or a row
        that another process ended meanwhile.
        """
        if isinstance(error, _UNDONE):
            return True
        if not isinstance(error, psycopg.Error) or not lost(error):
            return False
        return not self._committing and not self._fresh and not silent(error)

    def housekeeping(self, *, idle: bool) -> None:
        """Notify other processes of what was committed, unless that was done just now and more is coming.

        NOTIFY takes a lock that all of the server's databases share and holds it until the commit is on disk; a transaction
        that does nothing else holds it for no time.
        """
        now = time.monotonic()
        if self._name is None or self._connection is None or not self._changes:
            return
        if not idle and now - self._notified_at < PAUSE_SECONDS:
            return
        changes, self._changes, self._notified_at = sorted(self._changes), set(), now
        notification = Notification(
            self._name,
            destinations=tuple(name for kind, name in changes if kind == "destination"),
            sources=tuple(name for kind, name in changes if kind == "source"),
        )
        payload = msgspec.json.encode(notification).decode()
        if len(payload.encode()) > _LIMIT:  # the others find it when they poll
            return
        try:
            self._connection.execute("SELECT pg_notify($1, $2)", [CHANNEL, payload])
        except FAILURES as error:
            self.trouble(error)

    def close(self) -> None:
        """Disconnect."""
        self._drop()

    def abandon(self) -> None:
        """Shut the socket down, so that a wait for an answer ends, and connect no more."""
        self._abandoned = True
        connection = self._connection
        if connection is not None:
            with (
                contextlib.suppress(psycopg.Error, OSError),
                socket.socket(fileno=os.dup(connection.fileno())) as wire,
            ):
                wire.shutdown(socket.SHUT_RDWR)

    # ------------------------------------------------------------ the connection

    def _reconnect(self) -> Connection:
        if self._abandoned:
            raise StoreUnavailable("the store is closed")
        if self._failed is not None and time.monotonic() < self._not_before:
            raise type(self._failed)(self._failed.message)
        try:
            connection = self._connected()
        except FAILURES as error:
            self._failed = unavailable(error)
            self._not_before = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, self._pauses.last)
            raise type(self._failed)(self._failed.message) from None
        self._failed, self._pause = None, self._pauses.first
        self._connection = connection
        self._skew.forget()
        self._answer_seconds = connection.answer_seconds
        if self._name is not None:
            try:
                lock_ms = min(LOCK_MS, postgres_connection.LOCK_MS)
                connection.execute(f"SET lock_timeout = {lock_ms}", prepare=False)
            except BaseException:  # half prepared, it is not to be used
                self._drop()
                raise
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*FAILURES):
                connection.close()
        with contextlib.suppress(
            *FAILURES
        ):  # after the close: leaving waits for answers of an open connection
            self._leave_pipeline()

    def _leave_pipeline(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is None:
            return
        try:
            pipeline.__exit__(None, None, None)
        except psycopg.OperationalError as error:
            cause = (
                error.__context__
            )  # the real error; psycopg raises another, that the pipeline cannot be left
            if isinstance(cause, Starved):
                raise cause from None
            if silent(cause):
                raise psycopg.OperationalError(str(cause)) from None
            raise


CHANNEL = "receiver"
PAUSE_SECONDS = 0.02
"""Between two notifications of one process; what is recorded meanwhile goes with the next."""
_LIMIT = 7_500
"""Bytes of one notification; PostgreSQL takes less than 8,000."""
_PROBE_SECONDS = 30.0
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0
"""Seconds between tries to listen, doubled each time."""


class Notification(msgspec.Struct, frozen=True):
    """The payload of a notification; `by` names the process that sent it."""

    by: str
    destinations: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


class Listener:
    """Listens to other processes: a thread with a connection of its own."""

    def __init__(
        self,
        connected: Callable[[], Connection],
        name: str,
        notified: Notified,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._connected = connected
        self._name = name
        self._notified = notified
        self._loop = loop
        self._pause = _FIRST_PAUSE
        # Closing one end is what the thread sees at the other.
        self._stopped, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, name="store-listener", daemon=True)
        self._thread.start()

    def close(self, seconds: float | None = None) -> None:
        """Stop listening, and wait for the thread, `seconds` at most: a silent server may hold it for longer."""
        os.close(self._stop)
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            while not self._listened():
                if self._ready(self._stopped, within=self._pause):
                    return
                self._pause = min(2 * self._pause, _LAST_PAUSE)
        finally:
            os.close(self._stopped)

    def _listened(self) -> bool:
        """Listen until closed; False after any failure, to be tried again: without notifications, workers would be slow for good."""
        try:
            with contextlib.closing(self._connected()) as connection:
                return self._listen(connection)
        except Exception:
            return False

    def _listen(self, connection: Connection) -> bool:
        """Pass notifications on; True when closed. Raises `psycopg.Error` when the connection is lost."""
        connection.execute(f"LISTEN {CHANNEL}", prepare=False)
        self._pause = _FIRST_PAUSE
        while True:
            # What came with the answer to LISTEN or to a probe is taken before waiting for more.
            for note in connection.notifies(timeout=0):
                self._pass_on(note.payload)
            ready = self._ready(self._stopped, connection.fileno(), within=_PROBE_SECONDS)
            if self._stopped in ready:
                return True
            if not ready:
                connection.execute("SELECT 1", prepare=False)

    @staticmethod
    def _ready(*descriptors: int, within: float) -> set[int]:
        """Return the sockets that are readable or closed. `select` cannot take descriptors above 1023."""
        waiting = select.poll()
        for descriptor in descriptors:
            waiting.register(descriptor, select.POLLIN)
        return {descriptor for descriptor, _ in waiting.poll(within * 1000)}

    def _pass_on(self, payload: str) -> None:
        try:
            note = msgspec.json.decode(payload, type=Notification)
        except msgspec.DecodeError:
            return
        if note.by != self._name:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._notified, note.destinations, note.sources)
