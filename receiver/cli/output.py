"""How the commands speak: tables for people, JSON for programs. Colours only where a person looks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from receiver.core.observe import harmless
from receiver.web.views import view

if TYPE_CHECKING:
    from msgspec import Struct
    from rich.console import Console

    from receiver.app.observers import LogObserver
    from receiver.core.findings import Finding

_WIDE = 10_000
_ANSWER = 80
"""Characters that a table shows of what a destination answered."""


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
    sys.stdout.write(harmless(json.dumps(value, indent=2, ensure_ascii=False)) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print rows under headings, or the sentence `empty` (to stderr, so that a pipe gets nothing).

    Where a terminal is too narrow for the table, each row is a paragraph of its own: nothing is ever cut.
    """
    texts = [["" if value is None else clean(str(value)) for value in row] for row in rows]
    if not texts:
        warn(empty)
        return
    widths = [max(len(text) for text in column) for column in zip(columns, *texts, strict=True)]
    out = console()
    if out.is_terminal and sum(widths) + 2 * len(widths) > out.width:
        _print_paragraphs(out, columns, texts)
        return
    for number, cells in enumerate([list(columns), *texts]):
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        out.print(line, style="bold" if number == 0 else None)


def print_list(
    names: Sequence[str], things: Iterable[Struct], columns: Mapping[str, str], *, empty: str, as_json: bool
) -> None:
    """Print things as JSON, or as a table; a column is the field of its name, or the one that `columns` says."""
    views = [view(thing) for thing in things]
    if as_json:
        print_json(views)
        return
    rows = [[fields[columns.get(name, name)] for name in names] for fields in views]
    print_table(names, rows, empty=empty)


def print_attempts(attempts: Iterable[Struct]) -> None:
    """Print the attempts of a delivery or of a pickup as a table."""
    names = ["attempt", "started", "took", "outcome", "status", "detail"]
    rows = []
    for made in map(view, attempts):
        took = f"{made['duration_ms']} ms"
        row = [made["number"], made["started_at"], took, made["outcome"], made["status"], made["detail"]]
        if "answer" in made:
            row.append(made["answer"][:_ANSWER])
        rows.append(row)
    if rows and len(rows[0]) > len(names):
        names.append("answer")
    print_table(names, rows, empty="no attempt has been made yet")


def _print_paragraphs(out: Console, columns: Sequence[str], texts: Sequence[Sequence[str]]) -> None:
    from rich.padding import Padding

    for first, *others in texts:
        out.print(first, style="bold")
        named = zip(columns[1:], others, strict=True)
        out.print(Padding("\n".join(f"{name}: {text}" for name, text in named if text), (0, 0, 0, 2)))


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print names and values of one thing, aligned."""
    pairs = [(name, "" if value is None else clean(str(value))) for name, value in fields]
    width = max(len(name) for name, _ in pairs)
    out = console()
    for name, value in pairs:
        out.print(f"{name:<{width}}  {value}")


def counted(number: int, one: str, many: str) -> str:
    """Return `1 event`, `2 events`."""
    return f"{number} {one if number == 1 else many}"


def warn(message: str) -> None:
    """Print a line to stderr."""
    sys.stderr.write(clean(message) + "\n")


_json_lines = False


def speak_json(*, on: bool) -> None:
    """Let what is wrong be told in lines like those of a JSON log, which programs read: for commands that keep running."""
    global _json_lines
    _json_lines = on


def tell_finding(found: Finding) -> None:
    """Print one finding about the settings to stderr."""
    label = "error" if found.fatal else "warning"
    if _json_lines:
        facts = {"code": found.code, "setting": found.where, "message": found.message, "fix": found.fix}
        _log().note(label, "receiver.finding", **facts)
        return
    fix = f"; {found.fix}" if found.fix else ""
    warn(f"{label} {found.code} {found.where}: {found.message}{fix}")


def tell_failure(message: str, status: int) -> None:
    """Print to stderr why the program ends."""
    if _json_lines:
        _log().note("error", "receiver.failed", message=message, status=status)
    else:
        warn(f"receiver: {message}")


def _log() -> LogObserver:
    from receiver.app.observers import LogObserver

    return LogObserver(style="json", level="warning")


def clean(text: str) -> str:
    """Return `text` with control characters shown, so that nobody's data can steer a terminal."""
    return "".join(
        char if char.isprintable() or char == "…" else char.encode("unicode_escape").decode() for char in text
    )
