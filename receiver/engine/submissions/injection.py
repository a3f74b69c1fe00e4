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
from receiver.core.errors import SubmissionRefused
from receiver.core.submission import METHOD_FIELDS, names_in
from receiver.engine.submissions.bodies import Outgoing, Segment, held, opened
from receiver.settings.submitting import SubmissionJob
from receiver.system.multipart import PIECE, read_at, stretches

_PARTS, _PART_TEXT = 1000, 4096
"""Parts of a form, and bytes of one that are looked at for a callback."""
_NAME = re.compile(r'form-data\s*;(?:.*;)?\s*name="([^"\\\r\n]{1,200})"\s*(?:;|$)', re.IGNORECASE)
_UNSET = (None, "", "null")
"""What SDKs send of fields that were not set."""
Fields = Sequence[tuple[str, Any]]
_Part = tuple[str, bytes, bytes, tuple[int, int]]
"""Name, beginning and head of a part of a form, and where it is."""


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


class Injection:
    """Puts the callback of one job into its request."""

    def __init__(self, job: SubmissionJob, values: Mapping[str, Any], *, passes_own: bool) -> None:
        """`values` are set, unless the request has a callback of the caller's own and `passes_own`."""
        self._job, self._values, self._passes_own = job, values, passes_own
        self.own = ""
        """The name of the caller's own callback, which stays, and receiver's is not set."""
        self.refers: Fields = ()
        """The names and values of members that refer to a job: the caller's, and not looked at."""

    def into_query(self, query: str) -> str:
        """Return a query with the callback in it. Raises `SubmissionRefused`."""
        left_out = self._left_out(names_in(query))
        fields = [field for field in query.split("&") if field.strip(";")]
        kept = [field for field in fields if names_in(field)[0][0] not in left_out]
        added = [f"{quote(name, safe='')}={quote(str(text), safe='')}" for name, text in self._values.items()]
        return "&".join([*kept, *added])

    def into_json(self, body: Body, content_type: str) -> Outgoing:
        """Return a JSON object with the callback in it. Raises `SubmissionRefused`."""
        return held(body, [self._object(body.load())], content_type)

    def into_form(self, body: Body, content_type: str) -> Outgoing:
        """Return a multipart form with the callback in it; its digest is independent of the boundary.

        Raises `SubmissionRefused`, `MalformedCallback`.
        """
        boundary = split_media_type(content_type)[1].get("boundary", "")
        fresh, digest, part = secrets.token_hex(20), hashlib.sha256(), self._job.part
        inner: list[_Part] = []
        others: list[_Part] = []
        with opened(body) as file:
            for head, start, end in stretches(file, boundary, _PARTS):
                name = _name(head)
                digest.update(b"%d %b %d " % (len(head), head, end - start))
                for at in range(start, end, PIECE):
                    digest.update(read_at(file, at, min(PIECE, end - at)))
                is_inner = bool(part) and part in _readings(name)
                text = read_at(file, start, min(end - start, PIECE if is_inner else _PART_TEXT))
                (inner if is_inner else others).append((name, text, head, (start, end)))
        if len(inner) > 1:
            raise SubmissionRefused(422, f"the form has {part} twice")
        left_out = self._left_out([(name, text.decode("utf-8", "replace")) for name, text, _, _ in others])
        mark = f"--{fresh}\r\n".encode()
        ours = self._fields(inner[0][1] if inner else b"")
        segments: list[Segment] = [mark + f"{head}\r\n\r\n".encode() + text + b"\r\n" for head, text in ours]
        for name, _, head, stretch in others:
            if name not in left_out:
                segments += [mark + head + b"\r\n\r\n", stretch, b"\r\n"]
        segments.append(f"--{fresh}--\r\n".encode())
        return held(body, segments, f"multipart/form-data; boundary={fresh}", digest.hexdigest())

    def _fields(self, inner: bytes) -> Iterator[tuple[str, bytes]]:
        """Yield head and text of the parts with the callback; `inner` is the JSON part that the caller sent."""
        said = 'Content-Disposition: form-data; name="{}"'
        if part := self._job.part:
            yield said.format(part) + "\r\nContent-Type: application/json", self._object(inner or b"{}")
            return
        for name, value in self._values.items():
            text = value if isinstance(value, str) else json.dumps(value)
            yield said.format(name), text.encode()

    def _left_out(self, fields: Iterable[tuple[str, Any]]) -> Collection[str]:
        """Return the names of the caller's fields that receiver's replace: what is unset, or receiver's own value, is no conflict.

        Raises `SubmissionRefused` for a callback of the caller's own that does not pass, and for a field that changes the method.
        """
        job, found = self._job, set()
        known = {name.lower() for name in {*job.set, *job.own} - {*job.beside}}
        for name, value in fields:
            refuse_method_fields([name])
            if known.isdisjoint(_readings(name)):
                continue
            if value in (*_UNSET, self._values.get(name)):
                found.add(name)
            elif self._passes_own:
                self.own = name
            else:
                message = f"{name[:100]} is receiver's to set: leave it out, and the result comes as an event"
                raise SubmissionRefused(422, message)
        if self.own:
            self._values = {}
            return ()
        return found

    def _object(self, raw: bytes) -> bytes:
        """Return a JSON object with the callback in it."""
        pairs = _members(raw)
        places = {name.lower() for name in self._job.refers}
        self.refers = [pair for pair in pairs if pair[0].lower() in places and pair[1] not in _UNSET]
        found = dict(pairs)
        if len(found) != len(pairs):
            raise SubmissionRefused(422, "the JSON names a field twice")
        for name, wanted in self._job.require.items():
            if found.get(name) != wanted:
                raise SubmissionRefused(422, f"only jobs are passed on: set {name} to {json.dumps(wanted)}")
        if left_out := self._left_out(pairs):
            kept = {name: value for name, value in pairs if name not in left_out}
            whole = json.dumps(kept | dict(self._values), ensure_ascii=False, separators=(",", ":"))
            return whole.encode("utf-8", "surrogatepass")
        if not self._values:
            return raw
        start, comma = raw.rstrip()[:-1].rstrip(), b"," if pairs else b""
        return start + comma + json.dumps(dict(self._values), separators=(",", ":")).encode()[1:]


def _members(raw: bytes) -> Fields:
    """Return the members of a JSON object. Raises `SubmissionRefused`."""
    seen: list[Fields] = [()]

    def note(pairs: Fields) -> dict[str, Any]:
        seen[0] = pairs  # the outermost object ends last
        return dict(pairs)

    try:
        document = json.loads(raw.decode(), object_pairs_hook=note, parse_constant=int)  # which refuses NaN
    except (ValueError, RecursionError):
        raise SubmissionRefused(422, "the body is not valid JSON") from None
    if not isinstance(document, dict):
        raise SubmissionRefused(422, "the body is JSON, but not an object")
    return seen[0]


def _name(head: bytes) -> str:
    """Return the name of a part. Raises `SubmissionRefused` where another reader might find another one."""
    heads = head.decode("latin-1").split("\r\n")
    said = [line.partition(":")[2] for line in heads if line.lower().startswith("content-disposition")]
    found = _NAME.search(said[0]) if len(said) == 1 else None
    others = re.sub(r"filename\*?=", "", said[0].lower()) if found else ""
    if found is None or others.count("name=") != 1 or "name*" in others:
        raise SubmissionRefused(422, "a part of the form has no plain name")
    return found[1]
