"""A connection to PostgreSQL: what `store.url` says, the session that it is prepared for, and what its errors mean.

No wait is endless: a server that is stopped, or cut off, is noticed in seconds.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import psycopg
from psycopg import RawCursor, errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo, Format
from psycopg.types.string import BytesBinaryDumper, StrDumperUnknown

from receiver.core.errors import ConfigError, StoreUnavailable, StoreUnusable
from receiver.storage.store.statements import ADVICE, migrations, unfit

if TYPE_CHECKING:
    from psycopg.abc import PQGen


# ---------------------------------------------------------------- errors as sentences: what is wrong and where to look

_SEPARATE = "give receiver a database or a schema of its own"
_GRANT = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO the user of store.url"
PARAMETER = "a parameter of store.url, or a PG… variable, is wrong: {}"
_ENDED = "the database server ended the connection"
POOLER = (
    "a pooler that lends connections for one transaction (PgBouncer's pool_mode = transaction) stands before the "
    "database server: connect to the server itself, or set pool_mode = session"
)
_BROKE = "the connection to the database server broke"
_NO_ANSWER = "the database server does not answer"
# SQLSTATE or the beginning of one; what libpq says in its place when a connection cannot be made; what we say. The first
# row that fits counts. The server's own words hold values and are never shown, except for the name of a parameter.
_TROUBLES: tuple[tuple[str, str, str], ...] = (
    (
        "F0",
        r'connection option "(\w+)"|invalid (\w+) (?:value|number): |bad value for (\w+)|parameter "([\w.]+)"',
        PARAMETER,
    ),
    ("F0", r"definition of service|service file", PARAMETER.format("service")),
    ("F0", r"GSSAPI encryption required|gssencmode value", PARAMETER.format("gssencmode")),
    ("F0", r'method (?:"[^"]*" )?requirement', PARAMETER.format("require_auth")),
    ("F0", r"channel binding required", PARAMETER.format("channel_binding")),
    ("F0", r"not in hot standby|session is not read-only", PARAMETER.format("target_session_attrs")),
    (
        "53300",
        r"too many c|connection slots",
        "the server has no connection left: raise its max_connections, or run fewer processes",
    ),
    (
        "28",
        r"password|pg_hba.conf|role .* does not exist|not permitted to log in|no such user",
        "the server refused the user or the password of store.url",
    ),
    (
        "3D000",
        r"database .* does not exist|no such database",
        "the server has no database of the name that store.url gives",
    ),
    (
        "57P03",
        r"starting up|shutting down|recovery mode|not yet accepting",
        "the database server is starting or stopping",
    ),
    ("25006", r"read-only|in recovery|standby", "the server takes no writes (a standby, or made read-only)"),
    (
        "F0TLS",
        r"does not support SSL|certificate file|private key file",
        "the connection to the database server could not be secured: compare sslmode and sslrootcert in store.url with what the server offers",
    ),
    (
        "08NAME",
        r"does not match host name",
        "the database server's certificate is for another host name than the one in store.url",
    ),
    (
        "08TLS",
        r"certificate",
        "the connection to the database server could not be secured: its certificate and ours, and sslrootcert in store.url, do not fit",
    ),
    (
        "42501",
        "",
        f"the database's user lacks a right: the owner of the tables runs {_GRANT} (`receiver migrate` itself is for the owner)",
    ),
    ("42P05", "", POOLER),
    ("26", "", POOLER),
    ("42P07", "", f"another program's tables have these names: {_SEPARATE}"),
    (
        "42703",
        "",
        f"a table has other columns than this program's: {ADVICE}; or, if it is another program's, {_SEPARATE}",
    ),
    ("42", "", f"the database's tables are not those of this program: {ADVICE}"),
    ("3F", "", "there is no schema to create tables in: look at search_path"),
    ("22", "", "the database refused a value"),
    ("23", "", "the database refused a row: its id is already there"),
    ("40", "", "the transaction met others again and again, and was given up"),
    ("53100", "", "the disk of the database server is full"),
    ("53", "", "the database server is short of memory or other means"),
    ("55P03", "", "another session has kept a row locked for too long"),
    ("57014", "", "a statement took too long and was stopped"),
    ("57", "", _ENDED),
    ("25P", "", _ENDED),
    ("08", "", _BROKE),
    ("58", "", "the database server's disk reports an error"),
    ("XX", "", "the database server reports damage or a fault of its own"),
    ("XXFATAL", r"FATAL:", "the database server refused the connection: its log says why"),
)
_LASTING = ("26", "28", "3D", "3F", "42", "F0")
"""SQLSTATEs that waiting does not mend. Class F0 is SQL's for wrong settings; here it also covers receiver's own."""

_STARVED = {
    errno.EMFILE: "this process has no file descriptor left: raise its limit",
    errno.ENFILE: "this machine has no file descriptor left: raise its limit",
}
_NO_MEMORY = "this process has no memory left"
OWN = (OSError, MemoryError)
"""What psycopg passes on as it is when we are short of something: to wait for a connection it opens a file descriptor more."""
FAILURES = (psycopg.Error, *OWN)

_LOST_STATES = ("08", "57P", "25006", "25P03", "25P04", "XX", "58")


class Starved(psycopg.OperationalError):
    """A resource of this process or machine is used up; the server is not at fault."""

    def __init__(self, error: Exception) -> None:
        super().__init__(_short_of(error))


def starved() -> Starved | None:
    """Return the error if no socket can be had: libpq does not say so."""
    try:
        socket.socket().close()
    except OWN as error:
        return Starved(error)
    return None


def _short_of(error: Exception) -> str:
    if not isinstance(error, OSError):
        return _NO_MEMORY
    return _STARVED.get(error.errno or 0) or f"{_BROKE}: {error.strerror or type(error).__name__}"


def lost(error: Exception) -> bool:
    """Whether the connection is not to be used again after this error."""
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError):
        return False
    return error.sqlstate is None or error.sqlstate.startswith(_LOST_STATES)


def silent(error: BaseException | None) -> bool:
    """Whether we gave up waiting for an answer. The server speaks of timeouts, too, and not always with a SQLSTATE."""
    return getattr(error, "sqlstate", None) is None and "timeout expired" in str(error)


def unavailable(error: psycopg.Error | OSError | MemoryError) -> StoreUnavailable:
    """Return the error for callers: what is wrong and where to look, without the server's own words, which hold values."""
    if isinstance(error, OWN):
        error = Starved(error)
    if isinstance(error, Starved):
        return StoreUnavailable(f"store: {error}")
    lasting = (state_of(error) or "").startswith(_LASTING)
    return (StoreUnusable if lasting else StoreUnavailable)(f"store: {_sentence(error)}")


