"""Whom and what a trouble with PostgreSQL is about: servers, users and tables by name, never a value or a password."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.pq import Conninfo

_GRANT = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO the user of store.url"
# The server's words hold names only here; in another language, or of another form, they are not shown.
_DENIED = re.compile(
    r'(?:permission denied for|must be owner of) (table|relation|schema|database|sequence) ([\w$".-]{1,130})'
)


class Unreached(psycopg.OperationalError):
    """No connection could be made: what libpq said, and whom it was asked to connect with."""

    def __init__(self, error: psycopg.OperationalError, info: Mapping[str, Any]) -> None:
        super().__init__(str(error))
        self.sqlstate = error.sqlstate
        asked = _defaults() | {name: str(value) for name, value in info.items() if value}
        self.hosts = (asked.get("host") or asked.get("hostaddr") or "").split(",")
        ports = (asked.get("port") or "5432").split(",")
        ports = ports if len(ports) == len(self.hosts) else ports[:1] * len(self.hosts)
        self.place = ", ".join(_shown(host, port) for host, port in zip(self.hosts, ports, strict=True))
        self.user = asked.get("user") or ""
        self.database = asked.get("dbname") or self.user

    @property
    def unknown(self) -> bool:
        """True when no address was found for the host's name."""
        text = str(self)
        return bool(re.search(r"translate host name|resolve", text)) and "refused" not in text


def _defaults() -> dict[str, str]:
    """Return what libpq takes where the URL is silent: PG… variables, and its own."""
    known = {one.keyword.decode(): one.val for one in Conninfo.get_defaults()}
    return {name: value.decode("utf-8", "replace") for name, value in known.items() if value}


def _shown(host: str, port: str) -> str:
    if not host or host.startswith(("/", "@")):
        return f"the socket in {host}" if host else "the socket of this machine"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unescaped(url: str, given: Mapping[str, Any]) -> bool:
    """Tell whether a password holds letters that end it: then a piece of it stands for host, port or database."""
    path = url.partition("://")[2].partition("/")[2].partition("?")[0]
    return any("@" in str(piece) for piece in (given.get("host", ""), given.get("port", ""), path))


def lacking(error: psycopg.Error) -> str:
    """Return which right the user lacks, and who is to give it."""
    found = _DENIED.fullmatch(error.diag.message_primary or "")
    if found is None:
        return f"the database's user lacks a right: the owner of the tables runs {_GRANT}"
    kind, name = found[1].replace("relation", "table"), found[2]
    if "owner" in found[0] or kind in ("schema", "database"):
        return f"the database's user lacks a right on the {kind} {name}: migrate as the owner of the tables"
    return (
        f"the database's user lacks a right on the {kind} {name}: its owner runs {_GRANT} "
        "(`receiver migrate` itself is for the owner)"
    )
