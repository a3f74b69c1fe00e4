"""Deepgram's documents: fields that are missing or of the wrong kind, and the identity of each message."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from receiver.core.callback import MemoryBody
from receiver.core.errors import MalformedCallback
from receiver.core.event import EventDraft
from tests.support.callbacks import NOW, deepgram_draft, deepgram_head, deepgram_source, prove


def _draft(document: Any, asked: dict[str, Any] | None = None) -> EventDraft:
    return deepgram_draft(json.dumps(document).encode(), "application/json", asked=asked)


def _listen(metadata: Any, *channels: Any) -> dict[str, Any]:
    return {"metadata": metadata, "results": {"channels": list(channels)}}


@pytest.mark.parametrize(
    "channel",
    [
        None,
        7,
        {},
        {"alternatives": None},
        {"alternatives": []},
        {"alternatives": [1]},
        {"alternatives": [{}]},
    ],
)
def test_a_channel_without_a_usable_alternative_gives_no_text(channel: Any) -> None:
    draft = _draft(_listen({"request_id": "r1"}, channel))
    assert draft.type == "transcript.completed"
    assert draft.transcript
    assert (draft.transcript.text, draft.transcript.confidence) == ("", None)


@pytest.mark.parametrize(
    "metadata", [None, [], "x", {}, {"request_id": None}, {"request_id": ["r"]}, {"request_id": "\u0000"}]
)
def test_a_transcript_without_an_id_is_told_by_its_bytes(metadata: Any) -> None:
    draft = _draft(_listen(metadata))
    assert draft.job_id is None
    assert draft.idempotency_key.startswith("sha256:")
    assert draft.occurred_at == NOW


def test_the_header_tells_the_request_where_the_document_does_not() -> None:
    draft = deepgram_draft(b'{"results":{"channels":[]}}', "application/json", ("dg-request-id", "r9"))
    assert (draft.job_id, draft.idempotency_key) == ("r9", "listen:r9:result")


@pytest.mark.parametrize("wrong", ["1.5", True, -1, 1e12, None, [], {}])
def test_numbers_of_the_wrong_kind_are_left_out(wrong: Any) -> None:
    metadata = {"duration": wrong, "channels": wrong}
    transcript = _draft(
        _listen(metadata, {"alternatives": [{"transcript": "a", "confidence": wrong}]})
    ).transcript
    assert transcript
    assert (transcript.confidence, transcript.duration_seconds, transcript.channels) == (None, None, 1)


@pytest.mark.parametrize(
    ("created", "occurred"),
    [
        ("2026-11-21T01:00:00.123Z", 1795222800123),
        ("2026-11-21T01:00:00.123456789Z", 1795222800123),
        ("2026-11-21T02:00:00+01:00", 1795222800000),
        ("2026-11-21T01:00:00", 1795222800000),
        ("yesterday", NOW),
        ("0001-01-01T00:00:00+14:00", NOW),
        ("2026-11-21T01:00:00Z" + " " * 100, NOW),
        (12, 12000),
        (None, NOW),
        (float(2**80), NOW),
        ({}, NOW),
    ],
)
def test_the_time_is_the_documents_where_it_can_be_read(created: Any, occurred: int) -> None:
    assert _draft(_listen({"created": created})).occurred_at == occurred


@pytest.mark.parametrize(
    ("document", "product", "kind"),
    [
        ({"error": "x"}, None, "speech.failed"),
        ({"error": "x"}, "speak", "speech.failed"),
        ({"error": "x"}, "listen", "transcript.failed"),
        ({"error": "x"}, "read", "analysis.failed"),
        ({"error": "x"}, "agent", "speech.failed"),
        ({"error": "x"}, 7, "speech.failed"),
        ({"error": "x", "metadata": {"models": []}}, None, "transcript.failed"),
        ({"error": "x", "metadata": {"models": []}}, "speak", "speech.failed"),
    ],
)
def test_a_failure_belongs_to_the_product_of_its_token_else_to_its_shape(
    document: dict[str, Any], product: Any, kind: str
) -> None:
    assert _draft(document, None if product is None else {"product": product}).type == kind


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({"err_code": "C", "err_msg": "m"}, ("m", "C", None)),
        ({"err_code": 429}, ("429", "429", None)),
        ({"category": "C", "message": "m", "details": {"a": [1]}}, ("m", "C", '{"a":[1]}')),
        ({"error": {"code": "C", "message": "m", "details": "d"}}, ("m", "C", "d")),
        ({"error": {"message": None}}, ("the provider gave no reason", None, None)),
        ({"error": ["m"]}, ("the provider gave no reason", None, None)),
        ({"error": "m" * 5000, "details": "d" * 5000}, ("m" * 2000, None, "d" * 2000)),
    ],
)
def test_each_form_of_error_gives_message_code_and_details(
    document: dict[str, Any], error: tuple[str, str | None, str | None]
) -> None:
    found = _draft(document).error
    assert found
    assert (found.message, found.code, found.details) == error


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"results": {}},
        {"results": None},
        {"results": []},
        {"results": {"channels": {}}},
        {"results": "SUQz"},
        {"results": "SUQz", "error": "x"},
        {"error": None},
        {"type": "Welcome"},
        {"type": ["Results"], "a": 1},
        {"message": "m"},
    ],
)
def test_an_unknown_shape_is_not_understood(document: dict[str, Any]) -> None:
    with pytest.raises(MalformedCallback):
        _draft(document)


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' * 150 + b"1" + b"}" * 150,
        b'{"error":"x","a":' + b"[" * 150 + b"]" * 150 + b"}",
        b'{"results":' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"a":1e999}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":NaN}',
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\udc00 \\ud800"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":1}{}',
        b"null",
        b'"text"',
    ],
)
def test_hostile_json_is_not_understood_and_nothing_worse(raw: bytes) -> None:
    with pytest.raises(MalformedCallback):
        deepgram_draft(raw, "application/json")


def test_a_long_document_is_not_a_deep_one() -> None:
    words = [{"word": "a"}] * 500
    assert _draft(_listen({}, {"alternatives": [{"transcript": "a", "words": words}]})).transcript


def test_a_byte_order_mark_is_no_obstacle() -> None:
    assert deepgram_draft(b'\xef\xbb\xbf{"error":"x"}', None).type == "speech.failed"


# ---------------------------------------------------------------- streaming

_RESULTS = {"type": "Results", "start": 1.5, "duration": 0.5, "channel_index": [0, 1], "is_final": True}


@pytest.mark.parametrize(
    "change",
    [
        {"start": 2.0},
        {"duration": 0.6},
        {"channel_index": [1, 2]},
        {"is_final": False},
        {"speech_final": True},
        {"from_finalize": True},
        {"metadata": {"request_id": "another"}},
    ],
)
def test_messages_that_differ_in_their_identity_have_different_keys(change: dict[str, Any]) -> None:
    assert _draft(_RESULTS).idempotency_key != _draft(_RESULTS | change).idempotency_key


def test_a_message_sent_again_with_other_bytes_has_the_same_key() -> None:
    again = dict(reversed(list((_RESULTS | {"channel": {"alternatives": []}}).items())))
    assert _draft(_RESULTS).idempotency_key == _draft(again).idempotency_key


@pytest.mark.parametrize("kind", ["Results", "Metadata", "UtteranceEnd", "SpeechStarted"])
def test_a_message_without_its_identity_is_told_by_its_bytes(kind: str) -> None:
    first, second = _draft({"type": kind, "n": 1}), _draft({"type": kind, "n": 2})
    assert first.type == second.type == "transcript.partial"
    assert first.idempotency_key != second.idempotency_key


def test_sessions_under_two_tokens_do_not_share_keys() -> None:
    message = {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": 1.2}
    assert _draft(message, {}).idempotency_key != _draft(message, {}).idempotency_key


_MINUTE = 60_000


@pytest.mark.parametrize(
    "document",
    [
        {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": 1.2},
        {"type": "SpeechStarted", "channel": [0], "timestamp": 0.0},
        {"err_code": "Bad Request", "err_msg": "the URL cannot be fetched"},
    ],
)
def test_what_names_neither_job_nor_session_is_another_ones_when_it_comes_much_later(
    document: dict[str, Any],
) -> None:
    """Deepgram sends again for five minutes; the next session's speech may well start at the same moment of it."""
    source, body = deepgram_source(), MemoryBody(json.dumps(document).encode())
    began = NOW - NOW % (10 * _MINUTE)

    def key(at: int) -> str:
        head = replace(deepgram_head("application/json"), received_at=at)
        return source.normalize(prove(source, head, body)).idempotency_key

    assert key(began) == key(began + 5 * _MINUTE)
    assert key(began) != key(began + 24 * 60 * _MINUTE)


def test_a_long_identity_is_hashed() -> None:
    draft = _draft(_RESULTS | {"channel_index": list(range(500))})
    assert len(draft.idempotency_key) <= 200
