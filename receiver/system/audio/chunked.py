"""WAV, RF64, W64, AIFF, AU and CAF: chunks around samples. What is there counts, not what a head states."""

from __future__ import annotations

import struct
from functools import partial
from itertools import islice
from typing import Literal

from receiver.system.audio.formats import CODECS
from receiver.system.audio.frames import frames
from receiver.system.audio.reading import Found, Head, Source, chunks

_MOST_CHUNKS = 256


def _head(names: int, sizes: int, order: Literal["little", "big"], counted: int, data: bytes) -> Head | None:
    """Read a chunk's name and size, which also counts so many bytes of its head. A size of -1 is known to nobody."""
    if len(data) < names + sizes:
        return None
    size = int.from_bytes(data[names : names + sizes], order)
    return data[:4], names + sizes, -1 if sizes == 8 and size == (1 << 64) - 1 else max(0, size - counted)


_RIFF, _W64 = partial(_head, 4, 4, "little", 0), partial(_head, 16, 8, "little", 24)
_AIFF, _CAF = partial(_head, 4, 4, "big", 0), partial(_head, 4, 8, "big", 0)


def _samples(
    found: Found,
    codec: str | None,
    bits: int,
    rate: int,
    channels: int,
    block: int,
    there: int,
    each: int = 1,
) -> None:
    """Note the facts, and the length of the bytes that are there in blocks, each of so many samples."""
    found.codec = f"linear{bits}" if codec == "linear" else codec
    found.rate, found.channels = rate or None, channels or None
    if rate and block and codec and each:
        doubt = each / rate if there % block else 0
        found.length(there / block * each / rate, "the bytes of samples that are there", doubt=doubt)


_WAV_CODECS = {1: "linear", 2: "adpcm", 3: "float", 6: "alaw", 7: "mulaw", 0x11: "adpcm", 0x31: "gsm"}
_WAV_CODECS |= {0x45: "g726", 0x50: "mp2", 0x55: "mp3", 0x65: "g722", 0x28F: "g722", 0xFF: "aac"}


def wav(source: Source, place: int, found: Found) -> None:
    """Read a WAV, RF64 or Wave64."""
    tag, stated = source.at(place, 8), 0
    w64 = tag[:4] == b"riff"
    walk = chunks(source, place + 40, _W64, pad=8) if w64 else chunks(source, place + 12, _RIFF, pad=2)
    layout = b""
    for name, start, end in islice(walk, _MOST_CHUNKS):
        if name == b"ds64":
            stated = int.from_bytes(source.at(start + 8, 8), "little")
        elif name == b"fmt ":
            layout = source.at(start, min(end - start, 40))
        elif name == b"data":
            # A stream's writer does not know the size: 0, or a number near the end of its range.
            there, size = source.size - start, end - start
            known = min(there, stated or (there if size >= 0x7FFF0000 or not size else size))
            _wav_samples(source, layout, start, known, found)
            if not size and there and not w64 and tag[4:] not in (b"\0\0\0\0", b"\xff\xff\xff\xff"):
                found.estimated = True  # an end may follow that is no sound
            return


def _wav_samples(source: Source, layout: bytes, start: int, there: int, found: Found) -> None:
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", layout)
    if tag == 0xFFFE:  # extensible: the codec is in the sub-format
        tag = int.from_bytes(layout[24:26], "little")
    codec = _WAV_CODECS.get(tag)
    each = 1
    if codec in ("adpcm", "gsm"):
        each = int.from_bytes(layout[18:20], "little")
    elif codec in ("g722", "g726"):  # the head's bit rate is not always theirs
        block, each = (1, 2) if codec == "g722" else (bits, 8)
    elif codec in ("mp2", "mp3", "aac"):
        block = 0
    _samples(found, codec, bits, rate, channels, block, there, each)
    if codec in ("mp2", "mp3"):
        frames(source, start, found)


def aiff(source: Source, place: int, found: Found) -> None:
    """Read an AIFF or AIFF-C."""
    layout = b""
    for name, start, end in islice(chunks(source, place + 12, _AIFF, pad=2), _MOST_CHUNKS):
        if name == b"COMM":
            layout = source.at(start, min(end - start, 22))
        elif name == b"SSND":
            channels, bits, exponent, mantissa = struct.unpack_from(">H4xHHQ", layout)
            rate = int(mantissa * 2.0 ** ((exponent & 0x7FFF) - 16446)) if exponent < 16446 else 0
            codec = CODECS.get(layout[18:22] or b"NONE")
            block = {"mulaw": 1, "alaw": 1, "adpcm": 34}.get(codec or "", -(-bits // 8)) * channels
            there = min(end if end > start + 8 else source.size, source.size) - start - 8
            _samples(found, codec, bits, rate, channels, block, there, 64 if codec == "adpcm" else 1)
            return


_AU_CODECS = {1: ("mulaw", 8), 2: ("linear", 8), 3: ("linear", 16), 4: ("linear", 24), 5: ("linear", 32)}
_AU_CODECS |= {6: ("float", 32), 7: ("float", 64), 27: ("alaw", 8)}


def au(source: Source, place: int, found: Found) -> None:
    """Read a Sun AU."""
    start, stated, encoding, rate, channels = struct.unpack(">5I", source.at(place + 4, 20))
    codec, bits = _AU_CODECS.get(encoding, (None, 0))
    there = source.size - place - start
    there = there if stated == 0xFFFFFFFF else min(stated, there)
    _samples(found, codec, bits, rate, channels, bits // 8 * channels, there)


def caf(source: Source, place: int, found: Found) -> None:
    """Read a Core Audio file: samples, or a table of packets, which may stand behind them."""
    at = {name: (start, end) for name, start, end in islice(chunks(source, place + 8, _CAF), _MOST_CHUNKS)}
    layout, (start, end) = source.at(at[b"desc"][0], 32), at.get(b"data", (0, 0))
    hertz, kind, flags, block, each, channels, bits = struct.unpack(">d4s5I", layout)
    codec = "float" if kind == b"lpcm" and flags & 1 else CODECS.get(kind)
    rate, stated, there = int(hertz) if 0 < hertz < 1e6 else 0, end - start - 4, source.size - start - 4
    _samples(found, codec, bits, rate, channels, block, min(stated, there), each)
    if b"pakt" in at and rate and not block and stated <= there:
        count, valid, before, after = struct.unpack(">qqii", source.at(at[b"pakt"][0], 24))
        last = each if valid == count * each else 0  # it may have fewer samples than it is counted for
        found.length(valid / rate, "the table of packets", doubt=(before + after + last) / rate)
