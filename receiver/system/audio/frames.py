"""Frames of MPEG audio, AAC (ADTS), AMR and FLAC: their headers, and a walk from one to the next, over damage and tags."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

from receiver.system.audio.reading import UNKNOWN, Found, Source


class Stream(NamedTuple):
    """What is the same in all frames of a stream."""

    codec: str
    rate: int
    channels: int | None


Frame = tuple[int, int, Stream]
"""A frame's length in bytes, its header included, its samples of each channel, and its stream."""
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
    return size, samples, Stream(f"mp{4 - layer}", rate, 1 if header[3] >> 6 == 3 else 2)


ADTS_HERTZ = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)


def adts_frame(data: bytes, place: int = 0) -> Frame | None:
    """Read an ADTS frame's header (AAC; ISO 13818-7)."""
    header = int.from_bytes(data[place : place + 7], "big")
    size, stream = header >> 13 & 0x1FFF, _adts(header & 0xFFF63DC0000000)
    return (size, 1024 * ((header & 3) + 1), stream) if stream and size >= 7 else None


@lru_cache(maxsize=1024)
def _adts(fixed: int) -> Stream | None:
    """Read the bits of an ADTS header that stay the same: sync and layer, rate, channels."""
    hertz = fixed >> 34 & 15
    if fixed >> 40 != 0xFFF0 or hertz > 12:
        return None
    return Stream("aac", ADTS_HERTZ[hertz], aac_channels(fixed >> 30 & 7))


def aac_channels(configuration: int) -> int | None:
    """Return the channels of an MPEG-4 channel configuration, None where the stream itself tells them."""
    return {7: 8, 11: 7, 12: 8, 14: 8}.get(configuration, configuration) or None


_AMR, _AMR_WB = Stream("amr-nb", 8000, 1), Stream("amr-wb", 16000, 1)
_AMR_BYTES = {
    _AMR: (13, 14, 16, 18, 20, 21, 27, 32, 6, 1, 1, 1, 1, 1, 1, 1),
    _AMR_WB: (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 1, 1, 1, 1, 1, 1),
}


