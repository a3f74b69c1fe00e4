"""PostgreSQL as the store's database (floor 3): any number of processes, one connection each that writes, one that reads.

The statements of a transaction travel together (libpq's pipeline mode): those that answer are waited for, and the commit.
docs/adr/0014-postgresql.md says what holds when the connection, the server or a clock does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import psycopg
from psycopg import errors
from psycopg.pq import PipelineStatus, TransactionStatus

from receiver.errors import ReceiverError, StoreUnavailable
from receiver.store.grouped import GroupedStore
from receiver.store.postgres_clock import Skew, wall_clock
from receiver.store.postgres_connect import ANSWER_SECONDS, Connection, connect, lost, parse, told
from receiver.store.postgres_news import Announcer, Heard, Listener
from receiver.store.postgres_session import PostgresSession
from receiver.store.sql import Session
from receiver.store.statements import migrations
from receiver.store.writer import Backend

FIRST_PAUSE, LAST_PAUSE = 0.05, 1.0
"""Seconds after a failed connection in which no other is tried; doubled each time."""
DOUBT_SECONDS = 2.0
"""How long a commit whose answer was lost is asked after."""

# A standby that was promoted goes on with the numbers of transactions from where it was: only within one history does a
# number name one transaction.
_HISTORY = """
SELECT system_identifier::text || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) FROM pg_control_system()
"""


class PostgresStore(GroupedStore):
    """The store in a PostgreSQL database (13 or later) that `receiver migrate` has prepared.

    `answer_seconds` bounds the wait for any answer of the server. Raises `ConfigError` for a URL that cannot be read.
    """

    _checking = "check_complete"

    def __init__(
        self, url: str, *, answer_seconds: float = ANSWER_SECONDS, clock: Callable[[], int] = wall_clock
    ) -> None:
        self._info = parse(url)
        self._name = secrets.token_hex(6)
        self._skew = Skew(clock)
        self._answer_seconds = answer_seconds
        self._heard: Heard | None = None
        self._listener: Listener | None = None
        super().__init__(self._backend, migrations("BYTEA"))

    def _backend(self, writes: bool) -> Backend:
        announcer = Announcer(self._name) if writes else None
        return PostgresBackend(lambda: self._connected(writes), self._skew, announcer)

    def _connected(self, writes: bool = False) -> Connection:
        return connect(self._info, writes=writes, answer_seconds=self._answer_seconds)

    @property
    def skew_ms(self) -> int:
        """Milliseconds by which the database's clock is ahead of ours, as last measured; small ones count as none."""
        return self._skew.shift

    async def open(self) -> None:
        """Connect and check the schema. Raises `ConfigError` when it is not this program's, `StoreUnavailable`."""
        await super().open()
        if self._heard is not None and self._listener is None:
            loop = asyncio.get_running_loop()
            self._listener = Listener(self._connected, self._name, self._heard, loop)

    async def close(self) -> None:
        """Finish what is queued, then disconnect."""
        listener, self._listener = self._listener, None
        if listener is not None:
            await asyncio.get_running_loop().run_in_executor(None, listener.close)
        await super().close()

    def listen(self, heard: Heard) -> None:
        """Have `heard(destinations, sources)` called in the event loop when another process recorded something for them.

        Call it before `open`. What is heard is a hint: some of it may be missed, so lanes have to go on looking.
        """
        self._heard = heard


