"""Ogg pages: Opus, Vorbis and FLAC, also when several streams are chained, begin late, or are cut short."""

from __future__ import annotations

import struct
from typing import NamedTuple

from receiver.system.audio.reading import UNKNOWN, Found, Source

_OPUS_SAMPLES = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4


class _Stream(NamedTuple):
    """One logical stream, of those that are chained."""

    codec: str
    rate: int
    channels: int
    skip: int  # samples at the beginning that are not played
    most: int  # samples of a packet at most; 0 for Opus, whose packets tell
    serial: bytes


def ogg(source: Source, place: int, found: Found) -> None:
    """Add up the positions from page to page, to the last that is whole. Where one is missing or damaged, no length is told."""
    stream: _Stream | None = None
    seconds = doubt = damage = 0.0
    last: int | None = None
    number = 0
    while len(head := source.at(place, 282)) >= 27:
        flags, position, serial, sequence = struct.unpack_from("<xBq4sI", head, 4)
        lacing = head[27 : 27 + head[26]]
        body = place + 27 + len(lacing)
        place = body + sum(lacing)
        if head[:4] != b"OggS":
            damage = UNKNOWN
        if damage or place > source.size:
            break
        if flags & 2 and (stream is None or last) and (new := _stream(source.at(body, 64), serial)):
            doubt += new.most / (new.rate or 1) if stream else 0.0  # decoders play a packet more, or none
            stream, last = new, None
            found.codec, found.rate, found.channels = new.codec, new.rate or None, new.channels or None
        elif stream and serial == stream.serial:
            damage = 0.0 if sequence == number + 1 else UNKNOWN
            if position > 0:  # it is -1 where no packet ends on a page, and 0 for headers
                if last is None:
                    each = stream.most or opus_samples(source.at(body, 2))
                    last = stream.skip + max(0, position - each * (len(lacing) - lacing.count(255)))
                    damage += UNKNOWN if last and stream.most else 0.0
                seconds += max(0, position - last) / (stream.rate or 1)
                last = max(last, position)
        if stream and serial == stream.serial:
            number = sequence
    if seconds:
        found.length(seconds, "the positions of the pages", doubt=doubt, damage=damage)


def _stream(head: bytes, serial: bytes) -> _Stream | None:
    """Read a stream's first packet. Positions of Opus count 48,000 a second, whatever was encoded (RFC 7845)."""
    if head[:8] == b"OpusHead":
        return _Stream("opus", 48_000, head[9], int.from_bytes(head[10:12], "little"), 0, serial)
    if head[:7] == b"\x01vorbis":
        channels, rate = struct.unpack_from("<BI", head, 11)
        return _Stream("vorbis", rate, channels, 0, 1 << (head[28] >> 4), serial)
    if head[:5] == b"\x7fFLAC":
        block, packed = struct.unpack_from(">H6xQ", head, 19)
        return _Stream("flac", packed >> 44, (packed >> 41 & 7) + 1, 0, block, serial)
    return None


def opus_samples(packet: bytes) -> int:
    """Return the samples of an Opus packet at 48,000 Hz, by its first two bytes (RFC 6716, section 3.1)."""
    if not packet:
        return 0
    frames = packet[1] & 63 if packet[0] & 3 == 3 and len(packet) > 1 else (1, 2, 2, 1)[packet[0] & 3]
    return _OPUS_SAMPLES[packet[0] >> 3] * frames
