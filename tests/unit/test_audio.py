"""Audio facts and magic bytes, on real encoders' files and on damaged ones."""

from __future__ import annotations

import io
import struct
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from receiver.core.event import AudioDraft, AudioFacts
from receiver.system.audio.formats import MEDIA_TYPES, RAW_CODECS, RAW_MEDIA_TYPES, facts, sniff
from receiver.system.audio.mp3_aac import frame_at
from tests.support.corpus import told
from tests.support.golden import ROOT

AUDIO = ROOT / "audio"
FLAC = AudioDraft(content_type="audio/flac", extension="flac")
MP3 = AudioDraft(content_type="audio/mpeg", extension="mp3")
NOTHING = AudioFacts()
FILES = sorted(path for path in AUDIO.iterdir() if path.suffix != ".md")


def _raw(codec: str, frame: int, rate: int | None = 8000) -> AudioDraft:
    return AudioDraft(
        content_type=f"audio/{codec}",
        extension="raw",
        sample_rate_hz=rate,
        channels=1,
        codec=codec,
        bytes_per_frame=frame,
    )


@pytest.mark.parametrize(
    ("name", "rate", "codec"),
    [
        ("speech.mp3", 22050, "mp3"),
        ("speech-xing.mp3", 22050, "mp3"),
        ("speech.wav", 8000, "linear16"),
        ("speech-streamed.wav", 8000, "linear16"),
        ("speech-mulaw.wav", 8000, "mulaw"),
        ("speech-alaw.wav", 8000, "alaw"),
        ("speech.flac", 8000, "flac"),
        ("speech.ogg", 48000, "opus"),
        ("speech-vorbis.ogg", 22050, "vorbis"),
        ("speech.aac", 22050, "aac"),
        ("speech.m4a", 22050, "aac"),
        ("speech.webm", 48000, "opus"),
    ],
)
@pytest.mark.parametrize("from_bytes", [True, False])
def test_facts_of_each_format(name: str, rate: int, codec: str, from_bytes: bool) -> None:
    """1.2 s were encoded; frames of lossy formats fill up to 60 ms more."""
    path = AUDIO / name
    found = told(path.read_bytes(), None if from_bytes else path)
    assert (found.sample_rate_hz, found.codec, found.channels) == (rate, codec, 1)
    assert found.duration_seconds == pytest.approx(1.2, abs=0.06)


@pytest.mark.parametrize(("name", "frame"), [("speech.l16", 2), ("speech.mulaw", 1), ("speech.alaw", 1)])
def test_raw_samples_take_their_length_from_rate_and_size(name: str, frame: int) -> None:
    codec = name.partition(".")[2]
    found = facts(str(AUDIO / name), _raw(codec, frame))
    how = "the number of bytes, and the stated rate"
    assert found == AudioFacts(duration_seconds=1.2, sample_rate_hz=8000, channels=1, codec=codec, how=how)


def test_raw_samples_without_a_rate_have_no_length() -> None:
    assert facts(b"\xff" * 8000, _raw("mulaw", 1, None)) == AudioFacts(channels=1, codec="mulaw")


