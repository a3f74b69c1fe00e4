"""MP3, MP2 and AAC (ADTS): parses frame headers, and walks from frame to frame, over damage and tags, to find the duration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

from receiver.core.event import AudioFacts
from receiver.system.audio.reading import Source, note_length

Stream = tuple[str, int, int | None]
"""What is the same in all frames of a stream: codec, rate, channels."""
Frame = tuple[int, int, Stream]
"""A frame's length in bytes, its header included, its samples of each channel, and its stream."""

_KBITS = {
    0: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
}
"""Of MPEG-1 by the code of the layer (4 less the layer; nobody sends layer I), and under 0 of MPEG-2 and 2.5."""
ADTS_HERTZ = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
AAC_CHANNELS = (None, 1, 2, 3, 4, 5, 6, 8, None, None, None, 7, 8, None, 8, None)
"""By the MPEG-4 channel configuration; under None the stream itself tells them, or the number means nothing."""


def frame_at(data: bytes, place: int = 0) -> Frame | None:
    """Read the header of the frame that begins at a place in the bytes; None when none does."""
    frame = _frame(data[place : place + 4])
    if frame is None or frame[2][0] != "aac":
        return frame
    rest = int.from_bytes(data[place + 4 : place + 7])
    size = frame[0] + (rest >> 13)
    return (size, 1024 * ((rest & 3) + 1), frame[2]) if size >= 7 else None


@lru_cache(maxsize=1024)
def _frame(head: bytes) -> Frame | None:
    """Read the first four bytes of a header: MPEG audio (ISO 11172-3, 13818-3), or ADTS (13818-7).

    Frames of a free bit rate state no size: they are none.
    """
    bits = int.from_bytes(head)
    if bits >> 21 != 0x7FF:
        return None
    version, layer = bits >> 19 & 3, bits >> 17 & 3
    if layer == 0:
        hertz = bits >> 10 & 15
        if version < 2 or hertz > 12:
            return None
        return (bits & 3) << 11, 1024, ("aac", ADTS_HERTZ[hertz], AAC_CHANNELS[bits >> 6 & 7])
    code, hertz, padding = bits >> 12 & 15, bits >> 10 & 3, bits >> 9 & 1
    if version == 1 or layer == 3 or code in (0, 15) or hertz == 3 or bits & 3 == 2:
        return None
    kbits = _KBITS[layer if version == 3 else 0][code - 1]
    rate = (44100, 48000, 32000)[hertz] >> {3: 0, 2: 1, 0: 2}[version]
    samples, channels = 576 if layer == 1 and version != 3 else 1152, 1 if bits >> 6 & 3 == 3 else 2
    return samples * 125 * kbits // rate + padding, samples, (f"mp{4 - layer}", rate, channels)


_SYNC = re.compile(rb"\xff[\xe2-\xff]")
_FEW_PLACES = 256  # that may look like a header before a search gives up: quiet raw samples have very many


def find_frames(data: bytes, places: int = _FEW_PLACES) -> tuple[int, Stream, bool] | None:
    """Return where frames begin, their stream, and whether that is certain; None for nowhere.

    Three must follow each other where they do not begin at once, or two up to the end. A lone one, and frames behind other
    bytes, may be chance.
    """
    for sync in islice(_SYNC.finditer(data), places):
        place = end = sync.start()
        count, stream = 0, None
        while count < 3 and (frame := frame_at(data, end)) and stream in (None, frame[2]):
            end, count, stream = end + frame[0], count + 1, frame[2]
        if stream and count >= (2 if place == 0 else 3) - (end + 7 > len(data)):
            return place, stream, place == 0 and count > 1
    return None


_WINDOW = 256 * 1024
_MANY_PASSED = 8192  # bytes passed over that may have been frames, rather than tags or a part of one
_INFO = re.compile(rb".{,40}?(?:VBRI|(?:Xing|Info)(?:\0\0\0\x0f(.{4}).{108}L.{20}(.{3}))?)", re.DOTALL)
"""The frame in which an encoder tells of the others: their number, and the samples of padding before and after them."""
_DECODER_DELAY = 529  # samples by which an MP3 decoder is late, which an encoder's padding does not count


def _runs(source: Source, place: int) -> Iterator[tuple[int, int, int, int, Stream]]:
    """Yield each run of frames that follow each other: where it begins and ends, frames, samples, stream."""
    stream: Stream = "", 0, None
    while data := source.at(place, _WINDOW):
        at = count = samples = 0
        adts = stream[0] == "aac"  # only there a frame's length needs more than the first four bytes
        while (frame := frame_at(data, at) if adts else _frame(data[at : at + 4])) and frame[2] == stream:
            at, count, samples = at + frame[0], count + 1, samples + frame[1]
        if count:
            yield place, place + at, count, samples, stream
        elif new := find_frames(data, _WINDOW):
            at, stream = new[:2]
        else:
            at = len(data) if len(data) < _WINDOW else _WINDOW - 8192  # a frame may begin there
        place += at


def frames(source: Source, start: int, found: AudioFacts) -> None:
    """Count the frames from `start` to the end, without the samples that an MP3's encoder notes as padding."""
    first: Stream | None = None
    each = seconds = damage = 0.0
    count = heard = 0
    end = start
    for place, stop, number, samples, stream in _runs(source, start):
        if first is None:
            first, each, head = stream, samples / number / stream[1], source.at(place, 200)
        elif place > end:
            damage += (6 if first[0] == "aac" else 3) * each  # in which decoders differ after an interruption
        count, seconds = count + number, seconds + samples / stream[1]
        heard, end = heard + stop - place, stop
    passed = source.size - start - heard
    if first is None or count < 2 or passed > heard:
        return
    found.codec, found.sample_rate_hz, found.channels = first
    if passed > _MANY_PASSED:
        damage += seconds * passed / heard
    if end > source.size:  # the last one is cut
        count, seconds, damage = count - 1, seconds - each, damage + each
    if info := _INFO.match(head, 4):
        count, seconds = count - 1, seconds - each
        if info[2]:
            stated, padding = int.from_bytes(info[1]), int.from_bytes(info[2])
            after = max(0, (padding & 0xFFF) - _DECODER_DELAY) if stated == count else 0
            seconds -= ((padding >> 12) + _DECODER_DELAY + after) / first[1]
            damage += 0.0 if stated == count else each  # joined, or cut
    note_length(found, seconds, f"counted: {count} frames", damage=damage)
