"""The database's part of `receiver check`: rights, tables, clock, and a connection pooler in between."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import psycopg

from receiver.core.errors import ConfigError
from receiver.storage.store.postgres_connection import POOLER, connect, parse, pooled, state_of, unavailable
from receiver.storage.store.statements import migrations, unfit

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
