"""The schema's history: which migrations a database has, and which it lacks (floor 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from receiver.errors import ConfigError
from receiver.store.sql import Session

ADVICE = "run `receiver migrate`"


@dataclass(frozen=True, slots=True)
class Migrate:
    """The migrations this program knows, name to text, and the time to note beside those applied."""

    known: Mapping[str, str]
    now: int


def migrate(session: Session, asked: Migrate) -> list[str]:
    """Apply what is missing, in order, one process at a time."""
    session.alone()
    session.run("create_migrations", {})
    applied = _applied(session, asked)
    missing = [name for name in sorted(asked.known) if name not in applied]
    for name in missing:
        session.script(asked.known[name])
        session.run("insert_migration", {"name": name, "applied_at": asked.now})
    return missing


def check(session: Session, asked: Migrate) -> set[str]:
    """Return the names of the migrations applied. Raises `ConfigError` when one is unknown here."""
    session.run("create_migrations", {})
    return _applied(session, asked)


def check_complete(session: Session, asked: Migrate) -> set[str]:
    """Like `check`, for a database that is never migrated on the way: raises `ConfigError` when one is missing, too."""
    applied = _applied(session, asked)
    missing = sorted(set(asked.known) - applied)
    if missing:
        raise older(f"it lacks {missing[0]}")
    return applied


def older(reason: str) -> ConfigError:
    """Return the error for a schema that this program has gone beyond."""
    return ConfigError(f"store.url: the database's schema is older than this program ({reason}): {ADVICE}")


def _applied(session: Session, asked: Migrate) -> set[str]:
    applied = {str(row[0]) for row in session.run("list_migrations", {})}
    newer = sorted(applied - set(asked.known))
    if newer:
        raise ConfigError(
            f"store.url: the database's schema is newer than this program (it has {newer[-1]}): "
            "run the version of receiver that made it, or a later one"
        )
    return applied
