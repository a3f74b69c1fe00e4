"""Templates and the files that pages use. Whatever is shown goes through autoescaping; control characters become visible."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import FileResponse, Response

from receiver.core.clock import iso
from receiver.core.errors import NotFound
from receiver.web.console.visit import HOME

if TYPE_CHECKING:
    from starlette.requests import Request

_HERE = Path(__file__).parent
_SHOWN = 2000
"""Characters of one value that a page shows."""
_JSON_SHOWN = 200_000
_HEX_SHOWN = 4096
_ESCAPED = re.compile("(‹U\\+[0-9A-F]{4,6}›)")


def environment() -> Environment:
    """Return what renders the pages."""
    folder = FileSystemLoader(_HERE / "templates")
    made = Environment(loader=folder, autoescape=True, undefined=StrictUndefined)
    made.trim_blocks = made.lstrip_blocks = True
    made.filters |= {"shown": shown, "plain": plain, "timed": timed, "time": moment, "iso": iso}
    made.filters |= {"ago": ago, "duration": length, "json": pretty, "query": query}
    made.globals |= {"home": HOME, "static": f"{HOME}/static/{digest()}"}
    return made


# ---------------------------------------------------------------- filters


def shown(value: Any) -> Markup:
    """Return a value for a page: isolated from the direction of the text around, its invisible characters made visible."""
    text = str(value)
    rest = f" … {len(text)} characters in all" if len(text) > _SHOWN else ""
    marked = _ESCAPED.sub(r'<span class="esc">\1</span>', str(escape(plain(text))))
    return Markup("<bdi>%s</bdi>%s") % (Markup(marked), rest)  # noqa: S704  # escaped the line before


def plain(value: Any, most: int = _SHOWN) -> str:
    """Return a value for an attribute: cut, and its invisible characters made visible."""
    text = str(value)[:most]
    if text.isprintable():  # nearly always, and a tenth of the time
        return text
    return "".join(f"‹U+{ord(char):04X}›" if _is_odd(char) else char for char in text)


def _is_odd(char: str) -> bool:
    return char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def moment(at: int | str | None, form: str = "") -> Markup:
    """Return a time, in epoch milliseconds or ISO 8601: in UTC, which a script of ours turns into the reader's own zone.

    `day` has its date as well.
    """
    if at is None:
        return Markup('<span class="empty">–</span>')
    text = at if isinstance(at, str) else iso(at)
    words, day = (f"{text[:10]} {text[11:19]}", Markup(" data-day")) if form == "day" else (text[11:19], "")
    told = Markup('<time datetime="%s" title="%s %s UTC"%s>%s</time>')
    return told % (text, text[:10], text[11:23], day, words)


_MARKED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z|`[^`]+`)")


def timed(text: str) -> Markup:
    """Return a sentence of ours with its times as a reader wants them, and its commands as code."""
    parts = _MARKED.split(text)
    return Markup().join(_marked(part) if number % 2 else shown(part) for number, part in enumerate(parts))


def _marked(part: str) -> Markup:
    return Markup("<code>{}</code>").format(shown(part[1:-1])) if part[0] == "`" else moment(part, "day")


def ago(at: int | str) -> str:
    """Return how long ago a time was, in epoch milliseconds or ISO 8601."""
    then = datetime.fromisoformat(at).timestamp() if isinstance(at, str) else at / 1000
    return length(max(0.0, time.time() - then))


def length(seconds: float | None) -> str:
    """Return a length of time in words of at most two units."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        whole, unit, part, rest = minutes, "min", int(seconds % 60), "s"
    elif minutes < 1440:
        whole, unit, part, rest = minutes // 60, "h", minutes % 60, "min"
    else:
        whole, unit, part, rest = minutes // 1440, "d", minutes % 1440 // 60, "h"
    return f"{whole} {unit} {part} {rest}" if part else f"{whole} {unit}"


def pretty(value: bytes) -> str:
    """Return JSON with line breaks, its numbers as they were written; other text as it reads; the beginning of other bytes in hex."""
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        value = msgspec.json.format(value, indent=2)
    try:
        text = value.decode()
    except UnicodeDecodeError:
        rows = [value[at : at + 32].hex(" ") for at in range(0, min(len(value), _HEX_SHOWN), 32)]
        return "\n".join(rows) + ("\n…" if len(value) > _HEX_SHOWN else "")
    return plain(text, _JSON_SHOWN) + ("\n…" if len(text) > _JSON_SHOWN else "")


def query(fields: Mapping[str, Any], **changes: Any) -> str:
    """Return filters as a query; `changes` replace some, None leaves one out."""
    kept = {name: value for name, value in {**fields, **changes}.items() if value not in (None, "")}
    return f"?{urlencode(kept)}" if kept else "?"


# ---------------------------------------------------------------- files


_FILES = {path.name: path for path in sorted((_HERE / "static").iterdir())}


@cache
def digest() -> str:
    """Return a digest of all files: it stands in their addresses, so that a browser may keep them for good."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in _FILES.values())).hexdigest()[:16]


async def static(request: Request) -> Response:
    """Answer one of the files."""
    found = _FILES.get(request.path_params["name"])
    if found is None or request.path_params["digest"] != digest():
        raise NotFound("there is no such file")
    return FileResponse(found, headers={"cache-control": "public, max-age=31536000, immutable"})
