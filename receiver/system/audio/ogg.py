"""Ogg pages: Opus, Vorbis, FLAC and Speex, also when several streams are chained, begin late, or are cut short."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from receiver.system.audio.reading import Found, Source

_HEAD = 27 + 255
_SEARCHED = 65_536
"""Bytes that are searched for the next page after damage; no page is longer."""
_HOLE = 1.0
"""Seconds of doubt that damage brings."""


@dataclass(slots=True)
class _Link:
    """One logical stream, of those that are chained."""

    codec: str
    rate: int
    channels: int
    per_packet: int = 0
    """Samples of a packet: exactly for Speex, at most for others, 0 for Opus, whose packets tell."""
    skip: int = 0  # samples at the beginning that are not played
    serial: bytes = b""
    packets: int = 0
    first: int = 0  # samples before what is there, and those of pages that are missing in between
    last: int = 0  # the position at the end of the last page
    sequence: int = -1


def ogg(source: Source, place: int, found: Found) -> None:
    """Walk from page to page, to the last that is whole."""
    links: list[_Link] = []
    doubt = 0.0
    while len(head := source.at(place, _HEAD)) >= 27:
        if head[:4] != b"OggS":
            skip = source.at(place, _SEARCHED).find(b"OggS")
            if skip < 0:
                break
            place, doubt = place + skip, doubt + _HOLE
            continue
        flags, position, serial, sequence = struct.unpack_from("<xBq4sI", head, 4)
        lacing = head[27 : 27 + head[26]]
        body = place + 27 + head[26]
        place = body + sum(lacing)
        if place > source.size:
            break
        if flags & 2:
            link = _link(source.at(body, 128))
            if link and not (links and links[-1].last == 0):
                link.serial = serial
                links.append(link)
                found.codec, found.rate, found.channels = link.codec, link.rate or None, link.channels or None
        elif links and serial == links[-1].serial:
            doubt += _page(source, links[-1], position, sequence, lacing, body)
    seconds = 0.0
    for link in links:
        played = link.last - link.first - link.skip
        seconds += max(0, played) / link.rate
        if link.codec == "speex":
            doubt += abs(link.packets * link.per_packet - played) / link.rate
    if seconds:
        found.length(seconds, f"the positions of the pages, of {len(links)} stream(s)", doubt=doubt)


def _page(source: Source, link: _Link, position: int, sequence: int, lacing: bytes, body: int) -> float:
    """Take a page of a link in; return the seconds of doubt that it brings."""
    packets = len(lacing) - lacing.count(255)
    hole = link.sequence >= 0 and sequence != link.sequence + 1
    doubt, link.sequence = _HOLE * hole, sequence
    if position <= 0:  # -1 is the position of a page in which no packet ends, 0 that of pages of headers
        return doubt
    link.packets += packets
    if hole or not link.last:
        most = packets * link.per_packet or _on_page(source.at(body, _SEARCHED), lacing)
        link.first += max(0, position - most - link.last)
        if link.first and link.codec != "opus":
            doubt += most / link.rate
    link.last = max(link.last, position)
    return doubt


def _link(head: bytes) -> _Link | None:
    """Read a stream's first packet. Positions of Opus count 48,000 a second, whatever was encoded (RFC 7845)."""
    if head[:8] == b"OpusHead":
        return _Link("opus", 48_000, head[9], skip=int.from_bytes(head[10:12], "little"))
    if head[:7] == b"\x01vorbis":
        channels, rate = struct.unpack_from("<BI", head, 11)
        return _Link("vorbis", rate or 1, channels, 1 << (head[28] >> 4))
    if head[:5] == b"\x7fFLAC":
        block, packed = struct.unpack_from(">H6xQ", head, 19)
        return _Link("flac", packed >> 44 or 1, (packed >> 41 & 7) + 1, block)
    if head[:8] == b"Speex   ":
        rate, channels, size, count = struct.unpack_from("<I8xI4xI4xI", head, 36)
        return _Link("speex", rate or 1, channels, size * max(1, count))
    return None


def _on_page(data: bytes, lacing: bytes) -> int:
    """Return the samples of the Opus packets that end on a page."""
    samples = place = begin = 0
    for size in lacing:
        place += size
        if size < 255:
            samples += opus_samples(data[begin : begin + 2])
            begin = place
    return samples


def opus_samples(packet: bytes) -> int:
    """Return the samples of an Opus packet at 48,000 Hz, by its first two bytes (RFC 6716, section 3.1)."""
    if not packet:
        return 0
    mode, code = packet[0] >> 3, packet[0] & 3
    size = (
        120 << (mode & 3)
        if mode >= 16
        else (480, 960)[mode & 1]
        if mode >= 12
        else (480, 960, 1920, 2880)[mode & 3]
    )
    return size * (packet[1] & 63 if code == 3 and len(packet) > 1 else (1, 2, 2, 1)[code])
