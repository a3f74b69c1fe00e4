"""Audio from strangers: whatever the bytes are, the facts take little time and memory, and nothing is raised."""

from __future__ import annotations

import random
import struct
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from receiver.core.event import AudioDraft, AudioFacts
from receiver.providers.toolkit import audio_draft
from receiver.system.audio.formats import facts
from tests.support import corpus

MIB = 1024 * 1024
BIG = 8 * MIB


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content


def _ogg_page(serial: int, flags: int, body: bytes = b"") -> bytes:
    return struct.pack("<4sBBqIIIB", b"OggS", 0, flags, 960, serial, 0, 0, 1) + bytes([len(body)]) + body


_OPUS = _ogg_page(1, 2, b"OpusHead\x01\x01\0\0\x80\xbb\0\0\0\0\0" + bytes(60))


def _open(kind: bytes) -> bytes:
    """Return the head of a box that states a length past the end of what follows."""
    return struct.pack(">I", 2 * BIG) + kind


_SOUND = _box(b"hdlr", bytes(8) + b"soun") + _box(b"mdhd", bytes(12) + struct.pack(">II", 1000, 0))
_FTYP = _box(b"ftyp", b"M4A ")
_TABLE = _box(b"stbl", _box(b"stsd", bytes(8) + _box(b"mp4a", bytes(50))))
_MOVIE = _FTYP + _box(b"moov", _box(b"trak", _box(b"mdia", _SOUND + _box(b"minf", _TABLE))))
_RUN = _box(b"tfhd", bytes(8)) + _open(b"trun") + b"\0\0\x01\0\xff\xff\xff\xff"
_EBML = b"\x1a\x45\xdf\xa3\x87\x42\x82\x84webm\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff"
_TRACK = (
    b"\x16\x54\xae\x6b\x91\xae\x8f\xd7\x81\x01\x83\x81\x02\x86\x86A_OPUS\x1f\x43\xb6\x75\x01" + b"\xff" * 7
)
_FLAC = b"fLaC\x80\0\0\x22\x10\0\x10\0\0\0\0\0\0\0\x0a\xc4\x42\xf0\0\0\0\0" + bytes(16)

