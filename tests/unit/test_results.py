"""What downloaded bytes are: by the bytes, then their type, then what the job asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from receiver.core.callback import MemoryBody
from receiver.core.event import AudioDraft, FileDraft
from receiver.core.fetch import Failed
from receiver.core.work import OutcomeKind
from receiver.providers import results
from tests.support.golden import ROOT

MP3 = (ROOT / "audio/speech.mp3").read_bytes()
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(64)
MP4 = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom" + bytes(64)
AVIF = b"\x00\x00\x00\x18ftypavif\x00\x00\x00\x00avifmif1" + bytes(64)
HTML = b"  <!doctype HTML><html><title>Sign in</title></html>"
S3_ERROR = b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>'
MULAW = (ROOT / "audio/speech.mulaw").read_bytes()
QUIET_MULAW = b"\xff" * 800
QUIET_ALAW = b"\x55" * 800
RAW = {"encoding": "mulaw", "container": "none", "sample_rate": 8000}


def judge(
    raw: bytes, content_type: str = "", wanted: results.ResultKind = "audio", **asked: Any
) -> AudioDraft | FileDraft | Failed:
    return results.classify(MemoryBody(raw), content_type=content_type, format=asked, wanted=wanted)


def _audio(*args: Any, **asked: Any) -> tuple[str, str, int | None]:
    found = judge(*args, **asked)
    assert isinstance(found, AudioDraft), found
    return found.content_type, found.extension, found.sample_rate_hz


def _file(*args: Any, **asked: Any) -> tuple[str, str, str]:
    found = judge(*args, **asked)
    assert isinstance(found, FileDraft), found
    return found.part, found.content_type, found.extension


def _refusal(*args: Any, **asked: Any) -> str:
    found = judge(*args, **asked)
    assert isinstance(found, Failed), found
    assert (found.kind, found.too_large) == (OutcomeKind.UNUSABLE, False)
    return found.detail


@pytest.mark.parametrize(
    ("name", "content_type", "extension"),
    [
        ("speech.mp3", "audio/mpeg", "mp3"),
        ("speech.wav", "audio/wav", "wav"),
        ("speech.ogg", "audio/ogg;codecs=opus", "ogg"),
        ("speech.flac", "audio/flac", "flac"),
        ("speech.m4a", "audio/mp4", "m4a"),
        ("speech.webm", "audio/webm", "webm"),
    ],
)
@pytest.mark.parametrize("stated", ["", "text/html", "application/json", "audio/wav", "image/png"])
def test_bytes_that_show_their_format_outweigh_any_type(
    name: str, content_type: str, extension: str, stated: str
) -> None:
    raw = (ROOT / "audio" / name).read_bytes()
    assert _audio(raw, stated)[:2] == (content_type, extension)


@pytest.mark.parametrize(
    ("stated", "asked", "expected"),
    [
        ("audio/mulaw;rate=8000", {}, ("audio/mulaw;rate=8000", "raw", 8000)),
        ("", RAW, ("audio/mulaw;rate=8000", "raw", 8000)),
        ("application/octet-stream", RAW, ("audio/mulaw;rate=8000", "raw", 8000)),
        ("", {"format": "mulaw"}, ("audio/mulaw", "raw", None)),
        ("", {"format": "headerless-wav", "sample_rate": "16000"}, ("audio/l16;rate=16000", "raw", 16000)),
        ("", {"output_format": "mp3"}, ("audio/mpeg", "mp3", None)),
        ("audio/x-unheard-of", {}, ("audio/x-unheard-of", "bin", None)),
        ("", {}, ("application/octet-stream", "bin", None)),
        ("binary/octet-stream", {}, ("application/octet-stream", "bin", None)),
    ],
)
def test_samples_without_a_container_are_told_by_type_then_by_what_was_asked(
    stated: str, asked: dict[str, Any], expected: tuple[str, str, int | None]
) -> None:
    assert _audio(MULAW, stated, **asked) == expected


@pytest.mark.parametrize(("raw", "encoding"), [(QUIET_MULAW, "mulaw"), (QUIET_ALAW, "alaw")])
def test_silence_that_a_server_calls_text_is_audio_where_raw_samples_were_asked_for(
    raw: bytes, encoding: str
) -> None:
    """Servers that guess types take 0xFF and 0x55 for text."""
    assert _audio(raw, "text/plain; charset=utf-8", encoding=encoding)[1] == "raw"


@pytest.mark.parametrize(
    ("raw", "stated", "sentence"),
    [
        (b"", "audio/mpeg", "the result is empty"),
        (HTML, "text/html", "the result is a web page (text/html), not audio"),
        (HTML, "audio/mpeg", "the result is a web page (text/html), not audio"),
        (b"\xef\xbb\xbf" + HTML, "", "the result is a web page (text/html), not audio"),
        (b"Sign in, please", "text/html", "the result is a web page (text/html), not audio"),
        (S3_ERROR, "application/xml", "the result is a storage's error document (XML), not audio"),
        (b'{"error": "no"}', "audio/mpeg", "the result is JSON, not audio"),
        (b"[1]", "application/json", "the result is JSON, not audio"),
        (b"error code: 1015", "audio/mpeg", "the result is text, not audio"),
        (b"Not found", "", "the result is text, not audio"),
        (PNG, "audio/mpeg", "the result is an image (image/png), not audio"),
        (JPEG, "", "the result is an image (image/jpeg), not audio"),
        (AVIF, "", "the result is an image (image/avif), not audio"),
        (b"%PDF-1.7 \xe2\xe3", "", "the result is a file (application/pdf), not audio"),
        (MULAW, "image/png", "the result is of type image/png, not audio"),
        (MULAW, "a b/c", "the result is of no known type, not audio"),
    ],
)
def test_what_is_no_audio_is_named(raw: bytes, stated: str, sentence: str) -> None:
    assert _refusal(raw, stated) == sentence


@pytest.mark.parametrize("raw", [HTML, b'{"error": "no"}', b"Not found"])
def test_an_error_is_no_audio_even_where_raw_samples_were_asked_for(raw: bytes) -> None:
    assert _refusal(raw, "audio/mulaw", **RAW).endswith("not audio")


def test_a_lone_frame_header_does_not_outweigh_raw_samples_that_were_asked_for() -> None:
    by_chance = b"\xff\xfb\x90\x64" + b"\xf0\x7e" * 100
    assert _audio(by_chance, "", **RAW)[1] == "raw"
    assert _audio(by_chance, "")[1] == "mp3"


@pytest.mark.parametrize(
    ("raw", "stated", "content_type", "extension"),
    [
        (b"Good morning.", "text/plain", "text/plain;charset=utf-8", "txt"),
        ("Grüße".encode(), "", "text/plain;charset=utf-8", "txt"),
        ("Grüße".encode("latin-1"), "text/plain", "text/plain", "txt"),
        (b'{"text": "Good morning."}', "application/json", "application/json", "json"),
        (b'{"text": "Good morning."}', "text/plain", "application/json", "json"),
        (b"WEBVTT\n\n00:00.000 --> 00:01.000\nHi\n", "", "text/vtt;charset=utf-8", "vtt"),
        (b"1\r\n00:00:00,000 --> 00:00:01,000\r\nHi\r\n", "", "application/x-subrip", "srt"),
    ],
)
def test_transcripts_are_text_json_or_subtitles(
    raw: bytes, stated: str, content_type: str, extension: str
) -> None:
    assert _file(raw, stated, "transcript") == ("document", content_type, extension)


@pytest.mark.parametrize(
    ("raw", "stated"),
    [
        (HTML, "text/plain"),
        (S3_ERROR, "text/plain"),
        (b'{"error": "expired"}', "application/json"),
        (b'{"message": "Unauthenticated."}', "application/json"),
        (b'{"success": false, "data": 1}', ""),
        (MP3, "text/plain"),
        (PNG, "text/plain"),
        (bytes(range(256)), ""),
        (b"a\0b\0" + bytes(range(128, 256)), "text/plain"),
    ],
)
def test_what_is_no_transcript_is_refused(raw: bytes, stated: str) -> None:
    assert _refusal(raw, stated, "transcript")


@pytest.mark.parametrize(
    ("raw", "stated", "expected"),
    [
        (PNG, "", ("media", "image/png", "png")),
        (PNG, "application/octet-stream", ("media", "image/png", "png")),
        (MP4, "video/mp4", ("media", "video/mp4", "mp4")),
        (MP4, "audio/mp4", ("media", "audio/mp4", "m4a")),
        (MP3, "", ("media", "audio/mpeg", "mp3")),
        (bytes(range(256)), "model/gltf-binary", ("media", "model/gltf-binary", "glb")),
        (bytes(range(256)), "", ("media", "application/octet-stream", "bin")),
        (bytes(range(256)), "image/svg+xml", ("media", "application/octet-stream", "bin")),
        (bytes(range(256)), "not a type", ("media", "application/octet-stream", "bin")),
        (b"[0.25, 0.5]", "application/json", ("document", "application/json", "json")),
        (
            b'<?xml version="1.0"?><scene/>',
            "application/xml",
            ("document", "text/plain;charset=utf-8", "txt"),
        ),
        (b"a cat on a mat", "text/plain", ("document", "text/plain;charset=utf-8", "txt")),
    ],
)
def test_media_is_anything_but_an_error(raw: bytes, stated: str, expected: tuple[str, str, str]) -> None:
    assert _file(raw, stated, "media") == expected


@pytest.mark.parametrize("raw", [HTML, S3_ERROR, b"", b'{"error": {"code": 5}}'])
def test_an_error_is_no_media(raw: bytes) -> None:
    assert _refusal(raw, "image/png", "media")


@pytest.mark.parametrize(
    ("raw", "stated", "kind"),
    [
        (MP3, "", AudioDraft),
        (MULAW, "audio/mulaw", AudioDraft),
        (b"Good morning.", "text/plain", FileDraft),
        (PNG, "", FileDraft),
        (MP4, "video/mp4", FileDraft),
        (MP4, "audio/mp4", AudioDraft),
        (bytes(range(256)), "application/octet-stream", FileDraft),
    ],
)
def test_where_nothing_says_what_to_expect_the_bytes_decide(raw: bytes, stated: str, kind: type) -> None:
    assert isinstance(judge(raw, stated, "any"), kind)


def test_raw_samples_that_were_asked_for_are_audio_where_nothing_else_is_said() -> None:
    assert isinstance(judge(MULAW, "", "any", **RAW), AudioDraft)


@pytest.mark.parametrize(
    ("raw", "extension", "text"),
    [
        (b"\xef\xbb\xbfGood morning.", "txt", "Good morning."),
        (b"a\0b", "txt", "ab"),
        ("Grüße".encode("latin-1"), "txt", None),
        (json.dumps({"text": "Good morning.", "language": "en"}).encode(), "json", "Good morning."),
        (json.dumps({"transcript": "Hi"}).encode(), "json", "Hi"),
        (b"[]", "json", None),
        (b'{"text": 5}', "json", None),
        (b"WEBVTT", "vtt", None),
        (b"a" * (1024 * 1024 + 1), "txt", None),
    ],
)
def test_the_text_of_a_transcript_is_taken_where_it_is_plain(
    raw: bytes, extension: str, text: str | None
) -> None:
    file = FileDraft(part="document", content_type="text/plain", extension=extension)
    assert results.transcript_of(MemoryBody(raw), file).text == text