def test_a_format_without_magic_is_read_by_its_extension() -> None:
    """Frames that begin past what the first bytes show are found all the same."""
    audio = bytes(5000) + (AUDIO / "speech-xing.mp3").read_bytes()
    assert sniff(audio[:4096]) is None
    found = facts(audio, MP3)
    assert found.duration_seconds == pytest.approx(1.2, abs=0.06)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_damage_gives_no_exception(path: Path) -> None:
    """Cut anywhere, and with each of the first bytes changed, the facts are some or none."""
    whole = path.read_bytes()
    for end in (0, 1, 3, 7, 11, 20, 35, 43, 44, 60, 100, 200, len(whole) // 2, len(whole) - 1):
        assert isinstance(told(whole[:end]), AudioFacts)
    for place in range(64):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[place] ^= flip
            found = told(bytes(damaged))
            assert found.duration_seconds is None or 0 <= found.duration_seconds <= 7 * 86400


def test_a_file_that_is_not_there_has_no_facts(tmp_path: Path) -> None:
    assert facts(str(tmp_path / "gone.mp3"), MP3) == NOTHING


@pytest.mark.parametrize("draft", [MP3, FLAC, AudioDraft(content_type="audio/mp4", extension="m4a")])
def test_bytes_that_are_not_what_their_sender_says_have_no_facts(draft: AudioDraft) -> None:
    assert facts(bytes(range(256)) * 40, draft) == NOTHING


def test_past_its_deadline_nothing_more_is_read() -> None:
    assert facts(str(AUDIO / "speech.flac"), FLAC, deadline_seconds=-1.0) == NOTHING


def test_a_hostile_file_is_given_up_in_time() -> None:
    """MP3 frames that never agree, which makes a scanner begin again at each of a million places.

    The time is that of the thread's own processor, as the deadline is: others may have the machine meanwhile.
    """
    began = time.thread_time()
    facts(b"ID3\x04\x00\x00\x00\x00\x00\x00" + b"\xff\xfb\x90\x64" * 2_000_000, MP3, deadline_seconds=0.2)
    assert time.thread_time() - began < 2


# ---------------------------------------------------------------- WAV


def _wav(*chunks: tuple[bytes, bytes, int | None], riff: bytes = b"RIFF") -> bytes:
    """Return a WAV of chunks: name, bytes, and the size to state where that is another."""
    out = io.BytesIO()
    for name, data, stated in chunks:
        out.write(
            name + struct.pack("<I", len(data) if stated is None else stated) + data + b"\0" * (len(data) % 2)
        )
    body = out.getvalue()
    return riff + struct.pack("<I", len(body) + 4) + b"WAVE" + body


def _fmt(
    tag: int = 1, channels: int = 1, rate: int = 8000, block: int = 2, bits: int = 16, more: bytes = b""
) -> Any:
    return b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits) + more, None


SECOND = b"\0" * 16000


@pytest.mark.parametrize(
    ("audio", "duration", "estimated"),
    [
        (_wav(_fmt(), (b"data", SECOND, None)), 1.0, False),
        (_wav(_fmt(), (b"LIST", b"odd", None), (b"data", SECOND, None)), 1.0, False),
        (_wav(_fmt(), (b"data", SECOND, 0)), 1.0, True),
        (_wav(_fmt(), (b"data", SECOND, 0xFFFFFFFF)), 1.0, False),
        (_wav(_fmt(), (b"data", SECOND, 0x7FFFFFFF)), 1.0, False),
        (_wav(_fmt(), (b"data", SECOND, 32000)), 1.0, False),
        (_wav(_fmt(), (b"data", SECOND, None), (b"LIST", b"after", None)), 1.0, False),
        (_wav(_fmt(), (b"data", b"", None)), 0.0, False),
        (_wav(_fmt(channels=2, block=4), (b"data", SECOND, None)), 0.5, False),
        (_wav((b"ds64", struct.pack("<QQQI", 0, 16000, 0, 0), None), _fmt(), (b"data", SECOND, 0xFFFFFFFF), riff=b"RF64"), 1.0, False),
        (_wav((b"ds64", struct.pack("<QQQI", 0, 8000, 0, 0), None), _fmt(), (b"data", SECOND, 0xFFFFFFFF), riff=b"RF64"), 0.5, False),
        (_wav(_fmt(17, 1, 8000, 160, 4, b"\x02\0\x40\x01"), (b"data", SECOND, None)), None, False),
        (_wav(*[(b"junk", b"", None)] * 300, _fmt(), (b"data", SECOND, None)), 1.0, False),
    ],
)  # fmt: skip
def test_wav_lengths(audio: bytes, duration: float | None, estimated: bool) -> None:
    found = told(audio)
    assert (found.duration_seconds, found.duration_estimated) == (duration, estimated)