HOSTILE: dict[str, tuple[bytes, bytes]] = {
    "MP3 frames that never agree": (b"ID3\x04\0\0\0\0\0\0", b"\xff\xfb\x90\x64"),
    "MP3 frames by threes": (b"", (b"\xff\xf3\x14\xc4" + bytes(20)) * 3 + b"\0"),
    "the least MP3 frames": (b"", b"\xff\xf3\x14\xc4" + bytes(20)),
    "the least ADTS frames": (b"", b"\xff\xf1\x50\x40\0\xff\xfc"),
    "nothing but syncs": (b"ID3\x04\0\0\0\0\0\0", b"\xff"),
    "ID3 tags": (b"", b"ID3\x04\0\0\0\0\0\0"),
    "APE tags": (b"\xff\xf3\x14\xc4" + bytes(20) + b"\xff\xf3\x14\xc4" + bytes(20), b"APETAGEX" + bytes(24)),
    "empty Ogg pages": (_OPUS, _ogg_page(1, 0)),
    "Ogg streams": (b"", _OPUS + _ogg_page(1, 0, b"\x08")),
    "Ogg that is none": (_OPUS, b"OggS\0"),
    "MP4 boxes": (_FTYP, _box(b"free", b"")),
    "MP4 tracks": (_FTYP + struct.pack(">I4s", BIG // 32, b"moov"), _box(b"trak", _box(b"mdia", _SOUND.replace(b"soun", b"vide")))),
    "MP4 times": (
        _FTYP + struct.pack(">I4s", BIG // 32, b"moov") + _open(b"trak") + _open(b"mdia") + _SOUND
        + _open(b"minf") + _open(b"stbl") + _box(b"stsd", bytes(60)) + _open(b"stts"),
        b"\0\0\0\1",
    ),
    "MP4 fragments": (_MOVIE, _box(b"moof", _box(b"traf", _box(b"tfhd", bytes(8)) + _box(b"trun", bytes(8))))),
    "an MP4 fragment without end": (_MOVIE + _open(b"moof") + _open(b"traf") + _RUN, b"\0\0\0\1"),
    "WebM elements": (_EBML + _TRACK, b"\xec\x80"),
    "WebM blocks": (_EBML + _TRACK, b"\xa3\x85\x81\0\0\0\x08"),
    "WebM clusters": (_EBML + _TRACK, b"\x1f\x43\xb6\x75\x80"),
    "FLAC syncs": (_FLAC, b"\xff\xf8\xc9\x18"),
    "FLAC headers": (_FLAC, b"\xff\xf8\xc9\x18\x00\xc2\0\1"),
    "FLAC syncs behind headers": (_FLAC, b"\xff\xf8\xc9\x18\x00\xc2" + b"\xff\xf8\xc9\x18\x00\0\0" * 140),
    "WAV chunks": (b"RIFF\xff\xff\xff\xffWAVE", b"junk\0\0\0\0"),
    "zeros": (b"", bytes(64)),
}  # fmt: skip


def _drafted(prefix: bytes) -> AudioDraft:
    """Return what the bytes show, and the sender says where they show nothing."""
    return audio_draft("audio/mpeg", {}, prefix, {})


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_takes_less_than_a_second(name: str, tmp_path: Path) -> None:
    """Of processor, for 8 MiB in a file."""
    start, repeated = HOSTILE[name]
    path = tmp_path / "body"
    with path.open("wb") as file:
        file.write(start)
        piece = repeated * (MIB // len(repeated))
        for _ in range(BIG // MIB):
            file.write(piece)
    began = time.thread_time()
    assert isinstance(facts(str(path), _drafted(start + piece[:4096])), AudioFacts)
    assert time.thread_time() - began < 1
    path.unlink()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_takes_less_than_eight_times_its_length(name: str) -> None:
    """Of memory, beyond the bytes themselves."""
    start, repeated = HOSTILE[name]
    body = start + repeated * (MIB // 16 // len(repeated))
    draft = _drafted(body[:4096])
    tracemalloc.start()
    try:
        facts(body, draft)
        assert tracemalloc.get_traced_memory()[1] < MIB // 2
    finally:
        tracemalloc.stop()


def _mutated(chance: random.Random, whole: bytes) -> bytes:
    """Return a file with some bytes changed, removed, repeated or taken from another."""
    body = bytearray(whole)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(max(1, min(len(body), chance.choice((64, 512, 1 << 20)))))
        match chance.randrange(5):
            case 0:
                body[at : at + 1] = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))])
            case 1:
                body[at : at + chance.randint(1, 64)] = b""
            case 2:
                body[at:at] = body[at : at + chance.randint(1, 64)]
            case 3:
                body[at : at + 4] = chance.choice(
                    (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\x80\0\0\0")
                )
            case 4:
                other = corpus.content(chance.choice(corpus.names()))
                body[at:at] = other[: chance.randint(4, 4000)]
    return bytes(body)


def _fuzzed(seconds: float, seed: int) -> int:
    chance, until, runs = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        body = _mutated(chance, corpus.content(chance.choice(corpus.names())))
        began = time.thread_time()
        found = corpus.told(body)
        assert time.thread_time() - began < 1, body[:64].hex()
        length = found.duration_seconds
        assert length is None or 0 <= length <= 7 * 86_400
        assert all(value is None or value > 0 for value in (found.sample_rate_hz, found.channels))
        runs += 1
    return runs


def test_damaged_files_raise_nothing() -> None:
    """The same for half a second, with the same damage each time."""
    assert _fuzzed(0.5, seed=7) > 0


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_minute_of_damage_raises_nothing_and_memory_does_not_grow() -> None:
    seed = time.time_ns()
    print("seed", seed)
    _fuzzed(5, seed)
    tracemalloc.start()
    _fuzzed(10, seed + 1)
    before = tracemalloc.get_traced_memory()[0]
    assert _fuzzed(45, seed + 2) > 100
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 2 * MIB
    assert threading.active_count() < 20
