"""Bodies of callbacks as they are kept: most of what is in one is in its event's data as well, and is kept once.

A body is written as what it differs by from the data (zlib, with the data as its dictionary): some hundred bytes instead of
two thousand. It is had back byte by byte, for as long as the event is there.
"""

from __future__ import annotations

import zlib

_WINDOW, _MEMORY = 15, 5
"""Of zlib: the longest distance of what is repeated, and as little memory as makes the shortest start."""


def difference(body: bytes | None, data: bytes) -> tuple[bytes | None, int]:
    """Return a body as it is kept beside an event's data, and 1 where that is what it differs by, 0 where it is the body itself."""
    if not body or len(body) > 2 * len(data):
        return body, 0
    deflate = zlib.compressobj(
        zlib.Z_BEST_SPEED, zlib.DEFLATED, -_WINDOW, _MEMORY, zlib.Z_DEFAULT_STRATEGY, data
    )
    differs = deflate.compress(body) + deflate.flush()
    return (differs, 1) if 2 * len(differs) < len(body) else (body, 0)


def whole(kept: bytes | None, differs: int, data: bytes) -> bytes | None:
    """Return the body that `difference` was given."""
    if kept is None or not differs:
        return kept
    inflate = zlib.decompressobj(-_WINDOW, data)
    return inflate.decompress(kept) + inflate.flush()
