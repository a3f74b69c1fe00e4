"""FLAC: the frames whose checksums are right. None states its length; it ends where a next one begins."""

from __future__ import annotations

import re

from receiver.system.audio.reading import Found, Source

_SYNC = re.compile(rb"\xff[\xf8\xf9][\x10-\xff]")
_WINDOW = 65_536


def flac(source: Source, place: int, found: Found) -> None:
    """Take rate and channels from the head, and count the frames behind it that are whole."""
    head = source.at(place + 8, 18)
    packed = int.from_bytes(head[10:], "big")
    rate, stated = packed >> 44, packed & (1 << 36) - 1
    found.codec, found.rate, found.channels = "flac", rate or None, (packed >> 41 & 7) + 1
    place, last = place + 4, False
    while not last and len(block := source.at(place, 4)) == 4:  # metadata
        place, last = place + 4 + int.from_bytes(block[1:], "big"), block[0] >= 0x80
    samples, left = _whole_frames(source, place)
    if samples and rate:
        lost = samples * left / (source.size - place - left)  # what follows the last whole frame may be many
        damage = max(lost, abs(stated - samples) if stated else 0)
        found.length(samples / rate, "counted: the frames that are whole", damage=damage / rate)


def _whole_frames(source: Source, place: int) -> tuple[int, int]:
    """Return the samples of all whole frames from `place` on, and how many bytes follow them."""
    rest = samples = latest = 0
    begin = whole = place
    while data := source.at(place, _WINDOW + 2):
        at = 0
        for sync in _SYNC.finditer(data):
            rest, at = _remainder(rest, data[at : sync.start()]), sync.start()
            if not rest:  # all before is whole frames
                samples, whole = samples + latest, place + at
                latest = _samples(source.at(whole, 16))
        rest = _remainder(rest, data[at:_WINDOW])
        place += _WINDOW
    if not rest:
        return samples + latest, 0
    return samples if whole > begin else 0, source.size - whole


def _samples(head: bytes) -> int:
    """Return how many samples a frame has, by its header (RFC 9639, section 9.1)."""
    code = head[2] >> 4
    if code in (6, 7):
        place = 5 + max(0, 7 - (~head[4] & 0xFF).bit_length())  # behind a number that is coded like UTF-8
        return int.from_bytes(head[place : place + code - 5], "big") + 1
    return 192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8


def _remainder(rest: int, data: bytes) -> int:
    """Return what is left of `rest` and the bits behind it, as a polynomial over GF(2), divided by x¹⁵ + x + 1.

    That is a factor of the polynomial of FLAC's checksums, which divides each whole frame. p(x)² is p(x²) here: a few shifts
    of all the bits halve their number. It takes some 3 ns a byte.
    """
    rest = rest << 8 * len(data) | int.from_bytes(data, "big")
    scale = 1 << (rest.bit_length() // 15).bit_length()
    while scale:
        while high := rest >> 15 * scale:
            rest ^= high << 15 * scale ^ high << scale ^ high
        scale >>= 1
    return rest
