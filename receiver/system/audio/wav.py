"""WAV and RF64: chunks around samples. What is there counts, not what a head states."""

from __future__ import annotations

import struct

from receiver.system.audio.reading import Found, Head, Source, chunks

_CODECS = {1: "linear", 2: "adpcm", 3: "float", 6: "alaw", 7: "mulaw", 0x11: "adpcm", 0x31: "gsm"}
_CODECS |= {0x45: "g726", 0x50: "mp2", 0x55: "mp3", 0x65: "g722", 0x28F: "g722", 0xFF: "aac"}
_PLAIN = ("linear", "float", "alaw", "mulaw")  # of the others a damaged block does not show: no length


def _head(data: bytes) -> Head | None:
    return (data[:4], 8, int.from_bytes(data[4:8], "little")) if len(data) >= 8 else None


def wav(source: Source, place: int, found: Found) -> None:
    """Read the chunks up to the samples."""
    tag, stated, layout = source.at(place, 8), 0, b""
    for name, start, end in chunks(source, place + 12, _head, pad=2):
        if name == b"ds64":
            stated = int.from_bytes(source.at(start + 8, 8), "little")
        elif name == b"fmt ":
            layout = source.at(start, min(end - start, 40))
        elif name == b"data":
            # A stream's writer does not know the size: 0, or a number near the end of its range.
            there, size = source.size - start, end - start
            known = min(there, stated or (there if size >= 0x7FFF0000 or not size else size))
            _samples(layout, known, found)
            if not size and there and tag[4:] not in (b"\0\0\0\0", b"\xff\xff\xff\xff"):
                found.estimated = True  # an end may follow that is no sound
            return


def _samples(layout: bytes, there: int, found: Found) -> None:
    """Note the facts, and the length of the bytes of samples that are there."""
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", layout)
    if tag == 0xFFFE:  # extensible: the codec is in the sub-format
        tag = int.from_bytes(layout[24:26], "little")
    codec = _CODECS.get(tag)
    found.codec = f"linear{bits}" if codec == "linear" else codec
    found.rate, found.channels = rate or None, channels or None
    if codec in _PLAIN and rate and block:
        found.length(
            there / block / rate, "the bytes of samples that are there", doubt=bool(there % block) / rate
        )
