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
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

import msgspec
import psycopg
from psycopg import errors
from psycopg.pq import PipelineStatus, TransactionStatus

from receiver.core.clock import wall_clock
from receiver.core.errors import ReceiverError, StoreUnavailable
from receiver.storage.store import postgres_connection
from receiver.storage.store.grouped import GroupedStore
from receiver.storage.store.postgres_connection import (
    ANSWER_SECONDS,
    FAILURES,
    OWN,
    Connection,
    News,
    PostgresSession,
    Skew,
    Starved,
    connect,
    lost,
    parse,
    silent,
    told,
)
from receiver.storage.store.sql import Session
from receiver.storage.store.statements import migrations
from receiver.storage.store.writer import Backend

FIRST_PAUSE, LAST_PAUSE = 0.05, 1.0
"""Seconds after a failed connection in which no other is tried; doubled each time."""
DOUBT_SECONDS = 2.0
"""How long a commit whose answer was lost is asked after."""

SILENT_PAUSE, LAST_SILENT_PAUSE = 1.0, 30.0
"""The same after a commit that was not answered and cannot be asked after: each try may leave a connection on the server."""
ASK_PAUSE = 0.2
"""Seconds between two questions whether a commit that was given up is still waiting there."""
LOCK_MS = 2_000
"""How long a transaction waits for a lock: behind it wait all callers of this process, within what an answer may take."""
CLOSE_SECONDS = 1.0
"""How long closing waits for a server that may say nothing."""

# A standby that was promoted goes on with the numbers of transactions from where it was, and so does a server after a
# crash, which throws its figures away, too: only within one history does a number name one transaction.
_HISTORY = """
SELECT system_identifier::text || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
    || coalesce((SELECT stats_reset::text FROM pg_stat_archiver), '')
FROM pg_control_system()
"""


_LIMITS = "SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true)"
_STATEMENT_PER_LOCK = 50
"""Who is given less time to wait for a lock is given less for each statement, too."""
_OF_SOME = (
    psycopg.IntegrityError,
    psycopg.DataError,
    errors.LockNotAvailable,
    errors.QueryCanceled,
    errors.InsufficientPrivilege,
    errors.UndefinedTable,
    errors.UndefinedColumn,
)
"""What the server says of one operation, or of some: the others of the transaction may succeed without them."""
_UNCONFIRMED = "store: the database server does not confirm commits: is a synchronous standby away?"


