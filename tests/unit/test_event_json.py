"""The event as JSON: times, sizes, links; and which destinations want it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.core import event_json
from receiver.core.clock import iso
from receiver.core.event import AudioFacts, Event, EventDraft, JobError, Stage, StoredBlob, TranscriptDraft
from receiver.core.routing import Route, Router
from tests.support.examples import examples

NOW = 1795222923456
BLOB = StoredBlob(
    key="s/a.json", uri="file:///b/s/a.json", content_type="application/json", size=5, sha256="ab" * 32
)


def _draft(**fields: Any) -> EventDraft:
    given: dict[str, Any] = {"type": "transcript.completed", "idempotency_key": "k", "occurred_at": NOW}
    return EventDraft(**(given | fields))


def _data(draft: EventDraft, **parts: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(_compose(draft, **parts))
    return data


def _compose(draft: EventDraft, **parts: Any) -> bytes:
    return event_json.compose(draft, event_id="evt_1", source="s", provider="p", **parts)


def _event(data: bytes, *, blob_key: str | None = None) -> Event:
    return Event(
        id="evt_1",
        type="transcript.completed",
        source="s",
        provider="p",
        job_id=None,
        ref=None,
        stage=Stage.FINAL,
        occurred_at=NOW,
        recorded_at=NOW,
        data=data,
        blob_key=blob_key,
    )


def _link(key: str, content_type: str) -> tuple[str, int]:
    return f"https://x/{key}?{content_type}", NOW + 1000


@pytest.mark.parametrize(
    ("millis", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (NOW, "2026-11-21T01:02:03.456Z"),
        (1709164799999, "2024-02-28T23:59:59.999Z"),
        (253402300799999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_a_time_is_utc_with_milliseconds(millis: int, text: str) -> None:
    assert iso(millis) == text


def test_an_event_without_a_blob_is_sent_as_it_was_composed() -> None:
    body = event_json.render(_event(b'{"audio":null,"n":1.0}'), _link)
    assert (
        body
        == b'{"type":"transcript.completed","timestamp":"2026-11-21T01:02:03.456Z","data":{"audio":null,"n":1.0}}'
    )


@pytest.mark.parametrize("name", event_json.LINKED)
def test_links_are_made_at_each_rendering(name: str) -> None:
    whole = (BLOB, AudioFacts()) if name == "audio" else BLOB
    data = json.loads(
        event_json.render(_event(_compose(_draft(), **{name: whole}), blob_key=BLOB.key), _link)
    )["data"]
    assert data[name]["url"] == "https://x/s/a.json?application/json"
    assert data[name]["url_expires_at"] == iso(NOW + 1000)
    assert [other for other in event_json.LINKED if data[other]] == [name]


def test_audio_tells_what_is_known_and_null_for_the_rest() -> None:
    data = _data(_draft(), audio=(BLOB, AudioFacts(sample_rate_hz=8000)))
    assert data["audio"]["sample_rate_hz"] == 8000
    assert (data["audio"]["duration_seconds"], data["audio"]["duration_estimated"]) == (None, False)


def test_an_event_says_whether_its_callback_was_late() -> None:
    assert [_data(_draft(late=late))["late"] for late in (False, True)] == [False, True]


def test_a_parked_event_says_why() -> None:
    data = _data(_draft(type="callback.parked", parked="the body is not valid JSON"))
    assert data["error"] == {"code": "parked", "message": "the body is not valid JSON", "details": None}


@pytest.mark.parametrize("char", ["a", "ä", "😀", "\x01", '"', "\u2028"])
def test_long_texts_are_cut_or_left_to_the_document(char: str) -> None:
    """Whatever their characters cost in JSON."""
    draft = _draft(
        transcript=TranscriptDraft(text=char * 9000),
        error=JobError(message=char * 9000, code=char * 900, details=char * 9000),
    )
    data = _data(draft, document=BLOB, short=True)
    assert data["transcript"]["text"] is None
    assert 0 < len(data["error"]["message"]) <= event_json.ERROR_LIMIT
    assert char * 9000 not in json.dumps(data, ensure_ascii=False)
    short = _data(_draft(transcript=TranscriptDraft(text=char * 1000), error=JobError(message=char * 400)))
    assert (short["transcript"]["text"], short["error"]["message"]) == (char * 1000, char * 400)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
many = st.tuples(texts, st.integers(0, 3000)).map(lambda pair: (pair[0] * pair[1])[:20_000])
fields = st.dictionaries(
    texts, st.one_of(many, st.integers(-(2**53), 2**53), st.none(), st.lists(texts)), max_size=8
)


@settings(max_examples=examples(60), deadline=None)
@given(text=many, message=many, details=many, data=fields, failed=st.booleans())
def test_with_a_document_an_event_is_always_under_20_kb(
    text: str, message: str, details: str, data: dict[str, Any], failed: bool
) -> None:
    """The worst of every field at once; a failure has no transcript."""
    draft = _draft(
        job_id="😀" * 200,
        ref="r" * 1000,
        transcript=None if failed else TranscriptDraft(text=text, language="en"),
        error=JobError(message=message, code=text, details=details) if failed else None,
        provider_data=data,
    )
    body = event_json.render(_event(_compose(draft, document=BLOB, short=True), blob_key=BLOB.key), _link)
    assert len(body) < 20_000
    json.loads(body)


# ---------------------------------------------------------------- routing


@pytest.mark.parametrize(
    ("sources", "events", "source", "event_type", "wanted"),
    [
        (("*",), ("*",), "deepgram", "callback.parked", True),
        (("deepgram",), ("*",), "deepgram", "speech.completed", True),
        (("deepgram",), ("*",), "deepgram-eu", "speech.completed", False),
        (("deepgram*",), ("*",), "deepgram-eu", "speech.completed", True),
        (("*",), ("speech.*",), "a", "speech.failed", True),
        (("*",), ("speech.*",), "a", "speechless.failed", False),
        (("*",), ("*.completed", "*.failed"), "a", "media.failed", True),
        (("*",), ("*.completed", "*.failed"), "a", "media.processing", False),
        (("*",), ("Speech.*",), "a", "speech.failed", False),
        ((), ("*",), "a", "speech.failed", False),
        (("*",), (), "a", "speech.failed", False),
    ],
)
def test_a_route_takes_what_fits_one_of_its_patterns_each(
    sources: tuple[str, ...], events: tuple[str, ...], source: str, event_type: str, wanted: bool
) -> None:
    assert (Route("app", sources, events).refusal(source, event_type) is None) is wanted


def test_the_router_names_every_destination_that_wants_it_in_order() -> None:
    router = Router([Route("b"), Route("a", events=("speech.*",)), Route("c", sources=("other",))])
    assert router.destinations("x", "speech.completed") == ("b", "a")
    assert router.destinations("other", "media.failed") == ("b", "c")
    assert Router([]).destinations("x", "speech.completed") == ()
