"""The named statements of `statements.sql`, made ready for one database (floor 3)."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files

_ROWS = re.compile(r"\{rows:([^}]*)\}")


@lru_cache
def _texts() -> dict[str, str]:
    whole = files("receiver.store").joinpath("statements.sql").read_text("utf-8")
    parts = re.split(r"^-- name: (\w+)$", whole, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def migrations(blob: str) -> dict[str, str]:
    """Return the migrations in their order, name to text; `blob` is the database's type for bytes."""
    folder = files("receiver.store").joinpath("migrations")
    found = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return {
        name.removesuffix(".sql"): folder.joinpath(name).read_text("utf-8").replace("{blob}", blob)
        for name in found
    }


class Statements:
    """Gives each statement's text with its slots filled; filled texts are kept, so that the database knows them."""

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

    def _values(self, columns: str, count: int) -> str:
        row = ",".join([self._placeholder] * len(columns.split(",")))
        return ",".join([f"({row})"] * count)
