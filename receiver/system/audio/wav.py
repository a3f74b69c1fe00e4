"""WAV and RF64: chunks around samples. What is there counts, not what a head states."""

from __future__ import annotations

import struct

from receiver.core.event import AudioFacts
from receiver.system.audio.reading import UNKNOWN, Head, Source, chunks, note_length

_CODECS = {1: "linear", 2: "adpcm", 3: "float", 6: "alaw", 7: "mulaw", 0x11: "adpcm", 0x31: "gsm"}
_CODECS |= {0x45: "g726", 0x50: "mp2", 0x55: "mp3", 0x65: "g722", 0x28F: "g722", 0xFF: "aac"}
_PLAIN = ("linear", "float", "alaw", "mulaw")  # of the others a damaged block does not show: no length


def _head(data: bytes) -> Head:
    name, size = data[:4], int.from_bytes(data[4:8], "little")
    return name, 8, size if name == b"data" else size + size % 2


def wav(source: Source, place: int, found: AudioFacts) -> None:
    """Read the chunks up to the samples, and what is there of them."""
    riff, stated, layout = source.at(place, 8), 0, b""
    for name, start, end in chunks(source, place + 12, _head):
        if name == b"ds64":
            stated = int.from_bytes(source.at(start + 8, 8), "little")
        if name == b"fmt ":
            layout = source.at(start, min(end - start, 40))
        if name == b"data":
            break
    else:
        return
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", layout)
    if tag == 0xFFFE:  # extensible: the codec is in the sub-format
        tag = int.from_bytes(layout[24:26], "little")
    codec = _CODECS.get(tag)
    found.codec = f"linear{bits}" if codec == "linear" else codec
    found.sample_rate_hz, found.channels = rate, channels
    # A stream's writer does not know the size: 0, or a number near the end of its range.
    there, size = source.size - start, stated or end - start
    known = min(there, size) if 0 < size < 0x7FFF0000 or stated else there
    # One that says 0 for the samples alone may have an end that is no sound.
    sized = size or not there or riff[4:] in (b"\0\0\0\0", b"\xff\xff\xff\xff")
    if codec in _PLAIN:
        how = "the bytes of samples that are there"
        note_length(found, known / block / rate, how, doubt=0.0 if sized else UNKNOWN)
