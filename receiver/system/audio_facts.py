"""What stored audio says of itself: length, rate, channels, codec. Headers only; nothing is decoded.

WAV is read here, since streamed WAV lies about its size; mutagen reads the rest, bounded in time and bytes. Damage
gives no facts, never an exception.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from msgspec.structs import replace
from mutagen.aac import AAC
from mutagen.aiff import AIFF
from mutagen.flac import FLAC
from mutagen.mp3 import MP3, BitrateMode
from mutagen.mp4 import MP4
from mutagen.oggopus import OggOpus
from mutagen.oggvorbis import OggVorbis

from receiver.core.event import AudioDraft, AudioFacts
from receiver.core.formats import BY_NAME, Format, sniff

__all__ = ["Format", "facts", "sniff"]

_PREFIX = 4096
_MAX_READ = 16 * 1024 * 1024
"""Bytes that finding out may read; a long file's header and last page are far below."""
_MAX_CALLS = 20_000
_MAX_CHUNKS = 64
_LONGEST = 7 * 86400.0
"""A stated length past a week is damage."""


class _Spent(Exception):
    """Time or bytes are used up."""


class _Bounded:
    """A file that stops answering past a deadline or a number of bytes and calls."""

    def __init__(self, file: BinaryIO, deadline: float) -> None:
        self._file, self._deadline = file, deadline
        self._left, self._calls = _MAX_READ, _MAX_CALLS
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)

    def _spend(self, size: int) -> None:
        self._left -= size
        self._calls -= 1
        if self._left < 0 or self._calls < 0 or time.monotonic() > self._deadline:
            raise _Spent

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            size = max(0, self.size - self._file.tell())
        self._spend(min(size, self.size))
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._spend(0)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def facts(audio: str | bytes, draft: AudioDraft, *, deadline_seconds: float = 1.0) -> AudioFacts:
    """Return what the file at a path, or the bytes themselves, say; `draft` tells what raw samples cannot.

    A length is `duration_estimated` unless the container states it. Reads for `deadline_seconds` at most, and raises
    nothing: what cannot be found out is None. Blocks; meant for a thread.
    """
    known = AudioFacts(sample_rate_hz=draft.sample_rate_hz, channels=draft.channels, codec=draft.codec)
    deadline = time.monotonic() + deadline_seconds
    try:
        with io.BytesIO(audio) if isinstance(audio, bytes) else open(audio, "rb") as file:
            found = _read(_Bounded(file, deadline), draft, known)
    except Exception:  # mutagen raises its own errors, and struct's, and whatever damage leads to
        return known
    duration = found.duration_seconds
    if duration is not None and not 0 <= duration <= _LONGEST:
        found = replace(found, duration_seconds=None, duration_estimated=False)
    return found


def _read(file: _Bounded, draft: AudioDraft, known: AudioFacts) -> AudioFacts:
    if draft.bytes_per_frame:
        if not draft.sample_rate_hz:
            return known
        frames = file.size // draft.bytes_per_frame
        return replace(known, duration_seconds=frames / draft.sample_rate_hz)
    prefix = file.read(min(_PREFIX, file.size))
    form = sniff(prefix) or next((f for f in BY_NAME.values() if f.extension == draft.extension), None)
    if form is None or form.name not in _READERS:
        return replace(known, codec=form.codec if form and form.codec else known.codec)
    file.seek(0)
    found = _READERS[form.name](file, form)
    return replace(
        found,
        sample_rate_hz=found.sample_rate_hz or known.sample_rate_hz,
        channels=found.channels or known.channels,
        codec=found.codec or known.codec,
    )


# ---------------------------------------------------------------- WAV

_WAV_CODECS = {6: "alaw", 7: "mulaw", 3: "float", 2: "adpcm", 17: "adpcm", 85: "mp3"}
_EXTENSIBLE = 0xFFFE
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)
"""What a streaming writer puts where it cannot know the size yet."""


def _wav(file: _Bounded, form: Format) -> AudioFacts:
    layout, samples = b"", None
    for name, size, start in _chunks(file):
        if name == b"fmt ":
            layout = file.read(min(size, 40))
        elif name == b"fact" and size >= 4:
            samples = int.from_bytes(file.read(4), "little")
        elif name == b"data":
            return _wav_facts(layout, samples, size, file.size - start)
    return AudioFacts()


