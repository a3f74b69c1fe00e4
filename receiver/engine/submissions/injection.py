"""Puts the callback into what an application submits: its query, its JSON, or its multipart form.

Whatever is not receiver's own goes on byte for byte. A callback of the caller's own is looked for under every name that the
provider knows, however it is spelled. Where the callback cannot be set, nothing is to be sent: `SubmissionRefused`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from receiver.core.callback import Body, split_media_type
from receiver.core.errors import OwnCallback, SubmissionRefused
from receiver.core.submission import Rule, names_in

_PARTS, _PART_HEAD = 1000, 8192
"""Parts of a form, and bytes of the head of one."""
_PIECE = 256 * 1024
_NAME = re.compile(r'form-data\s*;(?:.*;)?\s*name="([^"\\\r\n]{1,200})"\s*(?:;|$)', re.IGNORECASE)
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{1,70}")


def _empty(value: Any, ours: Any) -> bool:
    """Whether a value under one of the own names contradicts nothing: programs send those that were not set as null."""
    return value is None or value in ("", "null") or value == ours


def into_query(query: str, rule: Rule, values: Mapping[str, Any]) -> str:
    """Return a query with the callback in it. Raises `SubmissionRefused` for one of the caller's own."""
    own = {name.lower() for name in rule.own}
    for name, value in names_in(query):
        if name.lower() in own and not _empty(value, values.get(name)):
            raise OwnCallback(name)
    fields = [field for field in query.split("&") if field.strip(";")]
    kept = [field for field in fields if names_in(field)[0][0].lower() not in own]
    added = [f"{quote(name, safe='')}={quote(str(value), safe='')}" for name, value in values.items()]
    return "&".join([*kept, *added])


def into_json(raw: bytes, rule: Rule, values: Mapping[str, Any]) -> bytes:
    """Return a JSON object with the callback in it. Raises `SubmissionRefused`."""
    pairs = _members(raw)
    members = dict(pairs)
    if len(members) != len(pairs):
        raise SubmissionRefused(422, "the JSON names a field twice")
    for name, wanted in rule.require.items():
        if members.get(name) != wanted:
            raise SubmissionRefused(422, f"only jobs are passed on: set {name} to {json.dumps(wanted)}")
    own = {name.lower() for name in rule.own}
    replaced = [name for name in members if name.lower() in own or name in values]
    for name in replaced:
        if name.lower() in own and not _empty(members[name], values.get(name)):
            raise OwnCallback(name)
    if replaced:
        kept = {name: value for name, value in members.items() if name not in replaced}
        return json.dumps(kept | dict(values), ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "surrogatepass"
        )
    if not values:
        return raw
    start, end = raw.rstrip()[:-1].rstrip(), b"}"
    comma = b"," if members else b""
    return start + comma + json.dumps(dict(values), separators=(",", ":")).encode()[1:-1] + end


def jobs_named(raw: bytes, rule: Rule) -> list[str]:
    """Return the jobs that a JSON object names where it may name one. Raises `SubmissionRefused` for what is no job's id."""
    places = {name.lower() for name in rule.refers}
    named = [(name, value) for name, value in _members(raw) if name.lower() in places]
    jobs = []
    for name, value in named:
        if _empty(value, None):
            continue
        if not (isinstance(value, str) and value.isascii() and value.isprintable()):
            raise SubmissionRefused(422, f"{name} is not the id of a job")
        jobs.append(value)
    return jobs


