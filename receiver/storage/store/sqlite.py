"""SQLite as the store's database: one file, one connection that writes, one that reads.

apsw brings its own SQLite, free of the WAL-reset bug that versions before 3.51.3 have when two connections of one file
write (https://sqlite.org/wal.html#walresetbug). Durable means WAL with `synchronous=FULL`: each commit is
synced before its callers are answered.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import apsw

from receiver.core.errors import THREAD_ERRORS, StoreUnavailable
from receiver.storage.store.statements import (
    Row,
    Session,
    Value,
    migrations,
    statement,
    statement_of_rows,
    storable,
)
from receiver.storage.store.store import Store
from receiver.storage.store.writer import Backend, Trouble
from receiver.system.files import sync_folder


class LockFiles:
    """One file for each process that claims work. The system unlocks it when its process ends, however that ends."""

    def __init__(self, database: str) -> None:
        self._prefix = f"{database}-lock-"
        self._held: tuple[str, int] | None = None

    def hold(self, name: str) -> None:
        """Hold the lock of this name until `release` or the end of the process. Raises `OSError` when that cannot be done now."""
        if self._held is not None:
            return
        for left in glob.glob(f"{glob.escape(self._prefix)}*"):  # by processes that were killed
            self._removed_if_free(left)
        path = self._prefix + name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.stat(path)  # another process may have removed it before it was locked
        except OSError:
            os.close(descriptor)
            raise
        self._held = path, descriptor

    def free(self, names: Iterable[str]) -> set[str]:
        """Return the locks among `names` that no process holds."""
        return {name for name in names if self._removed_if_free(self._prefix + name)}

    def release(self) -> None:
        """Release the lock."""
        held, self._held = self._held, None
        if held is not None:
            path, descriptor = held
            os.unlink(path)
            os.close(descriptor)

    @staticmethod
    def _removed_if_free(path: str) -> bool:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True


CHECKPOINT_PAGES = 1_000
"""Pages in the write-ahead log from which a quiet moment is used to copy it into the database."""

FORCED_PAGES = 16_384
"""Pages (64 MiB) from which the log is copied even while callers wait."""

CACHE_KIB = 4096
"""Pages that a connection keeps in memory. Four times as many take no less processor time: the system keeps them as well."""

_LAST_PAGES = 128
"""So little is copied while callers wait, and twice as much after each copy that left more."""

_SENTENCES: tuple[tuple[type[apsw.Error], str], ...] = (
    (apsw.FullError, "the disk that holds the database is full"),
    (apsw.ReadOnlyError, "the database may not be written: check its owner and permissions"),
    (apsw.IOError, "the disk that holds the database reports an error"),
    (apsw.CantOpenError, "the database cannot be opened: check that its folder exists and may be written"),
    (apsw.BusyError, "another process has kept the database locked for too long"),
    (apsw.LockedError, "another process has kept the database locked for too long"),
    (apsw.CorruptError, "the database is damaged: restore it from a copy"),
    (apsw.NotADBError, "the file that store.url names is not a database"),
    (apsw.SQLError, "the database's tables are not those of this program: run `receiver migrate`"),
)

_HARMLESS = (apsw.FullError, apsw.BusyError, apsw.LockedError, apsw.SQLError, apsw.ConstraintError)
"""Errors that a rollback undoes; after any other the connection is closed."""


class SqliteStore(Store):
    """The store in one SQLite file. `busy_timeout` (seconds) bounds the wait for another process's write."""

    def __init__(self, path: str, *, vfs: str | None = None, busy_timeout: float = 5.0) -> None:
        self._path, self._vfs, self._busy_timeout = path, vfs, busy_timeout
        self._lock_files = LockFiles(path)
        super().__init__(migrations("BLOB"))

    def _backend(self, *, writes: bool) -> SqliteBackend:
        busy_timeout, locks = self._busy_timeout, self._lock_files
        return SqliteBackend(
            self._path, vfs=self._vfs, busy_timeout=busy_timeout, writes=writes, lock_files=locks
        )

    async def close(self) -> None:
        """Finish what is queued, disconnect, and give up the lock that says that this process lives."""
        await super().close()
        self._lock_files.release()


