"""Deepdub: what may be handed over, and every answer that asking for audio may get."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse

from receiver.core.errors import ConfigError, PickupRefused
from receiver.core.fetch import Failed
from receiver.core.work import OutcomeKind, Pickup
from receiver.demo.deepdub import BASE_PATH, Deepdub
from receiver.outbound.fetcher import Fetcher
from receiver.providers import PullProvider, deepdub
from receiver.providers.pickups import Gone, NotYet, Result
from tests.support.collecting import NOW, Place, body_of, collected, fetching, pickup_of, placed
from tests.support.faulty import FaultyDeepdub
from tests.support.golden import ROOT, source_settings, tokens

KEY = "dd-0123456789abcdef0123456789abcdef"
ID = "8f14e45f-ceea-467f-a9c3-1f7d2a3b4c5d"


def _source(**options: Any) -> deepdub.DeepdubProvider:
    return deepdub.DeepdubProvider.create(
        source_settings("dd", {"provider": "deepdub", "api_key": KEY} | options), tokens()
    )


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ({"api_key": KEY}, []),
        ({}, ["E301"]),
        ({"api_key": ""}, ["E301"]),
        ({"api_key": KEY, "region": "mars"}, ["E304"]),
        ({"api_key": KEY, "base_url": "restapi.deepdub.ai"}, ["E304"]),
        ({"api_key": KEY, "base_url": "https://u:p@restapi.deepdub.ai"}, ["E304"]),
        ({"api_key": KEY, "base_url": "https://restapi.deepdub.ai/?a=1"}, ["E304"]),
        ({"api_key": KEY, "base_url": "https://[::1"}, ["E304"]),
        ({"api_key": KEY, "deadline_seconds": 0}, ["E304"]),
        ({"api_key": KEY, "base_url": "http://deepdub.example.com"}, ["W301"]),
        ({"api_key": KEY, "base_url": "http://127.0.0.1:9/api/v1"}, []),
    ],
)
def test_findings_have_stable_codes(options: dict[str, Any], codes: list[str]) -> None:
    found = deepdub.DeepdubProvider.findings(source_settings("dd", {"provider": "deepdub"} | options))
    assert [finding.code for finding in found] == codes
    assert not [finding for finding in found if "u:p" in finding.message]


def test_without_a_key_the_source_does_not_start() -> None:
    with pytest.raises(ConfigError, match=r"sources\.dd\.api_key: .*add api_key = "):
        deepdub.DeepdubProvider.create(source_settings("dd", {"provider": "deepdub"}), tokens())


def test_it_is_a_pull_provider_that_waits_an_hour() -> None:
    source = _source()
    assert isinstance(source, PullProvider)
    assert (source.provider, source.source, source.deadline_seconds) == ("deepdub", "dd", 3600)
    assert _source(deadline_seconds=60).deadline_seconds == 60


# ---------------------------------------------------------------- orders


@pytest.mark.parametrize(
    ("options", "handed"),
    [
        ({}, ID),
        ({}, f"  {ID}.mp3\n"),
        ({}, f"https://restapi.deepdub.ai/api/v1/tts/retroactive/{ID}"),
        ({}, f"https://RESTAPI.deepdub.ai:443/api/v1/tts/retroactive/{ID}.mp3"),
        ({"region": "eu"}, f"https://restapi.eu.deepdub.ai/api/v1/tts/retroactive/{ID}"),
        ({"region": "eu-alt"}, f"https://eu-restapi.deepdub.ai/api/v1/tts/retroactive/{ID}"),
        ({"base_url": "http://127.0.0.1:81/x/"}, f"http://127.0.0.1:81/x/tts/retroactive/{ID}"),
        (
            {"region": "eu", "base_url": "https://d.example.com"},
            f"https://d.example.com/tts/retroactive/{ID}",
        ),
    ],
)
def test_the_url_and_the_bare_id_are_one_order(options: dict[str, Any], handed: str) -> None:
    order = _source(**options).lookup(handed, {})
    assert (order.key, order.job_id, order.target) == (f"job:{ID}:retroactive", ID, None)


@pytest.mark.parametrize(
    "handed",
    [
        f"http://restapi.deepdub.ai/api/v1/tts/retroactive/{ID}",
        f"https://restapi.deepdub.ai:8443/api/v1/tts/retroactive/{ID}",
        f"https://restapi.eu.deepdub.ai/api/v1/tts/retroactive/{ID}",
        f"https://restapi.deepdub.ai.example.com/api/v1/tts/retroactive/{ID}",
    ],
)
def test_a_url_of_another_address_is_refused_since_the_key_would_go_there(handed: str) -> None:
    with pytest.raises(PickupRefused) as caught:
        _source().lookup(handed, {})
    there = handed.partition("/api")[0]
    assert f"is at {there}, " in caught.value.message
    assert "this source asks https://restapi.deepdub.ai:" in caught.value.message
    assert "sources.dd.region (or base_url)" in caught.value.message


@pytest.mark.parametrize(
    "handed",
    [
        "",
        " ",
        "two words",
        "..",
        f"../{ID}",
        f"{ID}/x",
        "a" * 300,
        f"https://user:pw@restapi.deepdub.ai/api/v1/tts/retroactive/{ID}",
        f"https://restapi.deepdub.ai/api/v1/tts/retroactive/{ID}?x=1",
        f"https://restapi.deepdub.ai/api/v1/tts/retroactive/{ID}#x",
        "https://restapi.deepdub.ai/api/v1/tts/retroactive/",
        "https://restapi.deepdub.ai/api/v1/tts/retroactive/a/../b",
        "https://restapi.deepdub.ai/api/v1/tts/retroactive/%2e%2e",
        f"https://restapi.deepdub.ai/api/v1/tts/{ID}",
        f"https://restapi.deepdub.ai/api/v2/tts/retroactive/{ID}",
        "https://[::1/api",
    ],
)
def test_what_is_neither_the_url_nor_an_id_is_refused(handed: str) -> None:
    with pytest.raises(PickupRefused) as caught:
        _source().lookup(handed, {})
    assert "pw" not in caught.value.message


# ---------------------------------------------------------------- attempts


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with placed() as place:
        yield place


@pytest.fixture
def provider(place: Place) -> FaultyDeepdub:
    standin = FaultyDeepdub(KEY)
    place.app = standin.app
    return standin


class Asking:
    """The source whose Deepdub is the stand-in."""

    def __init__(self, place: Place, fetch: Fetcher) -> None:
        self.base, self._fetch = place.url + BASE_PATH, fetch

    async def __call__(self, job_id: str, *, key: str = KEY, attempts: int = 0, **format: Any) -> Result:
        source = _source(base_url=self.base, api_key=key)
        order = source.lookup(f"{self.base}/tts/retroactive/{job_id}", format)
        return await source.collect(self._pickup(order.key, job_id, attempts, format), self._fetch, now=NOW)

    @staticmethod
    def _pickup(key: str, job_id: str, attempts: int, format: dict[str, Any]) -> Pickup:
        return pickup_of(key, job_id=job_id, attempts=attempts, format=format)


@pytest.fixture
async def ask(place: Place, provider: Deepdub, tmp_path: Path) -> AsyncIterator[Asking]:
    settings = source_settings("dd", {"provider": "deepdub", "api_key": KEY, "allow": ["127.0.0.0/8"]})
    async with fetching(settings, tmp_path / "spool") as fetch:
        yield Asking(place, fetch)


async def test_audio_that_is_ready_becomes_the_event(provider: Deepdub, ask: Asking) -> None:
    job_id = provider.submit()
    result = await ask(job_id)
    draft = collected(result).draft
    assert (draft.type, draft.job_id, draft.ref, draft.occurred_at) == (
        "speech.completed",
        job_id,
        "order-7",
        NOW,
    )
    assert draft.idempotency_key == draft.second_key == f"job:{job_id}:retroactive"
    assert draft.audio is not None
    assert (draft.audio.content_type, draft.audio.extension) == ("audio/mpeg", "mp3")
    assert body_of(result).load() == provider.audio
    asked = next(request for request in provider.requests if request.method == "GET")
    assert (asked.path, asked.headers["x-api-key"]) == (f"{BASE_PATH}/tts/retroactive/{job_id}", KEY)
    assert KEY not in repr(draft)


async def test_until_it_is_ready_404_is_no_failure_and_the_waits_grow(provider: Deepdub, ask: Asking) -> None:
    provider.not_ready = 12
    job_id = provider.submit()
    waits = []
    for attempts in range(12):
        result = await ask(job_id, attempts=attempts)
        assert isinstance(result, NotYet)
        waits.append(result.retry_in)
    assert waits == [1, 2, 3, 5, 8, 13, 20, 30, 30, 30, 30, 30]
    assert collected(await ask(job_id, attempts=12)).draft.audio


async def test_an_id_that_nobody_made_is_not_told_from_one_that_is_not_ready(ask: Asking) -> None:
    assert isinstance(await ask(ID), NotYet)


async def test_an_id_that_cannot_be_one_is_gone(ask: Asking) -> None:
    result = await ask("no-such-id")
    assert isinstance(result, Gone)
    assert result.error.code == "invalid_id"
    assert "Invalid generation ID" in result.error.message


@pytest.mark.parametrize(
    ("name", "stated", "asked", "content_type"),
    [
        ("speech.mp3", None, {}, "audio/mpeg"),
        ("speech.ogg", None, {"format": "opus"}, "audio/ogg;codecs=opus"),
        ("speech.mulaw", "asked", {"format": "mulaw", "sample_rate": 8000}, "audio/mulaw;rate=8000"),
        ("speech.mulaw", None, {"format": "mulaw", "sample_rate": 8000}, "audio/mulaw;rate=8000"),
        ("speech.l16", None, {"format": "headerless-wav", "sample_rate": 24000}, "audio/l16;rate=24000"),
        ("speech.mp3", "application/octet-stream", {"format": "mulaw"}, "audio/mpeg"),
        ("speech.wav", "audio/mpeg", {}, "audio/wav"),
    ],
)
async def test_the_format_is_told_by_bytes_then_type_then_order(
    provider: Deepdub, ask: Asking, name: str, stated: str | None, asked: dict[str, Any], content_type: str
) -> None:
    """Some of Deepdub's answers have had no Content-Type at all."""
    provider.audio = (ROOT / "audio" / name).read_bytes()
    provider.content_type = stated
    audio = collected(await ask(provider.submit(asked.get("format", "mp3")), **asked)).draft.audio
    assert audio is not None
    assert audio.content_type == content_type