def _members(raw: bytes) -> list[tuple[str, Any]]:
    seen: list[list[tuple[str, Any]]] = [[]]

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen[0] = pairs  # the outermost object ends last
        return dict(pairs)

    try:
        document = json.loads(raw.decode(), object_pairs_hook=note, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise SubmissionRefused(422, "the body is not valid JSON") from None
    if not isinstance(document, dict):
        raise SubmissionRefused(422, "the body is JSON, but not an object")
    return seen[0]


def _no_number(text: str) -> Any:
    raise ValueError(text)


# ---------------------------------------------------------------- multipart


@dataclass(frozen=True, slots=True)
class Form:
    """A multipart form with the callback in it."""

    content_type: str
    segments: tuple[bytes | tuple[int, int], ...]
    """Bytes, and stretches of the caller's body."""
    digest: str
    """Of the caller's parts, whatever parts them."""


def into_form(body: Body, content_type: str, rule: Rule, values: Mapping[str, Any]) -> Form:
    """Return a multipart form with the callback in it, as fields or in the part that is JSON. Raises `SubmissionRefused`."""
    boundary = split_media_type(content_type)[1].get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise SubmissionRefused(422, "the Content-Type names no multipart boundary")
    own = {name.lower() for name in rule.own} | {name.lower() for name in values if not rule.part}
    fresh = secrets.token_hex(20)
    mark = f"--{fresh}\r\n".encode()
    segments: list[bytes | tuple[int, int]] = []
    digest, inner = hashlib.sha256(), b""
    for head, start, end in _parts(body, boundary.encode()):
        name = _name(head)
        digest.update(b"%d %b %d " % (len(head), head, end - start))
        for at in range(start, end, _PIECE):
            digest.update(read_piece(body, at, min(_PIECE, end - at)))
        if name == rule.part and rule.part:
            if inner:
                raise SubmissionRefused(422, f"the form has {name} twice")
            inner = read_piece(body, start, min(end - start, _PIECE)) or b"{}"
            continue
        plain = name.lower().partition("[")[0]
        if plain in own:
            said = read_piece(body, start, min(end - start, 4096)).decode("utf-8", "replace")
            if plain in {n.lower() for n in rule.own} and not _empty(said, values.get(name)):
                raise OwnCallback(name)
            continue
        segments += [mark + head + b"\r\n\r\n", (start, end), b"\r\n"]
    ours = [
        mark + f"Content-Disposition: form-data; {named}\r\n\r\n".encode() + text + b"\r\n"
        for named, text in _fields(rule, values, inner or b"{}")
    ]
    return Form(
        content_type=f"multipart/form-data; boundary={fresh}",
        segments=(*ours, *segments, f"--{fresh}--\r\n".encode()),
        digest=digest.hexdigest(),
    )


def _fields(rule: Rule, values: Mapping[str, Any], inner: bytes) -> list[tuple[str, bytes]]:
    """Return name and text of the parts that hold the callback: one of JSON, which was `inner`, or one for each value."""
    if not rule.part:
        return [(f'name="{name}"', _text(value)) for name, value in values.items()]
    named = f'name="{rule.part}"\r\nContent-Type: application/json'
    return [(named, into_json(inner, rule, values))]


def _text(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def _name(head: bytes) -> str:
    """Return the name of a part. Raises `SubmissionRefused` where another reader might find another one."""
    heads = head.decode("latin-1").split("\r\n")
    said = [line.partition(":")[2] for line in heads if line.lower().startswith("content-disposition")]
    found = _NAME.search(said[0]) if len(said) == 1 else None
    others = re.sub(r"filename\*?=", "", said[0].lower()) if found else ""
    if found is None or others.count("name=") != 1 or "name*" in others:
        raise SubmissionRefused(422, "a part of the form has no plain name")
    return found[1]


def _parts(body: Body, boundary: bytes) -> Iterable[tuple[bytes, int, int]]:
    """Yield head, start and end of each part."""
    mark = b"\r\n--" + boundary
    opening = read_piece(body, 0, len(mark))
    if not opening.startswith(mark[2:]):
        raise SubmissionRefused(422, "the form does not begin with its boundary")
    at, count = len(mark) - 2, 0
    while (after := read_piece(body, at, 2)) != b"--":
        count += 1
        head, found, _ = read_piece(body, at + 2, _PART_HEAD).partition(b"\r\n\r\n")
        start = at + 2 + len(head) + 4
        end = _find(body, mark, start - 2) if found and after == b"\r\n" else -1
        if end < 0:
            raise SubmissionRefused(422, "a part of the form does not end")
        if count > _PARTS:
            raise SubmissionRefused(422, f"the form has more than {_PARTS} parts")
        yield head, start, max(end, start)
        at = end + len(mark)


def _find(body: Body, mark: bytes, at: int) -> int:
    """Return where `mark` is next, -1 where it is not."""
    while at < body.size:
        piece = read_piece(body, at, _PIECE + len(mark))
        found = piece.find(mark)
        if found >= 0:
            return at + found
        at += _PIECE
    return -1


def read_piece(body: Body, at: int, size: int) -> bytes:
    """Return some bytes of a body. Raises `OSError`."""
    if body.path is None:
        return body.load()[at : at + size]
    fd = os.open(body.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size, at)
    finally:
        os.close(fd)
