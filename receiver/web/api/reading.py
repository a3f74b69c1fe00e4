"""Queries and bodies read as the structs of their operation; what is wrong with them is said in words."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any, Literal, get_args, get_origin

import msgspec
from msgspec.structs import fields

from receiver.settings.load import did_you_mean
from receiver.web.api.lists import Moment
from receiver.web.api.problems import Refused

BODY_BYTES = 64 * 1024
"""Most bytes of a request's body."""
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_QUOTED = re.compile(r"`([^`]+)`")
_PLACE = re.compile(r" - at `\$\.?(\w*).*")
_TIME = "write a time as 2026-11-21T10:00:00Z"


def read_query(pairs: Sequence[tuple[str, str]], kind: Any) -> Any:
    """Return a query as `kind`. Raises `Refused` naming what is wrong; a parameter that nobody reads is wrong."""
    twice = {name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1}
    if twice:
        raise Refused(400, f"the query has {min(twice)[:100]} twice")
    known = _types(kind)
    _refuse_unknown(400, "parameter", dict(pairs), known)
    for name, value in pairs:
        if known[name] == Moment | None and _is_number(value):  # it would be taken for seconds since 1970
            raise Refused(400, f"{name}: {_TIME}")
    if kind is None:
        return None
    try:
        return msgspec.convert(dict(pairs), type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise Refused(400, _plain(error, known)) from None


def read_body(body: bytes, kind: Any) -> Any:
    """Return a JSON body as `kind`. Raises `Refused` naming what is wrong."""
    known = _types(kind)
    try:
        _refuse_unknown(422, "field", msgspec.json.decode(body, type=dict[str, msgspec.Raw]), known)
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Refused(422, _plain(error, known)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused(400, "the body is not valid JSON, or is nested too deeply") from None


@cache
def _types(kind: Any) -> dict[str, Any]:
    """Return the fields of a struct, and their types; of None there is none."""
    return {} if kind is None else {field.name: field.type for field in fields(kind)}


def _refuse_unknown(status: int, what: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            there = f"there is: {', '.join(known)}" if known else "this operation has none"
            said = " ".join(filter(None, (did_you_mean(name, known), there)))
            raise Refused(status, f"there is no {what} {name[:100]}; {said}")


def _plain(error: msgspec.ValidationError, known: Mapping[str, Any]) -> str:
    """Return what msgspec says is wrong in other words; it names fields and kinds of value, never a value but an enum's."""
    text = str(error)
    place = _PLACE.search(text)
    name = place[1] if place else ""
    text = _PLACE.sub("", text)
    if text.startswith("Object missing required field"):
        return f"{text.split('`')[1]} is missing"
    if "datetime" in text:
        text = _TIME
    elif text.startswith("Invalid enum value"):
        text = f"one of {', '.join(_choices(known[name]))}"
    else:
        text = _QUOTED.sub(
            lambda found: " or ".join(_KINDS.get(one, one) for one in found[1].split(" | ")), text
        )
    return f"{name or 'the body'}: {text[0].lower()}{text[1:]}"[:300]


def _choices(kind: Any) -> list[str]:
    """Return the words that a field takes."""
    found: list[str] = []
    for one in (kind, *get_args(kind)):
        if isinstance(one, type) and issubclass(one, Enum):
            found += [str(member.value) for member in one]
        elif get_origin(one) is Literal:
            found += get_args(one)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
