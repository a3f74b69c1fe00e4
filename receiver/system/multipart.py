"""The parts of a `multipart/form-data` body, read without trust from memory or a file."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from msgspec import Struct

from receiver.core.errors import MalformedCallback

MAX_PARTS = 100
PIECE = 256 * 1024
"""The most bytes that are searched at once."""
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
    found = stretches(io.BytesIO(body), boundary, MAX_PARTS)
    return [_part(head.decode("latin-1"), body[start:end]) for head, start, end in found]


def stretches(body: BinaryIO, boundary: str, most: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the head of each part, and where its data begins and ends. Raises `MalformedCallback`, also for more than `most`."""
    if not 1 <= len(boundary) <= 70:
        raise MalformedCallback("the Content-Type names no multipart boundary")
    mark = b"\r\n--" + boundary.encode("latin-1", "replace")
    first = b"\r\n" + read_at(body, 0, _HEAD_LIMIT)
    if (at := first.find(mark) - 2) < -2:
        raise MalformedCallback("the body does not begin with its multipart boundary")
    count = 0
    while not (lead := read_at(body, at + len(mark), _HEAD_LIMIT)).startswith(b"--"):
        lead, ended, _ = lead.partition(b"\r\n\r\n")
        padding, _, head = lead.partition(b"\r\n")
        start = at + len(mark) + len(lead) + 4
        at = _find(body, mark, start - 2) if ended and not padding.strip() else -1
        if at < 0:
            raise MalformedCallback("a part of the multipart body does not end")
        if (count := count + 1) > most:
            raise MalformedCallback(f"the multipart body has more than {most} parts")
        yield head, start, max(at, start)


def read_at(body: BinaryIO, at: int, size: int) -> bytes:
    """Return some bytes of a body. Raises `OSError`."""
    body.seek(at)
    return body.read(size)


def _find(body: BinaryIO, mark: bytes, at: int) -> int:
    """Return where `mark` is next, -1 where it is not."""
    while piece := read_at(body, at, PIECE + len(mark)):
        if (found := piece.find(mark)) >= 0:
            return at + found
        at += PIECE
    return -1


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
