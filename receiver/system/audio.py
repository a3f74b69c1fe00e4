"""Audio formats by their magic bytes and media types, and what a file says of itself: length, rate, channels, codec."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import replace as replace_format
from typing import BinaryIO, cast

from msgspec.structs import replace

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


# ---------------------------------------------------------------- facts

_PREFIX = 4096
_TAIL = 65_536
"""Enough for the last page of an Ogg file: none is longer."""
_MAX_READ = 16 * 1024 * 1024
"""Bytes that finding out may read; a long file's header and last page are far below."""
_MAX_CALLS = 20_000
_MAX_CHUNKS = 64
_LONGEST = 7 * 86400.0
"""A stated length past a week is damage."""


class _Spent(Exception):
    """The deadline is over, or the bytes are used up."""


class _Bounded:
    """A file that raises `_Spent` past a deadline or a number of bytes and calls."""

    def __init__(self, file: BinaryIO, deadline: float) -> None:
        self._file, self._deadline = file, deadline
        self._left, self._calls = _MAX_READ, _MAX_CALLS
        self.size = file.seek(0, os.SEEK_END)
        self.tell = file.tell
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            size = max(0, self.size - self.tell())
        self._left -= min(size, self.size)
        self._calls -= 1
        if self._left < 0 or self._calls < 0 or time.monotonic() > self._deadline:
            raise _Spent
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._calls -= 1
        if self._calls < 0:
            raise _Spent
        return self._file.seek(offset, whence)


def facts(audio: str | bytes, draft: AudioDraft, *, deadline_seconds: float = 1.0) -> AudioFacts:
    """Return the audio's length, rate, channels and codec, from a file's path or from its bytes.

    `draft` has the rate and codec of raw samples. A length is `duration_estimated` unless the container states it. Reads for
    `deadline_seconds` at most and never raises: a fact that cannot be read is None. Blocks; meant for a thread.
    """
    known = AudioFacts(sample_rate_hz=draft.sample_rate_hz, channels=draft.channels, codec=draft.codec)
    deadline = time.monotonic() + deadline_seconds
    try:
        with io.BytesIO(audio) if isinstance(audio, bytes) else open(audio, "rb") as file:
            read = _read(_Bounded(file, deadline), draft, known)
    except Exception:  # damage raises tinytag's errors, struct's, and any other
        return known
    duration = read.duration_seconds
    if duration is not None and not 0 <= duration <= _LONGEST:
        read = replace(read, duration_seconds=None, duration_estimated=False)
    return read


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
    read = _READERS[form.name](file, form)
    return replace(
        read,
        sample_rate_hz=read.sample_rate_hz or known.sample_rate_hz,
        channels=read.channels or known.channels,
        codec=read.codec or known.codec,
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
    """Yield name, stated size and start of each chunk, with the file at the chunk's start; RF64's sizes come from `ds64`."""
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


# ---------------------------------------------------------------- Ogg and AAC


def _ogg(file: _Bounded, form: Format) -> AudioFacts:
    """Read the first page's codec header, and the last page's position, which is the number of samples."""
    first = file.read(_PREFIX)
    start = 27 + first[26]
    head, serial = first[start:], first[14:18]
    if form.codec == "opus":
        # Positions count 48,000 a second, whatever was encoded; the first `skip` samples are not played (RFC 7845).
        rate, channels, skip = 48_000, head[9], int.from_bytes(head[10:12], "little")
    elif form.codec == "vorbis":
        rate, channels, skip = int.from_bytes(head[12:16], "little"), head[11], 0
    else:
        return AudioFacts()
    samples = _last_position(file, serial)
    known = AudioFacts(sample_rate_hz=rate or None, channels=channels or None, codec=form.codec)
    return replace(known, duration_seconds=max(0, samples - skip) / rate) if samples and rate else known


def _last_position(file: _Bounded, serial: bytes) -> int | None:
    """Return the position of the last page of a stream that completes a packet, None when the file's end has none."""
    file.seek(max(0, file.size - _TAIL))
    tail = file.read(_TAIL)
    place = tail.rfind(b"OggS")
    while place >= 0:
        position = int.from_bytes(tail[place + 6 : place + 14], "little", signed=True)
        # -1 is the position of a page in which no packet ends.
        if tail[place + 14 : place + 18] == serial and position >= 0:
            return position
        place = tail.rfind(b"OggS", 0, place)
    return None


_ADTS_HERTZ = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)