class PostgresStore(GroupedStore):
    """The store in a PostgreSQL database (13 or later) that `receiver migrate` has prepared.

    `answer_seconds` bounds the wait for any answer of the server. Raises `ConfigError` for a URL that cannot be read.
    """

    _checking = "check_complete"
    _close_seconds = CLOSE_SECONDS

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
            await asyncio.get_running_loop().run_in_executor(None, listener.close, CLOSE_SECONDS / 2)
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
        self._silent_pause = SILENT_PAUSE
        self._waiting: str | None = None
        """The number of a transaction whose commit was given up and may still be waiting on the server."""
        self._answer_seconds = 0.0
        self._abandoned = False

    def begin(self, lock_seconds: float | None = None) -> Session:
        """Connect if need be; begin a transaction if this connection writes."""
        self._committing = self._undone = False
        self._fresh = self._connection is None
        connection = self._connection or self._reconnect()
        connection.answer_seconds = self._answer_seconds
        if self._waiting is not None:
            self._ask_after(connection, self._waiting)
        self._skew.measure(connection)
        if self._announcer is not None:
            pipeline = connection.pipeline()
            pipeline.__enter__()
            self._pipeline = pipeline
            connection.execute("BEGIN")
            if lock_seconds is not None:
                lock_ms = round(lock_seconds * 1000)
                statement_ms = min(_STATEMENT_PER_LOCK * lock_ms, postgres_connection.STATEMENT_MS)
                connection.execute(_LIMITS, [str(lock_ms), str(statement_ms)])
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
            if not lost(error) or not self._was_committed(self._session.transaction_id(), error):
                raise
        else:
            if done.statusmessage != "COMMIT":
                raise StoreUnavailable("store: the database undid the transaction")
        self._silent_pause = SILENT_PAUSE
        if self._announcer is not None:
            self._announcer.add(self._session.news)

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

    def trouble(self, error: Exception) -> tuple[Exception, bool]:
        """Translate what the server says; drop a connection that broke, or that leads to a server of no use."""
        if isinstance(error, OWN):  # from wherever it comes, what it left behind is not known
            self._drop()
            return told(error), True
        if not isinstance(error, psycopg.Error):
            return error, isinstance(error, ReceiverError)
        if lost(error):
            self._drop()
        if isinstance(error, psycopg.DataError) and error.sqlstate is None:
            # psycopg did, before it was sent.
            return StoreUnavailable("store: the database refused a value"), False
        return told(error), not isinstance(error, _OF_SOME)

    def again(self, error: Exception) -> bool:
        """Whether nothing was done, and chance made it fail: a deadlock, a connection that had broken before, or a row
        that stood there a moment ago and that another process has ended since.
        """
        if isinstance(error, errors.DeadlockDetected | errors.SerializationFailure | LookupError):
            return True
        if not isinstance(error, psycopg.Error) or not lost(error):
            return False
        return self._undone if self._committing else not self._fresh and not silent(error)

    def housekeeping(self, *, idle: bool) -> None:
        """Tell other processes what was committed."""
        if self._announcer is None or self._connection is None:
            return
        try:
            self._announcer.flush(self._connection, idle=idle)
        except FAILURES as error:
            self.trouble(error)

    def close(self) -> None:
        """Disconnect."""
        self._drop()

    def abandon(self) -> None:
        """Hang up under whoever waits for an answer, and connect no more."""
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
            self._failed = told(error)
            self._not_before = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LAST_PAUSE)
            raise type(self._failed)(self._failed.message) from None
        self._failed, self._pause = None, FIRST_PAUSE
        self._connection = connection
        self._skew.forget()
        self._answer_seconds = connection.answer_seconds
        if self._announcer is not None:
            try:
                before, self._history = self._history, _history(connection)
                if before != self._history:
                    self._waiting = None
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
        with contextlib.suppress(*FAILURES):  # in this order: of a closed connection it waits for nothing
            self._leave_pipeline()

    def _leave_pipeline(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is None:
            return
        try:
            pipeline.__exit__(None, None, None)
        except psycopg.OperationalError as error:
            cause = error.__context__  # what was waited for; what is told is that one cannot leave so
            if isinstance(cause, Starved):
                raise cause from None
            if silent(cause):
                raise psycopg.OperationalError(str(cause)) from None
            raise

    def _ask_after(self, connection: Connection, transaction_id: str) -> None:
        """Begin nothing while a commit that was given up still waits there, as for a synchronous standby that is away: one
        more would wait as long, and leave one more connection. Raises `StoreUnavailable`.
        """
        if self._failed is None or time.monotonic() >= self._not_before:
            try:
                row = connection.execute("SELECT pg_xact_status($1)", [transaction_id]).fetchone()
            except errors.InvalidParameterValue:  # a number that has not been given out, or no more
                row = None
            if row is None or row[0] != "in progress":
                self._waiting = self._failed = None
                return
            self._failed = StoreUnavailable(_UNCONFIRMED)
            self._not_before = time.monotonic() + ASK_PAUSE
        raise StoreUnavailable(self._failed.message)

    def _was_committed(self, transaction_id: str | None, error: psycopg.Error) -> bool:
        """Ask the server, by another connection, what became of a transaction whose commit was sent and not answered."""
        self._drop()
        history = self._history
        if silent(error):
            self._waiting = transaction_id if history is not None else None
            if self._waiting is None:
                self._failed, self._not_before = told(error), time.monotonic() + self._silent_pause
                self._silent_pause = min(2 * self._silent_pause, LAST_SILENT_PAUSE)
                return False
        deadline = time.monotonic() + DOUBT_SECONDS
        while transaction_id is not None and history is not None and time.monotonic() < deadline:
            if self._abandoned:
                break
            try:
                connection = self._connection or self._reconnect()
                if self._history != history:
                    return False
                row = connection.execute("SELECT pg_xact_status($1)", [transaction_id]).fetchone()
            except errors.InvalidParameterValue:  # not given out, or no more: nothing of it is there
                self._waiting = None
                self._undone = True
                return False
            except (*FAILURES, ReceiverError):
                self._drop()
                row = None
            if row is not None and row[0] in {"committed", "aborted"}:
                self._waiting = None
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
    return None if row is None or row[0] is None else str(row[0])


Heard = Callable[[Collection[str], Collection[str]], None]
"""Called with destinations and sources."""

CHANNEL = "receiver"
PAUSE_SECONDS = 0.02
"""Between two announcements of one process; what comes meanwhile goes with the next."""
_LIMIT = 7_500
"""Bytes of one announcement; PostgreSQL takes less than 8,000."""
_PROBE_SECONDS = 30.0
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0
"""Seconds between tries to listen, doubled each time."""


class Note(msgspec.Struct, frozen=True):
    """One announcement."""

    by: str
    destinations: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


class Announcer:
    """Tells other processes, after the commit and not within it.

    NOTIFY takes a lock that all of the server's databases share and holds it until the commit is on disk; a transaction that
    does nothing else holds it for no time.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._news = News()
        self._last = 0.0

    def add(self, news: News) -> None:
        """Note what was committed."""
        self._news.add(news)

    def flush(self, connection: Connection, *, idle: bool) -> None:
        """Announce, unless that was done just now and more is coming. Raises `psycopg.Error`."""
        now = time.monotonic()
        if not self._news or (not idle and now - self._last < PAUSE_SECONDS):
            return
        news, self._news, self._last = self._news, News(), now
        note = Note(self._name, tuple(sorted(news.destinations)), tuple(sorted(news.sources)))
        payload = msgspec.json.encode(note).decode()
        if len(payload.encode()) <= _LIMIT:  # beyond that, the others find it when they look
            connection.execute("SELECT pg_notify($1, $2)", [CHANNEL, payload])


class Listener:
    """Hears other processes: a thread with a connection of its own."""

    def __init__(
        self,
        connected: Callable[[], Connection],
        name: str,
        heard: Heard,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._connected = connected
        self._name = name
        self._heard = heard
        self._loop = loop
        self._pause = _FIRST_PAUSE
        # Closing one end is what the thread sees at the other.
        self._stopped, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, name="store-listener", daemon=True)
        self._thread.start()

    def close(self, seconds: float | None = None) -> None:
        """Stop listening, and wait until it has, `seconds` at most: the thread ends when the server lets go of it."""
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
        """Listen until told to stop; False when that went wrong, whatever it was: without hints, lanes would be slow for good."""
        try:
            with contextlib.closing(self._connected()) as connection:
                return self._listen(connection)
        except Exception:
            return False

    def _listen(self, connection: Connection) -> bool:
        """Pass on what is heard; True when it was told to stop. Raises `psycopg.Error` when the connection is lost."""
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
        """Return those of which there is something to read, or that were closed. `select` refuses those beyond 1023."""
        waiting = select.poll()
        for descriptor in descriptors:
            waiting.register(descriptor, select.POLLIN)
        return {descriptor for descriptor, _ in waiting.poll(within * 1000)}

    def _pass_on(self, payload: str) -> None:
        try:
            note = msgspec.json.decode(payload, type=Note)
        except msgspec.DecodeError:
            return
        if note.by != self._name:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._heard, note.destinations, note.sources)