@pytest.mark.parametrize(
    ("fault", "kind", "status", "words"),
    [
        ("busy", OutcomeKind.REFUSED, 429, "too many requests at once (429): Too many concurrent requests"),
        ("page", OutcomeKind.REFUSED, 502, "Deepdub answered 502"),
        ("page-200", OutcomeKind.UNUSABLE, None, "the result is a web page (text/html), not audio"),
        ("envelope", OutcomeKind.UNUSABLE, 200, "the result is JSON, not audio: Generation failed"),
        ("no-credits", OutcomeKind.REFUSED, 402, "credits are used up (402): Insufficient credits"),
    ],
)
async def test_trouble_is_a_failure_that_says_what_it_is(
    provider: FaultyDeepdub,
    ask: Asking,
    tmp_path: Path,
    fault: str,
    kind: OutcomeKind,
    status: int | None,
    words: str,
) -> None:
    provider.fault = fault
    result = await ask(provider.submit())
    assert isinstance(result, Failed)
    assert (result.kind, result.status) == (kind, status)
    assert words in result.detail
    assert result.retry_after == (7 if fault == "busy" else None)
    assert list((tmp_path / "spool").iterdir()) == []


async def test_a_large_file_that_is_no_audio_is_a_failure_and_does_not_stay_on_disk(
    provider: Deepdub, ask: Asking, tmp_path: Path
) -> None:
    provider.audio = b"\x89PNG\r\n\x1a\n" + bytes(200_000)
    result = await ask(provider.submit())
    assert isinstance(result, Failed)
    assert result.detail == "the result is an image (image/png), not audio"
    assert list((tmp_path / "spool").iterdir()) == []


