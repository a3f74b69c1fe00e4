"""Matroska and WebM: the elements of the first track of sound, also of a live stream that states no sizes."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from receiver.system.audio.formats import CODECS, LOSSLESS
from receiver.system.audio.ogg import opus_samples
from receiver.system.audio.reading import UNKNOWN, Found, Head, Source, chunks


def _ids(elements: str) -> dict[bytes, str]:
    """Return elements' names by their ids, which stand before them in hexadecimal (RFC 9559)."""
    return {
        bytes.fromhex(element.partition(":")[0]): element.partition(":")[2] for element in elements.split()
    }


_OF_A_TRACK = _ids("d7:number 83:type 86:codec 56aa:delay 6264:bits 9f:channels b5:hertz 78b5:played")
_AFTER = _ids("9b:block_duration 75a2:discarded")
"""They are said behind a block."""
_VALUES = _OF_A_TRACK | _AFTER | _ids("2ad7b1:scale 4489:duration e7:time")
_ENTERED = _ids("18538067:segment 1549a966:info 1654ae6b:tracks ae:track e1:audio 1f43b675:cluster a0:group")
_BLOCKS = _ids("a3:simple_block a1:block")
_IN_CLUSTERS = {
    *_BLOCKS,
    *_ENTERED,
    *_AFTER,
    *_ids("e7 a7 ab fb 75a1 ec bf 1c53bb6b 1254c367 114d9b74 1941a469 1043a770"),
}
"""What may stand within and behind clusters; anything else is damage, after which nothing is certain."""


def _head(data: bytes) -> Head | None:
    if len(data) < 2:
        return None
    width = 9 - data[0].bit_length()
    size_width = 9 - data[width].bit_length() if width < 5 and width < len(data) else 9
    if size_width > 8:
        return b"", 0, -1  # no element: damage
    end = width + size_width
    return data[:width], end, int.from_bytes(data[width:end], "big") & (1 << 7 * size_width) - 1


@dataclass(slots=True)
class _Seen:
    """What the elements said, and the blocks of sound so far. Times are in units of the file."""

    values: dict[str, bytes] = field(default_factory=dict)
    track: int = 0  # the number of the track of sound, 0 until it is found
    first: int | None = None
    last: int = 0
    frames: int = 1  # frames in the last block
    gap: float = 0.0  # between two frames
    packet: bytes = b""  # the beginning of what the last block holds

    def number(self, name: str, *, signed: bool = False) -> int:
        return int.from_bytes(self.values.get(name, b""), "big", signed=signed)

    def real(self, name: str) -> float:
        data = self.values.get(name, b"")
        value = struct.unpack(">f" if len(data) == 4 else ">d", data)[0] if len(data) in (4, 8) else 0.0
        return float(value) if 0 < value < 1e15 else 0.0

    @property
    def unit(self) -> float:
        """Seconds of a unit of time."""
        return (self.number("scale") or 1_000_000) / 1e9


def matroska(source: Source, place: int, found: Found) -> None:
    """Walk the elements to the last whole block. When time runs out, the stated length is left as an estimate."""
    seen, there, cut = _Seen(), 0.0, False
    for name, start, end in chunks(source, place, _head, into=_ENTERED):
        if seen.first is not None and name not in _IN_CLUSTERS:
            found.seconds = None
            return
        if name in _ENTERED:
            if _ENTERED[name] in ("track", "cluster"):
                _settle(seen, found)
        elif end > source.size:
            cut, there = True, (source.size - start) / (end - start) if name in _BLOCKS else 0.0
            break
        elif name in _BLOCKS:
            _block(source.at(start, 16), seen)
        elif name in _VALUES and end - start <= 64:
            seen.values[_VALUES[name]] = source.at(start, end - start)
    _settle(seen, found)
    found.seconds = None  # what is stated of blocks that are not there does not count
    if seen.first is not None:
        _tell(seen, found, there, cut=cut)


def _settle(seen: _Seen, found: Found) -> None:
    """Take the track that was read, when it is the first one of sound; and note the stated length for want of a better."""
    if not seen.track and seen.number("type") == 2:
        kind = seen.values.get("codec", b"").rstrip(b"\0")
        codec = CODECS.get(kind) or CODECS.get(kind[:5])  # A_AAC goes on with its profile
        seen.track = seen.number("number")
        found.codec = f"linear{seen.number('bits')}" if codec == "linear" else codec
        hertz = int(seen.real("played") or seen.real("hertz")) or 8000
        found.rate, found.channels = 48_000 if codec == "opus" else hertz, seen.number("channels") or 1
    if not seen.track:
        for name in _OF_A_TRACK.values():
            seen.values.pop(name, None)
    elif seen.real("duration") and found.seconds is None:
        found.length(seen.real("duration") * seen.unit, "stated; not all was read", doubt=UNKNOWN)


def _block(head: bytes, seen: _Seen) -> None:
    width = 9 - head[0].bit_length()
    if len(head) < width + 4 or int.from_bytes(head[:width], "big") & (1 << 7 * width) - 1 != seen.track:
        return
    at = seen.number("time") + int.from_bytes(head[width : width + 2], "big", signed=True)
    if seen.first is None:
        seen.first = at
    else:
        seen.gap = (at - seen.last) / seen.frames
    seen.last, seen.frames = at, head[width + 3] + 1 if head[width + 2] & 6 else 1
    seen.packet = head[width + 3 : width + 5]
    for name in _AFTER.values():
        seen.values.pop(name, None)


def _tell(seen: _Seen, found: Found, there: float, *, cut: bool) -> None:
    own = opus_samples(seen.packet) / 48_000 if found.codec == "opus" and seen.frames == 1 else 0.0
    last = seen.number("block_duration") * seen.unit or own or seen.gap * seen.frames * seen.unit
    unplayed = (seen.number("delay") + max(0, seen.number("discarded", signed=True))) / 1e9
    seconds = (seen.last - (seen.first or 0)) * seen.unit + last * (1 + there) - unplayed
    stated = max(0.0, seen.real("duration") * seen.unit - seen.number("delay") / 1e9)
    doubt = last if cut or not own else 0.0
    if stated and not cut:
        # The last block of a codec without padding is shorter than those before; a lone block does not tell its length.
        if not last or (abs(stated - seconds) <= doubt and (found.codec or "").startswith(LOSSLESS)):
            seconds = stated
        doubt = abs(stated - seconds) if last else stated
    if seconds:
        found.length(seconds, "the times of the blocks", doubt=doubt)
