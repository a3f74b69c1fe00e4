"""Deepgram: settings, limits, proofs and what kind of body it is."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from receiver.core.callback import Head, MemoryBody
from receiver.core.errors import CallbackRejected, ConfigError, MalformedCallback
from receiver.providers import deepgram
from receiver.settings.model import MIB
from tests.support.callbacks import BASIC, NOW, PAIR, deepgram_draft, deepgram_head, deepgram_source, prove
from tests.support.golden import ROOT, source_settings, tokens

MULAW = (ROOT / "audio" / "speech.mulaw").read_bytes()
MP3 = (ROOT / "audio" / "speech.mp3").read_bytes()


def _codes(**options: Any) -> list[str]:
    found = deepgram.DeepgramProvider.findings(source_settings("dg", {"provider": "deepgram"} | options))
    return [finding.code for finding in found]


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ({}, ["E101"]),
        ({"dg_token": "key-id"}, ["E101"]),
        ({"require_dg_token": True}, ["E102"]),
        ({"require_callback_secret": True}, ["E103"]),
        ({"basic": ["no-colon"]}, ["E104"]),
        ({"basic": [""]}, ["E104"]),
        ({"callback_secrets": [""]}, ["E104"]),
        ({"dg_token": "key-id", "require_dg_token": True}, ["W101"]),
        ({"callback_secrets": "spoken-to-nobody"}, ["W102"]),
        ({"basic": "some_one:password"}, ["W103"]),
        ({"basic": ["a:b"]}, []),
        ({"require_token": True}, []),
        ({"basic": ["a:b"], "dg_token": "k", "callback_secrets": ["s"]}, []),
    ],
)
def test_findings_have_stable_codes(options: dict[str, Any], codes: list[str]) -> None:
    assert _codes(**options) == codes


def test_a_fatal_finding_stops_the_source_and_a_warning_does_not() -> None:
    with pytest.raises(ConfigError, match=r"sources\.dg\.dg_token: .*; add dg_token"):
        deepgram_source(basic=[], require_dg_token=True)
    assert deepgram_source(basic=[], dg_token="key-id", require_dg_token=True).source == "dg"


def test_a_wrong_setting_is_told_without_its_value() -> None:
    with pytest.raises(ConfigError) as caught:
        deepgram_source(basic=["hunter2-without-a-colon"])
    assert "user:password" in caught.value.message
    assert "hunter2" not in caught.value.message


def test_the_password_may_be_digits_from_the_environment() -> None:
    """An environment value is read as TOML, so that digits come as a number."""
    settings = source_settings("dg", {"provider": "deepgram", "dg_token": 12345, "require_dg_token": True})
    source = deepgram.DeepgramProvider.create(settings, tokens())
    head = Head(source="dg", method="POST", headers=(("dg-token", "12345"),), received_at=NOW)
    assert source.admit(head).proofs == {"dg-token"}


@pytest.mark.parametrize(
    ("content_type", "limit"),
    [
        ("application/json", 1000),
        ("application/json; charset=utf-8", 1000),
        ("application/problem+json", 1000),
        ("text/plain", 1000),
        ("audio/mpeg", 5000),
        ("application/octet-stream", 5000),
        (None, 5000),
    ],
)
def test_the_body_limit_follows_the_type(content_type: str | None, limit: int) -> None:
    source = deepgram_source(max_json_bytes=1000, max_audio_bytes=5000)
    assert source.admit(deepgram_head(content_type)).body_limit == limit


def test_an_unproved_head_gets_the_limit_of_a_document() -> None:
    """A source that only callback secrets prove must not read 256 MiB for a stranger."""
    source = deepgram_source(basic=[], callback_secrets=["a-secret-of-mine"])
    head = Head(source="dg", method="POST", headers=(("content-type", "audio/mpeg"),), received_at=NOW)
    assert source.admit(head).body_limit == 32 * MIB


def test_json_past_its_limit_under_no_type_is_parked_without_being_loaded() -> None:
    class Unloadable(MemoryBody):
        def load(self) -> bytes:
            raise AssertionError("loaded")

    source = deepgram_source(max_json_bytes=1000, callback_secrets=["a-secret-of-mine"])
    callback = prove(source, deepgram_head(), Unloadable(b'{"results": "' + b"x" * 2000 + b'"}'))
    with pytest.raises(MalformedCallback, match="max_json_bytes"):
        source.normalize(callback)


@pytest.mark.parametrize("secret", ["a-secret-of-mine", "a-newer-secret"])
def test_a_callback_secret_proves_beside_others(secret: str) -> None:
    source = deepgram_source(callback_secrets=["a-secret-of-mine", "a-newer-secret"])
    body = MemoryBody(b'{"metadata": {"extra": {"callback_secret": "%b"}}}' % secret.encode())
    assert prove(source, deepgram_head("application/json"), body).proofs == {"basic", "callback_secret"}


def test_one_wrong_callback_secret_among_right_ones_is_refused() -> None:
    source = deepgram_source(callback_secrets=["a-secret-of-mine"])
    body = (
        b'{"extra": {"callback_secret": "x"}, "metadata": {"extra": {"callback_secret": "a-secret-of-mine"}}}'
    )
    with pytest.raises(CallbackRejected):
        prove(source, deepgram_head("application/json"), MemoryBody(body))


def test_a_token_alone_proves_audio_where_only_callback_secrets_are_configured() -> None:
    """A token that is there proves that we handed the URL out."""
    source = deepgram_source(basic=[], callback_secrets=["a-secret-of-mine"])
    head = Head(source="dg", method="POST", headers=(), token=tokens().issue("dg"), received_at=NOW)
    assert prove(source, head, MemoryBody(MP3)).proofs == {"token"}


def test_an_unrequired_dg_token_is_no_proof_by_itself() -> None:
    """It is an identifier, and retired: with callback secrets as the only real proof, audio is still refused."""
    source = deepgram_source(basic=[], callback_secrets=["a-secret-of-mine"], dg_token="key-id")
    head = Head(source="dg", method="POST", headers=(("dg-token", "key-id"),), received_at=NOW)
    with pytest.raises(CallbackRejected):
        prove(source, head, MemoryBody(MP3))


def test_a_header_of_any_characters_is_compared_and_refused() -> None:
    source = deepgram_source(dg_token="key-id")
    with pytest.raises(CallbackRejected):
        source.admit(deepgram_head(None, ("dg-token", "k\xe9y\x80-id")))


# ---------------------------------------------------------------- kinds of body


@pytest.mark.parametrize(
    ("head", "form"),
    [
        (("audio/mpeg", None), ("audio/mpeg", "mp3")),
        (("AUDIO/MPEG ; q=1", None), ("audio/mpeg", "mp3")),
        (("audio/mp3", None), ("audio/mpeg", "mp3")),
        (("audio/acc", None), ("audio/aac", "aac")),
        (("audio/x-new-codec", None), ("audio/x-new-codec", "bin")),
        (("audio/bad\u00e9type", None), ("application/octet-stream", "bin")),
        ((None, None), ("application/octet-stream", "bin")),
        ((None, {"encoding": "opus"}), ("audio/ogg;codecs=opus", "ogg")),
        ((None, {"encoding": "opaque"}), ("application/octet-stream", "bin")),
        ((None, {"encoding": ["mulaw"]}), ("application/octet-stream", "bin")),
        (("application/pdf", {"encoding": "mp3"}), ("audio/mpeg", "mp3")),
    ],
)
def test_bytes_without_magic_go_by_type_then_token(
    head: tuple[str | None, dict[str, Any] | None], form: tuple[str, str]
) -> None:
    audio = deepgram_draft(bytes(range(1, 200)), head[0], asked=head[1]).audio
    assert audio
    assert (audio.content_type, audio.extension) == form


@pytest.mark.parametrize(
    ("content_type", "asked", "rate", "channels", "frame"),
    [
        ("audio/l16; rate=24000; channels=2", None, 24000, 2, 4),
        ("audio/l16", {"encoding": "linear16", "sample_rate": "16000"}, 16000, 1, 2),
        ("audio/l16", {"encoding": "linear16"}, 24000, 1, 2),
        ("audio/l16", None, None, 1, 2),
        ("audio/l16;rate=fast", None, None, 1, 2),
        ("audio/l16;rate=0", None, None, 1, 2),
        ("audio/l16;rate=99999999999", None, None, 1, 2),
        ("audio/mulaw;rate=16000", {"encoding": "mulaw", "sample_rate": 8000}, 16000, 1, 1),
        ("audio/basic", None, 8000, 1, 1),
        ("application/octet-stream", {"encoding": "alaw", "container": "none"}, 8000, 1, 1),
    ],
)
def test_raw_samples_get_rate_channels_and_frame(
    content_type: str, asked: dict[str, Any] | None, rate: int | None, channels: int, frame: int
) -> None:
    audio = deepgram_draft(MULAW, content_type, asked=asked).audio
    assert audio
    assert (audio.sample_rate_hz, audio.channels, audio.bytes_per_frame) == (rate, channels, frame)
    assert audio.extension == "raw"


def test_raw_samples_that_look_like_one_frame_header_stay_raw() -> None:
    """0xFF is near silence in mu-law: an MPEG header by chance must not turn it into MP3."""
    lookalike = b"\xff\xfb\x90\x00" + b"\xff" * 100
    raw = deepgram_draft(lookalike, "audio/mulaw;rate=8000").audio
    asked = deepgram_draft(lookalike, None, asked={"encoding": "mulaw", "container": "none"}).audio
    alone = deepgram_draft(lookalike, None).audio
    assert raw
    assert asked
    assert alone
    assert (raw.codec, asked.codec, alone.codec) == ("mulaw", "mulaw", "mp3")


def test_quiet_mulaw_that_begins_with_a_brace_is_audio() -> None:
    assert deepgram_draft(b"{" + MULAW, "application/octet-stream").type == "speech.completed"


def test_text_that_is_no_text_is_parked() -> None:
    with pytest.raises(MalformedCallback):
        deepgram_draft(b"\x00\x01\x02" * 50, "text/plain")


def test_a_text_error_without_words_still_fails_the_job() -> None:
    draft = deepgram_draft(b"  \n", "text/plain")
    assert draft.error
    assert draft.error.message == "the provider gave no reason"


def test_headers_that_name_the_account_are_left_out() -> None:
    draft = deepgram_draft(
        MP3,
        "audio/mpeg",
        ("dg-project-id", "p1"),
        ("dg-token", "k1"),
        ("dg-warnings", "w" * 900),
        ("x-other", "1"),
    )
    assert draft.provider_data == {"dg-warnings": "w" * 500}


def test_a_request_id_that_came_twice_counts_once() -> None:
    draft = deepgram_draft(MP3, "audio/mpeg", ("dg-request-id", "r1"), ("dg-request-id", "r2"))
    assert (draft.job_id, draft.idempotency_key) == ("r1", "speak:r1:audio")


# ---------------------------------------------------------------- what is kept


def test_redact_takes_every_secret_in_every_spelling() -> None:
    source = deepgram_source(dg_token="key/identifier", callback_secrets=["geheim-\u00e4\U0001f600"])
    spelled = (
        rb'{"a":"%b","b":"correct-horse","c":"key\/identifier","d":"\u006bey/identifier",' % PAIR.encode()
        + rb'"e":"geheim-\u00E4\ud83d\uDE00","f":"geheim-'
        + "\u00e4\U0001f600".encode()
        + rb'", "callback_secret" : "not \"configured\"", "g": 1'  # cut off: it need not be JSON
    )
    kept = source.redact(spelled)
    assert kept.count(b"[redacted]") == 7
    for secret in (b"horse", b"identifier", b"geheim", b"configured"):
        assert secret not in kept


def test_an_error_that_repeats_the_callback_url_loses_its_secrets() -> None:
    token = tokens().issue("dg", format={"product": "speak"})
    text = f"could not reach https://{PAIR}@hooks.example.com/callbacks/dg/{token}"
    source = deepgram_source()
    head = deepgram_head("text/plain")
    head = Head(source="dg", method="POST", headers=head.headers, token=token, received_at=NOW)
    for body in (text.encode(), b'{"error": "%b"}' % text.replace("/", "\\/").encode()):
        draft = source.normalize(prove(source, head, MemoryBody(body)))
        assert draft.type == "speech.failed"
        assert token not in repr(draft)
        assert "horse" not in repr(draft)
        assert draft.error
        assert draft.error.message.startswith("could not reach https://[redacted]@hooks")


@pytest.mark.parametrize(
    "spelled", ["us%40er:p%40ss%2Fword%21", "us%40er:p%40ss%2fword!", "p%40ss%2fword%21"]
)
def test_credentials_are_taken_out_as_the_callback_url_has_them(spelled: str) -> None:
    source, text = (
        deepgram_source(basic=["us@er:p@ss/word!"]),
        f"no answer from https://{spelled}@h.example.com/",
    )
    sent = ("authorization", "Basic " + base64.b64encode(b"us@er:p@ss/word!").decode())
    for body in (text, json.dumps({"err_msg": f"{text} with {sent[1]}"})):
        kind = "application/json" if body.startswith("{") else "text/plain"
        head = Head(source="dg", method="POST", headers=(sent, ("content-type", kind)), received_at=NOW)
        draft = source.normalize(prove(source, head, MemoryBody(body.encode())))
        for kept in (repr(draft), repr(source.redact(body.encode()))):
            assert "[redacted]@h.example.com" in kept
            assert "word" not in kept
            assert sent[1] not in kept


def test_what_headers_say_of_trouble_is_told_without_secrets() -> None:
    """Cleaned before it is cut, so that no beginning of a secret is left at the end."""
    said = f"no answer from https://{PAIR}@hooks.example.com/callbacks/dg/{tokens().issue('dg')}"
    draft = deepgram_draft(
        MP3,
        "audio/mpeg",
        ("dg-error", said),
        ("dg-warnings", "w" * 490 + PAIR),
        ("dg-request-id", "correct-horse"),
    )
    assert draft.provider_data == {
        "dg-error": "no answer from https://[redacted]@hooks.example.com/callbacks/dg/[redacted]",
        "dg-warnings": "w" * 490 + "[redacted]",
        "dg-request-id": "correct-horse",
    }


def test_a_callback_secret_that_is_echoed_elsewhere_is_taken_out_too() -> None:
    body = rb'{"metadata":{"tags":["a-secret\u002dof-mine"]},"results":{"channels":[]}}'
    draft = deepgram_draft(body, "application/json", callback_secrets=["a-secret-of-mine"])
    assert draft.provider_data["metadata"] == {"tags": ["[redacted]"]}
    assert draft.document == b'{"metadata":{"tags":["[redacted]"]},"results":{"channels":[]}}'


def test_a_password_that_was_spoken_stays_in_the_transcript() -> None:
    """Passwords are never in a result's own fields; taking them out would only damage what was said."""
    body = b'{"results":{"channels":[{"alternatives":[{"transcript":"correct-horse"}]}]}}'
    draft = deepgram_draft(body, "application/json")
    assert draft.transcript
    assert draft.transcript.text == "correct-horse"
    assert draft.document == body


@pytest.mark.parametrize(("first", "second"), [("x" * 600 + "a", "x" * 600 + "b"), ("job\x7f", "job")])
def test_two_request_ids_never_become_one_job(first: str, second: str) -> None:
    drafts = [deepgram_draft(MP3, "audio/mpeg", ("dg-request-id", value)) for value in (first, second)]
    assert drafts[0].idempotency_key != drafts[1].idempotency_key
    assert drafts[0].job_id != drafts[1].job_id
    assert all(len(draft.idempotency_key) <= 200 for draft in drafts)


@pytest.mark.parametrize("written", ["https://caller:correct%2Dhorse@h.example/x", BASIC[1]])
def test_a_callback_url_or_authorization_that_a_transcript_echoes_is_taken_out(written: str) -> None:
    body = json.dumps({"results": {"channels": [{"alternatives": [{"transcript": f"see {written}"}]}]}})
    draft = deepgram_draft(body.encode(), "application/json")
    assert draft.transcript
    kept = f"{draft.transcript.text} {draft.document!r} {draft.provider_data}"
    assert "horse" not in kept
    assert BASIC[1].partition(" ")[2] not in kept