def state_of(error: psycopg.Error) -> str | None:
    """Return the server's SQLSTATE, or the beginning of one that its words mean; None when no server said anything."""
    if error.sqlstate is not None:
        return error.sqlstate
    text = str(error)
    return next((state for state, words, _ in _TROUBLES if words and re.search(words, text)), None)


def _sentence(error: psycopg.Error) -> str:
    state, text = error.sqlstate, str(error)
    for prefix, words, sentence in _TROUBLES:
        match = re.search(words, text) if words and state is None else None
        if match is not None:
            return sentence.format(next(filter(None, match.groups()), "")) + _whom(error, prefix)
        if state is not None and state.startswith(prefix) and sentence != PARAMETER:
            return sentence + _whom(error, prefix)
    if state is not None:
        return f"the database cannot be used ({state})"
    if isinstance(error, errors.ConnectionTimeout) or silent(error):
        return f"{_NO_ANSWER} at {error.place}" if isinstance(error, Unreached) else _NO_ANSWER
    return error.sentence if isinstance(error, Unreached) else _BROKE


def _whom(error: psycopg.Error, state: str) -> str:
    if not isinstance(error, Unreached) or state not in {"28", "3D000"}:
        return ""
    return f' (user "{error.user}", database "{error.database}")'


class Unreached(psycopg.OperationalError):
    """No connection could be made: what libpq said, and the user, database and place it tried."""

    def __init__(self, error: psycopg.OperationalError, info: Mapping[str, Any]) -> None:
        super().__init__(str(error))
        self.sqlstate = error.sqlstate
        used = _defaults() | {name: str(value) for name, value in info.items() if value}
        self.hosts = (used.get("host") or used.get("hostaddr") or "").split(",")
        ports = (used.get("port") or "5432").split(",")
        ports = ports if len(ports) == len(self.hosts) else ports[:1] * len(self.hosts)
        self.place = ", ".join(_shown(host, port) for host, port in zip(self.hosts, ports, strict=True))
        self.user = used.get("user") or ""
        self.database = used.get("dbname") or self.user

    @property
    def sentence(self) -> str:
        """Say what is wrong when no server answered."""
        text = str(self)
        if "refused" in text:
            return f"the database server cannot be reached: nothing listens at {self.place}"
        if re.search(r"translate host name|resolve", text):
            return f"the database server cannot be reached: there is no host {' or '.join(self.hosts)}"
        return f"the database server cannot be reached at {self.place}"


def _defaults() -> dict[str, str]:
    """Return what libpq takes where the URL is silent: PG… variables, and its own."""
    known = {option.keyword.decode(): option.val for option in Conninfo.get_defaults()}
    return {name: value.decode("utf-8", "replace") for name, value in known.items() if value}


def _shown(host: str, port: str) -> str:
    if not host or host.startswith(("/", "@")):
        return f"the socket in {host}" if host else "the socket of this machine"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# ---------------------------------------------------------------- the connection

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


# ---------------------------------------------------------------- the database's part of `receiver check`: rights, tables, clock, and a pooler in between

