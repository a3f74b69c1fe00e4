"""The pull road over a whole receiver: results fetched, asked for and missed, by stand-in providers on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from receiver.core.clock import wall_clock
from receiver.core.work import PickupState
from receiver.demo.deapi import ApiJob, Deapi
from receiver.demo.deepdub import BASE_PATH, Deepdub
from receiver.demo.playht import API, Playht
from receiver.demo.serving import served
from receiver.engine.pickups import new_expectation, new_pickup
from receiver.providers.pickups import Gone
from tests.support.patience import PATIENCE
from tests.support.running import Running, running, settings_text
from tests.support.senders import SPEECH, Sent, deapi, speech
from tests.support.sink import Sink

AUDIO = SPEECH.read_bytes()
KEY = "provider-key-0123456789abcdef"
USER = "user-0123456789"


@dataclass(frozen=True)
class Providers:
    """The providers that are asked, and where each is served."""

    deapi: Deapi
    deapi_base: str
    deepdub: Deepdub
    deepdub_base: str
    playht: Playht
    playht_base: str

    @property
    def settings(self) -> str:
        """The sources that ask them."""
        local = 'allow = ["127.0.0.0/8"]\nresult_hosts = ["127.0.0.1"]'
        return f"""
[sources.pulled]
provider = "deapi"
secrets = ["whsec_local_test_0123456789abcdefghijkl"]
api_key = "{KEY}"
api_url = "{self.deapi_base}"
{local}
[sources.deepdub]
provider = "deepdub"
api_key = "{KEY}"
base_url = "{self.deepdub_base}"
allow = ["127.0.0.0/8"]
[sources.playht]
provider = "playht"
api_key = "{KEY}"
user_id = "{USER}"
base_url = "{self.playht_base}"
{local}
"""


@pytest.fixture
def providers() -> Iterator[Providers]:
    with contextlib.ExitStack() as stack:
        deapi_host, deepdub, playht = Deapi(KEY), Deepdub(KEY), Playht(api_key=KEY, user_id=USER)
        one, two, three = (stack.enter_context(served(p.app)) for p in (deapi_host, deepdub, playht))
        yield Providers(deapi_host, one, deepdub, two + BASE_PATH, playht, three + API)


async def _send(up: Running, sent: Sent) -> dict[str, Any]:
    answer = await up.client.request(
        sent.method,
        sent.path.replace("/callbacks/deapi", "/callbacks/pulled"),
        headers=sent.headers,
        content=sent.body,
    )
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def _hand_over(up: Running, source: str, text: str, ref: str = "order-7") -> dict[str, str]:
    """Do what `receiver pickup` does."""
    pickup = new_pickup(
        up.receiver.ports.pulls[source], text, ref=ref, deadline_seconds=None, format={}, now=wall_clock()
    )
    stands, _ = await up.receiver.store.add_pickup(pickup)
    up.receiver.collector.wake([source])
    return {"pickup_id": stands.id, "event_id": stands.event_id}


def _events(sink: Sink) -> list[dict[str, Any]]:
    return [json.loads(request.body) for request in sink.received]


async def _same_audio(up: Running, event: dict[str, Any], audio: bytes = AUDIO) -> None:
    sound = event["data"]["audio"]
    assert sound["sha256"] == hashlib.sha256(audio).hexdigest()
    assert (await up.client.get(sound["url"])).content == audio


async def test_a_link_of_deapis_is_fetched_at_once_and_the_event_comes_with_the_audio(
    providers: Providers, tmp_path: Path
) -> None:
    async with Sink() as sink:
        text = settings_text(tmp_path, destination=sink.url) + providers.settings
        async with running(tmp_path, text) as up:
            job = providers.deapi.add()
            told = await _send(up, deapi(job, result_url=providers.deapi.link(providers.deapi_base, job)))
            await sink.until(1)
            (event,) = _events(sink)
            assert (event["type"], event["data"]["event_id"]) == ("speech.completed", told["event_id"])
            await _same_audio(up, event)
            (fetched,) = providers.deapi.requests
            assert fetched.path.startswith("/results/")
            assert KEY not in str(fetched.headers)
            await up.seen.until(lambda: [r.state for r in up.seen.pickups] == ["collected"])


async def test_an_expired_link_is_refreshed_by_the_api_and_the_key_goes_nowhere_else(
    providers: Providers, tmp_path: Path
) -> None:
    async with Sink() as sink:
        text = settings_text(tmp_path, destination=sink.url) + providers.settings
        async with running(tmp_path, text) as up:
            job = providers.deapi.add()
            link = providers.deapi.link(providers.deapi_base, job)
            providers.deapi.expire()
            await _send(up, deapi(job, result_url=link))
            await sink.until(1)
            await _same_audio(up, _events(sink)[0])
    with_key = [request.path for request in providers.deapi.requests if KEY in str(request.headers)]
    assert with_key == [f"/api/v2/jobs/{job}"]


@pytest.mark.parametrize(
    ("work", "kind", "event_type", "part"),
    [
        (
            ApiJob(kind="vid2txt", result=b"Good morning.", content_type="text/plain"),
            "vid2txt",
            "transcript",
            "document",
        ),
        (
            ApiJob(kind="txt2img", result=b"\x89PNG\r\n\x1a\n" + bytes(60), content_type="image/png"),
            "txt2img",
            "media",
            "media",
        ),
    ],
    ids=["transcript", "image"],
)
async def test_a_transcript_or_a_picture_is_fetched_as_well(
    providers: Providers, tmp_path: Path, work: ApiJob, kind: str, event_type: str, part: str
) -> None:
    async with Sink() as sink:
        text = settings_text(tmp_path, destination=sink.url) + providers.settings
        async with running(tmp_path, text) as up:
            job = providers.deapi.add(work)
            sent = deapi(job, result_url=providers.deapi.link(providers.deapi_base, job), job_type=kind)
            await _send(up, sent)
            await sink.until(1)
            (event,) = _events(sink)
            assert event["type"] == f"{event_type}.completed"
            linked = event["data"][part]
            assert (await up.client.get(linked["url"])).content == work.result
            if event_type == "transcript":
                assert event["data"]["transcript"]["text"] == "Good morning."


async def test_a_deepdub_url_is_asked_until_the_audio_is_there(providers: Providers, tmp_path: Path) -> None:
    providers.deepdub.not_ready = 1
    async with Sink() as sink:
        text = settings_text(tmp_path, destination=sink.url) + providers.settings
        async with running(tmp_path, text) as up:
            url = f"{providers.deepdub_base}/tts/retroactive/{providers.deepdub.submit()}"
            made = await _hand_over(up, "deepdub", url)
            again = await _hand_over(up, "deepdub", url)
            assert again == made
            await sink.until(1)
            (event,) = _events(sink)
            assert (event["data"]["event_id"], event["data"]["ref"]) == (made["event_id"], "order-7")
            await _same_audio(up, event)
            attempts = await up.receiver.store.pickup_attempts(made["pickup_id"])
            assert [a.outcome for a in attempts] == ["not_yet", "collected"]


async def test_a_playht_job_tells_its_progress_and_comes_home(providers: Providers, tmp_path: Path) -> None:
    async with Sink() as sink:
        text = settings_text(tmp_path, destination=sink.url) + providers.settings
        async with running(tmp_path, text) as up:
            job = providers.playht.add()
            made = await _hand_over(up, "playht", job.id)
            await up.seen.until(lambda: any(r.state == "collected" for r in up.seen.pickups))
            await up.seen.until(
                lambda: any(
                    r.event_type == "speech.completed" and r.state == "delivered" for r in up.seen.attempts
                )
            )
            done = [event for event in _events(sink) if event["type"] == "speech.completed"]
            assert [event["data"]["event_id"] for event in done] == [made["event_id"]]
            await _same_audio(up, done[0])
            assert {event["type"] for event in _events(sink)} <= {"speech.processing", "speech.completed"}


async def test_a_pushed_and_a_pulled_result_of_one_job_are_one_event(
    providers: Providers, tmp_path: Path
) -> None:
    """Handed over by id while the job runs; then deAPI calls back, twice; then it is handed over once more."""
    async with Sink() as sink:
        text = settings_text(tmp_path, destination=sink.url) + providers.settings
        async with running(tmp_path, text) as up:
            job = providers.deapi.add(ApiJob(statuses=("processing", "done")))
            made = await _hand_over(up, "pulled", job)
            await up.seen.until(lambda: bool(up.seen.pickups))
            assert up.seen.pickups[0].outcome.kind == "not_yet"
            sent = deapi(job, result_url=providers.deapi.link(providers.deapi_base, job))
            told = await _send(up, sent)
            assert told["event_id"] == made["event_id"]
            await sink.until(1)
            assert (await _send(up, sent))["status"] == "duplicate"
            assert await _hand_over(up, "pulled", job) == made
            await up.seen.until(lambda: up.seen.attempts[-1].state == "delivered")
            assert len(sink.received) == 1
            assert _events(sink)[0]["data"]["ref"] == "order-7", "the callback knew of none"


async def test_a_callback_that_does_not_come_is_told_and_counts_when_it_comes_late(tmp_path: Path) -> None:
    now = wall_clock()
    async with Sink() as sink:
        text = settings_text(tmp_path, destination=sink.url)
        async with running(tmp_path, text) as up:
            token, expected = _expectation(up, now - 60_000, within=10)
            await up.receiver.store.add_pickup(expected)
            up.receiver.collector.wake(["deepgram"])
            await sink.until(1)
            (overdue,) = _events(sink)
            assert (overdue["type"], overdue["data"]["ref"]) == ("callback.overdue", "order-9")
            sent = speech("late")
            answer = await up.client.put(
                f"/callbacks/deepgram/{token}", headers=sent.headers, content=sent.body
            )
            assert answer.status_code == 200
            await sink.until(2)
            late = _events(sink)[1]
            assert (late["type"], late["data"]["late"]) == ("speech.completed", True)
            row = await up.receiver.store.pickup(expected.id)
            assert (row.state, row.last_outcome) == (PickupState.COLLECTED, "late")


async def test_a_callback_that_comes_in_time_ends_the_expectation_without_a_word(tmp_path: Path) -> None:
    async with Sink() as sink:
        text = settings_text(tmp_path, destination=sink.url)
        async with running(tmp_path, text) as up:
            token, expected = _expectation(up, wall_clock(), within=3600)
            await up.receiver.store.add_pickup(expected)
            sent = speech("timely")
            answer = await up.client.put(
                f"/callbacks/deepgram/{token}", headers=sent.headers, content=sent.body
            )
            await sink.until(1)
            row = await up.receiver.store.pickup(expected.id)
            assert (row.state, row.event_id) == (PickupState.COLLECTED, answer.json()["event_id"])
            assert not _events(sink)[0]["data"]["late"]
            assert await up.receiver.store.next_due_pickup("deepgram") is None


async def test_an_overdue_job_of_a_source_that_can_be_asked_is_asked_about(
    providers: Providers, tmp_path: Path
) -> None:
    """`job.processing` came and told the job's id; `job.completed` never did."""
    async with Sink() as sink:
        text = settings_text(tmp_path, destination=sink.url) + providers.settings
        async with running(tmp_path, text) as up:
            token, expected = _expectation(up, wall_clock(), within=0.4, source="pulled")
            await up.receiver.store.add_pickup(expected)
            job = providers.deapi.add()
            sent = deapi(job, "job.processing")
            await _send(up, replace(sent, path=f"/callbacks/deapi/{token}"))
            await sink.until(2)
            types = [event["type"] for event in _events(sink)]
            assert types == ["speech.processing", "speech.completed"]
            await _same_audio(up, _events(sink)[1])


