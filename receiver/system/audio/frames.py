"""Frames of MPEG audio, AAC (ADTS) and AMR: their headers, and a walk from one to the next, over damage and tags."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

from receiver.system.audio.reading import FAR, Found, Source


class Stream(NamedTuple):
    """What is the same in all frames of a stream."""

    codec: str
    rate: int
    channels: int | None
    samples: int
    """Of each channel, in a frame."""


Frame = tuple[int, Stream]
"""A frame's length in bytes, its header included, and its stream."""
FrameAt = Callable[[bytes, int], Frame | None]
"""Reads the frame that begins at a place in the bytes; None when none does."""

_LOW = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_KBITS = {
    (1, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (2, 1): _LOW,
    (2, 2): _LOW,
    (2, 3): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
}
"""By MPEG's version and the code of the layer, which is 4 less the layer."""


def mpeg_frame(data: bytes, place: int = 0) -> Frame | None:
    """Read an MPEG audio frame's header (ISO 11172-3, 13818-3). Frames of a free bit rate state no size: they are none."""
    return _mpeg(data[place : place + 4])


@lru_cache(maxsize=1024)
def _mpeg(header: bytes) -> Frame | None:
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    code, hertz, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 0 or code in (0, 15) or hertz == 3 or header[3] & 3 == 2:
        return None
    kbits = _KBITS[1 if version == 3 else 2, layer][code - 1]
    rate = (44100, 48000, 32000)[hertz] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 384 if layer == 3 else 576 if layer == 1 and version != 3 else 1152
    size = (12_000 * kbits // rate + padding) * 4 if layer == 3 else samples * 125 * kbits // rate + padding
    return size, Stream(f"mp{4 - layer}", rate, 1 if header[3] >> 6 == 3 else 2, samples)


ADTS_HERTZ = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)


def adts_frame(data: bytes, place: int = 0) -> Frame | None:
    """Read an ADTS frame's header (AAC; ISO 13818-7)."""
    header = int.from_bytes(data[place : place + 7], "big")
    size, stream = header >> 13 & 0x1FFF, _adts(header & 0xFFF63DC0000003)
    return (size, stream) if stream and size >= 7 else None


@lru_cache(maxsize=1024)
def _adts(fixed: int) -> Stream | None:
    """Read the bits of an ADTS header that stay the same: sync and layer, rate, channels, blocks of 1,024 samples."""
    hertz = fixed >> 34 & 15
    if fixed >> 40 != 0xFFF0 or hertz > 12:
        return None
    return Stream("aac", ADTS_HERTZ[hertz], aac_channels(fixed >> 30 & 7), 1024 * ((fixed & 3) + 1))


def aac_channels(configuration: int) -> int | None:
    """Return the channels of an MPEG-4 channel configuration, None where the stream itself tells them."""
    return {7: 8, 11: 7, 12: 8, 14: 8}.get(configuration, configuration) or None


_AMR_BYTES = (13, 14, 16, 18, 20, 21, 27, 32, 6, 1, 1, 1, 1, 1, 1, 1)
_AMR, _AMR_WB = Stream("amr-nb", 8000, 1, 160), Stream("amr-wb", 16000, 1, 320)
_AMR_WB_BYTES = (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 1, 1, 1, 1, 1, 1)


def amr_frame(data: bytes, place: int = 0, *, wide: bool = False) -> Frame | None:
    """Read the header of an AMR frame (RFC 4867, section 5.3), of wide band or of narrow band."""
    head = data[place] if place < len(data) else 0xFF
    if head & 0x83:
        return None
    return (_AMR_WB_BYTES[head >> 3], _AMR_WB) if wide else (_AMR_BYTES[head >> 3], _AMR)


# ---------------------------------------------------------------- finding

_SYNC = re.compile(rb"\xff[\xe2-\xff]")
_FEW_PLACES = 256
"""Places that may look like a header before a search in a prefix gives up: quiet raw samples have very many."""


def id3_size(head: bytes) -> int:
    """Return the length in bytes of the ID3v2 tag that begins here, 0 when none does."""
    if head[:3] != b"ID3" or len(head) < 10 or max(head[3:5]) == 0xFF or max(head[6:10]) >= 0x80:
        return 0
    return (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) + (20 if head[5] & 0x10 else 10)


def _reader(data: bytes, place: int) -> FrameAt:
    return adts_frame if data[place + 1] & 6 == 0 else mpeg_frame


def find_frames(data: bytes, *, places: int = _FEW_PLACES) -> tuple[int, Stream, int] | None:
    """Return where frames begin, what stream they are of, and how many follow each other there (at most 3); None for nowhere.

    Where they do not begin at once, three must follow each other, or two up to the end of the data.
    """
    for sync in _SYNC.finditer(data):
        place = sync.start()
        frame_at = _reader(data, place)
        if (frame := frame_at(data, place)) is not None:
            count, end, stream = 0, place, frame[1]
            while count < 3 and frame and frame[1] == stream:
                end, count = end + frame[0], count + 1
                frame = frame_at(data, end)
            if count >= (2 if place == 0 else 3) - (end + 7 > len(data)):
                return place, stream, count
        places -= 1
        if not places:
            break
    return None


# ---------------------------------------------------------------- counting

_WINDOW = 256 * 1024
_MANY_LOST = 4096
"""Bytes passed over between frames from which on they may have been frames, rather than a part of one."""
_UNSURE_FRAMES = 3
"""By so many frames decoders differ where tags interrupt a stream, and by twice as many where damage does."""


@dataclass(slots=True)
class _Counted:
    frames: int = 0
    seconds: float = 0.0
    lost: int = 0
    """Bytes that are neither frames nor tags."""
    before: int = 0
    """Those of them before the first frame."""
    doubt: float = 0.0
    """Seconds by which the count may be wrong."""
    first: Stream | None = None
    head: bytes = b""
    """The first bytes of the first frame."""


def _walk(
    source: Source, start: int, found: Found, frame_at: FrameAt | None, stream: Stream | None
) -> _Counted:
    """Count the frames from `start` to the end; after each window an estimate by those so far is noted.

    Without `frame_at` the kind of frames is found; and found again after damage and tags.
    """
    counted, place, broken, lost = _Counted(), start, False, 0
    while data := source.at(place, _WINDOW):
        at = count = 0
        while frame_at and (frame := frame_at(data, at)) and frame[1] == stream:
            at, count = at + frame[0], count + 1
        if count and stream:
            each = stream.samples / stream.rate
            if counted.first is None:
                counted.first, counted.head, counted.before = stream, data[:256], counted.lost
            elif broken:
                counted.doubt += _UNSURE_FRAMES * each * (2 if counted.lost > lost else 1)
            lost = counted.lost
            place, broken = place + at, False
            if place > source.size:  # the last frame is cut
                count, counted.doubt = count - 1, counted.doubt + each
            counted.frames, counted.seconds = counted.frames + count, counted.seconds + count * each
            share = (source.size - start) / (place - start)
            found.length(counted.seconds * share, "estimated by the frames that were read in time", doubt=1e9)
            continue
        broken, skip = True, _tag_size(data)
        if not skip:
            skip = len(data) if len(data) < _WINDOW else _WINDOW - 8192
            if new := find_frames(data, places=_WINDOW):
                skip, stream, frame_at = new[0], new[1], _reader(data, new[0])
            counted.lost += skip
        place += skip
    return counted


def _tag_size(data: bytes) -> int:
    """Return the length in bytes of the tag that begins here (ID3v1, ID3v2, APE), 0 when none does."""
    if data[:8] == b"APETAGEX":
        return 32 + int.from_bytes(data[12:16], "little")
    return 128 if data[:3] == b"TAG" else id3_size(data)


def frames(
    source: Source, place: int, found: Found, frame_at: FrameAt | None = None, stream: Stream | None = None
) -> None:
    """Count the frames from `place` to the end, without those samples that an MP3's encoder notes as padding."""
    counted = _walk(source, place, found, frame_at, stream)
    first, seconds, size = counted.first, counted.seconds, source.size - place
    if first is None or counted.frames < 2 or counted.lost > size // 2:
        found.seconds = None
        return
    found.codec, found.rate, found.channels = first.codec, first.rate, first.channels
    if (between := counted.lost - counted.before) > _MANY_LOST:
        counted.doubt += seconds * between / (size - counted.lost)
    if info := _info(counted.head):
        stated, before, after = info
        counted.frames -= 1
        seconds -= (first.samples + before + (after if stated == counted.frames else 0)) / first.rate
        if stated not in (0, counted.frames):
            counted.doubt += first.samples / first.rate
    found.length(seconds, f"counted: {counted.frames} frames", doubt=counted.doubt)
    if counted.doubt > FAR * seconds:
        found.seconds = None


def amr(source: Source, place: int, found: Found) -> None:
    """Count the frames of an AMR file of narrow band."""
    frames(source, place + 6, found, amr_frame, _AMR)


def amr_wb(source: Source, place: int, found: Found) -> None:
    """Count the frames of an AMR file of wide band."""
    frames(source, place + 9, found, partial(amr_frame, wide=True), _AMR_WB)


_DECODER_DELAY = 529
"""Samples by which an MP3 decoder is late. Where an encoder tells its padding, they count as before the sound."""


def _info(head: bytes) -> tuple[int, int, int] | None:
    """Read the frame in which an encoder tells of the others: their number, and the samples of padding before and after."""
    place = next((p for name in (b"Xing", b"Info", b"VBRI") if (p := head.find(name, 4, 50)) > 0), None)
    if place is None:
        return None
    if head[place : place + 4] == b"VBRI":
        return int.from_bytes(head[place + 14 : place + 18], "big"), 0, 0
    flags = int.from_bytes(head[place + 4 : place + 8], "big")
    stated = int.from_bytes(head[place + 8 : place + 12], "big") if flags & 1 else 0
    lame = head[place + 8 + sum(size for bit, size in ((1, 4), (2, 4), (4, 100), (8, 4)) if flags & bit) :]
    if lame[:1] != b"L" or len(lame) < 24:
        return stated, 0, 0
    padding = int.from_bytes(lame[21:24], "big")
    return stated, (padding >> 12) + _DECODER_DELAY, max(0, (padding & 0xFFF) - _DECODER_DELAY)
