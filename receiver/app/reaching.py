"""What `receiver check`, `serve` and `work` ask of PostgreSQL and S3 before anything runs, as findings."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from receiver.app.check import finding
from receiver.core.clock import wall_clock
from receiver.core.errors import ConfigError
from receiver.settings import load
from receiver.storage.blobs.s3_options import S3Options

if TYPE_CHECKING:
    import psycopg

    from receiver.settings.model import Finding, Settings

PATIENCE = 8.0
"""Seconds after which no answer is an answer."""
_APART_MS, _TOO_FAR_MS = 5_000, 600_000
_ANSWER_SECONDS = 4.0
_TABLES = "SELECT to_regclass('migrations') IS NOT NULL, current_schema() IS NULL"
_ASKED = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint, current_setting('fsync')"
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
    ("42", "E015"),
    ("22", "E018"),
)
_FIXES = {
    "F0": "correct the parameter, or take it out",
    "F0TLS": "let the server offer TLS, or correct sslmode and sslrootcert",
    "08TLS": "renew the certificate, or correct sslmode and sslrootcert",
}


def reach(settings: Settings, *, clock: Callable[[], int] = wall_clock) -> list[Finding]:
    """Return what PostgreSQL and S3 say, what stops `serve` first; nothing for embedded parts. Waits `PATIENCE` at most.

    The settings are to be such that `check` found nothing fatal. S3 is tried with a small object, which is deleted again.
    """
    asked: list[_Asked] = []
    if load.postgres_url(settings) is not None:
        asked.append(_Asked(lambda: _postgres(settings, clock), finding("E012", "store.url", _SILENT)))
    if load.on_s3(settings):
        asked.append(_Asked(lambda: _s3(settings), finding("W017", "blobs.url", _SILENT)))
    for one in asked:
        one.join(PATIENCE)
    return sorted((f for one in asked for f in one.found()), key=lambda found: not found.fatal)


_SILENT = f"it did not answer within {PATIENCE:g} s"
_FAULT = {"store.url": "E018", "blobs.url": "E020"}


class _Asked(threading.Thread):
    """One part, asked in a thread that ends with the process if it is never answered."""

    def __init__(self, ask: Callable[[], Iterable[Finding]], silent: Finding) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self._silent = silent
        self._found: list[Finding] | None = None
        self.start()

    def run(self) -> None:
        try:
            self._found = list(self._ask())
        except Exception as error:  # a bug of ours must not pass for silence, nor for a traceback
            code, message = _FAULT[self._silent.where], f"asking it failed ({type(error).__name__})"
            self._found = [
                finding(code, self._silent.where, message, "look at the settings; please report it")
            ]

    def found(self) -> list[Finding]:
        """Return what was found, or that there was no answer."""
        return [self._silent] if self._found is None else self._found


def unreached(findings: Iterable[Finding]) -> bool:
    """Tell whether nothing stops the start but what may pass: an outage, or a clock that is not yet set after a boot."""
    return all(one.code in {"E012", "E017"} for one in findings if one.fatal)


def _postgres(settings: Settings, clock: Callable[[], int]) -> Iterator[Finding]:
    import psycopg

    from receiver.storage.store.postgres_connect import connect, parse, state_of, told

    where = "store.url"
    try:
        info = parse(load.postgres_url(settings) or "")
        with connect(info, writes=False, answer_seconds=_ANSWER_SECONDS) as connection:
            yield from _asked(connection, clock)
    except psycopg.Error as error:
        state = state_of(error) or ""
        code = next((code for prefix, code in _BY_STATE if state.startswith(prefix)), "E012")
        message = told(error).message.removeprefix("store: ").removesuffix(": create it")
        yield finding(code, where, message, _FIXES.get(state))
    except ConfigError as error:
        yield finding("E018", where, error.message.removeprefix("store.url: "))


def _asked(connection: psycopg.Connection, clock: Callable[[], int]) -> Iterator[Finding]:
    before = clock()
    row = connection.execute(_ASKED).fetchone()
    if row is not None:
        yield from _clock(int(row[0]) - (before + clock()) // 2)
        if row[1] != "on":
            yield finding("W014", "store.url", "fsync is off: a power cut there loses what was answered 2xx")
    yield from _tables(connection)


def _clock(ahead: int) -> Iterator[Finding]:
    if abs(ahead) <= _APART_MS:
        return
    apart = f"this machine's clock is {abs(ahead) / 1000:.0f} s {'behind' if ahead > 0 else 'ahead of'} the database's"
    if abs(ahead) >= _TOO_FAR_MS:
        yield finding(
            "E017", "store.url", f"{apart}: callbacks are refused or believed wrongly by such a clock"
        )
    else:
        yield finding("W013", "store.url", f"{apart}: what is due is reckoned by the database's")


def _tables(connection: psycopg.Connection) -> Iterator[Finding]:
    from receiver.storage.store.schema import unfit
    from receiver.storage.store.statements import migrations

    row = connection.execute(_TABLES).fetchone()
    if row is not None and row[1]:
        message = "there is no schema to look for tables in: look at search_path, and at USAGE on its schemas"
        yield finding("E018", "store.url", message)
        return
    if row is None or not row[0]:
        yield finding("E015", "store.url", "the database has no tables yet")
        return
    texts = migrations("BYTEA")
    lacking = connection.execute(_RIGHTS, [["migrations", *_names(texts.values())]]).fetchall()
    if lacking:
        message = "; ".join(f"{rights} on {tables}" for rights, tables, _ in lacking)
        fix = "; ".join(f"GRANT {rights} ON {tables} TO {user}" for rights, tables, user in lacking)
        yield finding("E018", "store.url", f"the database's user lacks a right: {message}", fix)
        return
    applied = {str(name) for (name,) in connection.execute("SELECT name FROM migrations").fetchall()}
    known = set(texts)
    refused = unfit(applied, known)
    if refused:
        yield finding("E016", "store.url", f"the database has {refused[-1]}, which is not known here")
    elif known - applied:
        yield finding("E015", "store.url", f"the database lacks {min(known - applied)}")
    elif applied - known:
        message = f"the database has {max(applied - known)}, which is not known here and leaves room for this program"
        yield finding("W020", "store.url", message)


def _names(texts: Iterable[str]) -> list[str]:
    """Return the tables that the migrations make."""
    return [name for text in texts for name in re.findall(r"^CREATE TABLE (\w+)", text, re.MULTILINE)]


def _s3(settings: Settings) -> Iterator[Finding]:
    from receiver.storage.blobs.s3_probe import probe

    for trouble in probe(S3Options.of(settings.blobs)):
        code = "E020" if trouble.fatal else "W018"
        if trouble.outage:
            code = "W017"
        fix = f"grant {trouble.permission} (deploy/iam-policy.json)" if trouble.permission else None
        yield finding(code, "blobs.url", trouble.message, fix)
        if trouble.outage:
            return
