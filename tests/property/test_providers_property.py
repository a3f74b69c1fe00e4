"""Laws of the adapters: whatever the bytes, a proof breaks or holds, and a callback is understood or parked."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from receiver.core.callback import Head, MemoryBody
from receiver.core.errors import CallbackRejected, MalformedCallback
from receiver.core.event import EVENT_TYPES, EventDraft
from receiver.providers import deapi, deepgram
from tests.support.callbacks import (
    DEAPI_SECRET,
    NOW,
    PAIR,
    deapi_head,
    deapi_source,
    deepgram_head,
    deepgram_source,
    prove,
)
from tests.support.examples import examples
from tests.support.golden import cases, tokens

SECRET = "n7Qk2vXw9RtLp4Zs"
DEEPGRAM = deepgram_source(callback_secrets=[SECRET], dg_token="key-identifier-1")
DEAPI = deapi_source()
TOKEN = tokens().issue("da", ref="r")
SIGNED = next(case.request.body for case in cases("deapi") if case.name == "completed")
SECRETS = (SECRET, PAIR, "correct-horse", DEAPI_SECRET, "key-identifier-1")

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([SECRET, NOW, ""])
)
words = st.sampled_from(
    [
        *(
            "metadata",
            "results",
            "channels",
            "alternatives",
            "transcript",
            "confidence",
            "type",
            "start",
            "duration",
        ),
        *(
            "error",
            "err_code",
            "err_msg",
            "category",
            "message",
            "details",
            "request_id",
            "created",
            "extra",
            "tags",
        ),
        *(
            "channel",
            "channel_index",
            "last_word_end",
            "timestamp",
            "is_final",
            "summary",
            "topics",
            "detected_language",
        ),
        *("event", "data", "delivery_id", "job_request_id", "job_type", "status", "result_url", "error_code"),
    ]
)
values = st.recursive(
    scalars
    | st.sampled_from(["Results", "Metadata", "UtteranceEnd", "job.completed", "job.failed", "txt2audio"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=25,
)
documents = st.dictionaries(words, values, max_size=8).map(lambda value: json.dumps(value).encode())
types = st.sampled_from(
    [
        None,
        "",
        "application/json",
        "text/plain",
        "audio/mpeg",
        "audio/l16;rate=8000",
        "application/octet-stream",
        "x/y",
        ";;=",
    ]
) | st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=30)
asked: st.SearchStrategy[dict[str, Any] | None] = st.none() | st.dictionaries(
    st.sampled_from(["product", "encoding", "container", "sample_rate", "channels"]),
    st.sampled_from(
        ["speak", "listen", "read", "mulaw", "linear16", "mp3", "none", 8000, "8000", -1, None, [], 1.5]
    ),
)


def _check(
    source: deepgram.DeepgramProvider | deapi.DeapiProvider, head: Head, body: bytes
) -> EventDraft | None:
    """Normalize a proved callback: a sound draft, or exactly `MalformedCallback`; no secret in either."""
    callback = prove(source, head, MemoryBody(body))
    assert 0 < len(source.fallback_key(callback)) <= 200
    try:
        draft = source.normalize(callback)
    except MalformedCallback as caught:
        refusal = caught
    else:
        _check_draft(draft)
        return draft
    assert type(refusal) is MalformedCallback
    # A source can take out its own secrets, not those of another.
    known = (DEAPI_SECRET,) if isinstance(source, deapi.DeapiProvider) else SECRETS
    assert not [secret for secret in known if secret in refusal.message]
    return None


def _check_draft(draft: EventDraft) -> None:
    assert draft.type in EVENT_TYPES
    for key in (draft.idempotency_key, draft.second_key or "-", draft.job_id or "-"):
        assert 0 < len(key) <= 200
        assert key.isprintable()
    assert 0 < draft.occurred_at < 253_402_300_800_000
    json.dumps(dict(draft.provider_data)).encode()


@given(raw=documents | st.binary(max_size=300) | st.text().map(str.encode), kind=types, wanted=asked)
@settings(max_examples=examples(60), deadline=None)
def test_any_deepgram_body_is_understood_or_parked(
    raw: bytes, kind: str | None, wanted: dict[str, Any] | None
) -> None:
    _check(deepgram_source(), deepgram_head(kind, asked=wanted), raw)


@example(raw=json.dumps({"event": DEAPI_SECRET}).encode())
@example(raw=json.dumps({"event": "\0".join(DEAPI_SECRET)}).encode())
@given(raw=documents | st.binary(max_size=100))
@settings(max_examples=examples(50), deadline=None)
def test_any_signed_deapi_body_is_understood_or_parked(raw: bytes) -> None:
    _check(DEAPI, deapi_head(raw), raw)


@given(
    document=st.dictionaries(words, values, max_size=6),
    escaped=st.booleans(),
    place=st.sampled_from(["metadata", "nested", "flat"]),
)
@settings(max_examples=examples(50), deadline=None)
def test_no_configured_secret_is_in_what_becomes_of_a_document(
    document: dict[str, Any], escaped: bool, place: str
) -> None:
    """The callback secret may also be anywhere else in the document, spelled in any way."""
    extra = {"extra": {"callback_secret": SECRET, "kept": "x"}}
    document |= (
        extra if place == "flat" else {"metadata": extra if place == "metadata" else {"metadata": extra}}
    )
    document |= {"extra": {"callback_secret": SECRET}} if "extra" in document else {}
    text = json.dumps(document)
    spelled = text.replace("n7Qk", r"\u006e7\u0051k") if escaped else text
    head = deepgram_head("application/json", ("dg-token", "key-identifier-1"))
    draft = _check(DEEPGRAM, head, spelled.encode())
    kept = DEEPGRAM.redact(spelled.encode())
    told = repr(draft) + kept.decode() + json.dumps(json.loads(kept))
    assert not [secret for secret in SECRETS if secret in told]


@given(place=st.integers(0, len(SIGNED) - 1), flip=st.integers(1, 255))
@settings(max_examples=examples(50), deadline=None)
def test_any_changed_byte_of_a_deapi_body_is_refused(place: int, flip: int) -> None:
    changed = bytearray(SIGNED)
    changed[place] ^= flip
    with pytest.raises(CallbackRejected):
        prove(DEAPI, deapi_head(SIGNED), MemoryBody(bytes(changed)))


@given(name=st.sampled_from(["x-deapi-timestamp", "x-deapi-signature"]), data=st.data())
@settings(max_examples=examples(50), deadline=None)
def test_any_changed_character_of_a_deapi_proof_is_refused(name: str, data: st.DataObject) -> None:
    head = deapi_head(SIGNED)
    value = head.all(name)[0]
    place = data.draw(st.integers(0, len(value) - 1))
    other = data.draw(
        st.characters(min_codepoint=0x20, max_codepoint=0xFF).filter(lambda c: c != value[place])
    )
    changed = value[:place] + other + value[place + 1 :]
    headers = tuple((key, changed if key == name else kept) for key, kept in head.headers)
    with pytest.raises(CallbackRejected):
        prove(DEAPI, Head(source="da", method="POST", headers=headers, received_at=NOW), MemoryBody(SIGNED))


@given(extra=st.binary(min_size=1, max_size=20), front=st.booleans())
@settings(max_examples=examples(50), deadline=None)
def test_bytes_added_to_a_deapi_body_are_refused(extra: bytes, front: bool) -> None:
    body = extra + SIGNED if front else SIGNED + extra
    with pytest.raises(CallbackRejected):
        prove(DEAPI, deapi_head(SIGNED), MemoryBody(body))


@given(
    header=st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=60)
    | st.just(f"Basic {PAIR}")
)
@settings(max_examples=examples(50), deadline=None)
def test_no_other_authorization_is_admitted(header: str) -> None:
    right = deepgram_head().headers[0][1]
    head = Head(source="dg", method="POST", headers=(("authorization", header),), received_at=NOW)
    if header == right:
        return
    with pytest.raises(CallbackRejected) as caught:
        DEEPGRAM.admit(head)
    assert "correct-horse" not in caught.value.message


@given(
    token=st.text(max_size=80)
    | st.integers(0, len(TOKEN) - 2).map(lambda n: TOKEN[:n] + "0" + TOKEN[n + 1 :])
)
@settings(max_examples=examples(50), deadline=None)
def test_no_made_up_token_is_admitted(token: str) -> None:
    """An empty path segment is no token; every other text that we did not make is refused."""
    if not token:
        return
    with pytest.raises(CallbackRejected):
        DEAPI.admit(deapi_head(SIGNED, token=token))
