"""A connection to PostgreSQL: what `store.url` says, and the session that it is prepared for.

No wait is endless: a server that is stopped, or cut off, is noticed in seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import RawCursor
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Format
from psycopg.types.string import BytesBinaryDumper, StrDumperUnknown

from receiver.core.errors import ConfigError
from receiver.storage.store.postgres_troubles import OWN, PARAMETER, Starved, Unreached, starved

if TYPE_CHECKING:
    from psycopg.abc import PQGen


T = TypeVar("T")

OLDEST = 130_000
"""PostgreSQL 13: the oldest that this is tested with."""
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
"""A statement that has not been answered by then never will be: the connection is given up."""
STATEMENT_MS, LOCK_MS, IDLE_MS = 8_000, 4_000, 10_000
"""When the server gives up by itself: before we do, so that the reason is known."""

_DEFAULTS: dict[str, str | int] = {
    "application_name": "receiver",
    "client_encoding": "UTF8",
    # After a failover the old primary may be up again, as a standby: only a writable server will do.
    "target_session_attrs": "read-write",
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# What a lost answer would cost is decided here and not by the server's settings: a commit is durable. The server notices in
# 5 s that our machine is gone, and frees what it had locked.
_SETTINGS = """
SET statement_timeout = {statement};
SET lock_timeout = {lock};
SET idle_in_transaction_session_timeout = {idle};
SET default_transaction_isolation = 'read committed';
SET jit = off;
SET tcp_keepalives_idle = 2;
SET tcp_keepalives_interval = 1;
SET tcp_keepalives_count = 3;
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') <> 'remote_apply'
"""
# Every statement that writes finds its rows by an index. The planner's figures of a table that was empty a moment ago, or
# whose backlog has just begun to grow, must not talk it into reading all of it, nor into keeping such a plan.
_WRITING = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off"


class Connection(psycopg.Connection[Any]):
    """A connection on which no wait is endless: a server that is stopped, or cut off, may never close it."""

    answer_seconds = ANSWER_SECONDS

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait for an answer. Raises `psycopg.OperationalError` when none came in time, or we are short of something."""
        try:
            return super().wait(gen, interval, self.answer_seconds if timeout is None else timeout)
        except OWN as error:  # it may be on its way all the same: as when the connection breaks
            raise Starved(error) from None


class _Bytes(BytesBinaryDumper):
    """Bytes without a type: as for text, the server takes that of the column, so that a statement has one form only."""

    oid = 0


assert _Bytes.format is Format.BINARY  # noqa: S101 - bytes would be read as text otherwise


def parse(url: str) -> dict[str, Any]:
    """Return what `store.url` says, with our defaults. Raises `ConfigError`; no error shows any of it."""
    try:
        parts = conninfo_to_dict(url)
    except (psycopg.Error, UnicodeError) as error:
        unknown = _unknown_parameter(url, str(error))
        if unknown is not None:
            raise ConfigError(f"store.url: libpq knows no parameter {unknown}") from None
        raise ConfigError(
            "store.url cannot be read: write postgresql://user:password@host:5432/database "
            "(letters like @ and / in a password as %40 and %2F)"
        ) from None
    if _unescaped(url, parts):
        raise ConfigError("store.url cannot be read: @ and / in the password are written %40 and %2F")
    if "replication" in parts:
        raise ConfigError(f"store.url: {PARAMETER.format('replication')}")
    # Whatever the URL says of it: text is sent as UTF-8, which the server is to know.
    defaults = _DEFAULTS | {"connect_timeout": int(CONNECT_SECONDS)}
    return defaults | parts | {"client_encoding": _DEFAULTS["client_encoding"]}


def _unescaped(url: str, parts: Mapping[str, Any]) -> bool:
    """Return whether a password holds letters that end it: then a piece of it stands for host, port or database."""
    path = url.partition("://")[2].partition("/")[2].partition("?")[0]
    return any("@" in str(piece) for piece in (parts.get("host", ""), parts.get("port", ""), path))


def _unknown_parameter(url: str, said: str) -> str | None:
    """Return a parameter that libpq does not know; none where the name might be a piece of a password."""
    match = re.search(r'invalid URI query parameter: "(\w+)"', said)
    parameters = url.partition("?")[2]
    password_in_it = "@" in parameters or "password" in parameters
    return match[1] if match and not password_in_it else None


def pooled(info: dict[str, Any], connection: Connection) -> bool:
    """Tell whether another connection shares the session of this one: then a pooler lends it for one transaction at a time."""
    row = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    if row is None or row[0] == connection.info.backend_pid:
        return False
    connection.execute("SET receiver.pooled = 'yes'", prepare=False)
    with connect(info, writes=False) as other, other.transaction():
        row = other.execute("SELECT current_setting('receiver.pooled', true)", prepare=False).fetchone()
    return row is not None and row[0] == "yes"


def connect(info: dict[str, Any], *, writes: bool, answer_seconds: float = ANSWER_SECONDS) -> Connection:
    """Connect and prepare the session, for the statements that write or for listings. Raises `psycopg.Error`, `ConfigError`."""
    try:
        # Prepared at the first use; there are fewer forms than this of all statements together, so none is ever dropped.
        connection = Connection.connect(
            **info, autocommit=True, prepare_threshold=0, cursor_factory=RawCursor
        )
    except UnicodeError:
        raise ConfigError("store.url: the host name cannot be used") from None
    except OWN as error:
        raise Starved(error) from None
    except psycopg.OperationalError as error:
        raise starved() or Unreached(error, info) from None
    try:
        connection.answer_seconds = answer_seconds
        connection.prepared_max = 1000
        connection.adapters.register_dumper(str, StrDumperUnknown)
        connection.adapters.register_dumper(bytes, _Bytes)
        if connection.info.server_version < OLDEST:
            raise ConfigError("store.url: the server is too old: PostgreSQL 13 or later is needed")
        limits = _SETTINGS.format(statement=STATEMENT_MS, lock=LOCK_MS, idle=IDLE_MS)
        connection.execute(limits.encode(), prepare=False)
        if writes:
            connection.execute(_WRITING, prepare=False)
        if connection.info.parameter_status("server_encoding") != "UTF8":
            raise ConfigError(
                "store.url: the database does not hold all of Unicode: create one with ENCODING 'UTF8'"
            )
    except BaseException:
        connection.close()
        raise
    return connection
