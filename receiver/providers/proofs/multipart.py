"""The parts of a `multipart/form-data` body, read without trust and without copying more than once."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from receiver.core.errors import MalformedCallback

MAX_PARTS = 100
_HEAD_LIMIT = 16 * 1024
_NAME = re.compile(r';\s*name="?([^";]*)"?', re.IGNORECASE)
_FILE = re.compile(r";\s*filename\*?=", re.IGNORECASE)


class Part(Struct, frozen=True):
    """One part of a multipart body."""

    name: str
    content_type: str
    """In lower case without parameters; "" when it says none."""
    data: bytes
    has_filename: bool

    @property
    def is_field(self) -> bool:
        """True for a field of text; False for a file."""
        return not self.has_filename

    def text(self) -> str:
        """Return the part as text."""
        return self.data.decode("utf-8", "replace")


def parts_of(body: bytes, boundary: str) -> Sequence[Part]:
    """Return the parts of a body. Raises `MalformedCallback` when it is not multipart with this boundary."""
    if not 1 <= len(boundary) <= 70:
        raise MalformedCallback("the Content-Type names no multipart boundary")
    mark = b"--" + boundary.encode("latin-1", "replace")
    if not body.startswith(mark) and b"\r\n" + mark not in body[:_HEAD_LIMIT]:
        raise MalformedCallback("the body does not begin with its multipart boundary")
    parts: list[Part] = []
    at = body.find(mark) + len(mark)
    while not body.startswith(b"--", at):
        head_ends = body.find(b"\r\n\r\n", at, at + _HEAD_LIMIT)
        ends = body.find(b"\r\n" + mark, max(head_ends, at))
        if head_ends < 0 or ends < 0:
            raise MalformedCallback("a part of the multipart body does not end")
        if len(parts) == MAX_PARTS:
            raise MalformedCallback(f"the multipart body has more than {MAX_PARTS} parts")
        parts.append(_part(body[at:head_ends].decode("latin-1"), body[head_ends + 4 : ends]))
        at = ends + 2 + len(mark)
    return parts


def _part(head: str, data: bytes) -> Part:
    lines = {
        name.strip().lower(): value.strip()
        for name, colon, value in (line.partition(":") for line in head.split("\r\n"))
        if colon
    }
    disposition = lines.get("content-disposition", "")
    name = _NAME.search(disposition)
    content_type = lines.get("content-type", "").partition(";")[0].strip().lower()
    return Part(name[1] if name else "", content_type, data, bool(_FILE.search(disposition)))
