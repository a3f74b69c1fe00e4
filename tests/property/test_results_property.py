"""Laws of what is handed over and of what is fetched: whatever the text or the bytes, an answer of the right kind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import urlsplit

from hypothesis import example, given, settings
from hypothesis import strategies as st

from receiver.core.callback import MemoryBody
from receiver.core.errors import PickupRefused
from receiver.core.event import EVENT_TYPES, AudioDraft, FileDraft
from receiver.core.fetch import Downloaded, Failed, FetchResponse, Stream
from receiver.providers import deapi, deepdub, results
from receiver.providers.pickups import Collected, Gone, Lookup, NotYet, Result
from tests.support.collecting import NOW, pickup_of
from tests.support.examples import examples
from tests.support.golden import source_settings, tokens

KEY = "dd-0123456789abcdef"
BASE = "https://restapi.deepdub.ai/api/v1"
DEEPDUB = deepdub.DeepdubProvider.create(
    source_settings("dd", {"provider": "deepdub", "api_key": KEY}), tokens()
)
DEAPI = deapi.DeapiProvider.create(
    source_settings("da", {"provider": "deapi", "secrets": ["x" * 32], "api_key": KEY}), tokens()
)


class Canned:
    """A `Fetch` that answers everything alike, and keeps where the key was sent."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.status, self.body, self.headers = status, body, dict(headers)
        self.trusted: list[str] = []

    async def ask(self, url: str, *, headers: Mapping[str, str]) -> FetchResponse | Failed:
        self.trusted.append(url)
        return FetchResponse(status=self.status, headers=self.headers, body=self.body)

    async def download(
        self, url: str, *, hosts: Sequence[str], limit: int, headers: Mapping[str, str] | None = None
    ) -> Downloaded | FetchResponse | Failed:
        if headers:
            self.trusted.append(url)
        if self.status == 200:
            return Downloaded(headers=self.headers, body=MemoryBody(self.body))
        return FetchResponse(status=self.status, headers=self.headers, body=self.body)

    def stream(
        self, url: str, *, headers: Mapping[str, str], idle_seconds: float
    ) -> AbstractAsyncContextManager[Stream | Failed]:
        raise AssertionError("neither adapter follows a stream")


handed = (
    st.text(max_size=60)
    | st.text(max_size=30).map(lambda end: f"{BASE}/tts/retroactive/{end}")
    | st.text(max_size=30).map(lambda end: f"https://api.deapi.ai/api/v2/jobs/{end}")
    | st.text("/.:@?#%[]aé ", max_size=30).map(lambda end: f"https://{end}")
)
types = st.sampled_from(
    [
        "",
        "audio/mpeg",
        "audio/l16;rate=8000",
        "text/html",
        "text/plain",
        "application/json",
        "image/png",
        ";;=",
    ]
) | st.text(max_size=30)
asked: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(["encoding", "format", "output_format", "sample_rate", "channels", "product"]),
    st.sampled_from(
        ["mulaw", "headerless-wav", "mp3", "txt2audio", "aud2txt", 8000, "8000", -1, None, [], 1.5]
    ),
)
starts = st.sampled_from(
    [b"", b"ID3\x04\x00", b"RIFF", b"\x89PNG\r\n\x1a\n", b"<html>", b"{", b"\xef\xbb\xbf"]
)
raws = st.builds(bytes.__add__, starts, st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["done", "processing", "error", "https://results.deapi.ai/x", "txt2audio", "aud2txt"])
)  # fmt: skip
fields = st.dictionaries(
    st.sampled_from(
        ["status", "result_url", "result", "progress", "job_type", "error_code", "error_message", "message"]
    ),
    scalars | st.lists(scalars, max_size=2),
)
documents = (fields | fields.map(lambda data: {"data": data}) | scalars).map(lambda d: json.dumps(d).encode())


def _order(source: deapi.DeapiProvider | deepdub.DeepdubProvider, text: str) -> Lookup | None:
    try:
        return source.lookup(text, {})
    except PickupRefused:
        return None


def _check(result: Result) -> None:
    match result:
        case Collected(draft=draft):
            assert draft.type in EVENT_TYPES
            assert draft.second_key == draft.idempotency_key
            assert (draft.error is None) is (result.body is not None)
            assert KEY not in repr(draft)
        case NotYet():
            assert 0 < result.retry_in <= 60
        case Gone():
            assert result.error.message
        case Failed():
            assert result.detail.isprintable()
            assert KEY not in result.detail


@given(text=handed)
@example(text=f"{BASE}/tts/retroactive/../../../x")
@example(text="https://restapi.deepdub.ai@example.com/api/v1/tts/retroactive/a")
@settings(max_examples=examples(60), deadline=None)
def test_whatever_is_handed_over_the_key_goes_to_the_configured_api_alone(text: str) -> None:
    for source, start in (
        (DEEPDUB, f"{BASE}/tts/retroactive/"),
        (DEAPI, "https://api.deapi.ai/api/v2/jobs/"),
    ):
        order = _order(source, text)
        if order is None:
            continue
        fetch = Canned(404, b"", {})
        _check(asyncio.run(source.collect(pickup_of(order.key, job_id=order.job_id), fetch, now=NOW)))
        (url,) = fetch.trusted
        assert url.startswith(start)
        assert "/" not in url.removeprefix(start)
        assert urlsplit(url).path.rpartition("/")[2] not in ("", ".", "..")


@given(
    raw=raws,
    content_type=types,
    format=asked,
    wanted=st.sampled_from(["audio", "transcript", "media", "any"]),
)
@settings(max_examples=examples(80), deadline=None)
def test_any_bytes_are_a_result_of_the_kind_wanted_or_unusable(
    raw: bytes, content_type: str, format: dict[str, Any], wanted: results.ResultKind
) -> None:
    found = results.classify(MemoryBody(raw), content_type=content_type, format=format, wanted=wanted)
    match found:
        case AudioDraft():
            assert wanted in ("audio", "any")
        case FileDraft():
            assert wanted != "audio"
            assert wanted != "transcript" or found.part == "document"
            results.transcript_of(MemoryBody(raw), found)
        case Failed():
            assert found.detail.startswith("the result is ")
    if not isinstance(found, Failed):
        assert found.extension.isalnum()
        assert found.content_type.isprintable()
        assert "html" not in found.content_type


@given(
    status=st.sampled_from([200, 301, 400, 401, 402, 403, 404, 410, 429, 500]),
    raw=raws | documents,
    content_type=types,
    format=asked,
    attempts=st.integers(0, 2000),
    target=st.none() | st.just("https://results.deapi.ai/x"),
)
@settings(max_examples=examples(80), deadline=None)
def test_any_answer_ends_an_attempt_in_one_of_the_four_ways(
    status: int, raw: bytes, content_type: str, format: dict[str, Any], attempts: int, target: str | None
) -> None:
    fetch = Canned(status, raw, {"content-type": content_type, "retry-after": "3"})
    for source in (DEEPDUB, DEAPI):
        key = source.lookup("j1", {}).key
        pickup = pickup_of(key, job_id="j1", target=target, format=format, attempts=attempts)
        _check(asyncio.run(source.collect(pickup, fetch, now=NOW)))
