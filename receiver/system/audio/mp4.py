"""MP4 and QuickTime: the boxes of the first track of sound, whole or in fragments."""

from __future__ import annotations

import re
import struct

from receiver.core.event import AudioFacts
from receiver.system.audio.mp3_aac import AAC_CHANNELS, ADTS_HERTZ
from receiver.system.audio.reading import UNKNOWN, Head, Source, chunks, note_length

_CODECS = {b"sowt": "linear", b"twos": "linear", b"lpcm": "linear", b"ipcm": "linear", b"ulaw": "mulaw"}
_CODECS |= {b"alaw": "alaw", b".mp3": "mp3", b"alac": "alac", b"fLaC": "flac", b"Opus": "opus"}
_CODECS |= {b"ac-3": "ac3", b"ec-3": "eac3", b"samr": "amr-nb", b"sawb": "amr-wb"}
_OBJECTS = {0x40: "aac", 0x66: "aac", 0x67: "aac", 0x68: "aac", 0x69: "mp3", 0x6B: "mp3"}
_EXACT = ("alac", "flac", "linear", "mulaw", "alaw")  # so begin the codecs whose last frame has no padding
_PADDING = 1024  # samples of a frame, which decoders of other codecs play to its end
_LENGTH = rb"[\x80-\xff]*[\x00-\x7f]"
_DESCRIPTORS = re.compile(
    rb"esds....\x03%b...\x04%b(.).{12}(?:\x05%b(.{2,16}))?" % (_LENGTH, _LENGTH, _LENGTH), re.DOTALL
)
"""An ES descriptor (ISO 14496-1): the object type, and the codec's configuration."""

_ENTERED = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")
_OF_A_TRACK = (b"mvhd", b"tkhd", b"mdhd", b"hdlr", b"stsd")


def _head(data: bytes) -> Head:
    size, skip = int.from_bytes(data[:4]), 8
    if size == 1:
        size, skip = int.from_bytes(data[8:16]), 16
    return data[4:8], skip, size - skip


def mp4(source: Source, place: int, found: AudioFacts) -> None:
    """Walk the boxes. The length is the one stated, or that of all fragments; none where a box is cut or damaged."""
    boxes: dict[bytes, bytes] = {}
    track = there = ours = 0
    in_fragments = each = 0.0
    for kind, start, end in chunks(source, place, _head, into=_ENTERED):
        if not kind.isalnum() or end > source.size or (track and kind == b"ftyp"):
            return  # damage, a cut, or a second file
        if kind == b"trak" and not track:
            boxes = {b"mvhd": boxes[b"mvhd"]}
        elif kind in _OF_A_TRACK and not track:
            boxes.setdefault(kind, source.at(start, end - start))
            if kind == b"stsd" and boxes[b"hdlr"][8:12] == b"soun":
                track = _stated(boxes[b"tkhd"], 4)[0]
                _describe(boxes[b"stsd"][8:], found)
        elif kind == b"tfhd":
            header = source.at(start, 40)
            at = 8 + 8 * (header[3] & 1) + 2 * (header[3] & 2)
            each = int.from_bytes(header[at : at + 4]) if header[3] & 8 else UNKNOWN
            ours = int.from_bytes(header[4:8]) == track
        elif kind == b"trun" and ours:
            in_fragments += _run(source.at(start, end - start), each)
        elif kind == b"mdat":
            there += end - start
    if there and track:
        _note(boxes, in_fragments, found)


def _note(boxes: dict[bytes, bytes], in_fragments: float, found: AudioFacts) -> None:
    scale, lasting = _stated(boxes[b"mdhd"])
    edited = _stated(boxes[b"tkhd"], 4)[1] / _stated(boxes[b"mvhd"])[0]  # without what is not played
    padding = 0.0 if (found.codec or "").startswith(_EXACT) else _PADDING / (found.sample_rate_hz or 1)
    if in_fragments and not lasting:
        note_length(found, in_fragments / scale, "the lengths of all fragments", doubt=padding)
    elif edited and not in_fragments:
        doubt = max(padding, abs(lasting / scale - edited))
        note_length(found, edited, "stated, and no box is cut", doubt=doubt)


def _stated(header: bytes, gap: int = 0) -> tuple[int, int]:
    """Return the scale, or the track's number, and behind a gap the duration; the times before them have 4 or 8 bytes."""
    size = 8 if header[0] == 1 else 4
    first, duration = header[4 + 2 * size :][:4], header[8 + 2 * size + gap :][:size]
    return int.from_bytes(first), int.from_bytes(duration)


def _run(run: bytes, each: float) -> float:
    """Return how long the samples of a run last: each has a length of its own, or all have that of their fragment."""
    count, fields = int.from_bytes(run[4:8]), (run[2] & 15).bit_count()
    if not run[2] & 1:
        return count * each
    place = 8 + 4 * (run[3] & 1) + (run[3] & 4)
    samples = struct.iter_unpack(f">I{4 * fields - 4}x", run[place : place + 4 * fields * count])
    return float(sum(lasting for (lasting,) in samples))


def _describe(entry: bytes, found: AudioFacts) -> None:
    """Read the description of the samples; the codec's own words about rate and channels count before the container's."""
    kind, version, channels, bits, rate = struct.unpack_from(">4x4s8xH6xHH4xH", entry)
    codec = _CODECS.get(kind)
    if codec == "linear":
        codec += str(bits)
    elif codec == "alac":
        own = entry[entry.find(b"alac", 36) + 4 :]
        rate, channels = int.from_bytes(own[24:28]), own[13]
    elif codec in ("amr-nb", "amr-wb"):
        channels = 1
    elif described := _DESCRIPTORS.search(entry, 36):
        codec = _OBJECTS.get(described[1][0])
        rate, channels = _configured(described[2]) if described[2] else (rate, None)
    if version < 2:  # else the numbers stand elsewhere
        found.codec, found.sample_rate_hz, found.channels = codec, rate, channels


def _configured(config: bytes) -> tuple[int, int | None]:
    """Return the rate and channels of an AudioSpecificConfig (ISO 14496-3), first by its extension."""
    bits = int.from_bytes(config[:4].ljust(4, b"\0"))
    kind, hertz, channels, extended = bits >> 27, bits >> 23 & 15, bits >> 19 & 15, bits >> 15 & 15
    return ADTS_HERTZ[extended if kind in (5, 29) else hertz], 2 if kind == 29 else AAC_CHANNELS[channels]
