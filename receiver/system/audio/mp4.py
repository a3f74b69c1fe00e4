"""MP4 and QuickTime: the boxes of the first track of sound, whole or in fragments."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from receiver.system.audio.frames import ADTS_HERTZ, aac_channels, mpeg_frame
from receiver.system.audio.reading import LOSSLESS, Found, Source

_CODECS = {b"Opus": "opus", b"fLaC": "flac", b"alac": "alac", b"ac-3": "ac3", b"ec-3": "eac3", b".mp3": "mp3"}
_CODECS |= {b"ulaw": "mulaw", b"alaw": "alaw", b"samr": "amr-nb", b"sawb": "amr-wb", b"in24": "linear24"}
_CODECS |= {b"in32": "linear32", b"fl32": "float", b"fl64": "float", b"ima4": "adpcm", b"ms\0\x55": "mp3"}
_LINEAR = (b"sowt", b"twos", b"lpcm", b"ipcm", b"raw ")
_OBJECTS = {
    0x40: "aac",
    0x66: "aac",
    0x67: "aac",
    0x68: "aac",
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
Box = tuple[bytes, int, int]


@dataclass(slots=True)
class _Track:
    """The track of sound; its times are in units of which `scale` make a second."""

    number: int
    scale: int
    total: int = 0
    """Units that all samples last."""
    samples: int = 0
    delta: int = 0
    """Units that a sample lasts, but for the last."""
    before: int = 0
    """Units before what is played."""
    played: float = 0.0
    """Seconds that are played; 0 where no edit tells."""
    default: int = 0
    """Units of a sample in a fragment that does not tell."""
    sizes: bytes = b""


def mp4(source: Source, place: int, found: Found) -> None:
    """Walk the boxes. The length is that of the samples that are there, without what an edit cuts off."""
    track: _Track | None = None
    there = missing = fragment = 0
    for kind, start, end in _boxes(source, place, source.size):
        if kind == b"moov" and track is None and end <= source.size:
            track = _movie(source, start, end, found)
        elif kind == b"moof" and track:
            before = track.total
            _fragment(source, start, end, track)
            fragment = track.total - before
        elif not kind.isalnum():
            return  # damage: what follows is not known
        elif kind == b"mdat":
            missing = max(0, end - source.size)
            there += end - start - missing
            if fragment and missing and track:
                track.total -= fragment * missing // (end - start)
    if track is None or not track.total or not track.scale or not there:
        return
    if missing and not fragment:
        kept = track.samples * there // (there + missing)
        if track.sizes[4:8] == b"\0\0\0\0":
            sizes = struct.iter_unpack(">I", track.sizes[12 : len(track.sizes) // 4 * 4])
            kept = sum(end <= there for end in accumulate(size for (size,) in sizes))
        track.total, track.played = track.total * kept // max(1, track.samples), 0.0
    seconds = edited = (track.total - track.before) / track.scale
    if fragment:
        seconds = track.total / track.scale  # players differ about edits of fragments: both readings count
    elif track.played:
        seconds = edited = track.played
    doubt = abs(seconds - edited)
    if not (found.codec or "").startswith(LOSSLESS):  # decoders play the last frame to its end
        whole = (track.samples * track.delta - (0 if fragment else track.before)) / track.scale
        doubt = max(doubt, abs(whole - seconds))
    found.length(seconds, f"the lengths of {track.samples} samples", doubt=seconds if missing else doubt)


def _boxes(source: Source, place: int, end: int) -> Iterator[Box]:
    """Yield the kind of each box, and where its content begins and ends."""
    while place + 8 <= end and len(head := source.at(place, 16)) >= 8:
        size, start = int.from_bytes(head[:4], "big"), place + 8
        if size == 1:
            size, start = int.from_bytes(head[8:16], "big"), place + 16
        if size and size < start - place:
            return
        stop = place + size if size else end
        yield head[4:8], start, stop
        place = stop


class _Inside(dict[bytes, tuple[int, int]]):
    """Where the boxes in a box are: of each kind, the first."""

    def __init__(self, source: Source, place: tuple[int, int]) -> None:
        super().__init__()
        self._source = source
        for kind, start, end in _boxes(source, *place):
            self.setdefault(kind, (start, end))

    def within(self, kind: bytes) -> _Inside:
        """Return where the boxes in one of these are."""
        return _Inside(self._source, self.get(kind, (0, 0)))

    def read(self, kind: bytes) -> bytes:
        """Return what one of these holds, b"" when it is not there."""
        start, end = self.get(kind, (0, 0))
        return self._source.at(start, end - start)


def _wide(header: bytes, place: int) -> int:
    """Return the number behind two times, which have 8 bytes in version 1 of a header, and else 4."""
    place = place + 8 if header[:1] == b"\1" else place
    return int.from_bytes(header[place : place + 4], "big")


def _movie(source: Source, start: int, end: int, found: Found) -> _Track | None:
    for kind, inner, stop in _boxes(source, start, end):
        if kind == b"trak":
            parts = _Inside(source, (inner, stop))
            media = parts.within(b"mdia")
            if media.read(b"hdlr")[8:12] == b"soun":
                movie = _Inside(source, (start, end))
                track = _track(source, parts, media, max(1, _wide(movie.read(b"mvhd"), 12)), found)
                track.default = int.from_bytes(movie.within(b"mvex").read(b"trex")[12:16], "big")
                return track
    return None


def _track(source: Source, parts: _Inside, media: _Inside, movie_scale: int, found: Found) -> _Track:
    table = media.within(b"minf").within(b"stbl")
    track = _Track(number=_wide(parts.read(b"tkhd"), 12), scale=_wide(media.read(b"mdhd"), 12))
    _entry(table.read(b"stsd")[8:], found)
    for count, delta in _rows(table.read(b"stts"), ">II"):
        track.samples, track.total, track.delta = (
            track.samples + count,
            track.total + count * delta,
            track.delta or delta,
        )
    track.sizes = table.read(b"stsz")
    if found.codec == "mp3":  # the container's own number of channels is often wrong
        frame = mpeg_frame(source.at(int.from_bytes(table.read(b"stco")[8:12], "big"), 4))
        found.channels = frame[1].channels if frame else None
    edits = parts.within(b"edts").read(b"elst") if b"edts" in parts else b""
    for length, before, _ in _rows(edits, ">QqI" if edits[:1] == b"\1" else ">IiI"):
        if before >= 0:
            track.before, track.played = before, track.played + length / movie_scale
    return track


def _rows(table: bytes, layout: str) -> Iterator[tuple[int, ...]]:
    """Yield the rows behind a table's version and count."""
    width = struct.calcsize(layout)
    return struct.iter_unpack(layout, table[8 : 8 + max(0, len(table) - 8) // width * width])


def _fragment(source: Source, start: int, end: int, track: _Track) -> None:
    """Add a fragment's samples to the track."""
    for kind, inner, stop in _boxes(source, start, end):
        header = _Inside(source, (inner, stop)).read(b"tfhd") if kind == b"traf" else b""
        if len(header) < 8 or int.from_bytes(header[4:8], "big") != track.number:
            continue
        place = 8 + 8 * (header[3] & 1) + 2 * (header[3] & 2)
        default = int.from_bytes(header[place : place + 4], "big") if header[3] & 8 else track.default
        for name, row, last in _boxes(source, inner, stop):
            if name == b"trun":
                _run(source.at(row, last - row), default, track)


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
    found.codec = f"linear{bits}" if kind in _LINEAR else _CODECS.get(kind)
    found.rate, found.channels = rate or None, channels or None
    if version == 2:
        hertz, found.channels = struct.unpack_from(">dI", entry, 40)
        found.rate = int(hertz) if 0 < hertz < 1e6 else None
    own = entry[entry.find(kind, 36) + 4 :] if kind == b"alac" else entry[entry.find(b"dfLa", 36) + 4 :]
    if found.codec == "opus":
        found.rate, found.channels = 48_000, entry[entry.find(b"dOps", 36) + 5]
    elif found.codec == "alac":
        found.rate, found.channels = int.from_bytes(own[24:28], "big"), own[13]
    elif found.codec == "flac":
        packed = int.from_bytes(own[18:26], "big")
        found.rate, found.channels = packed >> 44, (packed >> 41 & 7) + 1
    elif (found.codec or "").startswith("amr"):
        found.channels = 1
    elif described := _DESCRIPTORS.search(entry, 36):
        found.codec = _OBJECTS.get(described[1][0])
        if found.codec == "aac" and described[2]:
            _configuration(described[2], found)


def _configuration(data: bytes, found: Found) -> None:
    """Read an AudioSpecificConfig (ISO 14496-3): the rate and channels that its extension states, where it has one.

    A rate outside the table is left to the container.
    """
    bits = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
    kind, hertz, channels, extended = bits >> 27, bits >> 23 & 15, bits >> 19 & 15, bits >> 15 & 15
    hertz = extended if kind in (5, 29) else hertz
    if hertz < len(ADTS_HERTZ):
        found.rate = ADTS_HERTZ[hertz]
    found.channels = 2 if kind == 29 else aac_channels(channels) or found.channels
