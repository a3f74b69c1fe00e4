"""Reading at places in a body, in bounded pieces and time; and what a length that was counted is worth."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import BinaryIO

from receiver.core.event import AudioFacts

_MOST = 4 * 1024 * 1024  # bytes that one read returns, whatever size a file states
_UNTIMED, _A_READ = (
    16384,
    2048,
)  # bytes read from one look at the clock to the next, and those that a read counts as
_CLOSE, _FAR = 0.01, 0.05  # shares by which a length may be wrong and certain, or an estimate
_LONGEST = 7 * 86400.0  # a length past a week is damage
UNKNOWN = float("inf")  # a doubt of which nothing is known
ID3 = rb"ID3[^\xff]{2}.[\0-\x7f]{4}"
"""A pattern of the head of an ID3v2 tag, which ends with its length: four times seven bits."""
_ID3 = re.compile(ID3, re.DOTALL)
_TAGS = 8  # that may stand one behind the other; nobody writes more than two


def opened(audio: str | bytes) -> AbstractContextManager[BinaryIO | bytes]:
    """Open a file by its path; bytes stay as they are."""
    return nullcontext(audio) if isinstance(audio, bytes) else open(audio, "rb", buffering=0)


class Source:
    """Bytes, or an open file, read at places up to a deadline in seconds of `time.thread_time()`: a busy machine cuts nothing short."""

    def __init__(self, audio: BinaryIO | bytes, deadline: float = UNKNOWN) -> None:
        self._audio, self._deadline = audio, deadline
        self._untimed = 0.0 if deadline < UNKNOWN else UNKNOWN
        self.size = len(audio) if isinstance(audio, bytes) else audio.seek(0, io.SEEK_END)

    def at(self, place: int, size: int) -> bytes:
        """Return up to `size` bytes from `place` on, 4 MiB at most. Raises `TimeoutError`, and other kinds of `OSError`."""
        if self._untimed <= 0:  # the clock costs a system call
            if time.thread_time() > self._deadline:
                raise TimeoutError
            self._untimed = _UNTIMED
        size = min(size, _MOST)
        self._untimed -= _A_READ + min(size, self.size)
        if isinstance(self._audio, bytes):
            return self._audio[place : place + size]
        self._audio.seek(place)
        return self._audio.read(size)

    def behind_tags(self) -> int:
        """Return the place behind the ID3v2 tags at the beginning."""
        place = 0
        for _ in range(_TAGS):
            head = self.at(place, 10)
            if not _ID3.match(head):
                break
            place += 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
        return place


Head = tuple[bytes, int, int]
"""A chunk's name, the length of its head, and that of its content, negative when it goes on to the end."""


def chunks(
    source: Source, place: int, head: Callable[[bytes], Head], into: Container[bytes] = ()
) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, begin and end of the content, as stated, of each chunk from `place` on, and of those within `into`."""
    while place < source.size:
        name, skip, size = head(source.at(place, 28))
        start = place + skip
        stop = start + size if size >= 0 else source.size
        yield name, start, stop
        place = start if name in into else stop


def note_length(
    found: AudioFacts, seconds: float, how: str, *, doubt: float = 0.0, damage: float = 0.0
) -> None:
    """Note a length that may be wrong by `doubt` seconds, and by `damage` more where damage hides what there was."""
    if damage <= _FAR * seconds <= _FAR * _LONGEST:
        found.duration_seconds, found.how = max(0.0, seconds), how
        found.duration_estimated = doubt + damage > _CLOSE * seconds
