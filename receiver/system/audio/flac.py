"""FLAC: what its head states, proved by its last frames and by the numbers of all frames."""

from __future__ import annotations

import re
from functools import cache

from receiver.system.audio.reading import FAR, Found, Source

_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_PIECE = 1024 * 1024
_LONGEST_HEAD = 16
"""Bytes of a frame's header, checksum included, at most."""
_MOST_TAIL = 512 * 1024
_MOST_FRAMES = 8
"""Places that may be the last frame, before the stated length is told as an estimate."""


def flac(source: Source, place: int, found: Found) -> None:
    """Read the head, then the last frame: its number tells where the sound ends, its checksum whether it is whole."""
    head = source.at(place, 42)
    packed = int.from_bytes(head[18:26], "big")
    rate, total = packed >> 44, packed & 0xFFFFFFFFF
    found.codec, found.rate, found.channels = "flac", rate or None, (packed >> 41 & 7) + 1
    block, most = int.from_bytes(head[8:10], "big"), int.from_bytes(head[15:18], "big")
    if not rate or len(head) < 42:
        return
    raw = int.from_bytes(head[10:12], "big") * found.channels * ((packed >> 36 & 31) + 1) // 8 + 1024
    begin = max(place + 42, source.size - min(_MOST_TAIL, 2 * (most or raw) + 1024))
    tail = source.at(begin, _MOST_TAIL)
    end = _end(tail, block)
    if end is not None:
        cut, how = block if end[1] else 0, "the number and checksum of the last whole frame"
        found.length(end[0] / rate, how, doubt=end[0] / rate)  # until its frames are known to be there
        missing = _missing(source, place + 42, block, end[0])
        doubt = (
            missing + 2 * block if missing else cut
        ) / rate  # the frames before and behind a hole may be cut
        found.length((end[0] - missing) / rate, how, doubt=doubt)
        if missing and doubt > FAR * end[0] / rate:
            found.seconds = None
    elif total:
        found.length(total / rate, "stated by the head; no frame confirms it", doubt=total)


def _end(tail: bytes, block: int) -> tuple[int, bool] | None:
    """Return the sample at which the last whole frame ends, and whether a cut one follows; None when none is found."""
    ends = [len(tail)]
    for start in reversed([found.start() for found in _SYNC.finditer(tail)]):
        if (frame := _frame(tail, start, block)) is None:
            continue
        crc, place = 0, start
        for end in reversed(ends):
            crc, place = _crc(tail[place:end], 16, 0x8005, crc), end
            if crc == 0:
                return frame[0] + frame[1], end != len(tail)
        ends.append(start)
        if len(ends) > _MOST_FRAMES:
            break
    return None


def _missing(source: Source, place: int, block: int, end: int) -> int:
    """Return how many of the samples up to `end` no frame holds, by the numbers of the frames from `place` on."""
    missing = due = jumped_to = 0
    after_jump = -1
    while piece := source.at(place, _PIECE):
        for match in _SYNC.finditer(piece, 0, _PIECE - _LONGEST_HEAD):
            if (frame := _frame(piece, match.start(), block)) is None:
                continue
            first, samples = frame
            if first == after_jump:  # two in a row: the first was no chance in the midst of a frame
                missing += max(0, jumped_to - due)
                due = first
            if first == due:
                due, after_jump = first + samples, -1
            else:
                jumped_to, after_jump = first, first + samples
        place += _PIECE - _LONGEST_HEAD
    return missing + max(0, end - due)


def _frame(data: bytes, place: int, block: int) -> tuple[int, int] | None:
    """Return a frame's first sample and its samples, None when no header with a right checksum is here (RFC 9639)."""
    head = data[place : place + 16]
    if len(head) < 8 or head[3] & 1:
        return None
    number, size = _number(head)
    end = 4 + size
    code, hertz = head[2] >> 4, head[2] & 15
    if not size or not code or hertz == 15:
        return None
    if code in (6, 7):
        samples = int.from_bytes(head[end : end + code - 5], "big") + 1
        end += code - 5
    else:
        samples = 192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8
    end += {12: 1, 13: 2, 14: 2}.get(hertz, 0)
    if end >= len(head) or _crc(head[: end + 1], 8, 0x07):
        return None
    return number if head[1] & 1 else number * (block or samples), samples


def _number(head: bytes) -> tuple[int, int]:
    """Return the number coded like UTF-8 behind the first four bytes, and its length in bytes, 0 for none."""
    lead = head[4]
    size = 1 if lead < 0x80 else 8 - (~lead & 0xFF).bit_length()
    if size > 7 or (size == 1 and lead >= 0x80):
        return 0, 0
    number = lead if size == 1 else lead & (0x7F >> size)
    for byte in head[5 : 4 + size]:
        number = number << 6 | byte & 63
    return number, size


@cache
def _table(bits: int, polynomial: int) -> tuple[int, ...]:
    table, top, mask = list(range(256)), 1 << bits - 1, (1 << bits) - 1
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = (value << 1 ^ polynomial if value & top else value << 1) & mask
        table[byte] = value
    return tuple(table)


def _crc(data: bytes, bits: int, polynomial: int, crc: int = 0) -> int:
    """Return the checksum of `data`, with `crc` that of what stands before it."""
    table, mask, shift = _table(bits, polynomial), (1 << bits) - 1, bits - 8
    for byte in data:
        crc = (crc << 8 & mask) ^ table[crc >> shift ^ byte]
    return crc
