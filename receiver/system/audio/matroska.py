"""Matroska and WebM: the elements of the first track of sound, also of a live stream that states no sizes."""

from __future__ import annotations

import struct
from collections import defaultdict

from receiver.core.event import AudioFacts
from receiver.system.audio.ogg import opus_samples
from receiver.system.audio.reading import UNKNOWN, Head, Source, chunks, note_length

_CODECS = {b"A_OPUS": "opus", b"A_VORBIS": "vorbis", b"A_AAC": "aac", b"A_FLAC": "flac", b"A_ALAC": "alac"}
_CODECS |= {b"A_AC3": "ac3", b"A_EAC3": "eac3", b"A_MPEG/L3": "mp3", b"A_MPEG/L2": "mp2"}


def _ids(elements: str) -> dict[bytes, str]:
    """Return elements' names by their ids, which stand before them in hexadecimal (RFC 9559); some need no name."""
    return {bytes.fromhex(element.split(":")[0]): element.split(":")[-1] for element in elements.split()}


_ENTERED = _ids("18538067:segment 1549a966:info 1654ae6b:tracks ae:track e1:audio 1f43b675:cluster a0:group")
_NAMES = _ENTERED | _ids(
    "2ad7b1:scale d7:number 83:type 86:codec 56aa:delay 9f:channels b5:hertz 78b5:played"
)
_NAMES |= _ids("e7:time a3:block a1:block 75a2:discarded 9b a7 ab fb 75a1 ec bf")
_NAMES |= _ids("1c53bb6b 1254c367 114d9b74 1941a469 1043a770")
"""What may stand within and behind clusters; anything else is damage, after which nothing is certain."""


def _head(data: bytes) -> Head:
    width = 9 - data[0].bit_length()
    size_width = 9 - data[width].bit_length()
    return data[:width], width + size_width, _coded(data[width:], size_width)


def _coded(data: bytes, width: int) -> int:
    """Return the number that the first `width` bytes are; their first bits tell the width."""
    return int.from_bytes(data[:width]) & (1 << 7 * width) - 1


def matroska(source: Source, place: int, found: AudioFacts) -> None:
    """Walk the elements to the last block. No length is told where one is cut or damaged."""
    said: dict[str, bytes] = defaultdict(bytes)
    track = delay = last = gap = 0
    first, packet = None, b""
    for name, start, end in chunks(source, place, _head, into=_ENTERED):
        if _ENTERED.get(name) in ("track", "cluster") and not track and said["type"] == b"\2":  # sound
            track, delay = int.from_bytes(said["number"]), int.from_bytes(said["delay"])
            _describe(said, found)
        if (end > source.size and name not in _ENTERED) or (first is not None and name not in _NAMES):
            return
        if _NAMES.get(name) == "block":
            head = source.at(start, 16)
            width = 9 - head[0].bit_length()
            if _coded(head, width) == track:
                at = int.from_bytes(said["time"]) + int.from_bytes(head[width : width + 2], signed=True)
                first, gap, last = (at, 0, at) if first is None else (first, at - last, at)
                packet = b"" if head[width + 2] & 6 else head[width + 3 : width + 5]  # one frame, or several
        elif name in _NAMES:
            said[_NAMES[name]] = source.at(start, min(end - start, 64))
    if first is not None:
        unit = (int.from_bytes(said["scale"]) or 1_000_000) / 1e9
        own = opus_samples(packet) / 48_000 if packet and found.codec == "opus" else 0.0
        unplayed = (delay + max(0, int.from_bytes(said["discarded"], signed=True))) / 1e9
        seconds = (last - first) * unit + (own or gap * unit) - unplayed
        note_length(found, seconds, "the times of the blocks", damage=0.0 if own else gap * unit or UNKNOWN)


def _describe(said: dict[str, bytes], found: AudioFacts) -> None:
    """Note what is said of the track; numbers that are not there have their defaults."""
    kind, hertz = said["codec"].rstrip(b"\0"), said["played"] or said["hertz"] or struct.pack(">f", 8000)
    found.codec = _CODECS.get(kind) or _CODECS.get(kind[:5])  # A_AAC goes on with its profile
    rate = struct.unpack(">f" if len(hertz) == 4 else ">d", hertz)[0]
    found.sample_rate_hz = 48_000 if found.codec == "opus" else int(rate) if 0 < rate < 1e6 else None
    found.channels = int.from_bytes(said["channels"]) or 1
