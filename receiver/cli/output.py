"""How the commands speak: tables for people, JSON for programs (floor 9). Colours only where a person looks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 10_000


def console(*, stderr: bool = False) -> Console:
    """Return a console; away from a terminal it neither colours nor cuts nor folds."""
    from rich.console import Console

    out = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr,
        width=None if out.isatty() else _WIDE,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=not out.isatty(),
    )


def print_json(value: Any) -> None:
    """Print one JSON document, indented, as UTF-8 text."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str, folded: Sequence[str] = ()
) -> None:
    """Print rows under headings, or the sentence `empty` (to stderr, so that a pipe gets nothing).

    On a narrow terminal the columns named `folded` give way first; ids are never cut.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for name in columns:
        if name in folded:
            table.add_column(name, overflow="fold", ratio=None)
        else:
            table.add_column(name, no_wrap=True)
    count = 0
    for row in rows:
        table.add_row(*("" if value is None else clean(str(value)) for value in row))
        count += 1
    if count:
        console().print(table)
    else:
        warn(empty)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print names and values of one thing, aligned."""
    pairs = [(name, "" if value is None else clean(str(value))) for name, value in fields]
    width = max(len(name) for name, _ in pairs)
    out = console()
    for name, value in pairs:
        out.print(f"{name:<{width}}  {value}")


def warn(message: str) -> None:
    """Print a line to stderr."""
    sys.stderr.write(clean(message) + "\n")


def clean(text: str) -> str:
    """Return `text` with control characters shown, so that nobody's data can steer a terminal."""
    return "".join(
        char if char.isprintable() or char == "…" else char.encode("unicode_escape").decode() for char in text
    )
