"""MP4 and QuickTime: the boxes of the first track of sound, whole or in fragments."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from receiver.system.audio.formats import CODECS, LOSSLESS
from receiver.system.audio.frames import ADTS_HERTZ, aac_channels, mpeg_frame
from receiver.system.audio.reading import UNKNOWN, Found, Head, Source, chunks

_OBJECTS = dict.fromkeys((0x40, 0x66, 0x67, 0x68), "aac") | {
    0x69: "mp3",
    0x6B: "mp3",
    0xAD: "opus",
    0xDD: "vorbis",
}
_LENGTH = rb"[\x80-\xff]*[\x00-\x7f]"
_DESCRIPTORS = re.compile(
    rb"esds....\x03%b...\x04%b(.).{12}(?:\x05%b(.{2,16}))?" % (_LENGTH, _LENGTH, _LENGTH), re.DOTALL
)
"""An ES descriptor (ISO 14496-1): the object type, and the codec's configuration."""

_READ = (b"hdlr", b"tkhd", b"mdhd", b"stsd", b"stts", b"stsz", b"stco", b"elst")


def _head(data: bytes) -> Head | None:
    size = int.from_bytes(data[:4], "big")
    skip = 16 if size == 1 else 8
    size = int.from_bytes(data[8:16], "big") if size == 1 else size
    if len(data) < skip or 0 < size < skip:
        return None
    return data[4:8], skip, size - skip if size else -1


@dataclass(slots=True)
class _Track:
    """The track of sound; its times are in units of which `scale` make a second."""

    number: int
    scale: int
    sizes: bytes
    default: int = 0  # units of a sample in a fragment that does not tell
    total: int = 0  # units that all samples last
    samples: int = 0
    delta: int = 0  # units that a sample lasts, but for the last
    before: int = 0  # units before what is played
    played: float = 0.0  # seconds that are played; 0 where no edit tells


def mp4(source: Source, place: int, found: Found) -> None:
    """Walk the boxes. The length is that of the samples that are there, without what an edit cuts off."""
    track: _Track | None = None
    there = missing = fragment = movie_scale = 0
    for kind, start, end in chunks(source, place, _head, into=(b"moov", b"mvex")):
        if not kind.isalnum() or (kind == b"moov" and end > source.size):
            return  # damage: what follows is not known
        if kind == b"mvhd":
            movie_scale = _wide(source.at(start, 24), 12)
        elif kind == b"trak" and track is None:
            track = _track(source, start, end, movie_scale, found)
        elif track and kind == b"trex" and int.from_bytes(source.at(start + 4, 4), "big") == track.number:
            track.default = int.from_bytes(source.at(start + 12, 4), "big")
        elif track and kind == b"moof":
            fragment = -track.total
            _fragment(source, start, end, track)
            fragment += track.total
        elif kind == b"mdat":
            missing = max(0, end - source.size)
            there += end - start - missing
            if track and fragment and missing:
                track.total -= fragment * missing // (end - start)
    if track and track.total and track.scale and there:
        _tell(track, found, there, missing, fragmented=fragment > 0)


