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
from starlette.responses import Response

from receiver.core.errors import NotFound
from receiver.core.event_json import iso
from receiver.web.console.timeline import timeline
from receiver.web.console.visit import HOME

if TYPE_CHECKING:
    from starlette.requests import Request

    from receiver.web.console.visit import Visit

_HERE = Path(__file__).parent
_SHOWN = 2000
"""Characters of one value that a page shows."""
_JSON_SHOWN = 200_000

STATES: Mapping[str, tuple[str, str]] = {
    "delivered": ("ok", "ok"),
    "dead": ("bad", "dead"),
    "pending": ("wait", "wait"),
    "delivering": ("wait", "out"),
    "collected": ("ok", "ok"),
    "collecting": ("wait", "out"),
    "gone": ("bad", "dead"),
    "active": ("ok", "ok"),
    "failing": ("held", "held"),
    "paused": ("held", "held"),
    "disabled": ("bad", "dead"),
    "planned": ("none", "none"),
    "running": ("wait", "out"),
    "stopped": ("held", "held"),
    "done": ("ok", "ok"),
}
"""The meaning and the icon of each state: never the colour alone."""


class Templates:
    """Renders the pages."""

    def __init__(self) -> None:
        self._env = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._env.filters |= {
            "shown": shown,
            "plain": plain,
            "timed": timed,
            "iso": iso,
            "time": moment,
            "timeline": timeline,
            "size": size,
            "duration": length,
            "ago": ago,
            "json": pretty,
            "query": query,
        }
        self._env.globals |= {"home": HOME, "static": f"{HOME}/static/{digest()}", "states": STATES}

    def render(self, template: str, visit: Visit | None, data: Mapping[str, Any]) -> str:
        """Return a page as text. Takes milliseconds of processor time: call it in a thread."""

        def form_token(action: str) -> str:
            assert visit is not None  # noqa: S101  # forms of others stand on the login page, which has no token
            return visit.console.sessions.form_token(visit.session, action)

        session = visit.session if visit else None
        path = visit.request.url.path if visit else ""
        here = path + (f"?{visit.request.url.query}" if visit and visit.request.url.query else "")
        done = visit.request.query_params.get("done", "") if visit else ""
        shared = {"session": session, "path": path, "here": here, "form_token": form_token, "done": done}
        return self._env.get_template(template).render({**shared, "now": int(time.time() * 1000), **data})


# ---------------------------------------------------------------- filters


def shown(value: Any) -> Markup:
    """Return a value for a page: isolated from the direction of the text around, its invisible characters made visible."""
    text = str(value)
    cut = len(text) > _SHOWN
    pieces = [
        Markup('<span class="esc">‹U+{:04X}›</span>').format(ord(char)) if _is_odd(char) else escape(char)
        for char in text[:_SHOWN]
    ]
    rest = Markup(' <span class="quiet">… {} characters in all</span>').format(len(text)) if cut else ""
    return Markup("<bdi>{}</bdi>{}").format(Markup().join(pieces), rest)


def plain(value: Any) -> str:
    """Return a value for an attribute: cut, and its invisible characters made visible."""
    return "".join(f"‹U+{ord(char):04X}›" if _is_odd(char) else char for char in str(value)[:_SHOWN])


def _is_odd(char: str) -> bool:
    return char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def moment(at: int | str | None, form: str = "") -> Markup:
    """Return a time, in epoch milliseconds or ISO 8601: in UTC, which a script of ours turns into the reader's own zone.

    `day` has its date as well.
    """
    if at is None:
        return Markup('<span class="empty">–</span>')
    text = at if isinstance(at, str) else iso(at)
    words = f"{text[:10]} {text[11:19]}" if form == "day" else text[11:19]
    day = Markup(" data-day") if form == "day" else ""
    return Markup('<time datetime="{}" title="{} {} UTC"{}>{}</time>').format(
        text, text[:10], text[11:23], day, words
    )


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
    unit, step, rest, of_rest = next(one for one in _UNITS if seconds < 60 * one[1] or one[0] == "d")
    whole, left = divmod(int(seconds), step)
    part = left // of_rest
    return f"{whole} {unit} {part} {rest}" if part else f"{whole} {unit}"


_UNITS = (("min", 60, "s", 1), ("h", 3600, "min", 60), ("d", 86400, "h", 3600))
"""Each unit and its seconds, and the unit of what is left."""


def size(count: float | None) -> str:
    """Return a number of bytes."""
    if count is None:
        return "–"
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def pretty(value: bytes) -> str:
    """Return JSON with line breaks, its numbers as they were written; bytes that are no JSON as they read."""
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        value = msgspec.json.format(value, indent=2)
    text = value[: 4 * _JSON_SHOWN].decode("utf-8", "replace")
    made = "".join(f"‹U+{ord(char):04X}›" if _is_odd(char) else char for char in text[:_JSON_SHOWN])
    return made + ("\n…" if len(text) > _JSON_SHOWN else "")


def query(fields: Mapping[str, Any], **changes: Any) -> str:
    """Return filters as a query; `changes` replace some, None leaves one out."""
    kept = {name: value for name, value in {**fields, **changes}.items() if value not in (None, "")}
    return f"?{urlencode(kept)}" if kept else "?"


# ---------------------------------------------------------------- files


_KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@cache
def _files() -> Mapping[str, tuple[bytes, str]]:
    """Return the files that pages use, by name, with their types."""
    paths = sorted(path for path in (_HERE / "static").iterdir() if path.suffix in _KINDS)
    return {path.name: (path.read_bytes(), _KINDS[path.suffix]) for path in paths}


@cache
def digest() -> str:
    """Return a digest of all files: it stands in their addresses, so that a browser may keep them for good."""
    whole = hashlib.sha256()
    for name, (content, _) in _files().items():
        whole.update(name.encode() + b"\0" + content)
    return whole.hexdigest()[:16]


async def static(request: Request) -> Response:
    """Answer one of the files."""
    found = _files().get(request.path_params["name"])
    if found is None or request.path_params["digest"] != digest():
        raise NotFound("there is no such file")
    headers = {"cache-control": "public, max-age=31536000, immutable"}
    return Response(found[0], media_type=found[1], headers=headers)
