"""What is known of audio formats: their magic bytes, media types and names. Pure; opens nothing."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import replace as replace_format
from typing import Any, BinaryIO

from msgspec.structs import replace
from mutagen import aac, aiff, flac, mp3, mp4
from mutagen.mp3 import BitrateMode
from mutagen.oggopus import OggOpus
from mutagen.oggvorbis import OggVorbis

from receiver.core.event import AudioDraft, AudioFacts


@dataclass(frozen=True, slots=True)
class Format:
    """One audio format, as far as bytes or a media type tell it."""

    name: str
    """`wav`, `mp3`, `ogg`, `flac`, `aac`, `mp4`, `webm`, `aiff`."""
    content_type: str
    extension: str
    """Without the dot."""
    codec: str | None = None
    certain: bool = True
    """False for a single MPEG or ADTS frame header: raw samples can look like one by chance."""


WAV = Format("wav", "audio/wav", "wav")
MP3 = Format("mp3", "audio/mpeg", "mp3", "mp3")
OGG = Format("ogg", "audio/ogg", "ogg")
OPUS = Format("ogg", "audio/ogg;codecs=opus", "ogg", "opus")
VORBIS = Format("ogg", "audio/ogg;codecs=vorbis", "ogg", "vorbis")
FLAC = Format("flac", "audio/flac", "flac", "flac")
AAC = Format("aac", "audio/aac", "aac", "aac")
MP4 = Format("mp4", "audio/mp4", "m4a")
WEBM = Format("webm", "audio/webm", "webm")
AIFF = Format("aiff", "audio/aiff", "aiff")

MEDIA_TYPES = {
    "audio/wav": WAV,
    "audio/x-wav": WAV,
    "audio/wave": WAV,
    "audio/vnd.wave": WAV,
    "audio/mpeg": MP3,
    "audio/mp3": MP3,
    "audio/ogg": OGG,
    "application/ogg": OGG,
    "audio/opus": OPUS,
    "audio/flac": FLAC,
    "audio/x-flac": FLAC,
    "audio/aac": AAC,
    "audio/aacp": AAC,
    "audio/acc": AAC,
    "audio/mp4": MP4,
    "audio/m4a": MP4,
    "audio/x-m4a": MP4,
    "audio/webm": WEBM,
    "audio/aiff": AIFF,
    "audio/x-aiff": AIFF,
}
"""Media types in lower case. `audio/mp3` and `audio/acc` are misspellings that are in use: Deepgram's API description
of 2025 has the latter."""

BY_NAME = {form.name: form for form in (WAV, MP3, OGG, FLAC, AAC, MP4, WEBM, AIFF)}


@dataclass(frozen=True, slots=True)
class RawCodec:
    """Samples without a container: the bytes tell neither the codec nor the rate."""

    codec: str
    media_type: str
    bytes_per_sample: int


RAW_CODECS = {
    "linear16": RawCodec("linear16", "audio/l16", 2),
    "mulaw": RawCodec("mulaw", "audio/mulaw", 1),
    "alaw": RawCodec("alaw", "audio/alaw", 1),
}
"""By the names Deepgram gives them (https://developers.deepgram.com/docs/tts-media-output-settings)."""

RAW_MEDIA_TYPES = {
    "audio/l16": "linear16",
    "audio/pcm": "linear16",
    "audio/mulaw": "mulaw",
    "audio/x-mulaw": "mulaw",
    "audio/pcmu": "mulaw",
    "audio/basic": "mulaw",
    "audio/alaw": "alaw",
    "audio/x-alaw": "alaw",
    "audio/pcma": "alaw",
}


def sniff(prefix: bytes) -> Format | None:
    """Return the format that the first bytes (4096 are plenty) show by their magic, None when they show none."""
    tag, kind = prefix[:4], prefix[8:12]
    if tag in (b"RIFF", b"RF64", b"BW64"):
        return WAV if kind == b"WAVE" else None
    if tag == b"OggS":
        return OPUS if b"OpusHead" in prefix[:256] else VORBIS if b"\x01vorbis" in prefix[:256] else OGG
    if tag == b"fLaC":
        return FLAC
    if tag == b"FORM":
        return AIFF if kind in (b"AIFF", b"AIFC") else None
    if tag == b"\x1a\x45\xdf\xa3":
        return WEBM if b"webm" in prefix[:64] else None
    if prefix[4:8] == b"ftyp":
        return MP4
    if tag[:3] == b"ID3":
        return MP3 if _is_id3(prefix) else None
    return _frames(prefix)


def _is_id3(prefix: bytes) -> bool:
    return len(prefix) >= 10 and max(prefix[3:5]) < 0xFF and max(prefix[6:10]) < 0x80


def _frames(prefix: bytes) -> Format | None:
    """Recognize MPEG or ADTS frames: the first header, and the second one where the prefix reaches it."""
    for form, length_of, mask in (
        (MP3, mpeg_frame_length, b"\xff\xfe\x0c"),
        (AAC, adts_frame_length, b"\xff\xf0\xfc"),
    ):
        length = length_of(prefix)
        if length is None:
            continue
        following = prefix[length:]
        if len(following) < 7:
            return replace_format(form, certain=False)
        if length_of(following) is None or _masked(following, mask) != _masked(prefix, mask):
            return None
        return form
    return None


def _masked(header: bytes, mask: bytes) -> bytes:
    """Return the bits of a frame header that stay the same in a whole stream."""
    return bytes(byte & bits for byte, bits in zip(header, mask, strict=False))


_MPEG1_RATES = {
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
}
_MPEG2_RATES = {
    1: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    3: (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
}
_MPEG_HERTZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def mpeg_frame_length(header: bytes) -> int | None:
    """Return the length in bytes of the MPEG audio frame that begins here, None when none does (ISO 11172-3, 13818-3)."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    bitrate, hertz, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 0 or bitrate in (0, 15) or hertz == 3 or header[3] & 3 == 2:
        return None
    kbits = (_MPEG1_RATES if version == 3 else _MPEG2_RATES)[layer][bitrate - 1]
    rate = _MPEG_HERTZ[version][hertz]
    if layer == 3:
        return (12_000 * kbits // rate + padding) * 4
    samples = 72_000 if layer == 1 and version != 3 else 144_000
    return samples * kbits // rate + padding


def adts_frame_length(header: bytes) -> int | None:
    """Return the length in bytes of the ADTS frame (AAC) that begins here, None when none does (ISO 13818-7)."""
    if len(header) < 7 or header[0] != 0xFF or header[1] & 0xF6 != 0xF0 or header[2] >> 2 & 15 > 12:
        return None
    length = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    return length if length >= 7 else None


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
    info = _info(mp3.MP3, file)
    return _stated(info, "mp3", estimated=info.bitrate_mode == BitrateMode.UNKNOWN)


def _aac(file: _Bounded, form: Format) -> AudioFacts:
    return _stated(_info(aac.AAC, file), "aac", estimated=True)


def _flac(file: _Bounded, form: Format) -> AudioFacts:
    return _stated(_info(flac.FLAC, file), "flac")


def _ogg(file: _Bounded, form: Format) -> AudioFacts:
    if form.codec == "opus":
        return replace(_stated(_info(OggOpus, file), "opus"), sample_rate_hz=48000)
    if form.codec == "vorbis":
        return _stated(_info(OggVorbis, file), "vorbis")
    return AudioFacts()


def _mp4(file: _Bounded, form: Format) -> AudioFacts:
    info = _info(mp4.MP4, file)
    codec = str(info.codec).partition(".")[0]
    return _stated(info, "aac" if codec == "mp4a" else codec or None)


def _aiff(file: _Bounded, form: Format) -> AudioFacts:
    info = _info(aiff.AIFF, file)
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
