"""Laws of the PlayHT adapter: a callback is understood or parked, a stream decides or goes on, and no key is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.core.callback import Head, MemoryBody, VerifiedCallback
from receiver.core.callback import MemoryBody as HeldBody
from receiver.core.errors import CallbackRejected, MalformedCallback, PickupRefused
from receiver.core.event import EVENT_TYPES, EventDraft
from receiver.core.fetch import Downloaded, Failed, FetchResponse, ServerSentEvent, Stream
from receiver.core.work import OutcomeKind, Pickup, PickupKind
from receiver.providers import playht
from receiver.providers.pickups import Collected, Gone, NotYet, Result
from tests.support.callbacks import NOW
from tests.support.examples import examples
from tests.support.golden import source_settings, tokens

KEY, USER = "ak-property-0123456789abcdef", "propertyuser01234567"
HEADERS = (("authorization", f"Bearer {KEY}"),)
JOB = "BxMcwDjy0tHZVC4LYz"


def _source(mode: str = "sse") -> playht.PlayhtProvider:
    table = {"provider": "playht", "api_key": KEY, "user_id": USER, "mode": mode}
    return playht.PlayhtProvider.create(source_settings("ph", table), tokens())


SOURCE = _source()
links = st.sampled_from(
    ["https://results.example.test/a.mp3", "http://x/y?signature=0123456789", "ftp://x", "https://[", ""]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | links | st.just(KEY)
words = st.sampled_from(
    [
        *("id", "transcriptionId", "status", "version", "progress", "url", "duration", "size"),
        *(
            "metadata",
            "output",
            "voice",
            "stage",
            "stage_progress",
            "error_message",
            "input",
            "output_format",
        ),
    ]
)
states = st.sampled_from(["queued", "complete", "SUCCESS", "error", "FAILED", "generating", "paused", KEY])
values = st.recursive(
    scalars | states,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=15,
)
tables = st.dictionaries(words, values, max_size=8)
likely = st.builds(
    lambda more, job, status, url: more | {"id": job, "status": status, "url": url},
    tables,
    st.text(max_size=300) | st.just(JOB),
    states,
    links,
)
documents = (tables | likely).map(lambda value: json.dumps(value).encode())


def _check(draft: EventDraft) -> None:
    assert draft.type in EVENT_TYPES
    for key in (draft.idempotency_key, draft.second_key or "-", draft.job_id or "-"):
        assert 0 < len(key) <= 200
        assert key.isprintable()
    json.dumps(dict(draft.provider_data)).encode()
    assert KEY not in repr(draft)


@given(raw=documents | st.binary(max_size=200) | st.text().map(str.encode))
@settings(max_examples=examples(40), deadline=None)
def test_any_proved_body_is_understood_or_parked(raw: bytes) -> None:
    """A draft without any key, or exactly `MalformedCallback`; and what is sent again has the same identity."""
    callback = SOURCE.verify(
        SOURCE.admit(Head(source="ph", method="POST", headers=HEADERS, received_at=NOW)), MemoryBody(raw)
    )
    assert 0 < len(SOURCE.fallback_key(callback)) <= 200
    try:
        draft = SOURCE.normalize(callback)
    except MalformedCallback as caught:
        refusal = caught
    else:
        _check_callback(draft, callback)
        return
    assert type(refusal) is MalformedCallback
    assert KEY not in refusal.message


def _check_callback(draft: EventDraft, callback: VerifiedCallback) -> None:
    _check(draft)
    assert (draft.remote is not None) is (draft.type == "speech.completed")
    assert draft.remote is None or draft.remote.key == draft.second_key == draft.idempotency_key
    assert SOURCE.normalize(callback).idempotency_key == draft.idempotency_key


@given(
    name=st.sampled_from(["authorization", "secret-key"]),
    value=st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=60)
    | st.integers(0, len(KEY) - 1).map(lambda n: KEY[:n] + KEY[n + 1 :]),
    bearer=st.booleans(),
)
@settings(max_examples=examples(30), deadline=None)
def test_no_other_key_is_admitted(name: str, value: str, bearer: bool) -> None:
    sent = f"Bearer {value}" if bearer else value
    with pytest.raises(CallbackRejected) as caught:
        SOURCE.admit(Head(source="ph", method="POST", headers=((name, sent),), received_at=NOW))
    assert KEY not in caught.value.message


@given(text=st.text(max_size=60) | st.text(max_size=30).map(lambda t: f"https://api.play.ht/api/v2/tts/{t}"))
@settings(max_examples=examples(40), deadline=None)
def test_what_is_handed_over_is_a_plain_job_id_or_refused(text: str) -> None:
    """No order leads the key to another path than that of a job."""
    try:
        order = SOURCE.lookup(text, {})
    except PickupRefused:
        return
    assert order.job_id
    assert order.job_id.isascii()
    assert not set(order.job_id) & set("/\\?#%@: ")
    assert order.job_id.strip(".")


# ---------------------------------------------------------------- whatever is answered


class _Told:
    """A `Fetch` that answers what it is told to: hostile answers, without a network."""

    def __init__(
        self, answer: FetchResponse, events: Sequence[ServerSentEvent | Failed], body: bytes
    ) -> None:
        self._answer, self._events, self._body = answer, events, HeldBody(body)

    @property
    def response(self) -> FetchResponse:
        return self._answer

    async def events(self) -> AsyncIterator[ServerSentEvent | Failed]:
        for event in self._events:
            yield event

    async def ask(self, url: str, *, headers: Mapping[str, str]) -> FetchResponse | Failed:
        return self._answer

    async def download(
        self, url: str, *, hosts: Sequence[str], limit: int, headers: Mapping[str, str] | None = None
    ) -> Downloaded | FetchResponse | Failed:
        assert headers is None, "the key goes to the API alone"
        return Downloaded(headers={"content-type": "audio/mpeg"}, body=self._body)

    @asynccontextmanager
    async def stream(
        self, url: str, *, headers: Mapping[str, str], idle_seconds: float
    ) -> AsyncIterator[Stream | Failed]:
        assert headers["AUTHORIZATION"] == f"Bearer {KEY}"
        yield self


def _pickup(attempts: int) -> Pickup:
    return Pickup(
        id="pku_1",
        source="ph",
        kind=PickupKind.RESULT,
        key=f"job:{JOB}:complete",
        job_id=JOB,
        event_id="evt_1",
        deadline_at=NOW,
        attempts=attempts,
        due_at=NOW,
        created_at=NOW,
        updated_at=NOW,
    )


def _judge(result: Result) -> None:
    """The result is sound, whichever it is, and tells no key."""
    assert KEY not in repr(result)
    match result:
        case Collected(draft=draft):
            _check(draft)
            assert draft.audio
            assert draft.idempotency_key == draft.second_key == f"job:{JOB}:complete"
        case NotYet(retry_in=wait, progress=progress):
            assert 0 <= wait <= 30
            if progress:
                _check(progress)
        case Gone(error=told):
            assert told.message
        case Failed(detail=detail):
            assert detail.isprintable()


told = tables | tables.map(lambda more: more | {"id": JOB, "url": "https://results.example.test/a.mp3"})
events = st.builds(
    lambda name, data: ServerSentEvent(event=name, data=data),
    st.sampled_from(["generating", "completed", "ping", "error", "failed", "message"]) | st.text(max_size=5),
    told.map(json.dumps) | st.text(max_size=20),
)
streams = st.lists(
    events | st.just(Failed(kind=OutcomeKind.TIMEOUT, detail="silent")),
    max_size=6,
)
audio = st.binary(max_size=40) | st.just(b"ID3\x04\x00\x00\x00\x00\x00\x00" + b"\xff\xfb\x90\x00" * 9)


@given(stream=streams, body=audio, attempts=st.integers(0, 10_000))
@settings(max_examples=examples(30), deadline=None)
def test_any_stream_gives_a_result_and_no_exception(
    stream: list[ServerSentEvent | Failed], body: bytes, attempts: int
) -> None:
    answer = FetchResponse(status=200, headers={"content-type": "text/event-stream"})
    fetch = _Told(answer, stream, body)
    _judge(asyncio.run(SOURCE.collect(_pickup(attempts), fetch, now=NOW)))


jobs = st.builds(
    lambda job, output: json.dumps(job | {"output": output}).encode(), told, told | st.none() | links
)


@given(
    status=st.sampled_from([200, 201, 301, 401, 404, 429, 500]), raw=jobs | st.binary(max_size=50), body=audio
)
@settings(max_examples=examples(30), deadline=None)
def test_any_job_gives_a_result_and_no_exception(status: int, raw: bytes, body: bytes) -> None:
    """The same answer means the same, asked for as JSON or come in place of a stream."""
    fetch = _Told(
        FetchResponse(status=status, headers={"content-type": "application/json"}, body=raw), [], body
    )
    results = [asyncio.run(_source(mode).collect(_pickup(0), fetch, now=NOW)) for mode in ("json", "sse")]
    assert results[0] == results[1]
    _judge(results[0])