def _aac(file: _Bounded, form: Format) -> AudioFacts:
    """Estimate the length from the mean length of the first frames, each of 1,024 samples."""
    head = file.read(_TAIL)
    place = frames = 0
    while (length := adts_frame_length(head[place : place + 7])) is not None:
        place, frames = place + length, frames + 1
    if not frames:
        return AudioFacts()
    rate, channels = _ADTS_HERTZ[head[2] >> 2 & 15], (head[2] & 1) << 2 | head[3] >> 6
    return AudioFacts(
        duration_seconds=frames * file.size / place * 1024 / rate,
        duration_estimated=True,
        sample_rate_hz=rate,
        channels={7: 8}.get(channels, channels) or None,
        codec="aac",
    )


# ---------------------------------------------------------------- MP3, FLAC, MP4 and AIFF, by tinytag

_CODECS = {
    "mp4a.40": "aac",
    "mp4a.66": "aac",
    "mp4a.67": "aac",
    "mp4a.68": "aac",
    "mp4a.69": "mp3",
    "mp4a.6B": "mp3",
    "alac": "alac",
    "ulaw": "mulaw",
    "ULAW": "mulaw",
    "alaw": "alaw",
    "ALAW": "alaw",
}
_LINEAR = {"NONE", "sowt", "twos", "in24", "in32"}


def _tagged(file: _Bounded, form: Format) -> AudioFacts:
    """Return tinytag's answer; a length of nothing means that the header does not know it."""
    # Imported when the first such file comes: the command line starts without it.
    from tinytag import TinyTag

    file.seek(0)
    tag = TinyTag.get(
        f".{form.extension}", file_obj=cast("BinaryIO", file), tags=False, check_magic_bytes=False
    )
    codec = str(tag.mime_type).partition('codecs="')[2].rstrip('"')
    return AudioFacts(
        duration_seconds=tag.duration or None,
        sample_rate_hz=tag.samplerate,
        channels=tag.channels,
        codec=f"linear{tag.bitdepth}" if codec in _LINEAR else form.codec or _CODECS.get(codec[:7]),
    )


def _mp3(file: _Bounded, form: Format) -> AudioFacts:
    """Read the length that the encoder wrote into the first frame, else estimate it from the first frames."""
    head = file.read(10)
    if head[:3] == b"ID3" and len(head) == 10:
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        file.seek(10 + size)
        head = file.read(_PREFIX)
        if head[:4] == b"fLaC":
            return _tagged(file, FLAC)
    else:
        head += file.read(_PREFIX)
    start = next((place for place in range(len(head)) if _frames(head[place:]) == MP3), None)
    if start is None:
        # tinytag takes any header for a frame, which other formats' bytes may look like.
        return AudioFacts()
    read, frame = _tagged(file, form), head[start:]
    stated = [place for name in (b"Xing", b"Info", b"VBRI") if (place := frame.find(name, 4, 50)) > 0]
    if not stated:
        return replace(read, duration_estimated=read.duration_seconds is not None)
    if read.duration_seconds and read.sample_rate_hz:
        return replace(
            read, duration_seconds=read.duration_seconds - _padding(frame[stated[0] :]) / read.sample_rate_hz
        )
    return read


def _padding(header: bytes) -> int:
    """Return how many samples before and after the sound LAME notes behind its `Xing` or `Info` header."""
    flags = int.from_bytes(header[4:8], "big")
    lame = header[8 + sum(size for bit, size in ((1, 4), (2, 4), (4, 100), (8, 4)) if flags & bit) :]
    if header[:4] == b"VBRI" or lame[:4] != b"LAME" or len(lame) < 24:
        return 0
    both = int.from_bytes(lame[21:24], "big")
    return (both >> 12) + (both & 0xFFF)


_READERS: dict[str, Callable[[_Bounded, Format], AudioFacts]] = {
    "wav": _wav,
    "mp3": _mp3,
    "aac": _aac,
    "flac": _tagged,
    "ogg": _ogg,
    "mp4": _tagged,
    "aiff": _tagged,
}