def _chunks(file: _Bounded) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, stated size and start of each chunk, the file standing at the start; ds64 gives RF64's sizes."""
    position, long_size = 12, None
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return
        name, size = head[:4], int.from_bytes(head[4:], "little")
        if name == b"ds64":
            long_size = int.from_bytes(file.read(16)[8:], "little")
        elif name == b"data" and size == 0xFFFFFFFF and long_size:
            size = long_size
        file.seek(position + 8)
        yield name, size, position + 8
        position += 8 + size + size % 2


def _wav_facts(layout: bytes, samples: int | None, stated: int, present: int) -> AudioFacts:
    if len(layout) < 16:
        return AudioFacts()
    tag, channels = int.from_bytes(layout[0:2], "little"), int.from_bytes(layout[2:4], "little")
    rate, byte_rate = int.from_bytes(layout[4:8], "little"), int.from_bytes(layout[8:12], "little")
    block, bits = int.from_bytes(layout[12:14], "little"), int.from_bytes(layout[14:16], "little")
    if tag == _EXTENSIBLE and len(layout) >= 26:
        tag = int.from_bytes(layout[24:26], "little")
    if not rate or not channels or not block:
        return AudioFacts()
    codec = {16: "linear16"}.get(bits, f"linear{bits}") if tag == 1 else _WAV_CODECS.get(tag)
    estimated = stated > present or (stated in _UNKNOWN_SIZES and present > 0)
    size = present if estimated else stated
    if tag in (1, 3, 6, 7):
        duration: float | None = size // block / rate
    elif samples and not estimated:
        duration = samples / rate
    else:
        duration, estimated = (size / byte_rate, True) if byte_rate else (None, False)
    return AudioFacts(
        duration_seconds=duration,
        duration_estimated=estimated,
        sample_rate_hz=rate,
        channels=channels,
        codec=codec,
    )


# ---------------------------------------------------------------- the rest, by mutagen


def _info(kind: Any, file: _Bounded) -> Any:
    return kind(fileobj=file).info


def _mp3(file: _Bounded, form: Format) -> AudioFacts:
    info = _info(MP3, file)
    return _stated(info, "mp3", estimated=info.bitrate_mode == BitrateMode.UNKNOWN)


def _aac(file: _Bounded, form: Format) -> AudioFacts:
    return _stated(_info(AAC, file), "aac", estimated=True)


def _flac(file: _Bounded, form: Format) -> AudioFacts:
    return _stated(_info(FLAC, file), "flac")


def _ogg(file: _Bounded, form: Format) -> AudioFacts:
    if form.codec == "opus":
        return replace(_stated(_info(OggOpus, file), "opus"), sample_rate_hz=48000)
    if form.codec == "vorbis":
        return _stated(_info(OggVorbis, file), "vorbis")
    return AudioFacts()


def _mp4(file: _Bounded, form: Format) -> AudioFacts:
    info = _info(MP4, file)
    codec = str(info.codec).partition(".")[0]
    return _stated(info, "aac" if codec == "mp4a" else codec or None)


def _aiff(file: _Bounded, form: Format) -> AudioFacts:
    info = _info(AIFF, file)
    return _stated(info, f"linear{info.bits_per_sample}")


def _stated(info: Any, codec: str | None, *, estimated: bool = False) -> AudioFacts:
    """Return mutagen's answer; a length of nothing means that the header does not know it."""
    length = float(info.length) if info.length else None
    return AudioFacts(
        duration_seconds=length,
        duration_estimated=estimated and length is not None,
        sample_rate_hz=getattr(info, "sample_rate", None) or None,
        channels=getattr(info, "channels", None) or None,
        codec=codec,
    )


_READERS: dict[str, Callable[[_Bounded, Format], AudioFacts]] = {
    "wav": _wav,
    "mp3": _mp3,
    "aac": _aac,
    "flac": _flac,
    "ogg": _ogg,
    "mp4": _mp4,
    "aiff": _aiff,
}