def _expectation(up: Running, now: int, *, within: float, source: str = "deepgram") -> tuple[str, Any]:
    expect_by = now + round(within * 1000)
    token = up.receiver.tokens.issue(source, ref="order-9", expect_by=expect_by)
    claims = up.receiver.tokens.read(token)
    assert claims is not None
    return token, new_expectation(source, claims, up.receiver.ports.pulls.get(source), now=now)


async def test_a_link_that_is_pushed_while_an_attempt_ends_badly_is_fetched_all_the_same(
    providers: Providers, tmp_path: Path
) -> None:
    """The job was handed over and deAPI does not know it; while that is being asked, `job.completed` brings a good link."""
    async with Sink() as sink:
        text = settings_text(tmp_path, destination=sink.url) + providers.settings
        async with running(tmp_path, text) as up:
            job = "0b4f5c0e-1111-4222-8333-444455556666"
            asking, told = asyncio.Event(), asyncio.Event()
            pull = up.receiver.ports.pulls["pulled"]
            real = pull.collect

            async def slow(pickup: Any, fetch: Any, *, now: int) -> Any:
                result = await real(pickup, fetch, now=now)
                if isinstance(result, Gone) and not told.is_set():
                    asking.set()
                    await told.wait()
                return result

            pull.collect = slow  # type: ignore[method-assign]
            await _hand_over(up, "pulled", job)
            async with asyncio.timeout(PATIENCE):
                await asking.wait()
            providers.deapi.jobs[job] = ApiJob()
            answer = await _send(up, deapi(job, result_url=providers.deapi.link(providers.deapi_base, job)))
            told.set()
            await sink.until(1)
            (event,) = _events(sink)
            assert (event["type"], event["data"]["event_id"]) == ("speech.completed", answer["event_id"])
            await _same_audio(up, event)