class OpenFiles:
    """The files that a connection has open, by their names.

    SQLite writes on to a file that was removed or replaced. Nobody can open it again, so what is committed there is lost at
    the next start.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """The first of `names` is the database's own."""
        self.names = names
        self.missing = list(names)
        """Files that are not open yet."""
        self._opened: dict[str, os.stat_result] = {}

    def check(self) -> None:
        """Raise `StoreUnavailable` unless each name still leads to the file that was opened by it."""
        for name, opened in self._opened.items():
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(name), opened):
                    continue
            raise StoreUnavailable(
                f"store: {os.path.basename(name)} was removed or replaced while in use: put it back, "
                "or restart receiver to begin with what is there"
            )

    def note(self) -> None:
        """Note the files that are open now."""
        for name in self.missing:
            with contextlib.suppress(FileNotFoundError):
                self._opened[name] = os.stat(name)
        self.missing = [name for name in self.names if name not in self._opened]

    def closed(self) -> None:
        """Forget the files beside the database's own: they may go with a connection, and come with the next."""
        self._opened = {name: opened for name, opened in self._opened.items() if name == self.names[0]}
        self.missing = [name for name in self.names if name not in self._opened]


class SqliteBackend(Backend):
    """One connection to the file, made when first needed and again after a failure; used by one thread only."""

    def __init__(
        self, path: str, *, vfs: str | None, busy_timeout: float, writes: bool, lock_files: LockFiles
    ) -> None:
        self._path = path
        self._lock_files = lock_files
        self._vfs = vfs
        self._busy_timeout = busy_timeout
        self._writes = writes
        self._files = OpenFiles([path, f"{path}-wal", f"{path}-shm"] if writes else [path])
        self._connection: apsw.Connection | None = None
        self._session: SqliteSession | None = None
        self._poisoned = False
        self._copier: _Copier | None = None
        self._copies = 0
        """Those by the other thread since the log was last short."""
        self._log_pages = 0
        self._copied_pages = 0

    def begin(self, lock_seconds: float | None = None) -> Session:
        """Connect if need be; begin a transaction if this connection writes."""
        self._files.check()
        if self._connection is None or self._session is None:
            self._connection = self._connect()
            self._session = SqliteSession(self._connection, self._lock_files)
        if self._writes:
            self._connection.execute("BEGIN IMMEDIATE")
        if self._files.missing:
            self._files.note()
        return self._session

    def commit(self) -> None:
        """Commit and sync."""
        if self._connection is not None:
            self._connection.execute("COMMIT")

    def rollback(self) -> None:
        """Undo the transaction, unless SQLite already has."""
        try:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except apsw.Error:
            self._give_up()

    def trouble(self, error: Exception) -> Trouble:
        """Translate what apsw or the operating system says; give the connection up unless the error is harmless.

        Nothing is tried again: SQLite has one writer at a time, and nothing undoes its transactions by chance.
        """
        if not isinstance(error, apsw.Error | OSError):
            return Trouble(error, isinstance(error, StoreUnavailable))
        if not isinstance(error, _HARMLESS):
            self._give_up()
        for kind, sentence in _SENTENCES:
            if isinstance(error, kind):
                return Trouble(StoreUnavailable(f"store: {sentence}"), True)
        if isinstance(error, apsw.ConstraintError):
            return Trouble(
                StoreUnavailable("store: the database refused a row: its id is already there"), False
            )
        if isinstance(error, OSError):
            message = f"store: the folder of the database cannot be made or written: {error.strerror}"
            return Trouble(StoreUnavailable(message), True)
        return Trouble(
            StoreUnavailable(f"store: the database cannot be used ({type(error).__name__})"), False
        )

    def housekeeping(self, *, idle: bool) -> None:
        """Copy the write-ahead log into the database once it is long: commits themselves never do.

        Another thread copies it, and then what has come meanwhile, until little is left. That little is copied here: the log
        begins afresh only when all of it is copied and nobody writes.
        """
        if self._connection is None:
            return
        try:
            limit = CHECKPOINT_PAGES if idle else FORCED_PAGES
            if self._copier is not None:
                if self._copier.is_alive():
                    return
                copier, self._copier = self._copier, None
                self._copied_pages, limit = copier.copied(), 0
                self._copies += 1
            left = self._log_pages - self._copied_pages
            if left <= limit:
                self._copies = 0
            elif self._copies and left <= _LAST_PAGES << self._copies:
                self._copied_pages = _copy_log(self._connection)
            else:
                self._copier = _Copier(self._path, self._vfs)
        except (apsw.Error, *THREAD_ERRORS) as error:  # it is tried again after the next commit
            self.trouble(error)

    def close(self) -> None:
        """Disconnect; closing the last connection of a file also empties its write-ahead log."""
        self._end_copier()
        connection, self._connection, self._session = self._connection, None, None
        self._files = OpenFiles(self._files.names)
        if connection is not None:
            # What cannot be copied stays in the log, which is synced.
            with contextlib.suppress(apsw.Error):
                connection.close(True)

    def _give_up(self) -> None:
        """Close a connection that is not to be trusted, leaving the log to the recovery in `_connect`."""
        self._end_copier()
        connection, self._connection, self._session = self._connection, None, None
        self._poisoned = True
        self._files.closed()
        if connection is not None:
            _drop(connection)

    def _end_copier(self) -> None:
        copier, self._copier = self._copier, None
        if copier is not None:
            with contextlib.suppress(apsw.Error):
                copier.copied()

    def _connect(self) -> apsw.Connection:
        if self._writes:
            _make_file(Path(self._path))
        flags = apsw.SQLITE_OPEN_READWRITE
        connection = apsw.Connection(self._path, flags=flags, vfs=self._vfs, statementcachesize=256)
        try:
            self._configure(connection)
        except BaseException:
            _drop(connection)
            raise
        return connection

    def _configure(self, connection: apsw.Connection) -> None:
        connection.set_busy_timeout(int(self._busy_timeout * 1000))
        connection.execute(
            f"PRAGMA synchronous = FULL; PRAGMA cache_size = -{CACHE_KIB}; PRAGMA temp_store = MEMORY"
        )
        if not self._writes:
            connection.execute("PRAGMA query_only = ON")
            return
        self._use_log(connection)
        connection.execute(f"PRAGMA journal_size_limit = {FORCED_PAGES * 4096}")
        self._log_pages = self._copied_pages = 0
        connection.set_wal_hook(self._log_grew)  # also switches SQLite's own checkpoints off
        if self._poisoned:
            # After a failed sync, the system may hold pages that it calls clean and that never reached the disk. Here
            # all of the log is written into the database anew and synced, and the log begins afresh.
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            self._poisoned = False

    def _use_log(self, connection: apsw.Connection) -> None:
        """Switch to the write-ahead log. SQLite does not wait for others here, whatever the timeout; this does."""
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                mode = connection.execute("PRAGMA journal_mode = WAL").get
                break
            except apsw.BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise StoreUnavailable(
                "store: the folder of the database does not support a write-ahead log; use another"
            )

    def _log_grew(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        if pages < self._copied_pages:
            self._copied_pages = 0  # all had been copied: the log began afresh
        self._log_pages = pages
        return apsw.SQLITE_OK


class SqliteSession(Session):
    """The statements over one apsw connection."""

    # Each step of a statement hands the interpreter's lock to the event loop and has to wait for it again, so few
    # steps matter more than anything.
    rows_at_once = 256

    def __init__(self, connection: apsw.Connection, lock_files: LockFiles) -> None:
        self._connection = connection
        self._lock_files = lock_files

    def run(self, name: str, params: Mapping[str, Value], conditions: str = "") -> list[Row]:
        """Run a statement and return its rows."""
        values = dict(zip(params, storable(params.values()), strict=True))
        return list(self._connection.execute(statement(name, conditions), values))

    def _run_piece(self, name: str, size: int, values: list[Value]) -> Iterable[Row]:
        return self._connection.execute(statement_of_rows(name, size), values)

    def begin_recording(self) -> None:
        """Count the position on: one transaction writes at a time."""
        self._connection.execute(statement("next_position"))

    def script(self, text: str) -> None:
        """Run a migration."""
        self._connection.execute(text)

    def lock_migrations(self) -> None:
        """Do nothing: the transaction that writes is the only one."""

    def lock_deliveries(self) -> None:
        """Do nothing, for the same reason."""

    def free_locks(self, own: str, named: Collection[str]) -> set[str] | None:
        """Hold a lock, and return those of others that no process holds; None where files cannot be locked."""
        try:
            self._lock_files.hold(own)
        except OSError:
            return None
        return self._lock_files.free(named)


class _Copier(threading.Thread):
    """Copies the write-ahead log into the database, over a connection of its own: commits go on meanwhile."""

    def __init__(self, path: str, vfs: str | None) -> None:
        super().__init__(name="store-copier", daemon=True)
        self._path, self._vfs = path, vfs
        self._copied = 0
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Copy what the log holds now."""
        try:
            connection = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READWRITE, vfs=self._vfs)
            try:
                connection.execute("PRAGMA synchronous = FULL")
                self._copied = _copy_log(connection)
            finally:
                _drop(connection)
        except apsw.Error as error:  # raised where the writer asks
            self._error = error

    def copied(self) -> int:
        """Return how many of the log's pages are copied, once that is over. Raises `apsw.Error`."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._copied


def _copy_log(connection: apsw.Connection) -> int:
    """Copy as much of the log as readers allow; return how many of its pages are copied."""
    return connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)[1]


def _drop(connection: apsw.Connection) -> None:
    """Close without touching the database or its log."""
    with contextlib.suppress(apsw.Error):
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.close(True)


def _make_file(path: Path) -> None:
    """Create the file, for its owner only, and its folders, all of them durably."""
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        sync_folder(path.parent)
