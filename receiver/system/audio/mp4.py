"""MP4 and QuickTime: the boxes of the first track of sound, whole or in fragments."""

from __future__ import annotations

import re
import struct

from receiver.system.audio.mp3_aac import ADTS_HERTZ, aac_channels
from receiver.system.audio.reading import Found, Head, Source, chunks

_CODECS = {b"sowt": "linear", b"twos": "linear", b"lpcm": "linear", b"ipcm": "linear", b"ulaw": "mulaw"}
_CODECS |= {b"alaw": "alaw", b".mp3": "mp3", b"alac": "alac", b"fLaC": "flac", b"Opus": "opus"}
_CODECS |= {b"ac-3": "ac3", b"ec-3": "eac3", b"samr": "amr-nb", b"sawb": "amr-wb"}
_OBJECTS = dict.fromkeys((0x40, 0x66, 0x67, 0x68), "aac") | {0x69: "mp3", 0x6B: "mp3", 0xDD: "vorbis"}
_EXACT = ("alac", "flac", "linear", "mulaw", "alaw")  # so begin the codecs whose last frame has no padding
_PADDING = 1024  # samples of a frame, which decoders of other codecs play to its end
_LENGTH = rb"[\x80-\xff]*[\x00-\x7f]"
_DESCRIPTORS = re.compile(
    rb"esds....\x03%b...\x04%b(.).{12}(?:\x05%b(.{2,16}))?" % (_LENGTH, _LENGTH, _LENGTH), re.DOTALL
)
"""An ES descriptor (ISO 14496-1): the object type, and the codec's configuration."""

_ENTERED = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"mvex", b"moof", b"traf")
_READ = (b"mvhd", b"tkhd", b"mdhd", b"hdlr", b"stsd")


def _head(data: bytes) -> Head | None:
    size = int.from_bytes(data[:4], "big")
    skip = 16 if size == 1 else 8
    size = int.from_bytes(data[8:16], "big") if size == 1 else size
    if len(data) < skip or 0 < size < skip:
        return None
    return data[4:8], skip, size - skip if size else -1


def mp4(source: Source, place: int, found: Found) -> None:
    """Walk the boxes. The length is the one stated, or that of all fragments; none where a box is cut or damaged."""
    boxes: dict[bytes, bytes] = {}
    track = default = each = in_fragments = there = 0
    ours = False
    for kind, start, end in chunks(source, place, _head, into=_ENTERED):
        if not kind.isalnum() or end > source.size or (track and kind == b"ftyp"):
            return  # damage, a cut, or a second file
        if kind == b"trak" and not track:
            boxes = {b"mvhd": boxes[b"mvhd"]}
        elif kind in _READ and not track:
            boxes.setdefault(kind, source.at(start, end - start))
            if kind == b"stsd" and boxes[b"hdlr"][8:12] == b"soun":
                track = _stated(boxes[b"tkhd"], 4)[0]
                _entry(boxes[b"stsd"][8:], found)
        elif kind == b"trex" and _long(source.at(start, 8), 4) == track:
            default = _long(source.at(start, 16), 12)
        elif kind == b"tfhd":
            header = source.at(start, 40)
            at = 8 + 8 * (header[3] & 1) + 2 * (header[3] & 2)
            each = _long(header, at) if header[3] & 8 else default
            ours = _long(header, 4) == track
        elif kind == b"trun" and ours:
            in_fragments += _run(source.at(start, end - start), each)
        elif kind == b"mdat":
            there += end - start
    if there and track:
        _tell(boxes, in_fragments, found)


def _tell(boxes: dict[bytes, bytes], in_fragments: int, found: Found) -> None:
    scale, lasting = _stated(boxes[b"mdhd"])
    edited = _stated(boxes[b"tkhd"], 4)[1] / _stated(boxes[b"mvhd"])[0]  # without what is not played
    padding = 0.0 if (found.codec or "").startswith(_EXACT) else _PADDING / (found.rate or 1)
    if in_fragments and not lasting:
        found.length(in_fragments / scale, "the lengths of all fragments", doubt=padding)
    elif edited and not in_fragments:
        doubt = max(padding, abs(lasting / scale - edited))
        found.length(edited, "stated, and no box is cut", doubt=doubt)


def _long(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 4], "big")


def _stated(header: bytes, gap: int = 0) -> tuple[int, int]:
    """Return the scale, or the track's number, and behind a gap the duration; the times before them have 4 or 8 bytes."""
    layout, place = (f">I{gap}xQ", 20) if header[0] == 1 else (f">I{gap}xI", 12)
    first, duration = struct.unpack_from(layout, header, place)
    return first, duration


def _run(run: bytes, each: int) -> int:
    """Return how long the samples of a run last: each has a length of its own, or all have the same."""
    width, count = 4 * (run[2] & 15).bit_count(), _long(run, 4)
    if not run[2] & 1:
        return min(count, 1 << 20) * each
    place = 8 + 4 * (run[3] & 1) + (run[3] & 4)
    return sum(_long(run, at) for at in range(place, min(place + count * width, len(run)), width))


def _entry(entry: bytes, found: Found) -> None:
    """Read the description of the samples; the codec's own words about rate and channels count before the container's."""
    kind, version, channels, bits, rate = struct.unpack_from(">4x4s8xH6xHH4xH", entry)
    codec = _CODECS.get(kind, "")
    if codec == "linear":
        codec += str(bits)
    elif codec == "opus":
        rate = 48_000
    elif codec == "alac":
        own = entry[entry.find(b"alac", 36) + 4 :]
        rate, channels = int.from_bytes(own[24:28], "big"), own[13]
    elif codec.startswith("amr"):
        channels = 1
    elif described := _DESCRIPTORS.search(entry, 36):
        codec = _OBJECTS.get(described[1][0], "")
        rate, channels = _configuration(described[2] or b"", rate, channels) if codec == "aac" else (rate, 0)
    if version < 2:  # else the numbers stand elsewhere
        found.codec, found.rate, found.channels = codec or None, rate or None, channels or None


def _configuration(data: bytes, rate: int, channels: int) -> tuple[int, int]:
    """Return what an AudioSpecificConfig (ISO 14496-3) tells, first by its extension; else what the container says."""
    bits = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
    kind, hertz, configured, extended = bits >> 27, bits >> 23 & 15, bits >> 19 & 15, bits >> 15 & 15
    hertz = extended if kind in (5, 29) else hertz
    rate = ADTS_HERTZ[hertz] if data and hertz < len(ADTS_HERTZ) else rate
    return rate, 2 if kind == 29 else aac_channels(configured) or channels
