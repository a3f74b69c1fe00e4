"""Puts receiver's callback URL into a submission: into its query, its JSON, or its multipart form.

All other bytes go on unchanged. A callback of the caller's own is found under every name that the provider accepts, in any
spelling. If the callback cannot be set, nothing is sent: `SubmissionRefused`.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from receiver.core.callback import Body, split_media_type
from receiver.core.errors import OwnCallback, SubmissionRefused
from receiver.core.submission import METHOD_FIELDS, names_in
from receiver.engine.submissions.bodies import PIECE, Outgoing, Segment, held_body, read_piece
from receiver.settings.submitting import SubmissionJob

_PARTS, _PART_HEAD = 1000, 8192
"""Parts of a form, and bytes of the head of one."""
_NAME = re.compile(r'form-data\s*;(?:.*;)?\s*name="([^"\\\r\n]{1,200})"\s*(?:;|$)', re.IGNORECASE)
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{1,70}")


def _readings(name: str) -> set[str]:
    """Return the names, in lower case, by which a server may read a field.

    PHP ends a name at a NUL or a bracket, leaves out blanks before it, and takes a blank, a dot and a lone bracket for `_`.
    """
    whole = name.lower()
    bare = re.sub("[ .]", "_", whole.partition("\0")[0].lstrip())
    return {whole, bare.partition("[")[0], bare.replace("[", "_")}


def refuse_method_fields(names: Iterable[str]) -> None:
    """Raise `SubmissionRefused` for a field by which some servers change the request's method."""
    for name in names:
        if not METHOD_FIELDS.isdisjoint(_readings(name)):
            raise SubmissionRefused(422, f"{name} would make another request of it: leave it out")


def _left_out(
    fields: Iterable[tuple[str, Any]], job: SubmissionJob, values: Mapping[str, Any]
) -> Collection[str]:
    """Return the names of the caller's fields that receiver's replace.

    Raises `SubmissionRefused` for a callback of the caller's own, and for a field that changes the method. A null, an empty
    text and receiver's own value are no conflict: SDKs send unset fields as null.
    """
    known, found = job.callback_names, set()
    for name, value in fields:
        refuse_method_fields([name])
        if not known.isdisjoint(_readings(name)):
            if not (value is None or value in ("", "null") or value == values.get(name)):
                raise OwnCallback(name)
            found.add(name)
    return found


def into_query(query: str, job: SubmissionJob, values: Mapping[str, Any]) -> str:
    """Return a query with the callback in it. Raises `SubmissionRefused` for one of the caller's own."""
    left_out = _left_out(names_in(query), job, values)
    fields = [field for field in query.split("&") if field.strip(";")]
    kept = [field for field in fields if names_in(field)[0][0] not in left_out]
    added = [f"{quote(name, safe='')}={quote(str(value), safe='')}" for name, value in values.items()]
    return "&".join([*kept, *added])


Members = Sequence[tuple[str, Any]]


def into_json(body: Body, pairs: Members, job: SubmissionJob, values: Mapping[str, Any]) -> Outgoing:
    """Return a JSON object, whose members are `pairs`, with the callback in it. Raises `SubmissionRefused`."""
    return held_body(body, [_with_values(body.load(), pairs, job, values)])


def _with_values(raw: bytes, pairs: Members, job: SubmissionJob, values: Mapping[str, Any]) -> bytes:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise SubmissionRefused(422, "the JSON names a field twice")
    for name, wanted in job.require.items():
        if found.get(name) != wanted:
            raise SubmissionRefused(422, f"only jobs are passed on: set {name} to {json.dumps(wanted)}")
    if left_out := _left_out(pairs, job, values):
        kept = {name: value for name, value in pairs if name not in left_out}
        whole = json.dumps(kept | dict(values), ensure_ascii=False, separators=(",", ":"))
        return whole.encode("utf-8", "surrogatepass")
    if not values:
        return raw
    start, comma = raw.rstrip()[:-1].rstrip(), b"," if pairs else b""
    return start + comma + json.dumps(dict(values), separators=(",", ":")).encode()[1:]


def jobs_named(pairs: Members, job: SubmissionJob) -> Iterator[tuple[str, str]]:
    """Yield the names and values of members that refer to a job. Raises `SubmissionRefused` for a malformed id."""
    places = {name.lower() for name in job.refers}
    for name, value in pairs:
        if name.lower() in places and value not in (None, "", "null"):
            if not (isinstance(value, str) and value.isascii() and value.isprintable()):
                raise SubmissionRefused(422, f"{name} is not the id of a job")
            yield name, value


def members(raw: bytes) -> Members:
    """Return the members of a JSON object. Raises `SubmissionRefused`."""
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


def into_form(body: Body, content_type: str, job: SubmissionJob, values: Mapping[str, Any]) -> Outgoing:
    """Return a multipart form with the callback added, as fields or in the JSON part. Its digest is independent of the boundary.

    Raises `SubmissionRefused`.
    """
    boundary = split_media_type(content_type)[1].get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise SubmissionRefused(422, "the Content-Type names no multipart boundary")
    fresh = secrets.token_hex(20)
    mark = f"--{fresh}\r\n".encode()
    segments: list[Segment] = []
    digest, inner = hashlib.sha256(), b""
    for head, start, end in _parts(body, boundary.encode()):
        name = _name(head)
        digest.update(b"%d %b %d " % (len(head), head, end - start))
        for at in range(start, end, PIECE):
            digest.update(read_piece(body, at, min(PIECE, end - at)))
        if job.part and job.part in _readings(name):
            if inner:
                raise SubmissionRefused(422, f"the form has {name} twice")
            inner = read_piece(body, start, min(end - start, PIECE)) or b"{}"
        elif not _left_out(
            [(name, read_piece(body, start, min(end - start, 4096)).decode("utf-8", "replace"))], job, values
        ):
            segments += [mark + head + b"\r\n\r\n", (start, end), b"\r\n"]
    if job.part:
        inner, named = inner or b"{}", f'name="{job.part}"\r\nContent-Type: application/json'
        fields = [(named, _with_values(inner, members(inner), job, values))]
    else:
        texts = {n: value if isinstance(value, str) else json.dumps(value) for n, value in values.items()}
        fields = [(f'name="{name}"', text.encode()) for name, text in texts.items()]
    ours = [
        mark + f"Content-Disposition: form-data; {named}\r\n\r\n".encode() + text + b"\r\n"
        for named, text in fields
    ]
    segments = [*ours, *segments, f"--{fresh}--\r\n".encode()]
    content_type = f"multipart/form-data; boundary={fresh}"
    return held_body(body, segments, content_type=content_type, digest=digest.hexdigest())


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
        piece = read_piece(body, at, PIECE + len(mark))
        found = piece.find(mark)
        if found >= 0:
            return at + found
        at += PIECE
    return -1
