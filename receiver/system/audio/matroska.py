"""Matroska and WebM: the elements of the first track of sound, also of a live stream that states no sizes."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from receiver.system.audio.ogg import opus_samples
from receiver.system.audio.reading import LOSSLESS, Found, Source

_CODECS = {b"A_OPUS": "opus", b"A_VORBIS": "vorbis", b"A_FLAC": "flac", b"A_AC3": "ac3", b"A_EAC3": "eac3"}
_CODECS |= {b"A_MPEG/L3": "mp3", b"A_MPEG/L2": "mp2", b"A_ALAC": "alac", b"A_PCM/FLOAT/IEEE": "float"}
_TRACK, _CLUSTER, _BLOCKS = 0xAE, 0x1F43B675, (0xA3, 0xA1)
_OPENED = {0x18538067, 0x1549A966, 0x1654AE6B, _TRACK, 0xE1, _CLUSTER, 0xA0}
"""Segment, Info, Tracks, TrackEntry, Audio, Cluster, BlockGroup: they are entered, others are passed over."""
_SCALE, _DURATION, _TIME, _BLOCK_DURATION, _DISCARDED = 0x2AD7B1, 0x4489, 0xE7, 0x9B, 0x75A2
_NUMBER, _TYPE, _CODEC, _DELAY, _BITS, _CHANNELS, _HERTZ, _PLAYED_HERTZ = (
    *(0xD7, 0x83, 0x86, 0x56AA, 0x6264, 0x9F, 0xB5, 0x78B5),
)
_OF_A_TRACK = {_NUMBER, _TYPE, _CODEC, _DELAY, _BITS, _CHANNELS, _HERTZ, _PLAYED_HERTZ}
_KEPT = _OF_A_TRACK | {_SCALE, _DURATION, _TIME}
_IN_CLUSTERS = {*_BLOCKS, _TIME, _BLOCK_DURATION, _DISCARDED, 0xA7, 0xAB, 0xFB, 0x75A1, 0xEC, 0xBF}
_IN_CLUSTERS |= {0x1C53BB6B, 0x1254C367, 0x114D9B74, 0x1941A469, 0x1043A770, *_OPENED}
"""What may stand within and behind clusters; anything else is damage, after which nothing is certain."""
_AFTER = {_BLOCK_DURATION, _DISCARDED}
"""What stands behind a block, in its group."""


@dataclass(slots=True)
class _Seen:
    """What the elements said, and the blocks of sound so far. Times are in units of the file."""

    values: dict[int, bytes] = field(default_factory=dict)
    track: int = 0
    """The number of the track of sound, 0 until it is found."""
    first: int | None = None
    last: int = 0
    frames: int = 1
    """Frames in the last block."""
    gap: float = 0.0
    """Between two frames."""
    packet: bytes = b""
    """The beginning of what the last block holds."""
    after: dict[int, bytes] = field(default_factory=dict)
    """What was said behind the last block."""

    def number(self, element: int) -> int:
        return int.from_bytes(self.values.get(element, b""), "big")

    def real(self, element: int) -> float:
        data = self.values.get(element, b"")
        value = struct.unpack(">f" if len(data) == 4 else ">d", data)[0] if len(data) in (4, 8) else 0.0
        return float(value) if 0 < value < 1e15 else 0.0


def matroska(source: Source, place: int, found: Found) -> None:
    """Walk the elements to the last whole block. When time runs out, the stated length is left as an estimate."""
    seen, there, cut = _Seen(), 0.0, False
    while len(head := source.at(place, 28)) >= 2:
        width = 9 - head[0].bit_length()
        size_width = 9 - head[width].bit_length() if width < 5 else 9
        element = int.from_bytes(head[:width], "big")
        if size_width > 8 or (seen.first is not None and element not in _IN_CLUSTERS):
            found.seconds = None
            return
        size = int.from_bytes(head[width : width + size_width], "big") & (1 << 7 * size_width) - 1
        place += width + size_width
        if element in _OPENED:
            if element in (_TRACK, _CLUSTER):
                _settle(seen, found)
            continue
        if place + size > source.size:
            cut, there = True, (source.size - place) / size if element in _BLOCKS else 0.0
            break
        if element in _BLOCKS:
            _block(head[width + size_width :], seen)
        elif element in _KEPT and size <= 64:
            seen.values[element] = source.at(place, size)
        elif element in _AFTER and size <= 8:
            seen.after[element] = source.at(place, size)
        place += size
    _settle(seen, found)
    found.seconds = None  # what is stated of blocks that are not there does not count
    if seen.first is not None:
        _tell(seen, found, there, cut=cut)


def _settle(seen: _Seen, found: Found) -> None:
    """Take the track that was read, when it is the first one of sound; and note the stated length for want of a better."""
    if not seen.track and seen.number(_TYPE) == 2:
        seen.track, name = seen.number(_NUMBER), seen.values.get(_CODEC, b"").rstrip(b"\0")
        linear = f"linear{seen.number(_BITS)}" if name.startswith(b"A_PCM/INT") else None
        found.codec = linear or ("aac" if name.startswith(b"A_AAC") else _CODECS.get(name))
        hertz = int(seen.real(_PLAYED_HERTZ) or seen.real(_HERTZ)) or 8000
        found.rate, found.channels = 48_000 if found.codec == "opus" else hertz, seen.number(_CHANNELS) or 1
    if not seen.track:
        for element in _OF_A_TRACK:
            seen.values.pop(element, None)
    elif seen.real(_DURATION) and found.seconds is None:
        found.length(
            seen.real(_DURATION) * (seen.number(_SCALE) or 1_000_000) / 1e9,
            "stated; not all was read",
            doubt=1e9,
        )


def _block(head: bytes, seen: _Seen) -> None:
    width = 9 - head[0].bit_length()
    if len(head) < width + 4 or int.from_bytes(head[:width], "big") & (1 << 7 * width) - 1 != seen.track:
        return
    at = seen.number(_TIME) + int.from_bytes(head[width : width + 2], "big", signed=True)
    if seen.first is None:
        seen.first = at
    else:
        seen.gap = (at - seen.last) / seen.frames
    seen.last, seen.frames = at, head[width + 3] + 1 if head[width + 2] & 6 else 1
    seen.packet = head[width + 3 : width + 5]
    seen.after.clear()


def _tell(seen: _Seen, found: Found, there: float, *, cut: bool) -> None:
    unit = (seen.number(_SCALE) or 1_000_000) / 1e9
    own = opus_samples(seen.packet) / 48_000 if found.codec == "opus" and seen.frames == 1 else 0.0
    last = (
        int.from_bytes(seen.after.get(_BLOCK_DURATION, b""), "big") * unit
        or own
        or seen.gap * seen.frames * unit
    )
    unplayed = seen.number(_DELAY) + max(
        0, int.from_bytes(seen.after.get(_DISCARDED, b""), "big", signed=True)
    )
    seconds = (seen.last - (seen.first or 0)) * unit + last * (1 + there) - unplayed / 1e9
    stated = max(0.0, seen.real(_DURATION) * unit - seen.number(_DELAY) / 1e9)
    doubt = last if cut or not own else 0.0
    if stated and not cut:
        # The last block of a codec without padding is shorter than those before; a lone block does not tell its length.
        if not last or (abs(stated - seconds) <= doubt and (found.codec or "").startswith(LOSSLESS)):
            seconds = stated
        doubt = abs(stated - seconds) if last else stated
    if seconds:
        found.length(seconds, "the times of the blocks", doubt=doubt)