class PostgresBackend:
    """One connection, made when first needed and again after a failure; used by one thread only."""

    def __init__(self, connected: Callable[[], Connection], skew: Skew, announcer: Announcer | None) -> None:
        """With an announcer it writes, and tells other processes; without one it only reads."""
        self._connected = connected
        self._skew = skew
        self._announcer = announcer
        self._connection: Connection | None = None
        self._history: str | None = None
        self._pipeline: AbstractContextManager[psycopg.Pipeline] | None = None
        self._session: PostgresSession | None = None
        self._fresh = True
        """The connection was made for this transaction: if it breaks, it was no stale one."""
        self._committing = False
        self._undone = False
        """It is known that the commit that broke undid everything."""
        self._failed: StoreUnavailable | None = None
        self._pause, self._not_before = FIRST_PAUSE, 0.0

    def begin(self) -> Session:
        """Connect if need be; begin a transaction if this connection writes."""
        self._committing = self._undone = False
        self._fresh = self._connection is None
        connection = self._connection or self._reconnect()
        self._skew.measure(connection)
        if self._announcer is not None:
            pipeline = connection.pipeline()
            pipeline.__enter__()
            self._pipeline = pipeline
            connection.execute("BEGIN")
        self._session = PostgresSession(connection, self._skew.shift, writes=self._announcer is not None)
        return self._session

    def commit(self) -> None:
        """Commit; when the connection breaks over it, find out what became of it."""
        if self._connection is None or self._session is None:
            return
        self._committing = True
        try:
            done = self._connection.execute("COMMIT")
            self._leave_pipeline()
        except psycopg.Error as error:
            if not lost(error) or not self._was_committed(self._session.transaction_id()):
                raise
        else:
            if done.statusmessage != "COMMIT":
                raise StoreUnavailable("store: the database undid the transaction")
        if self._announcer is not None:
            self._announcer.add(self._session.news)

    def rollback(self) -> None:
        """Undo the transaction, unless the server has."""
        connection = self._connection
        if connection is None:
            return
        with contextlib.suppress(psycopg.Error):  # what it reports is the error that led here
            self._leave_pipeline()
        try:
            if connection.info.pipeline_status != PipelineStatus.OFF:
                self._drop()
            elif connection.info.transaction_status != TransactionStatus.IDLE:
                connection.execute("ROLLBACK")
        except psycopg.Error:
            self._drop()

    def trouble(self, error: Exception) -> tuple[Exception, bool]:
        """Translate what the server says; drop a connection that broke, or that leads to a server of no use."""
        if not isinstance(error, psycopg.Error):
            return error, isinstance(error, ReceiverError)
        if lost(error):
            self._drop()
        of_one = isinstance(error, psycopg.IntegrityError | psycopg.DataError)
        return told(error), not of_one

    def again(self, error: Exception) -> bool:
        """Whether nothing was done, and chance made it fail: a deadlock, a connection that had broken before, or a row
        that stood there a moment ago and that another process has ended since.
        """
        if isinstance(error, errors.DeadlockDetected | errors.SerializationFailure | LookupError):
            return True
        if not isinstance(error, psycopg.Error) or not lost(error) or "timeout" in str(error):
            return False
        return self._undone if self._committing else not self._fresh

    def housekeeping(self, *, idle: bool) -> None:
        """Tell other processes what was committed."""
        if self._announcer is None or self._connection is None:
            return
        try:
            self._announcer.flush(self._connection, idle=idle)
        except psycopg.Error as error:
            self.trouble(error)

    def close(self) -> None:
        """Disconnect."""
        self._drop()

    # ------------------------------------------------------------ the connection

    def _reconnect(self) -> Connection:
        if self._failed is not None and time.monotonic() < self._not_before:
            raise StoreUnavailable(self._failed.message)
        try:
            connection = self._connected()
        except psycopg.Error as error:
            self._failed = told(error)
            self._not_before = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LAST_PAUSE)
            raise StoreUnavailable(self._failed.message) from None
        self._failed, self._pause = None, FIRST_PAUSE
        self._connection = connection
        self._skew.forget()
        if self._announcer is not None:
            self._history = _history(connection)
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._pipeline = None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    def _leave_pipeline(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.__exit__(None, None, None)

    def _was_committed(self, transaction_id: str | None) -> bool:
        """Ask the server, by another connection, what became of a transaction whose commit was sent and not answered."""
        self._drop()
        history = self._history
        deadline = time.monotonic() + DOUBT_SECONDS
        while transaction_id is not None and history is not None and time.monotonic() < deadline:
            try:
                connection = self._connection or self._reconnect()
                if self._history != history:
                    return False
                row = connection.execute("SELECT pg_xact_status($1)", [transaction_id]).fetchone()
            except (psycopg.Error, ReceiverError):
                self._drop()
                row = None
            if row is not None and row[0] in {"committed", "aborted"}:
                self._undone = row[0] == "aborted"
                return bool(row[0] == "committed")
            time.sleep(0.02)  # the server is not back yet, or not done yet
        return False


def _history(connection: Connection) -> str | None:
    """Return what tells this server's history from another's; None where the server does not say."""
    try:
        row = connection.execute(_HISTORY, prepare=False).fetchone()
    except psycopg.ProgrammingError:
        return None
    return None if row is None else str(row[0])
