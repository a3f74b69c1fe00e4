"""WAV, RF64, W64, AIFF, AU and CAF: chunks around samples. What is there counts, not what a head states."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal

from receiver.system.audio.frames import frames
from receiver.system.audio.reading import Found, Source

_MOST_CHUNKS = 256


def _chunks(
    source: Source, place: int, names: int, sizes: int, order: Literal["little", "big"], pad: int = 2
) -> Iterator[tuple[bytes, int, int]]:
    """Yield the first four bytes of each chunk's name, its stated size, and where its content begins."""
    for _ in range(_MOST_CHUNKS):
        head = source.at(place, names + sizes)
        if len(head) < names + sizes:
            return
        size, place = int.from_bytes(head[names:], order), place + names + sizes
        size -= 24 if names == 16 else 0  # W64 counts the head as well
        yield head[:4], size, place
        place += max(0, size) + -size % pad


def _samples(
    found: Found, what: tuple[str | None, int, int], block: int, there: int, per_block: int = 1
) -> None:
    """Note codec, rate and channels, and the length of samples in blocks of `block` bytes, each of `per_block` samples."""
    codec, rate, channels = what
    found.codec, found.rate, found.channels = codec, rate or None, channels or None
    if rate and block and codec and per_block:
        doubt = per_block / rate if there % block else 0
        found.length(there / block * per_block / rate, "the bytes of samples that are there", doubt=doubt)


_WAV_CODECS = {
    1: "linear",
    2: "adpcm",
    3: "float",
    6: "alaw",
    7: "mulaw",
    0x11: "adpcm",
    0x31: "gsm",
    0x45: "g726",
}
_WAV_CODECS |= {0x50: "mp2", 0x55: "mp3", 0x65: "g722", 0x28F: "g722", 0xFF: "aac"}


def wav(source: Source, place: int, found: Found) -> None:
    """Read a WAV; RF64's long sizes come from its `ds64` chunk."""
    head = source.at(place, 8)
    _wav(
        source,
        _chunks(source, place + 12, 4, 4, "little"),
        head[4:] in (b"\0\0\0\0", b"\xff\xff\xff\xff"),
        found,
    )


def w64(source: Source, place: int, found: Found) -> None:
    """Read Sony's Wave64."""
    _wav(source, _chunks(source, place + 40, 16, 8, "little", pad=8), True, found)


def _wav(source: Source, chunks: Iterator[tuple[bytes, int, int]], unended: bool, found: Found) -> None:
    layout, long_size = b"", 0
    for name, size, start in chunks:
        if name == b"ds64":
            long_size = int.from_bytes(source.at(start + 8, 8), "little")
        elif name == b"fmt ":
            layout = source.at(start, min(size, 40))
        elif name == b"data":
            # A stream's writer does not know the size: 0, or a number near the end of its range.
            there = source.size - start
            stated = long_size or there if size >= 0x7FFF0000 or size <= 0 else size
            _wav_data(source, layout, start, min(stated, there), found)
            found.estimated |= bool(size <= 0 and there and not unended)  # an end may follow that is no sound
            return


def _wav_data(source: Source, layout: bytes, start: int, there: int, found: Found) -> None:
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", layout)
    if tag == 0xFFFE:  # extensible: the codec is in the sub-format
        tag = int.from_bytes(layout[24:26], "little")
    codec, per_block = _WAV_CODECS.get(tag), int.from_bytes(layout[18:20], "little")
    what = (f"linear{bits}" if codec == "linear" else codec, rate, channels)
    if codec in ("linear", "float", "alaw", "mulaw"):
        _samples(found, what, block, there)
    elif codec in ("g722", "g726"):  # the head's bit rate is not always theirs
        _samples(found, what, 1, there, 2) if codec == "g722" else _samples(found, what, bits, there, 8)
    else:
        _samples(found, what, block, there, per_block if codec in ("adpcm", "gsm") else 0)
    if codec in ("mp2", "mp3"):
        frames(source, start, found)


_BIG_CODECS = {b"NONE": "linear", b"sowt": "linear", b"twos": "linear", b"in24": "linear", b"in32": "linear"}
_BIG_CODECS |= {b"fl32": "float", b"FL32": "float", b"fl64": "float", b"ulaw": "mulaw", b"ULAW": "mulaw"}
_BIG_CODECS |= {b"alaw": "alaw", b"ALAW": "alaw", b"ima4": "adpcm", b"lpcm": "linear", b"alac": "alac"}
_BIG_CODECS |= {b"aac ": "aac", b"opus": "opus", b".mp3": "mp3", b"flac": "flac"}


def aiff(source: Source, place: int, found: Found) -> None:
    """Read an AIFF or AIFF-C."""
    layout = b""
    for name, size, start in _chunks(source, place + 12, 4, 4, "big"):
        if name == b"COMM":
            layout = source.at(start, min(size, 22))
        elif name == b"SSND":
            channels, bits, exponent, mantissa = struct.unpack_from(">H4xHHQ", layout)
            rate = int(mantissa * 2.0 ** ((exponent & 0x7FFF) - 16446)) if exponent < 16446 else 0
            codec = _BIG_CODECS.get(layout[18:22] or b"NONE")
            block = {"mulaw": 1, "alaw": 1, "adpcm": 34}.get(codec or "", -(-bits // 8)) * channels
            there = min(size - 8 if size > 8 else source.size, source.size - start - 8)
            what = (f"linear{bits}" if codec == "linear" else codec, rate, channels)
            _samples(found, what, block, there, 64 if codec == "adpcm" else 1)
            return


_AU_CODECS = {1: ("mulaw", 1), 2: ("linear8", 1), 3: ("linear16", 2), 4: ("linear24", 3), 5: ("linear32", 4)}
_AU_CODECS |= {6: ("float", 4), 7: ("float", 8), 27: ("alaw", 1)}


def au(source: Source, place: int, found: Found) -> None:
    """Read a Sun AU."""
    start, stated, encoding, rate, channels = struct.unpack(">5I", source.at(place + 4, 20))
    codec, width = _AU_CODECS.get(encoding, (None, 0))
    there = source.size - place - start
    _samples(
        found,
        (codec, rate, channels),
        width * channels,
        there if stated == 0xFFFFFFFF else min(stated, there),
    )


def caf(source: Source, place: int, found: Found) -> None:
    """Read a Core Audio file."""
    layout, packets, data, stated = b"", b"", 0, 0
    for name, size, start in _chunks(source, place + 8, 4, 8, "big", pad=1):
        if name == b"desc":
            layout = source.at(start, 32)
        elif name == b"pakt":
            packets = source.at(start, 24)
        elif name == b"data":
            data, stated = start + 4, size - 4 if size < 1 << 63 else source.size
    hertz, kind, flags, block, per_block, channels, bits = struct.unpack(">d4s5I", layout)
    codec = "float" if kind == b"lpcm" and flags & 1 else _BIG_CODECS.get(kind)
    rate, there = int(hertz) if 0 < hertz < 1e6 else 0, min(stated, source.size - data)
    _samples(
        found, (f"linear{bits}" if codec == "linear" else codec, rate, channels), block, there, per_block
    )
    if packets and rate and not block:
        count, valid, before, after = struct.unpack(">qqii", packets)
        short = (
            per_block if valid == count * per_block else 0
        )  # the last packet may have fewer than it is counted for
        doubt = (before + after + short) / rate if there == stated else 1e9
        found.length(valid / rate * there / stated, "stated by the table of packets", doubt=doubt)
