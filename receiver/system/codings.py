"""Content codings undone while a body streams: gzip and deflate, in flat memory. Pure.

https://www.rfc-editor.org/rfc/rfc9110#section-8.4.1; "deflate" comes in two dialects, with the zlib header that the RFC asks
for and without it, and both are read.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

PIECE = 64 * 1024
"""The most bytes that one step gives, whatever the ratio."""
_SPARE_MEMBERS = 16
_MEMBER_BYTES = 1024
"""A gzip body may have a member for each of so many decoded bytes, and a few more: empty ones by the thousand cost only time."""

_SPARE_BYTES = 64 * 1024
_LONGEST = 8
"""A body may be so many times as long as what it decodes to, and a little more: blocks that hold nothing cost only time."""


class CodingBroken(ValueError):
    """The bytes are not what the content coding says."""


class Inflater:
    """Undoes one coding. Feed it all pieces in turn, then `finish`."""

    def __init__(self, coding: str) -> None:
        """`coding` is `gzip` or `deflate`."""
        self._gzip = coding == "gzip"
        self._held = b""
        self._stream: zlib._Decompress | None = None
        self._members = 0
        self._size = self._taken = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` decodes to, in pieces of at most `PIECE` bytes. Raises `CodingBroken`."""
        if self._taken > _SPARE_BYTES + _LONGEST * self._size:
            raise CodingBroken("the bytes are many times as long as what they decode to")
        self._taken += len(data)
        data, self._held = self._held + data, b""
        more = False
        while data or more:
            if self._stream is None:
                data = self._begin(data)
                if self._stream is None:
                    return
            try:
                piece = self._stream.decompress(data, PIECE)
            except zlib.error:
                raise CodingBroken("the bytes cannot be decoded") from None
            if piece:
                self._size += len(piece)
                yield piece
            # All is taken in, and a full piece may not be all that comes of it: nothing follows that would bring the rest.
            more = not self._stream.eof and len(piece) == PIECE
            if self._stream.eof:
                data, self._stream = self._stream.unused_data, None
            else:
                data = self._stream.unconsumed_tail

    def finish(self) -> None:
        """Raise `CodingBroken` unless the coding came to its end."""
        if self._stream is not None or self._held:
            raise CodingBroken("the bytes end before their coding does")

    def _begin(self, data: bytes) -> bytes:
        """Start the next member of a gzip body, or the only one of deflate; return what is left to decode."""
        if self._members:
            if self._gzip and not data.strip(b"\0"):
                return b""  # padding, as tar and tapes leave it
            if not self._gzip or self._members > _SPARE_MEMBERS + self._size // _MEMBER_BYTES:
                raise CodingBroken("there are bytes after the end of what was decoded")
        if not self._gzip and len(data) < 2:
            self._held = data
            return b""
        self._members += 1
        self._stream = zlib.decompressobj(31 if self._gzip else _deflate_bits(data))
        return data


def _deflate_bits(data: bytes) -> int:
    """Return zlib's `wbits` for a deflate body: its header has method 8 and is a multiple of 31 (RFC 1950, 2.2)."""
    headed = data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
    return 15 if headed else -15


KNOWN = "gzip, deflate"
"""What `Accept-Encoding` says of them."""


def coding(header: str) -> str | None:
    """Read `Content-Encoding`: `gzip`, `deflate`, "" for none; None for what is not undone here."""
    name = header.strip().lower()
    return {"": "", "identity": "", "gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}.get(name)
