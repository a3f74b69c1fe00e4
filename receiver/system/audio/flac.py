"""FLAC: the frames that follow each other by their numbers, all of them whole by their checksums."""

from __future__ import annotations

import re
import struct

from receiver.core.event import AudioFacts
from receiver.system.audio.reading import Source, note_length

_SYNC = re.compile(rb"(?s)\xff\xf8([\x10-\xff])(.)")  # a numbered frame; hardly any encoder numbers samples
_SAMPLES = (0, 192, 576, 1152, 2304, 4608, 0, 0, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Of a frame, by the code in its header; for 6 and 7 the header has them behind its number (RFC 9639, section 9.1)."""
_PERIOD = 32_767  # the exponents n and n + _PERIOD mean the same when x¹⁵ + x + 1 divides


def flac(source: Source, place: int, found: AudioFacts) -> None:
    """Take rate and channels from the head, and count the frames behind it. One damaged byte leaves no length."""
    magic, packed = struct.unpack(">4s14xQ", source.at(place, 26))
    if magic != b"fLaC":
        return
    rate, stated = packed >> 44, packed & (1 << 36) - 1
    found.codec, found.sample_rate_hz, found.channels = "flac", rate, (packed >> 41 & 7) + 1
    place, last = place + 4, False
    while not last and len(block := source.at(place, 4)) == 4:  # metadata
        place, last = place + 4 + int.from_bytes(block[1:]), block[0] >= 0x80
    count = samples = bits = begin = 0
    kind = 0, 0
    while data := source.at(place, _PERIOD + 16):
        for sync in _SYNC.finditer(data, 0, _PERIOD + 3):
            here = sync[1][0] & 15, sync[2][0] & 15  # rate and bits, the same in all frames
            number = chr(count).encode("utf-8", "surrogatepass")  # so a frame's header states it
            if data.startswith(number, sync.end()) and (here == kind or not count):
                code, behind = sync[1][0] >> 4, sync.end() + len(number)
                samples += _SAMPLES[code] or int.from_bytes(data[behind : behind + code - 5]) + 1
                count, kind, begin = count + 1, here, place + sync.start()
        piece = data[:_PERIOD]
        bits = (bits if len(piece) == _PERIOD else bits << 8 * len(piece)) ^ int.from_bytes(piece)
        place += _PERIOD
    damage = abs(stated - samples) / rate if stated else 0.0
    if samples and _is_whole(bits) and _is_whole(int.from_bytes(source.at(begin, source.size))):
        note_length(found, samples / rate, f"counted: {count} frames", damage=damage)


def _is_whole(bits: int) -> bool:
    """Tell whether x¹⁵ + x + 1 divides the bits as a polynomial over GF(2).

    It is a factor of the polynomial of FLAC's checksums, which divides each whole frame, so also all together. p(x)² is p(x²)
    here: a few shifts of all the bits halve their number.
    """
    scale = 1 << (bits.bit_length() // 15).bit_length()
    while scale:
        while high := bits >> 15 * scale:
            bits ^= high << 15 * scale ^ high << scale ^ high
        scale >>= 1
    return not bits
