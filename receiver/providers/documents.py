"""JSON documents of providers: decoded within bounds, read without trust."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from receiver.core.errors import MalformedCallback

MAX_DEPTH = 100
"""Deepest nesting taken: what is decoded here is encoded again further down the road."""
MAX_PARTS, MAX_VALUES = 1_000_000, 6_000_000
"""Most objects and lists, and most commas, of a document that is decoded: a transcript of a day has a third of them. Three bytes
may become a hundred in memory."""
MAX_ID = 200
"""Longest job id and idempotency key, in characters."""
BOM = b"\xef\xbb\xbf"
_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_DIGITS = re.compile(r"[0-9]{9,13}")
"""Seconds or milliseconds since 1970; eight digits are a date."""
_TEXT_SPACE = b" \t\r\n"
_LINK = re.compile(r"https?://[^\x00-\x1f\x7f]{1,8180}", re.IGNORECASE)

_NUMBERS = (int, float)
Document = dict[str, Any]


def decode_object(raw: bytes) -> Document:
    """Return the JSON object that `raw` spells.

    Raises `MalformedCallback`, whatever the bytes are: not JSON, not an object, not UTF-8, lone surrogates, numbers out
    of range, deeper than `MAX_DEPTH`, or with too many values.
    """
    parts = raw.count(b"{") + raw.count(b"[")
    if parts > MAX_PARTS or (len(raw) > MAX_VALUES and raw.count(b",") > MAX_VALUES):
        raise MalformedCallback("the JSON has more values than are built in memory")
    try:
        document = msgspec.json.decode(raw.removeprefix(BOM))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise MalformedCallback("the body is not valid JSON") from None
    if not isinstance(document, dict):
        raise MalformedCallback("the body is JSON, but not an object")
    if parts > MAX_DEPTH and _deeper_than(document, MAX_DEPTH):
        raise MalformedCallback(f"the JSON is nested deeper than {MAX_DEPTH} levels")
    return document


def _deeper_than(document: Document, limit: int) -> bool:
    level: list[Any] = [document]
    for _ in range(limit):
        inner: list[Any] = []
        for node in level:
            values = node.values() if isinstance(node, dict) else node
            inner += [value for value in values if isinstance(value, dict | list)]
        if not inner:
            return False
        level = inner
    return True


def encode(document: Any) -> bytes:
    """Return the shortest JSON of a decoded document: no spaces, nothing escaped that need not be."""
    return msgspec.json.encode(document)


def is_json_type(media_type: str) -> bool:
    """Tell whether a media type (lower case, no parameters) names JSON."""
    return media_type in ("application/json", "text/json") or media_type.endswith("+json")


def is_text(prefix: bytes) -> bool:
    """Tell whether the first bytes are UTF-8 text without control characters."""
    if _CONTROLS.search(prefix):
        return False
    try:
        prefix.decode("utf-8")
    except UnicodeDecodeError as error:
        return len(prefix) - error.start < 4 and error.reason == "unexpected end of data"
    return True


def looks_like_json(prefix: bytes) -> bool:
    """Tell whether bytes of no stated type begin like a JSON object.

    A brace alone says little: 0x7B is a common value in quiet mu-law audio. So the rest must be text as well.
    """
    return prefix.removeprefix(BOM).lstrip(_TEXT_SPACE)[:1] == b"{" and is_text(prefix)


# ---------------------------------------------------------------- fields, without trust


def table(document: Mapping[str, Any], name: str) -> Document:
    """Return the object under `name`, an empty one when there is none."""
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def text(document: Mapping[str, Any], name: str, limit: int = 2000) -> str | None:
    """Return the non-empty string under `name`, cut to `limit` characters; None when there is none."""
    value = document.get(name)
    return value[:limit] if isinstance(value, str) and value else None


def first_text(document: Mapping[str, Any], *names: str, limit: int = 2000) -> str | None:
    """Return the first non-empty string under one of `names`, cut to `limit` characters."""
    return next((words for name in names if (words := text(document, name, limit))), None)


def link(value: Any) -> str | None:
    """Return an http(s) URL that can be downloaded, None when `value` is none."""
    return value if isinstance(value, str) and _LINK.fullmatch(value) else None


def number(document: Mapping[str, Any], name: str) -> float | None:
    """Return the number under `name` when it is one that a person would call a length or a share: 0 to 10^9."""
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, _NUMBERS) or not 0 <= value <= 1e9:
        return None
    return float(value)


def opaque_id(value: Any) -> str | None:
    """Return a provider's id as text, None when there is none.

    One that is longer than `MAX_ID` or does not print becomes a hash of it: cut or cleaned, two ids might be one.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if abs(value) < 10**30 else ""
    if not isinstance(value, str):
        return None
    value = value.strip()
    if len(value) <= MAX_ID and value.isprintable():
        return value or None
    return join_key("sha256", value) if printable(value, 1) else None


def printable(value: str, limit: int) -> str:
    """Return `value` without characters that do not print (PostgreSQL's text refuses NUL), cut to `limit`."""
    if not value.isprintable():
        value = "".join(char for char in value if char.isprintable())
    return value[:limit]


def join_key(kind: str, *parts: object) -> str:
    """Return an idempotency key: `kind` and its parts, or a hash of them where they are long or not plain."""
    key = ":".join((kind, *map(str, parts)))
    if len(key) <= MAX_ID and key.isascii() and key.isprintable():
        return key
    return f"{kind}:{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"


def epoch_ms(value: Any) -> int | None:
    """Return epoch milliseconds of seconds or milliseconds (a number or digits), ISO 8601 or an HTTP header's date; else None.

    A text without an offset is UTC. Times before 1970 and after the year 9999 are no times of a callback.
    """
    if isinstance(value, str):
        text = value.strip() if len(value) <= 64 else ""
        found = _of_number(int(text)) if _DIGITS.fullmatch(text) else _of_date(text)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found = _of_number(value)
    else:
        return None
    return found if 0 < found < 253_402_300_800_000 else None


def _of_number(value: float) -> int:
    return int(value if value > 1e11 else value * 1000) if 0 < value < 1e15 else 0


def _of_date(text: str) -> int:
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(ValueError, OverflowError):
            moment = read(text)
            return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    return 0
