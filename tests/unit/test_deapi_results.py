"""deAPI: results fetched from links that expire, and asked for by the job's id."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from receiver.core.errors import PickupRefused
from receiver.core.event import EventDraft
from receiver.core.fetch import Failed
from receiver.core.work import OutcomeKind, Pickup
from receiver.demo.deapi import ApiJob, Deapi
from receiver.outbound.fetcher import Fetcher
from receiver.providers import PullProvider, deapi
from receiver.providers.pickups import Gone, NotYet, Result
from tests.support.callbacks import DEAPI_SECRET, deapi_draft
from tests.support.collecting import NOW, Place, body_of, collected, fetching, pickup_of, placed
from tests.support.faulty import FaultyDeapi
from tests.support.golden import ROOT, source_settings, tokens

KEY = "dpn-sk-0123456789abcdef"
DAY = 86_400_000
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
TEXT = b"Good morning. This is the weather report."


def _source(**options: Any) -> deapi.DeapiProvider:
    table = {"provider": "deapi", "secrets": [DEAPI_SECRET], "api_key": KEY} | options
    return deapi.DeapiProvider.create(
        source_settings("da", {k: v for k, v in table.items() if v is not None}), tokens()
    )


# ---------------------------------------------------------------- orders


@pytest.mark.parametrize(
    "handed",
    [
        "j1",
        " j1\n",
        "https://api.deapi.ai/api/v2/jobs/j1",
        "https://API.deapi.ai:443/api/v1/client/request-status/j1",
    ],
)
def test_a_job_id_and_the_apis_url_are_one_order_with_the_callbacks_key(handed: str) -> None:
    order = _source().lookup(handed, {})
    told = deapi_draft(
        json.dumps({"event": "job.completed", "data": {"job_request_id": "j1"}}).encode(), api_key=KEY
    )
    assert (order.key, order.job_id, order.target) == (told.idempotency_key, "j1", None)


@pytest.mark.parametrize(
    "handed",
    [
        "",
        "two words",
        "a" * 300,
        "../x",
        "https://results.deapi.ai/a.mp3?signature=5ecret",
        "https://api.deapi.ai.example.com/api/v2/jobs/j1",
        "http://api.deapi.ai/api/v2/jobs/j1",
        "https://u:5ecret@api.deapi.ai/api/v2/jobs/j1",
        "https://api.deapi.ai/api/v2/jobs/",
        "https://api.deapi.ai/api/v2/jobs/j1/x",
        "https://api.deapi.ai/api/v2/models/j1",
        "https://[::1/x",
    ],
)
def test_anything_else_is_refused_naming_what_to_hand_over(handed: str) -> None:
    with pytest.raises(PickupRefused, match="request_id") as caught:
        _source().lookup(handed, {})
    assert "5ecret" not in caught.value.message


def test_without_a_key_nothing_can_be_handed_over() -> None:
    with pytest.raises(PickupRefused, match=r"set sources\.da\.api_key"):
        _source(api_key=None).lookup("j1", {})


def test_it_can_be_asked_with_a_key_about_a_job_that_is_known() -> None:
    source = _source()
    assert isinstance(source, PullProvider)
    assert source.deadline_seconds == 86400
    assert source.can_ask(pickup_of("k", job_id="j1"))
    assert not source.can_ask(pickup_of("k"))
    assert not source.can_ask(pickup_of("k", job_id="../j 1"))
    assert not _source(api_key=None).can_ask(pickup_of("k", job_id="j1"))


@pytest.mark.parametrize(
    ("product", "family"),
    [("txt2audio", "speech"), ("speech", "speech"), ("vid2txt", "transcript"), ("transcript", "transcript"),
     ("txt2img", "media"), (None, "media"), (5, "media")],
)  # fmt: skip
def test_the_family_is_the_callbacks_else_the_products(product: Any, family: str) -> None:
    source = _source()
    assert source.family(pickup_of("k", format={"product": product})) == family
    told = deapi_draft(
        json.dumps(
            {
                "event": "job.completed",
                "data": {"job_request_id": "j1", "job_type": "aud2txt", "result_url": "https://deapi.ai/a"},
            }
        ).encode()
    )
    assert source.family(pickup_of("k", format={"product": product}, draft=told)) == "transcript"


# ---------------------------------------------------------------- attempts


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with placed() as place:
        yield place


@pytest.fixture
def provider(place: Place) -> FaultyDeapi:
    standin = FaultyDeapi(KEY)
    place.app = standin.app
    return standin


class Trying:
    """Makes attempts against the stand-in."""

    def __init__(self, place: Place, provider: Deapi, fetch: Fetcher) -> None:
        self.url, self._provider, self._fetch = place.url, provider, fetch

    def source(self, **options: Any) -> deapi.DeapiProvider:
        return _source(**{"api_url": self.url, "result_hosts": ["127.0.0.1"]} | options)

    def told(self, job_id: str, **data: Any) -> Pickup:
        """Return the pickup that a callback leads to."""
        document = {
            "event": "job.completed",
            "delivery_id": "d1",
            "data": {
                "job_request_id": job_id,
                "job_type": self._provider.jobs[job_id].kind,
                "status": "done",
                "result_url": self._provider.link(self.url, job_id),
            }
            | data,
        }
        draft = deapi_draft(json.dumps(document).encode(), api_key=KEY)
        assert draft.remote is not None
        kept = replace(draft, remote=None, document=None)
        return pickup_of(draft.remote.key, job_id=job_id, target=draft.remote.url, draft=kept)

    def handed(self, job_id: str, **more: Any) -> Pickup:
        """Return the pickup of a job that was handed over."""
        return pickup_of(_source().lookup(job_id, {}).key, job_id=job_id, **more)

    async def __call__(self, pickup: Pickup, *, now: int = NOW, **options: Any) -> Result:
        return await self.source(**options).collect(pickup, self._fetch, now=now)


@pytest.fixture
async def attempt(place: Place, provider: Deapi, tmp_path: Path) -> AsyncIterator[Trying]:
    settings = source_settings(
        "da", {"provider": "deapi", "secrets": [DEAPI_SECRET], "allow": ["127.0.0.0/8"]}
    )
    async with fetching(settings, tmp_path / "spool") as fetch:
        yield Trying(place, provider, fetch)


def _failed(result: Result) -> Failed:
    assert isinstance(result, Failed), result
    assert "signature" not in result.detail
    assert KEY not in result.detail
    return result


def _audio(draft: EventDraft) -> str:
    assert draft.audio is not None
    return draft.audio.content_type


async def test_the_link_of_a_callback_is_downloaded_without_the_key(provider: Deapi, attempt: Trying) -> None:
    pickup = attempt.told(provider.add())
    result = await attempt(pickup)
    draft = collected(result).draft
    assert draft.idempotency_key == draft.second_key == pickup.key
    assert (draft.type, draft.job_id, draft.remote) == ("speech.completed", pickup.job_id, None)
    assert _audio(draft) == "audio/mpeg"
    assert body_of(result).load()[:3] == b"ID3"
    assert pickup.draft is not None
    assert draft.provider_data == pickup.draft.provider_data
    assert [request.path for request in provider.requests] == [f"/results/{pickup.job_id}"]
    assert KEY not in str(provider.requests[0].headers)


async def test_a_link_that_has_expired_is_renewed_in_the_same_attempt(
    provider: Deapi, attempt: Trying
) -> None:
    pickup = attempt.told(provider.add())
    provider.expire()
    draft = collected(await attempt(pickup)).draft
    assert (draft.type, _audio(draft)) == ("speech.completed", "audio/mpeg")
    job = pickup.job_id
    assert [request.path for request in provider.requests] == [
        f"/results/{job}", f"/api/v2/jobs/{job}", f"/results/{job}"
    ]  # fmt: skip
    assert [KEY in str(request.headers) for request in provider.requests] == [False, True, False]


async def test_a_link_that_is_known_to_have_expired_is_not_even_tried(
    provider: Deapi, attempt: Trying
) -> None:
    pickup = attempt.told(provider.add())
    assert collected(await attempt(pickup, now=NOW + DAY)).draft.audio
    assert provider.requests[0].path == f"/api/v2/jobs/{pickup.job_id}"


async def test_without_a_key_an_expired_link_is_tried_and_the_setting_named(
    provider: Deapi, attempt: Trying
) -> None:
    pickup = attempt.told(provider.add())
    assert collected(await attempt(pickup, now=NOW + DAY, api_key=None)).draft.audio
    provider.expire()
    failed = _failed(await attempt(pickup, now=NOW + DAY, api_key=None))
    assert (failed.kind, failed.status) == (OutcomeKind.REFUSED, 403)
    assert "set sources.da.api_key" in failed.detail
    assert not [request for request in provider.requests if request.path.startswith("/api")]


async def test_a_job_that_was_handed_over_is_asked_for_and_its_bytes_decide(
    provider: Deapi, attempt: Trying
) -> None:
    draft = collected(await attempt(attempt.handed(provider.add()))).draft
    assert (draft.type, draft.ref, draft.occurred_at) == ("speech.completed", "order-7", NOW)
    assert draft.provider_data["status"] == "done"
    assert draft.provider_data["progress"] == 100


@pytest.mark.parametrize(
    ("result", "content_type", "type_", "part"),
    [
        (TEXT, "text/plain", "transcript.completed", "document"),
        (b'{"text": "Good morning."}', "application/json", "transcript.completed", "document"),
        (PNG, "image/png", "media.completed", "media"),
        (bytes(range(256)), None, "media.completed", "media"),
    ],
)
async def test_what_was_handed_over_may_be_any_kind_of_job(
    provider: Deapi, attempt: Trying, result: bytes, content_type: str | None, type_: str, part: str
) -> None:
    job = provider.add(ApiJob(kind="unknown", result=result, content_type=content_type))
    home = await attempt(attempt.handed(job))
    draft = collected(home).draft
    assert draft.file is not None
    assert (draft.type, draft.file.part) == (type_, part)
    assert body_of(home).load() == result
    assert (draft.transcript is not None) is type_.startswith("transcript")


async def test_a_transcript_is_told_and_stored(provider: Deapi, attempt: Trying) -> None:
    job = provider.add(ApiJob(kind="aud2txt", result=TEXT, content_type="text/plain"))
    draft = collected(await attempt(attempt.told(job))).draft
    assert draft.transcript is not None
    assert draft.file is not None
    assert (draft.type, draft.transcript.text) == ("transcript.completed", TEXT.decode())
    assert (draft.file.part, draft.file.extension) == ("document", "txt")


async def test_a_transcript_inside_the_jobs_document_needs_no_link(provider: Deapi, attempt: Trying) -> None:
    job = provider.add(ApiJob(kind="aud2txt", text=TEXT.decode()))
    result = await attempt(attempt.handed(job, format={"product": "aud2txt"}))
    draft = collected(result).draft
    assert draft.transcript is not None
    assert draft.transcript.text == TEXT.decode()
    assert body_of(result).load() == TEXT
    assert "result" not in draft.provider_data


async def test_until_the_job_is_done_the_waits_grow_to_a_minute(provider: Deapi, attempt: Trying) -> None:
    job = provider.add(ApiJob(statuses=["pending", *["processing"] * 7, "done"]))
    waits, said = [], []
    for attempts in range(8):
        result = await attempt(attempt.handed(job, attempts=attempts))
        assert isinstance(result, NotYet)
        waits.append(result.retry_in)
        said.append(result.detail)
    assert waits[0] == 5
    assert waits == sorted(waits)
    assert waits[-1] == 60
    assert said[0] == "deAPI says pending of the job, 0 %"
    assert said[1] == "deAPI says processing of the job, 40 %"
    assert collected(await attempt(attempt.handed(job, attempts=8))).draft.audio


@pytest.mark.parametrize("word", ["error", "failed"])
async def test_a_job_that_failed_is_told_in_the_providers_words(
    provider: Deapi, attempt: Trying, word: str
) -> None:
    """Its identity is that of the `job.failed` callback, so that the two are one event."""
    job = provider.add(ApiJob(statuses=[word]))
    home = collected(await attempt(attempt.handed(job, format={"product": "txt2audio"})))
    assert home.body is None
    assert home.draft.type == "speech.failed"
    assert home.draft.error is not None
    assert (home.draft.error.code, home.draft.error.message) == (
        "WORKER_TIMEOUT",
        "the worker did not answer",
    )
    failed = {"event": "job.failed", "data": {"job_request_id": job}}
    assert home.draft.idempotency_key == deapi_draft(json.dumps(failed).encode()).idempotency_key


async def test_a_job_that_nobody_knows_is_gone_the_second_time(provider: Deapi, attempt: Trying) -> None:
    """The first time it may only be too new."""
    first = _failed(await attempt(attempt.handed("j-unknown")))
    assert (first.kind, first.status) == (OutcomeKind.REFUSED, 404)
    second = await attempt(attempt.handed("j-unknown", attempts=1))
    assert isinstance(second, Gone)
    assert second.error.code == "unknown_job"


async def test_a_job_that_a_callback_told_of_is_never_unknown(provider: Deapi, attempt: Trying) -> None:
    pickup = attempt.told(provider.add())
    provider.jobs.clear()
    failed = _failed(await attempt(replace(pickup, attempts=5)))
    assert (failed.kind, failed.status) == (OutcomeKind.REFUSED, 404)


async def test_a_key_that_is_not_accepted_names_the_setting(provider: Deapi, attempt: Trying) -> None:
    failed = _failed(await attempt(attempt.handed(provider.add()), api_key="dpn-sk-of-somebody-else"))
    assert (failed.kind, failed.status) == (OutcomeKind.REFUSED, 401)
    assert failed.detail == "the API key is not accepted: check sources.da.api_key"


@pytest.mark.parametrize(
    ("fault", "kind", "status", "retry_after"),
    [
        ("busy", OutcomeKind.REFUSED, 429, 9),
        ("down", OutcomeKind.REFUSED, 503, None),
        ("page", OutcomeKind.UNUSABLE, None, None),
    ],
)
async def test_trouble_at_the_api_is_a_failure(
    provider: FaultyDeapi,
    attempt: Trying,
    fault: str,
    kind: OutcomeKind,
    status: int | None,
    retry_after: float | None,
) -> None:
    provider.api_fault = fault
    failed = _failed(await attempt(attempt.handed(provider.add())))
    assert (failed.kind, failed.status, failed.retry_after) == (kind, status, retry_after)


@pytest.mark.parametrize(
    ("fault", "kind", "status"), [("page", OutcomeKind.UNUSABLE, None), ("down", OutcomeKind.REFUSED, 503)]
)
async def test_trouble_at_the_storage_is_a_failure_and_leaves_no_file(
    provider: FaultyDeapi, attempt: Trying, tmp_path: Path, fault: str, kind: OutcomeKind, status: int | None
) -> None:
    provider.storage_fault = fault
    failed = _failed(await attempt(attempt.told(provider.add())))
    assert (failed.kind, failed.status) == (kind, status)
    assert failed.retry_after == (3 if fault == "down" else None)
    assert list((tmp_path / "spool").iterdir()) == []


async def test_an_image_in_place_of_audio_is_a_failure(
    provider: Deapi, attempt: Trying, tmp_path: Path
) -> None:
    """A large one, so that it lies on disk: nothing of it stays there."""
    job = provider.add(ApiJob(result=PNG + bytes(200_000)))
    failed = _failed(await attempt(attempt.told(job)))
    assert failed.detail == "the result is an image (image/png), not audio"
    assert list((tmp_path / "spool").iterdir()) == []


async def test_a_job_that_is_done_without_a_result_is_a_failure(provider: Deapi, attempt: Trying) -> None:
    job = provider.add(ApiJob(text=" "))
    failed = _failed(await attempt(attempt.handed(job)))
    assert failed.detail == "deAPI says that the job is done, and tells no result"


async def test_a_host_that_is_not_listed_is_not_asked(provider: Deapi, attempt: Trying) -> None:
    failed = _failed(await attempt(attempt.told(provider.add()), result_hosts=["deapi.ai"]))
    assert failed.kind is OutcomeKind.BLOCKED
    assert provider.requests == []


async def test_a_result_without_a_type_is_told_by_its_bytes_or_the_job(
    provider: Deapi, attempt: Trying
) -> None:
    flac = provider.add(ApiJob(result=(ROOT / "audio/speech.flac").read_bytes(), content_type=None))
    assert _audio(collected(await attempt(attempt.told(flac))).draft) == "audio/flac"
    raw = provider.add(ApiJob(result=(ROOT / "audio/speech.l16").read_bytes(), content_type=None))
    asked = {"encoding": "linear16", "sample_rate": 24000}
    pickup = replace(attempt.told(raw), format=asked)
    assert _audio(collected(await attempt(pickup)).draft) == "audio/l16;rate=24000"


async def test_the_limit_of_transcripts_is_that_of_documents(provider: Deapi, attempt: Trying) -> None:
    job = provider.add(ApiJob(kind="aud2txt", result=TEXT * 10, content_type="text/plain"))
    assert _failed(await attempt(attempt.told(job), max_json_bytes=100)).too_large
    audio = provider.add()
    assert collected(await attempt(attempt.told(audio), max_json_bytes=100)).draft.audio
    assert _failed(await attempt(attempt.told(audio), max_audio_bytes=100)).too_large