def _tell(track: _Track, found: Found, there: int, missing: int, *, fragmented: bool) -> None:
    if missing and not fragmented:
        kept = track.samples * there // (there + missing)
        if track.sizes[4:8] == b"\0\0\0\0":
            sizes = struct.iter_unpack(">I", track.sizes[12 : len(track.sizes) // 4 * 4])
            kept = sum(end <= there for end in accumulate(size for (size,) in sizes))
        track.total, track.played = track.total * kept // max(1, track.samples), 0.0
    seconds = edited = track.played or (track.total - track.before) / track.scale
    if fragmented:
        edited = (track.total - track.before) / track.scale
        seconds = track.total / track.scale  # players differ about edits of fragments: both readings count
    doubt = abs(seconds - edited)
    if not (found.codec or "").startswith(LOSSLESS):  # decoders play the last frame to its end
        whole = (track.samples * track.delta - (0 if fragmented else track.before)) / track.scale
        doubt = max(doubt, abs(whole - seconds))
    found.length(seconds, f"the lengths of {track.samples} samples", doubt=UNKNOWN if missing else doubt)


def _wide(header: bytes, place: int) -> int:
    """Return the number behind two times, which have 8 bytes in version 1 of a header, and else 4."""
    place = place + 8 if header[:1] == b"\1" else place
    return int.from_bytes(header[place : place + 4], "big")


def _rows(table: bytes, layout: str) -> Iterator[tuple[int, ...]]:
    """Yield the rows behind a table's version and count."""
    width = struct.calcsize(layout)
    return struct.iter_unpack(layout, table[8 : 8 + max(0, len(table) - 8) // width * width])


def _track(source: Source, start: int, end: int, movie_scale: int, found: Found) -> _Track | None:
    """Read a track, None when it is not one of sound."""
    places: dict[bytes, tuple[int, int]] = {}
    for kind, first, last in chunks(source, start, _head, end=end, into=(b"mdia", b"minf", b"stbl", b"edts")):
        places.setdefault(kind, (first, last - first))
    read = {kind: source.at(*place) for kind, place in places.items() if kind in _READ}
    if read[b"hdlr"][8:12] != b"soun":
        return None
    track = _Track(_wide(read[b"tkhd"], 12), _wide(read[b"mdhd"], 12), read.get(b"stsz", b""))
    _entry(read[b"stsd"][8:], found)
    for count, delta in _rows(read[b"stts"], ">II"):
        track.samples, track.total = track.samples + count, track.total + count * delta
        track.delta = track.delta or delta
    if found.codec == "mp3":  # the container's own number of channels is often wrong
        frame = mpeg_frame(source.at(int.from_bytes(read[b"stco"][8:12], "big"), 4))
        found.channels = frame[2].channels if frame else None
    edits = read.get(b"elst", b"")
    for length, before, _ in _rows(edits, ">QqI" if edits[:1] == b"\1" else ">IiI"):
        if before >= 0:
            track.before, track.played = before, track.played + length / max(1, movie_scale)
    return track


def _fragment(source: Source, start: int, end: int, track: _Track) -> None:
    """Add a fragment's samples to the track."""
    default, ours = 0, False
    for kind, first, last in chunks(source, start, _head, end=end, into=(b"traf",)):
        if kind == b"tfhd":
            header = source.at(first, 40)
            place = 8 + 8 * (header[3] & 1) + 2 * (header[3] & 2)
            default = int.from_bytes(header[place : place + 4], "big") if header[3] & 8 else track.default
            ours = int.from_bytes(header[4:8], "big") == track.number
        elif kind == b"trun" and ours:
            _run(source.at(first, last - first), default, track)


def _run(run: bytes, default: int, track: _Track) -> None:
    """Add the samples of a run, each with a length of its own, or all with the default."""
    width, count = 4 * (run[2] & 15).bit_count(), int.from_bytes(run[4:8], "big")
    rows = run[8 + 4 * (run[3] & 1) + (run[3] & 4) :]
    count = min(count, len(rows) // width if width else 1 << 20)
    told = run[2] & 1
    lengths = (int.from_bytes(rows[at : at + 4], "big") for at in range(0, count * width, width or 1))
    track.delta = track.delta or (int.from_bytes(rows[:4], "big") if told else default)
    track.total += sum(lengths) if told else count * default
    track.samples += count


def _entry(entry: bytes, found: Found) -> None:
    """Read the description of the samples; the codec's own words about rate and channels count before the container's."""
    kind, version, channels, bits, rate = struct.unpack_from(">4x4s8xH6xHH4xH", entry)
    codec = CODECS.get(kind, "")
    own = entry[max(entry.find(mark, 36) for mark in (b"dfLa", b"dOps", b"alac")) + 4 :]
    if version == 2:
        hertz, channels = struct.unpack_from(">dI", entry, 40)
        rate = int(hertz) if 0 < hertz < 1e6 else 0
    if codec == "linear":
        codec += str(bits)
    elif codec == "opus":
        rate, channels = 48_000, own[1]
    elif codec == "alac":
        rate, channels = int.from_bytes(own[24:28], "big"), own[13]
    elif codec == "flac":
        packed = int.from_bytes(own[18:26], "big")
        rate, channels = packed >> 44, (packed >> 41 & 7) + 1
    elif codec.startswith("amr"):
        channels = 1
    elif described := _DESCRIPTORS.search(entry, 36):
        codec = _OBJECTS.get(described[1][0], "")
        if codec == "aac" and described[2]:
            rate, channels = _configuration(described[2], rate, channels)
    found.codec, found.rate, found.channels = codec or None, rate or None, channels or None


def _configuration(data: bytes, rate: int, channels: int) -> tuple[int, int]:
    """Return rate and channels of an AudioSpecificConfig (ISO 14496-3), those of its extension where it has one.

    What it does not tell is left as the container says.
    """
    bits = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
    kind, hertz, configured, extended = bits >> 27, bits >> 23 & 15, bits >> 19 & 15, bits >> 15 & 15
    hertz = extended if kind in (5, 29) else hertz
    rate = ADTS_HERTZ[hertz] if hertz < len(ADTS_HERTZ) else rate
    return rate, 2 if kind == 29 else aac_channels(configured) or channels