def _amr_frame(stream: Stream, data: bytes, place: int) -> Frame | None:
    """Read the header of an AMR frame (RFC 4867, section 5.3), of 20 ms."""
    head = data[place] if place < len(data) else 0xFF
    return None if head & 0x83 else (_AMR_BYTES[stream][head >> 3], stream.rate // 50, stream)


# ---------------------------------------------------------------- FLAC

_FLAC_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_MOST_ENDS, _MOST_SYNCS = 4, 32
"""Headers, and what only begins like one, that are looked at before what stands here is no whole frame."""


def _flac_frame(stream: Stream, data: bytes, place: int) -> Frame | None:
    """Read a frame of FLAC: it ends before the next header, or at the end, where its checksum comes out right."""
    if not (samples := _flac_samples(data[place : place + 16])):
        return None
    ends = 0
    for looked, sync in enumerate(_FLAC_SYNC.finditer(data, place + 8)):
        end = sync.start()
        if _flac_samples(data[end : end + 16]):
            if _unchanged(data[place:end]):
                return end - place, samples, stream
            ends += 1
        if ends == _MOST_ENDS or looked == _MOST_SYNCS:
            return None
    size = len(data) - place
    if _unchanged(data[place:]):
        return size, samples, stream
    return (size + 1, samples, stream) if not ends and len(data) < _WINDOW else None  # it is cut


@lru_cache(maxsize=64)
def _flac_samples(head: bytes) -> int:
    """Return the samples of the frame whose header begins here, 0 when none with a right checksum does (RFC 9639)."""
    if len(head) < 8 or head[0] != 0xFF or head[1] & 0xFE != 0xF8 or head[3] & 1:
        return 0
    code, hertz = head[2] >> 4, head[2] & 15
    number = 1 if head[4] < 0x80 else 8 - (~head[4] & 0xFF).bit_length()  # coded like UTF-8
    end = 4 + number
    if not code or hertz == 15 or not 1 <= number <= 7 or (number == 1 and head[4] >= 0x80):
        return 0
    if code in (6, 7):
        samples = int.from_bytes(head[end : end + code - 5], "big") + 1
        end += code - 5
    else:
        samples = 192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8
    end += {12: 1, 13: 2, 14: 2}.get(hertz, 0)
    header = int.from_bytes(head[: end + 1], "big")
    return samples if end < len(head) and not _remainder(header, 8, (2, 1, 0)) else 0


def _unchanged(frame: bytes) -> bool:
    """Tell whether the checksum at a frame's end is right: x¹⁶ + x¹⁵ + x² + 1, which is (x + 1)(x¹⁵ + x + 1), divides it."""
    whole = int.from_bytes(frame, "big")
    return not whole.bit_count() & 1 and not _remainder(whole, 15, (1, 0))


def _remainder(rest: int, degree: int, powers: tuple[int, ...]) -> int:
    """Return what is left of bits, as a polynomial over GF(2), divided by the one of a degree and lower powers.

    p(x)² is p(x²) here: a few shifts of all the bits halve their number. It takes some nanoseconds a byte.
    """
    scale = 1 << (rest.bit_length() // degree).bit_length()
    while scale:
        while high := rest >> degree * scale:
            multiple = high << degree * scale
            for power in powers:
                multiple ^= high << power * scale
            rest ^= multiple
        scale >>= 1
    return rest


def flac(source: Source, place: int, found: Found) -> None:
    """Take rate and channels from the head, and count the frames behind it that are whole."""
    packed = int.from_bytes(source.at(place + 18, 8), "big")
    rate, channels = packed >> 44, (packed >> 41 & 7) + 1
    found.codec, found.rate, found.channels = "flac", rate or None, channels
    place, last = place + 4, False
    while not last and len(head := source.at(place, 4)) == 4:  # blocks of metadata
        place, last = place + 4 + int.from_bytes(head[1:], "big"), head[0] >= 0x80
    if rate:
        stream = Stream("flac", rate, channels)
        frames(source, place, found, partial(_flac_frame, stream), stream)


# ---------------------------------------------------------------- finding

_SYNC = re.compile(rb"\xff[\xe2-\xff]")
_FEW_PLACES, _FLAC_PLACES = 256, 2048
"""Places that may look like a header before a search gives up, in a prefix (quiet raw samples have very many), and for FLAC."""


def id3_size(head: bytes) -> int:
    """Return the length in bytes of the ID3v2 tag that begins here, 0 when none does."""
    if head[:3] != b"ID3" or len(head) < 10 or max(head[3:5]) == 0xFF or max(head[6:10]) >= 0x80:
        return 0
    return (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) + (20 if head[5] & 0x10 else 10)


def _reader(data: bytes, place: int) -> FrameAt:
    return adts_frame if data[place + 1] & 6 == 0 else mpeg_frame


def find_frames(
    data: bytes, *, places: int = _FEW_PLACES, kind: FrameAt | None = None
) -> tuple[int, Stream, int] | None:
    """Return where frames (of a kind) begin, their stream, and how many follow each other there (at most 3); None for nowhere.

    Of a kind that is not given, three must follow each other where they do not begin at once, or two up to the end.
    """
    for sync in _SYNC.finditer(data):
        place = sync.start()
        frame_at = kind or _reader(data, place)
        if (frame := frame_at(data, place)) is not None:
            count, end, stream = 0, place, frame[2]
            while count < 3 and frame and frame[2] == stream:
                end, count = end + frame[0], count + 1
                frame = frame_at(data, end)
            if kind or count >= (2 if place == 0 else 3) - (end + 7 > len(data)):
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
    lost: int = 0  # bytes that are neither frames nor tags
    before: int = 0  # those of them before the first frame
    damage: float = 0.0  # seconds by which what was lost, or interrupts, may make the count wrong
    cut: float = 0.0  # seconds of a last frame that is not whole
    stream: Stream | None = None  # of the first frames
    each: float = 0.0  # seconds that one of them lasts
    head: bytes = b""  # the first bytes of the first frame

    def add(self, count: int, seconds: float, *, cut: bool) -> None:
        """Count so many frames more, of so many seconds; of the last one when it is `cut` only what is lost is noted."""
        each = seconds / count
        if cut:
            self.cut, count = each, count - 1
        self.frames, self.seconds = self.frames + count, self.seconds + each * count


def _walk(source: Source, start: int, found: Found, kind: FrameAt | None, stream: Stream | None) -> _Counted:
    """Count the frames from `start` to the end; after each window an estimate by those so far is noted.

    Without `kind` it is found; and found again after damage and tags.
    """
    counted, place, broken, lost, frame_at = _Counted(), start, False, 0, kind or mpeg_frame
    unsure = 1 if kind else _UNSURE_FRAMES
    while data := source.at(place, _WINDOW):
        at = count = samples = 0
        while (frame := frame_at(data, at)) and frame[2] == stream:
            at += frame[0]
            samples += frame[1]
            count += 1
        if count and stream:
            each = samples / count / stream.rate
            if counted.stream is None:
                counted.stream, counted.each = stream, each
                counted.head, counted.before = data[:256], counted.lost
            elif broken:
                counted.damage += unsure * each * (2 if counted.lost > lost else 1)
            lost, broken = counted.lost, False
            place += at
            counted.add(count, samples / stream.rate, cut=place > source.size)
            if place < source.size:
                seconds = counted.seconds * (source.size - start) / (place - start)
                found.length(seconds, "estimated by the frames that were read in time", doubt=UNKNOWN)
            continue
        broken, skip = True, _tag_size(data)
        if not skip:
            skip = len(data) if len(data) < _WINDOW else _WINDOW - 8192
            if new := find_frames(data, places=_FLAC_PLACES if kind else _WINDOW, kind=kind):
                skip, stream, frame_at = new[0], new[1], kind or _reader(data, new[0])
            counted.lost += skip
        place += skip
    return counted


def _tag_size(data: bytes) -> int:
    """Return the length in bytes of the tag that begins here (ID3v1, ID3v2, APE), 0 when none does."""
    if data[:8] == b"APETAGEX":
        return 32 + int.from_bytes(data[12:16], "little")
    return 128 if data[:3] == b"TAG" else id3_size(data)


def frames(
    source: Source, place: int, found: Found, kind: FrameAt | None = None, stream: Stream | None = None
) -> None:
    """Count the frames (of a kind) from `place` to the end, without the samples that an MP3's encoder notes as padding."""
    counted = _walk(source, place, found, kind, stream)
    stream, seconds, size = counted.stream, counted.seconds, source.size - place
    if stream is None or counted.frames < 2 - bool(kind) or counted.lost > size // 2:
        found.seconds = None
        return
    found.codec, found.rate, found.channels = stream
    if (between := counted.lost - (0 if kind else counted.before)) > (0 if kind else _MANY_LOST):
        counted.damage += seconds * between / (size - counted.lost)
    if info := _info(counted.head):
        stated, before, after = info
        counted.frames -= 1
        seconds -= counted.each + (before + (after if stated == counted.frames else 0)) / stream.rate
        if stated not in (0, counted.frames):
            counted.damage += counted.each
    cut, damage = counted.cut, counted.damage
    if stream.codec != "flac":  # of which a frame that is cut is never played
        cut, damage = 0.0, cut + damage
    found.length(seconds, f"counted: {counted.frames} frames", doubt=cut, damage=damage)


def amr(source: Source, place: int, found: Found) -> None:
    """Count the frames of an AMR file, of narrow band or of wide band."""
    name, stream = (b"#!AMR\n", _AMR) if source.at(place + 5, 1) == b"\n" else (b"#!AMR-WB\n", _AMR_WB)
    frames(source, place + len(name), found, partial(_amr_frame, stream), stream)


_INFO = re.compile(rb"(Xing|Info|VBRI)")
_DECODER_DELAY = 529
"""Samples by which an MP3 decoder is late. Where an encoder tells its padding, they count as before the sound."""


def _info(head: bytes) -> tuple[int, int, int] | None:
    """Read the frame in which an encoder tells of the others: their number, and the samples of padding before and after."""
    match = _INFO.search(head, 4, 50)
    if match is None:
        return None
    place = match.end()
    if match[1] == b"VBRI":
        return int.from_bytes(head[place + 10 : place + 14], "big"), 0, 0
    flags = int.from_bytes(head[place : place + 4], "big")
    stated = int.from_bytes(head[place + 4 : place + 8], "big") if flags & 1 else 0
    lame = head[place + 4 + sum(size for bit, size in ((1, 4), (2, 4), (4, 100), (8, 4)) if flags & bit) :]
    if lame[:1] != b"L" or len(lame) < 24:
        return stated, 0, 0
    padding = int.from_bytes(lame[21:24], "big")
    return stated, (padding >> 12) + _DECODER_DELAY, max(0, (padding & 0xFFF) - _DECODER_DELAY)
