"""MP3, MP2 and AAC (ADTS): parses frame headers, and walks from frame to frame, over damage and tags, to find the duration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

from receiver.system.audio.reading import Found, Source

Stream = tuple[str, int, int | None]
"""What is the same in all frames of a stream: codec, rate, channels."""
Frame = tuple[int, int, Stream]
"""A frame's length in bytes, its header included, its samples of each channel, and its stream."""

_KBITS = {
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
}
"""Of MPEG-1, by the code of the layer, which is 4 less the layer. Nobody sends layer I."""
_LOW_KBITS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
ADTS_HERTZ = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)


def frame_at(data: bytes, place: int = 0) -> Frame | None:
    """Read the header of the frame that begins at a place in the bytes; None when none does."""
    frame = _frame(data[place : place + 4])
    if frame is None or frame[2][0] != "aac":
        return frame
    rest = int.from_bytes(data[place + 4 : place + 7], "big")
    size = frame[0] + (rest >> 13)
    return (size, 1024 * ((rest & 3) + 1), frame[2]) if size >= 7 and place + 7 <= len(data) else None


@lru_cache(maxsize=1024)
def _frame(head: bytes) -> Frame | None:
    """Read the first four bytes of a header: MPEG audio (ISO 11172-3, 13818-3), or ADTS (13818-7).

    Frames of a free bit rate state no size: they are none.
    """
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    bits = int.from_bytes(head, "big")
    version, layer = bits >> 19 & 3, bits >> 17 & 3
    if layer == 0:
        hertz = bits >> 10 & 15
        if version < 2 or hertz > 12:
            return None
        return (bits & 3) << 11, 1024, ("aac", ADTS_HERTZ[hertz], aac_channels(bits >> 6 & 7))
    code, hertz, padding = bits >> 12 & 15, bits >> 10 & 3, bits >> 9 & 1
    if version == 1 or layer == 3 or code in (0, 15) or hertz == 3 or bits & 3 == 2:
        return None
    kbits = (_KBITS[layer] if version == 3 else _LOW_KBITS)[code - 1]
    rate = (44100, 48000, 32000)[hertz] >> {3: 0, 2: 1, 0: 2}[version]
    samples, channels = 576 if layer == 1 and version != 3 else 1152, 1 if bits >> 6 & 3 == 3 else 2
    return samples * 125 * kbits // rate + padding, samples, (f"mp{4 - layer}", rate, channels)


def aac_channels(configuration: int) -> int | None:
    """Return the channels of an MPEG-4 channel configuration, None where the stream itself tells them."""
    return {7: 8, 11: 7, 12: 8, 14: 8}.get(configuration, configuration) or None


_SYNC = re.compile(rb"\xff[\xe2-\xff]")
_FEW_PLACES = 256  # that may look like a header before a search gives up: quiet raw samples have very many


def id3_size(head: bytes) -> int:
    """Return the length in bytes of the ID3v2 tag that begins here, 0 when none does."""
    if head[:3] != b"ID3" or len(head) < 10 or max(head[3:5]) == 0xFF or max(head[6:10]) >= 0x80:
        return 0
    return (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) + (20 if head[5] & 0x10 else 10)


def find_frames(data: bytes, places: int = _FEW_PLACES) -> tuple[int, Stream, int] | None:
    """Return where frames begin, their stream, and how many follow each other there (at most 3); None for nowhere.

    Three must follow each other where they do not begin at once, or two up to the end.
    """
    for sync in islice(_SYNC.finditer(data), places):
        place = end = sync.start()
        first = frame = frame_at(data, place)
        count = 0
        while first and frame and frame[2] == first[2] and count < 3:
            end, count = end + frame[0], count + 1
            frame = frame_at(data, end)
        if first and count >= (2 if place == 0 else 3) - (end + 7 > len(data)):
            return place, first[2], count
    return None


_WINDOW = 256 * 1024
_MANY_PASSED = 8192  # bytes passed over that may have been frames, rather than tags or a part of one
_UNSURE_FRAMES = {"mp3": 3, "mp2": 3, "aac": 6}  # in which decoders differ after an interruption
_INFO = re.compile(rb".{,40}?(?:VBRI|(?:Xing|Info)(?:\0\0\0\x0f(.{4}).{108}L.{20}(.{3}))?)", re.DOTALL)
"""The frame in which an encoder tells of the others: their number, and the samples of padding before and after them."""
_DECODER_DELAY = 529  # samples by which an MP3 decoder is late, which an encoder's padding does not count


def _runs(source: Source, place: int) -> Iterator[tuple[int, int, int, float, Stream | None]]:
    """Yield each run of frames: the bytes passed over before it, its place, frames, seconds, stream. The last has no frames."""
    lost, stream = 0, None
    while data := source.at(place, _WINDOW):
        at = count = samples = 0
        mpeg = stream is not None and stream[0] != "aac"
        while (frame := _frame(data[at : at + 4]) if mpeg else frame_at(data, at)) and frame[2] == stream:
            at += frame[0]
            samples += frame[1]
            count += 1
        if count and stream:
            yield lost, place, count, samples / stream[1], stream
            lost = 0
        else:
            at = len(data) if len(data) < _WINDOW else _WINDOW - 8192
            if new := find_frames(data, _WINDOW):
                at, stream = new[:2]
            lost += at
        place += at
    yield lost, place, 0, 0.0, stream


def frames(source: Source, start: int, found: Found) -> None:
    """Count the frames from `start` to the end, without the samples that an MP3's encoder notes as padding."""
    first: Stream | None = None
    each = seconds = damage = 0.0
    count = passed = 0
    for lost, place, number, lasting, stream in _runs(source, start):
        if first is None:
            first, each, head = stream, lasting / max(1, number), source.at(place, 200)
        elif lost and number:
            damage += _UNSURE_FRAMES[first[0]] * each
        passed += lost
        count, seconds = count + number, seconds + lasting
    size = source.size - start
    if first is None or count < 2 or passed > size // 2:
        return
    found.codec, found.rate, found.channels = first
    if passed > _MANY_PASSED:
        damage += seconds * passed / (size - passed)
    if place > source.size:  # the last one is cut
        count, seconds, damage = count - 1, seconds - each, damage + each
    if info := _INFO.match(head, 4):
        count, seconds = count - 1, seconds - each
        if info[2]:
            stated, padding = int.from_bytes(info[1], "big"), int.from_bytes(info[2], "big")
            after = max(0, (padding & 0xFFF) - _DECODER_DELAY) if stated == count else 0
            seconds -= ((padding >> 12) + _DECODER_DELAY + after) / first[1]
            damage += 0.0 if stated == count else each  # joined, or cut
    found.length(seconds, f"counted: {count} frames", damage=damage)
