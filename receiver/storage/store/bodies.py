"""Compresses the kept bodies of callbacks. Most of a body is also in its event's data, which serves as the dictionary.

A body is stored as its zlib difference from that data: some hundred bytes instead of two thousand. It is restored byte by
byte, as long as the event exists.
"""

from __future__ import annotations

import zlib

_WINDOW, _MEMORY = 15, 5
"""zlib's parameters: the longest match distance, and the least memory, which makes the shortest header."""


def difference(body: bytes | None, data: bytes) -> tuple[bytes | None, int]:
    """Return the stored form of a body and its flag: 1 for a difference from the event's data, 0 for the body itself."""
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
    return zlib.decompressobj(-_WINDOW, data).decompress(kept)
