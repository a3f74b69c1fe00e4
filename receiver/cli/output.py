"""How the commands speak: tables for people, JSON for programs. Colours only where a person looks."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import reduce
from operator import getitem
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from receiver.core.observe import harmless
from receiver.web.views import page, view

if TYPE_CHECKING:
    from msgspec import Struct
    from rich.console import Console

    from receiver.app.log import LogObserver
    from receiver.core.errors import Finding

_WIDE = 10_000
_COLUMNS = 80
"""Width of a table that no terminal shows."""
_GAP = 2
_NARROWEST = 6
_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
_ANSWER = 80
"""Characters that a table shows of what a destination answered."""


def console() -> Console:
    """Return a console of stdout; away from a terminal it neither colours nor cuts nor folds."""
    from rich.console import Console

    seen = sys.stdout.isatty()
    return Console(
        width=None if seen else _WIDE, highlight=False, markup=False, emoji=False, soft_wrap=not seen
    )


def print_json(value: Any) -> None:
    """Print one JSON document, indented, as UTF-8 text."""
    sys.stdout.write(harmless(json.dumps(value, indent=2, ensure_ascii=False)) + "\n")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str, wide: bool = False
) -> None:
    """Print rows under headings, or the sentence `empty` (to stderr, so that a pipe gets nothing).

    A table is as wide as the terminal, or 80 columns: what is longer is cut, in the last column folded. A `wide` one is never
    cut: where a terminal is too narrow for it, each row is a paragraph of its own.
    """
    texts = [["" if value is None else clean(str(value)) for value in row] for row in rows]
    if not texts:
        warn(empty)
        return
    widths = [max(len(text) for text in column) for column in zip(columns, *texts, strict=True)]
    out = console()
    room = out.width if out.is_terminal else _COLUMNS
    if not wide:
        _fit(widths, room)
    elif out.is_terminal and sum(widths) + _GAP * (len(widths) - 1) > room:
        _print_paragraphs(out, columns, texts)
        return
    for number, cells in enumerate([list(columns), *texts]):
        for line in _lines(cells, widths):
            out.print(line, style="bold" if number == 0 else None)


def _fit(widths: list[int], room: int) -> None:
    """Make columns narrower, the widest first, until they fit; the first stays whole: it says what to ask for next."""
    over = sum(widths) + _GAP * (len(widths) - 1) - room
    while over > 0 and max(widths[1:], default=0) > _NARROWEST:
        widest = max(range(1, len(widths)), key=widths.__getitem__)
        widths[widest] -= 1
        over -= 1


def _lines(cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """Yield the lines of one row: its last cell is folded, another that is too long is cut."""
    *firsts, last = cells
    cut = [
        text if len(text) <= width else f"{text[: width - 1]}…"
        for text, width in zip(firsts, widths, strict=False)
    ]
    for piece in wrap(last, widths[-1]) or [""]:
        yield (
            (" " * _GAP)
            .join(cell.ljust(width) for cell, width in zip([*cut, piece], widths, strict=True))
            .rstrip()
        )
        cut = [""] * len(cut)


class Listing(NamedTuple):
    """How things of one kind are listed."""

    short: tuple[str, ...]
    """The columns that fit 80 characters."""
    wide: tuple[str, ...]
    fields: Mapping[str, str]
    """The field of each column that is not called so, with a point before a field of a field."""
    empty: str


def print_list(
    listing: Listing, things: Iterable[Struct], *, wide: bool, as_json: bool, more: Mapping[str, Any] = {}
) -> None:
    """Print things as JSON, or as a table; `more` makes a cell of a thing, by its column."""
    things = list(things)
    views = [view(thing) for thing in things]
    if as_json:
        print_json(page(views))
        return
    names = listing.wide if wide else listing.short
    rows = [
        [
            more[name](thing)
            if name in more
            else _cell(reduce(getitem, listing.fields.get(name, name).split("."), fields), wide)
            for name in names
        ]
        for thing, fields in zip(things, views, strict=True)
    ]
    print_table(names, rows, empty=listing.empty, wide=wide)


def _cell(value: object, wide: bool) -> object:
    return short_time(value) if isinstance(value, str) and not wide else value


def short_time(text: str) -> str:
    """Return a time of ours (ISO 8601, UTC) as its hour within a day of now, else as its day; other text as it is."""
    if not _TIME.fullmatch(text):
        return text
    moment = datetime.fromisoformat(text)
    near = abs((moment - datetime.now(UTC)).total_seconds()) < 43_200
    return f"{moment:%H:%M:%S}" if near else f"{moment:%Y-%m-%d}"


def of_all(made: int, allowed: int | None) -> str:
    """Return `3 of 11`: attempts made, of those that the retry policy allows where that is known."""
    return str(made) if allowed is None else f"{made} of {allowed}"


def print_attempts(attempts: Iterable[Struct], allowed: int | None = None, *, wide: bool) -> None:
    """Print the attempts of a delivery or of a pickup as a table; `allowed` is how many there may be."""
    names = ["attempt", "started", "took", "outcome", "status", "detail"]
    rows = []
    for made in map(view, attempts):
        number, took = of_all(made["number"], allowed), f"{made['duration_ms']} ms"
        started = _cell(made["started_at"], wide)
        row = [number, started, took, made["outcome"], made["status"], made["detail"]]
        if wide and "answer" in made:
            row.append(made["answer"][:_ANSWER])
        rows.append(row)
    if rows and len(rows[0]) > len(names):
        names.append("answer")
    print_table(names, rows, empty="no attempt has been made yet", wide=wide)


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


_errors: Literal["text", "json", "log"] = "text"


def tell_errors_as(form: Literal["text", "json", "log"]) -> None:
    """Choose how what goes wrong is told on stderr: as text, as a JSON document, or in lines of a JSON log."""
    global _errors
    _errors = form


def tell_finding(found: Finding) -> None:
    """Print one finding about the settings to stderr."""
    label = "error" if found.fatal else "warning"
    if _errors == "log":
        facts = {"code": found.code, "setting": found.where, "message": found.message, "fix": found.fix}
        _log().note(label, "receiver.finding", **facts)
        return
    fix = f"; {found.fix}" if found.fix else ""
    warn(f"{label} {found.code} {found.where}: {found.message}{fix}")


def tell_failure(message: str, status: int) -> None:
    """Print to stderr why the program ends."""
    if _errors == "log":
        _log().note("error", "receiver.failed", message=message, status=status)
    elif _errors == "json":
        sys.stderr.write(
            harmless(json.dumps({"error": message, "status": status}, ensure_ascii=False)) + "\n"
        )
    else:
        warn(f"receiver: {message}")


def _log() -> LogObserver:
    from receiver.app.log import LogObserver

    return LogObserver(style="json", level="warning")


def clean(text: str) -> str:
    """Return `text` with control characters shown, so that nobody's data can steer a terminal."""
    return "".join(
        char if char.isprintable() or char == "…" else char.encode("unicode_escape").decode() for char in text
    )