async def test_a_key_that_is_not_accepted_names_the_setting_and_not_the_key(
    provider: Deepdub, ask: Asking
) -> None:
    wrong = "dd-of-another-account-entirely"
    result = await ask(provider.submit(), key=wrong)
    assert isinstance(result, Failed)
    assert (result.kind, result.status) == (OutcomeKind.REFUSED, 401)
    assert "sources.dd.api_key" in result.detail
    assert wrong not in result.detail


@pytest.mark.parametrize("status", [200, 400, 404])
async def test_an_invalid_id_is_gone_whatever_its_status(place: Place, ask: Asking, status: int) -> None:
    """The status of that answer is not documented."""
    place.app = JSONResponse({"success": False, "message": "Invalid generation ID"}, status_code=status)
    result = await ask(ID)
    assert isinstance(result, Gone)
    assert result.error.code == "invalid_id"


@pytest.mark.parametrize("envelope", [{"message": f"key {KEY}"}, {"error": "no", "detail": f"key {KEY}"}])
@pytest.mark.parametrize("status", [200, 401, 403, 500])
async def test_the_providers_words_are_told_without_the_key(
    place: Place, ask: Asking, status: int, envelope: dict[str, str]
) -> None:
    place.app = JSONResponse(envelope, status_code=status)
    result = await ask(ID)
    assert isinstance(result, Failed)
    assert (result.status, "sources.dd.api_key" in result.detail) == (status, status in (401, 403))
    assert result.detail.endswith(": key [redacted]")


