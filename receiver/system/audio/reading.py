"""Reading at places in a body, in bounded pieces and time; and what was found out of it so far."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterator

from msgspec import Struct

_MOST = 4 * 1024 * 1024  # bytes that one read returns, whatever size a file states
_LOOK = 4096  # bytes between two looks at the clock, which cost as much as a small read
_CLOSE, _FAR = 0.01, 0.05  # shares by which a length may be wrong and certain, or an estimate
UNKNOWN = float("inf")  # a doubt of which nothing is known


class OutOfTime(Exception):
    """The deadline is over."""


class Source:
    """The bytes of a body, or of an open file, read at places up to a deadline."""

    def __init__(self, held: bytes | int, deadline: float) -> None:
        """`held` is the bytes, or the descriptor of a file; `deadline` is in seconds of `time.monotonic()`."""
        self._held, self._deadline, self._until_look = held, deadline, 0
        self.size = len(held) if isinstance(held, bytes) else os.fstat(held).st_size

    def at(self, place: int, size: int) -> bytes:
        """Return up to `size` bytes from `place` on, 4 MiB at most. Raises `OutOfTime`, `OSError`."""
        self._until_look -= size
        if self._until_look < 0:
            self._until_look = _LOOK
            if time.monotonic() > self._deadline:
                raise OutOfTime
        if not 0 <= place < self.size:
            return b""
        size, held = min(_MOST, size), self._held
        return held[place : place + size] if isinstance(held, bytes) else os.pread(held, size, place)


Head = tuple[bytes, int, int]
"""A chunk's name, the length of its head, and that of its content, negative when it goes on to the end."""


def chunks(
    source: Source,
    place: int,
    head: Callable[[bytes], Head | None],
    *,
    pad: int = 1,
    into: Container[bytes] = (),
) -> Iterator[tuple[bytes, int, int]]:
    """Yield the chunks from `place` on: one behind the other, and those within the ones that `into` names.

    Of each its name, and where its content begins and ends, by what it states.
    """
    while place < source.size and (read := head(source.at(place, 28))):
        name, skip, size = read
        start = place + skip
        stop = start + size if size >= 0 else source.size
        yield name, start, stop
        place = start if name in into else stop + -size % pad


class Found(Struct):
    """What is known so far. A walk fills it in; what it knew before it failed stays."""

    codec: str | None = None
    rate: int | None = None
    channels: int | None = None
    seconds: float | None = None
    estimated: bool = False
    how: str = ""
    """How the length was had, for a person."""

    def length(self, seconds: float, how: str, *, doubt: float = 0.0, damage: float = 0.0) -> None:
        """Note a length that may be wrong by `doubt` seconds, and by `damage` more where damage hides what there was."""
        certain, usable = doubt + damage <= _CLOSE * seconds, damage <= _FAR * seconds
        self.seconds, self.estimated, self.how = max(0.0, seconds) if usable else None, not certain, how
