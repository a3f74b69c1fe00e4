"""The schema's history: which migrations a database has, and which it lacks."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from receiver.core.errors import ConfigError
from receiver.storage.store.sql import Session

ADVICE = "run `receiver migrate`"
_NAME = re.compile(r"(\d{4})_(?:needs_(\d{4})_)?")


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
    """Return the names of the migrations applied. Raises `ConfigError` when one is not for this program."""
    session.run("create_migrations", {})
    return _applied(session, asked)


def check_complete(session: Session, asked: Migrate) -> set[str]:
    """Like `check`, for a database that is never migrated on the way: raises `ConfigError` when one is missing, too."""
    applied = _applied(session, asked)
    missing = sorted(set(asked.known) - applied)
    if missing:
        raise older(f"it lacks {missing[0]}")
    return applied


def unfit(applied: Collection[str], known: Collection[str]) -> list[str]:
    """Return those applied that a program which knows only `known` must not run on.

    It runs on what came later, unless the name tells that it must know more: `0007_needs_0005_…` is for programs that have
    `0005_…`. So an old program can judge what it has never seen.
    """
    newest = max(known)[:4]
    refused = []
    for name in sorted(set(applied) - set(known)):
        found = _NAME.match(name)
        if found is None or not found[1] > newest >= (found[2] or newest):
            refused.append(name)
    return refused


def empty() -> ConfigError:
    """Return the error for a database that was never migrated."""
    return ConfigError(f"store.url: the database has no tables yet: {ADVICE}")


def older(reason: str) -> ConfigError:
    """Return the error for a schema that this program has gone beyond."""
    return ConfigError(f"store.url: the database's schema is older than this program ({reason}): {ADVICE}")


def _applied(session: Session, asked: Migrate) -> set[str]:
    applied = {str(row[0]) for row in session.run("list_migrations", {})}
    refused = unfit(applied, asked.known)
    if refused:
        raise ConfigError(
            f"store.url: the database's schema is newer than this program (it has {refused[-1]}): "
            "run the version of receiver that made it, or a later one"
        )
    return applied