def test_an_extensible_wav_tells_its_codec_in_the_subformat() -> None:
    more = struct.pack("<HHIH", 22, 16, 4, 7) + b"\0" * 14
    assert told(_wav(_fmt(0xFFFE, block=1, bits=8, more=more), (b"data", SECOND, None))).codec == "mulaw"


@pytest.mark.parametrize(
    "audio",
    [
        _wav((b"data", SECOND, None)),
        _wav((b"fmt ", b"\1\0", None), (b"data", SECOND, None)),
        _wav(_fmt()),
    ],
)
def test_a_wav_without_usable_chunks_has_no_facts(audio: bytes) -> None:
    assert told(audio) == NOTHING


@pytest.mark.parametrize("layout", [_fmt(rate=0), _fmt(block=0), _fmt(tag=0x1234)])
def test_a_wav_that_states_nonsense_has_no_length(layout: Any) -> None:
    assert told(_wav(layout, (b"data", SECOND, None))).duration_seconds is None


# ---------------------------------------------------------------- magic


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_sniff_knows_each_file(path: Path) -> None:
    form = sniff(path.read_bytes()[:4096])
    if path.suffix in {".mulaw", ".alaw", ".l16"}:
        assert form is None
    else:
        assert form
        assert (form.extension, form.certain) == (path.suffix.removeprefix("."), True)


@pytest.mark.parametrize(
    "prefix",
    [
        b"",
        b"\xff",
        b"RIFF\0\0\0\0AVI LIST",
        b"FORM\0\0\0\0ILBM",
        b"\x1a\x45\xdf\xa3" + b"\0" * 80,
        b"ID3\xff\xff\0\0\0\0\0",
        b"ID3\x04\x00\x00\x80\x00\x00\x00",
        b"ID3",
        b"\xff\xff\xff\xff" * 20,
        b"\xff\xfb\x90\x64" + b"\0" * 2000,
        b"\xff\xf1\x50\x80\x02\x1f\xfc" + b"\0" * 2000,
        b"\xff\xfb\x90\x64" + b"\0" * 413 + b"\xff\xf3\x90\x64" + b"\0" * 413,
        b"\xff\xfb\x90\x64" + b"\0" * 413 + b"\xff\xfb\x94\x64" + b"\0" * 413,
        b'{"results":{}}',
    ],
)
def test_sniff_does_not_take_others_for_audio(prefix: bytes) -> None:
    assert sniff(prefix) is None


@pytest.mark.parametrize(
    ("header", "name"), [(b"\xff\xfb\x90\x64", "mp3"), (b"\xff\xf1\x50\x80\x02\x1f\xfc", "aac")]
)
def test_a_lone_frame_header_is_uncertain(header: bytes, name: str) -> None:
    form = sniff(header)
    assert form
    assert (form.extension, form.certain) == (name, False)


def test_frames_lead_from_one_to_the_next_through_whole_files() -> None:
    for name in ("speech.mp3", "speech.aac"):
        audio, place, frames = (AUDIO / name).read_bytes(), 0, 0
        while place < len(audio):
            frame = frame_at(audio, place)
            assert frame, f"{name} at {place}"
            place, frames = place + frame[0], frames + 1
        assert place == len(audio)
        assert frames > 20


def test_media_types_are_lower_case_and_raw_types_have_codecs() -> None:
    assert all(kind == kind.lower() for kind in MEDIA_TYPES)
    assert {MEDIA_TYPES[kind].codec for kind in RAW_MEDIA_TYPES} == set(RAW_CODECS)


@pytest.mark.parametrize("name", ["speech.mp3", "speech.wav"])
def test_the_shipped_sample_is_short_speech(name: str) -> None:
    audio = (files("receiver.demo") / "samples" / name).read_bytes()
    assert len(audio) < 40_000
    found = told(audio)
    assert found.duration_seconds == pytest.approx(1.28, abs=0.1)
    assert not found.duration_estimated
