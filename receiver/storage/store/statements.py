"""The named statements of `statements.sql`, made ready for one database."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from receiver.core.errors import ConfigError
from receiver.storage.store.sql import Session

_ROWS = re.compile(r"\{rows:([^}]*)\}")


@cache
def _texts() -> dict[str, str]:
    whole = files("receiver.storage.store").joinpath("statements.sql").read_text("utf-8")
    parts = re.split(r"^-- name: (\w+)$", whole, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def migrations(blob: str) -> dict[str, str]:
    """Return the migrations in their order, name to text; `blob` is the database's type for bytes."""
    folder = files("receiver.storage.store").joinpath("migrations")
    found = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return {
        name.removesuffix(".sql"): folder.joinpath(name).read_text("utf-8").replace("{blob}", blob)
        for name in found
    }


class Statements:
    """Gives each statement's text with its slots filled; filled texts are kept, so that the database knows them.

    The placeholder `$` is followed by a number: $1, $2, …
    """

    def __init__(self, *, lock: str = "", placeholder: str = "?") -> None:
        self._lock = lock
        self._placeholder = placeholder
        self._filled: dict[tuple[str, int | str], str] = {}

    def text(self, name: str, wanted: str = "") -> str:
        """Return the statement `name`; `wanted` are the conditions of a listing."""
        key = (name, wanted)
        if key not in self._filled:
            text = _texts()[name].replace("{lock}", self._lock).replace("{wanted}", wanted)
            self._filled[key] = text.strip()
        return self._filled[key]

    def rows(self, name: str, count: int) -> str:
        """Return the statement `name` for `count` rows of parameters."""
        key = (name, count)
        if key not in self._filled:
            self._filled[key] = _ROWS.sub(lambda match: self._values(match[1], count), _texts()[name])
        return self._filled[key]

    def answers(self, name: str) -> bool:
        """Whether the statement returns rows."""
        return _answers(name)

    def due_column(self, name: str) -> int | None:
        """Return the place of `due_at` in the statement's rows of parameters, None when it is not among them."""
        return _due_column(name)

    def _values(self, columns: str, count: int) -> str:
        width = len(columns.split(","))
        if self._placeholder != "$":
            row = ",".join([self._placeholder] * width)
            return ",".join([f"({row})"] * count)
        numbers = [f"${number}" for number in range(1, width * count + 1)]
        return ",".join(f"({','.join(numbers[at : at + width])})" for at in range(0, len(numbers), width))


@cache
def _answers(name: str) -> bool:
    text = _texts()[name]
    return bool(re.search(r"\bRETURNING\b", text)) or not re.search(
        r"\b(INSERT|UPDATE|DELETE|CREATE)\b", text
    )


@cache
def _due_column(name: str) -> int | None:
    found = _ROWS.search(_texts()[name])
    columns = [column.strip() for column in found[1].split(",")] if found else []
    return columns.index("due_at") if "due_at" in columns else None


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
