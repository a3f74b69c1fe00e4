"""The named statements of `statements.sql`, made ready for one database."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from receiver.core.errors import ConfigError
from receiver.storage.store.database import Session

_ROWS = re.compile(r"\{(rows|insert):([^}]*)\}")
_SECTION = re.compile(r"^-- =+ .* =+$", re.MULTILINE)
_NAME = re.compile(r"^-- name: (\S+)$", re.MULTILINE)


@cache
def _texts() -> dict[str, str]:
    """Return the statements by name, with the slots of their sections filled."""
    whole = files("receiver.storage.store").joinpath("statements.sql").read_text("utf-8")
    texts: dict[str, str] = {}
    for section in _SECTION.split(whole)[1:]:
        head, *parts = _NAME.split(section)
        slots, *fillings = [_cells(line) for line in re.findall(r"^-- with: (.*)$", head, re.MULTILINE)] or [
            []
        ]
        for name, commented in zip(parts[::2], parts[1::2], strict=True):
            text = " ".join(re.sub(r"^--.*$", "", commented, flags=re.MULTILINE).split())
            of_each = fillings if slots and f"{{{slots[0]}}}" in name else [[]]
            for filling in of_each:
                filled = dict(zip(slots, filling, strict=False))
                texts[_fill(name, filled)] = " ".join(_fill(text, filled).split())
    return texts


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


def _fill(text: str, slots: Mapping[str, str]) -> str:
    for slot, filling in slots.items():
        text = text.replace(f"{{{slot}}}", filling)
    return text


def migrations(blob: str) -> dict[str, str]:
    """Return the migrations in their order, name to text; `blob` is the database's type for bytes."""
    folder = files("receiver.storage.store").joinpath("migrations")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return {
        name.removesuffix(".sql"): folder.joinpath(name).read_text("utf-8").replace("{blob}", blob)
        for name in names
    }


class Statements:
    """Gives each statement's text with its slots filled; filled texts are kept, so that the database knows them.

    The placeholder `$` is followed by a number: $1, $2, …
    """

    def __init__(self, *, lock: str = "", placeholder: str = "?") -> None:
        self._lock = lock
        self._placeholder = placeholder
        self._filled: dict[tuple[str, int | str], str] = {}

    def text(self, name: str, conditions: str = "") -> str:
        """Return the statement `name`; `conditions` are those of a listing."""
        key = (name, conditions)
        if key not in self._filled:
            text = _texts()[name].replace("{lock}", self._lock).replace("{conditions}", conditions)
            self._filled[key] = text.strip()
        return self._filled[key]

    def rows(self, name: str, count: int) -> str:
        """Return the statement `name` for `count` rows of parameters."""
        key = (name, count)
        if key not in self._filled:
            text = _texts()[name].replace("{lock}", self._lock).strip()
            self._filled[key] = _ROWS.sub(lambda match: self._values(match, count), text)
        return self._filled[key]

    @staticmethod
    @cache
    def returns_rows(name: str) -> bool:
        """Whether the statement returns rows."""
        text = _texts()[name]
        writes = re.search(r"\b(INSERT|UPDATE|DELETE|CREATE)\b", text)
        return bool(re.search(r"\bRETURNING\b", text)) or not writes

    @staticmethod
    @cache
    def due_column(name: str) -> int | None:
        """Return the place of `due_at` in the statement's rows of parameters, None when it is not among them."""
        match = _ROWS.search(_texts()[name])
        columns = [column.strip() for column in match[2].split(",")] if match else []
        return columns.index("due_at") if "due_at" in columns else None

    def _values(self, match: re.Match[str], count: int) -> str:
        kind, columns = match[1], match[2].strip()
        width = len(columns.split(","))
        if self._placeholder == "$":
            numbers = [f"${number}" for number in range(1, width * count + 1)]
            rows = ",".join(f"({','.join(numbers[at : at + width])})" for at in range(0, len(numbers), width))
        else:
            row = ",".join([self._placeholder] * width)
            rows = ",".join([f"({row})"] * count)
        return f"({columns}) VALUES {rows}" if kind == "insert" else f"({columns}) AS (VALUES {rows})"


ADVICE = "run `receiver migrate`"
_MIGRATION = re.compile(r"(\d{4})_(?:needs_(\d{4})_)?")


@dataclass(frozen=True, slots=True)
class Migrate:
    """The migrations this program knows, name to text, and the time to note beside those applied."""

    known: Mapping[str, str]
    now: int


def migrate(session: Session, request: Migrate) -> list[str]:
    """Apply what is missing, in order, one process at a time."""
    session.lock_migrations()
    session.run("create_migrations", {})
    applied = _applied(session, request)
    missing = [name for name in sorted(request.known) if name not in applied]
    for name in missing:
        session.script(request.known[name])
        session.run("insert_migration", {"name": name, "applied_at": request.now})
    return missing


def check(session: Session, request: Migrate) -> set[str]:
    """Return the names of the migrations applied. Raises `ConfigError` when one is not for this program."""
    session.run("create_migrations", {})
    return _applied(session, request)


def check_complete(session: Session, request: Migrate) -> set[str]:
    """Like `check`, for a database that is never migrated on the way: raises `ConfigError` when one is missing, too."""
    applied = _applied(session, request)
    missing = sorted(set(request.known) - applied)
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
        match = _MIGRATION.match(name)
        if match is None or not match[1] > newest >= (match[2] or newest):
            refused.append(name)
    return refused


def empty() -> ConfigError:
    """Return the error for a database that was never migrated."""
    return ConfigError(f"store.url: the database has no tables yet: {ADVICE}")


def older(reason: str) -> ConfigError:
    """Return the error for a schema that this program has gone beyond."""
    return ConfigError(f"store.url: the database's schema is older than this program ({reason}): {ADVICE}")


def _applied(session: Session, request: Migrate) -> set[str]:
    applied = {str(row[0]) for row in session.run("list_migrations", {})}
    refused = unfit(applied, request.known)
    if refused:
        raise ConfigError(
            f"store.url: the database's schema is newer than this program (it has {refused[-1]}): "
            "run the version of receiver that made it, or a later one"
        )
    return applied