@pytest.mark.parametrize("length", [150, 195, 290])
@pytest.mark.parametrize("status", [200, 500])
async def test_no_beginning_of_the_key_is_left_where_words_are_cut(
    place: Place, ask: Asking, status: int, length: int
) -> None:
    place.app = JSONResponse({"message": "x" * length + KEY}, status_code=status)
    result = await ask(ID)
    assert isinstance(result, Failed)
    assert KEY[:4] not in result.detail
    assert result.detail.endswith(("x" * length + "[redacted]")[:200])


@pytest.mark.parametrize("status", [200, 404])
async def test_what_is_said_of_an_invalid_id_is_told_without_the_key(
    place: Place, ask: Asking, status: int
) -> None:
    said = f"Invalid generation ID for {KEY[:9]}\u200b{KEY[9:]}, see https://h.example.com/x?signature=5"
    place.app = JSONResponse({"message": said}, status_code=status)
    result = await ask(ID)
    assert isinstance(result, Gone)
    assert result.error.message == (
        "Deepdub knows no such id: Invalid generation ID for [redacted], see https://h.example.com/x?[redacted]"
    )


async def test_audio_over_the_limit_is_not_taken(place: Place, provider: Deepdub, tmp_path: Path) -> None:
    """The source's `max_audio_bytes` holds here as well."""
    table = {"provider": "deepdub", "api_key": KEY, "allow": ["127.0.0.0/8"], "max_audio_bytes": 100}
    settings = source_settings("dd", table | {"base_url": place.url + BASE_PATH})
    source, job_id = deepdub.DeepdubProvider.create(settings, tokens()), provider.submit()
    async with fetching(settings, tmp_path) as fetch:
        result = await source.collect(pickup_of(source.lookup(job_id, {}).key, job_id=job_id), fetch, now=NOW)
    assert isinstance(result, Failed)
    assert result.too_large


async def test_no_connection_is_a_failure(ask: Asking, tmp_path: Path) -> None:
    source = _source(base_url="http://127.0.0.1:1/api/v1", allow=["127.0.0.0/8"])
    result = await source.collect(pickup_of(f"job:{ID}:retroactive", job_id=ID), ask._fetch, now=NOW)
    assert isinstance(result, Failed)
    assert result.kind is OutcomeKind.UNREACHABLE


def test_failures_are_told_as_speech_and_the_key_is_never_kept() -> None:
    source = _source()
    assert source.family(pickup_of("k")) == "speech"
    assert source.redact(f"a {KEY} b".encode()) == b"a [redacted] b"
    assert source.can_ask(pickup_of("k", job_id=ID))
    assert not source.can_ask(pickup_of("k"))
