"""Reading at places in a body, in bounded pieces and time; and what was found out of it so far."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

_MOST = 4 * 1024 * 1024
"""Bytes that one read returns at most, whatever size a file states."""
_LOOK = 4096
"""Bytes that are read between two looks at the clock."""
LOSSLESS = ("alac", "flac", "linear", "float", "mulaw", "alaw")
"""How the codecs begin whose last frame has no padding."""
FAR = 0.05
"""Share of a length by which an estimate may be wrong at most."""
CLOSE = 0.01
"""Share of a length by which two ways to know it may differ before it counts as an estimate."""


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
        if self._until_look < 0:  # a look at the clock costs as much as a small read
            self._until_look = _LOOK
            if time.monotonic() > self._deadline:
                raise OutOfTime
        if not 0 <= place < self.size:
            return b""
        size, held = min(_MOST, size), self._held
        return held[place : place + size] if isinstance(held, bytes) else os.pread(held, size, place)


@dataclass(slots=True)
class Found:
    """What is known so far. A walk fills it in; what it knew before it failed stays."""

    codec: str | None = None
    rate: int | None = None
    channels: int | None = None
    seconds: float | None = None
    estimated: bool = False
    how: str = ""
    """How the length was had, for a person."""

    def length(self, seconds: float, how: str, *, doubt: float = 0.0) -> None:
        """Note a length. It is an estimate when it may be wrong by `doubt` seconds, and that is more than 1 % of it."""
        self.seconds, self.how, self.estimated = max(0.0, seconds), how, abs(doubt) > CLOSE * seconds
