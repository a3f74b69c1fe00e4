"""Matroska and WebM: the elements of the first track of sound, also of a live stream that states no sizes."""

from __future__ import annotations

import struct

from receiver.system.audio.ogg import opus_samples
from receiver.system.audio.reading import UNKNOWN, Found, Head, Source, chunks

_CODECS = {
    b"A_" + codec.upper().encode(): codec for codec in ("opus", "vorbis", "aac", "flac", "alac", "ac3")
}
_CODECS |= {b"A_EAC3": "eac3", b"A_MPEG/L3": "mp3", b"A_MPEG/L2": "mp2"}


def _ids(elements: str) -> dict[bytes, str]:
    """Return elements' names by their ids, which stand before them in hexadecimal (RFC 9559)."""
    pairs = (element.partition(":") for element in elements.split())
    return {bytes.fromhex(number): name for number, _, name in pairs}


_VALUES = _ids(
    "2ad7b1:scale d7:number 83:type 86:codec 56aa:delay 9f:channels b5:hertz 78b5:played e7:time 75a2:discarded"
)
_ENTERED = _ids("18538067:segment 1549a966:info 1654ae6b:tracks ae:track e1:audio 1f43b675:cluster a0:group")
_BLOCKS = _ids("a3:simple_block a1:block")
_IN_CLUSTERS = (
    _BLOCKS | _ENTERED | _ids("e7 75a2 9b a7 ab fb 75a1 ec bf 1c53bb6b 1254c367 114d9b74 1941a469 1043a770")
)
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


def matroska(source: Source, place: int, found: Found) -> None:
    """Walk the elements to the last block. No length is told where one is cut or damaged."""
    said: dict[str, bytes] = {}
    track = delay = last = gap = 0
    first, packet = None, b""
    for name, start, end in chunks(source, place, _head, into=_ENTERED):
        if not track and _ENTERED.get(name) in ("track", "cluster"):
            if _number(said, "type") == 2:
                track, delay = _number(said, "number"), _number(said, "delay")
                _track(said, found)
            else:
                said = {"scale": said.get("scale", b"")}
        if (end > source.size and name not in _ENTERED) or (first is not None and name not in _IN_CLUSTERS):
            return
        if name in _BLOCKS:
            head = source.at(start, 16)
            width = 9 - head[0].bit_length()
            if int.from_bytes(head[:width], "big") & (1 << 7 * width) - 1 == track and len(head) > width + 3:
                at = _number(said, "time") + int.from_bytes(head[width : width + 2], "big", signed=True)
                first, gap, last = (at, 0, at) if first is None else (first, at - last, at)
                packet = b"" if head[width + 2] & 6 else head[width + 3 : width + 5]  # one frame, or several
                said["discarded"] = b""
        elif name in _VALUES:
            said[_VALUES[name]] = source.at(start, min(end - start, 64))
    if first is not None:
        unit = (_number(said, "scale") or 1_000_000) / 1e9
        own = opus_samples(packet) / 48_000 if found.codec == "opus" else 0.0
        unplayed = (delay + max(0, int.from_bytes(said["discarded"], "big", signed=True))) / 1e9
        seconds = (last - first) * unit + (own or gap * unit) - unplayed
        found.length(seconds, "the times of the blocks", damage=0.0 if own else gap * unit or UNKNOWN)


def _track(said: dict[str, bytes], found: Found) -> None:
    """Note what is said of the track."""
    kind, hertz = (
        said["codec"].rstrip(b"\0"),
        said.get("played") or said.get("hertz") or b"\x45\xfa\0\0",
    )  # 8000
    found.codec = _CODECS.get(kind) or _CODECS.get(kind[:5])  # A_AAC goes on with its profile
    rate = struct.unpack(">f" if len(hertz) == 4 else ">d", hertz)[0]
    found.rate = 48_000 if found.codec == "opus" else int(rate) if 0 < rate < 1e6 else None
    found.channels = _number(said, "channels") or 1


def _number(said: dict[str, bytes], name: str) -> int:
    return int.from_bytes(said.get(name, b""), "big")