_APART_MS, _TOO_FAR_MS = 5_000, 600_000
_ANSWER_SECONDS = 4.0
_TABLES = "SELECT to_regclass('migrations') IS NOT NULL, current_schema() IS NULL"
_SERVER = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint, current_setting('fsync')"
_RIGHTS = """
SELECT rights, string_agg(name, ', ' ORDER BY name), quote_ident(current_user)
FROM (
    SELECT name, string_agg(wanted, ', ' ORDER BY nr) AS rights
    FROM unnest($1::text[]) AS name
    CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) WITH ORDINALITY AS w (wanted, nr)
    WHERE NOT has_table_privilege(to_regclass(name), wanted) AND (wanted = 'SELECT' OR name <> 'migrations')
    GROUP BY name
) AS lacking
GROUP BY rights
ORDER BY rights
"""
_BY_STATE = (
    ("F0", "E008"),
    ("28", "E013"),
    ("3D000", "E014"),
    ("3F", "E018"),
    ("42501", "E018"),
    ("42703", "E018"),
    ("42P05", "E018"),
    ("42", "E015"),
    ("26", "E018"),
    ("08TLS", "E018"),
    ("08NAME", "E018"),
    ("XX", "E018"),
    ("22", "E018"),
)
_FIXES = {
    "F0": "correct the parameter, or take it out",
    "F0TLS": "let the server offer TLS, or correct sslmode and sslrootcert",
    "08NAME": "write the name of the certificate as its host, and its address as hostaddr",
    "08TLS": "renew the certificate, or correct sslmode and sslrootcert",
}


class Trouble(NamedTuple):
    """One problem of the database."""

    code: str
    """One of the codes of `receiver check`."""
    message: str
    fix: str | None = None
    """What to do, where it is closer than the code's own advice."""


def probe(url: str, clock: Callable[[], int]) -> Iterator[Trouble]:
    """Query the server of a PostgreSQL URL; yield the problems. Writes nothing."""
    try:
        info = parse(url)
        with connect(info, writes=False, answer_seconds=_ANSWER_SECONDS) as connection:
            if pooled(info, connection):
                yield Trouble("E018", POOLER)
            else:
                yield from _server(connection, clock)
    except psycopg.Error as error:
        state = state_of(error) or ""
        code = next((code for prefix, code in _BY_STATE if state.startswith(prefix)), "E012")
        yield Trouble(code, unavailable(error).message.removeprefix("store: "), _FIXES.get(state))
    except ConfigError as error:
        yield Trouble("E018", error.message.removeprefix("store.url: "))


def _server(connection: psycopg.Connection[Any], clock: Callable[[], int]) -> Iterator[Trouble]:
    before = clock()
    row = connection.execute(_SERVER).fetchone()
    if row is not None:
        yield from _clock(int(row[0]) - (before + clock()) // 2)
        if row[1] != "on":
            yield Trouble("W014", "fsync is off: a power cut there loses what was answered 2xx")
    yield from _tables(connection)


def _clock(ahead: int) -> Iterator[Trouble]:
    if abs(ahead) <= _APART_MS:
        return
    apart = f"this machine's clock is {abs(ahead) / 1000:.0f} s {'behind' if ahead > 0 else 'ahead of'} the database's"
    if abs(ahead) >= _TOO_FAR_MS:
        yield Trouble("E017", f"{apart}: callbacks are refused or believed wrongly by such a clock")
    else:
        yield Trouble("W013", f"{apart}: what is due is reckoned by the database's")


def _tables(connection: psycopg.Connection[Any]) -> Iterator[Trouble]:
    row = connection.execute(_TABLES).fetchone()
    if row is not None and row[1]:
        message = "there is no schema to look for tables in: look at search_path, and at USAGE on its schemas"
        yield Trouble("E018", message)
        return
    if row is None or not row[0]:
        yield Trouble("E015", "the database has no tables yet")
        return
    texts = migrations("BYTEA")
    lacking = connection.execute(_RIGHTS, [["migrations", *_names(texts.values())]]).fetchall()
    if lacking:
        message = "; ".join(f"{rights} on {tables}" for rights, tables, _ in lacking)
        fix = "; ".join(f"GRANT {rights} ON {tables} TO {user}" for rights, tables, user in lacking)
        yield Trouble("E018", f"the database's user lacks a right: {message}", fix)
        return
    applied = {str(name) for (name,) in connection.execute("SELECT name FROM migrations").fetchall()}
    known = set(texts)
    refused = unfit(applied, known)
    if refused:
        yield Trouble("E016", f"the database has {refused[-1]}, which is not known here")
    elif known - applied:
        yield Trouble("E015", f"the database lacks {min(known - applied)}")
    elif applied - known:
        message = f"the database has {max(applied - known)}, which is not known here and leaves room for this program"
        yield Trouble("W020", message)


def _names(texts: Iterable[str]) -> list[str]:
    """Return the tables that the migrations make."""
    return [name for text in texts for name in re.findall(r"^CREATE TABLE (\w+)", text, re.MULTILINE)]
