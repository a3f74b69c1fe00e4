"""Ogg pages: Opus, Vorbis and FLAC, also when several streams are chained, begin late, or are cut short."""

from __future__ import annotations

import struct

from receiver.core.event import AudioFacts
from receiver.system.audio.reading import UNKNOWN, Source, note_length

_OPUS_SAMPLES = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4


def ogg(source: Source, place: int, found: AudioFacts) -> None:
    """Add up the positions from page to page, to the last that is whole. Where one is missing or damaged, no length is told."""
    ours, last = b"", None
    rate = skip = most = number = 0
    seconds = doubt = damage = 0.0
    while not damage and len(head := source.at(place, 282)) >= 27:
        flags, position, serial, sequence = struct.unpack_from("<xBq4sI", head, 4)
        lacing = head[27 : 27 + head[26]]
        body = place + 27 + len(lacing)
        place = body + sum(lacing)
        if head[:4] != b"OggS":
            damage = UNKNOWN
        elif place > source.size:
            break
        elif flags & 2 and (not ours or last) and (stream := _stream(source.at(body, 64))):
            found.codec, rate, found.channels, skip, most = stream
            found.sample_rate_hz = rate
            doubt += most / rate if ours else 0.0  # decoders play a packet more, or none
            ours, last, number = serial, None, sequence
        elif serial == ours:
            damage = 0.0 if sequence == number + 1 else UNKNOWN
            number = sequence
            if position > 0:  # it is -1 where no packet ends on a page, and 0 for headers
                if last is None:
                    each = most or opus_samples(source.at(body, 2))
                    last = skip + max(0, position - each * (len(lacing) - lacing.count(255)))
                    damage += UNKNOWN if last and most else 0.0
                seconds += max(0, position - last) / rate
                last = max(last, position)
    if seconds:
        note_length(found, seconds, "the positions of the pages", doubt=doubt, damage=damage)


def _stream(head: bytes) -> tuple[str, int, int, int, int] | None:
    """Read a stream's first packet: codec, rate, channels, samples at the beginning that are not played, and of a packet.

    The last is 0 for Opus, whose packets tell. Its positions count 48,000 a second, whatever was encoded (RFC 7845).
    """
    if head[:8] == b"OpusHead":
        return "opus", 48_000, head[9], int.from_bytes(head[10:12], "little"), 0
    if head[:7] == b"\x01vorbis":
        channels, rate = struct.unpack_from("<BI", head, 11)
        return "vorbis", rate, channels, 0, 1 << (head[28] >> 4)
    if head[:5] == b"\x7fFLAC":
        block, packed = struct.unpack_from(">H6xQ", head, 19)
        return "flac", packed >> 44, (packed >> 41 & 7) + 1, 0, block
    return None


def opus_samples(packet: bytes) -> int:
    """Return the samples of an Opus packet at 48,000 Hz, by its first two bytes (RFC 6716, section 3.1)."""
    frames = packet[1] & 63 if packet[0] & 3 == 3 else (1, 2, 2)[packet[0] & 3]
    return _OPUS_SAMPLES[packet[0] >> 3] * frames
