"""PlayHT asked for its jobs: over real HTTP, against the stand-in, by way of the real fetcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, RedirectResponse, Response

from receiver.core.event import EventDraft, RemoteResult, Stage
from receiver.core.work import OutcomeKind
from receiver.demo.playht import API_KEY, USER_ID, error
from receiver.providers.pickups import Gone
from tests.support.callbacks import NOW
from tests.support.playht_asking import JOB, asking, collected, failed, not_yet

pytestmark = pytest.mark.parametrize("mode", ["sse", "json"])


def _told(url: str) -> dict[str, Any]:
    """What a pickup knows after a callback said that the job is complete."""
    key = f"job:{JOB}:complete"
    draft = EventDraft(
        type="speech.completed",
        idempotency_key=key,
        second_key=key,
        job_id=JOB,
        ref="order-42",
        occurred_at=NOW - 5000,
        late=True,
        remote=RemoteResult(key=key, url=url, deadline_at=NOW),
        provider_data={"status": "complete", "version": "2"},
        document=b"{}",
    )
    return {"target": url, "draft": draft}


# ---------------------------------------------------------------- by either road


async def test_a_finished_job_comes_home_with_its_audio(mode: str, tmp_path: Path) -> None:
    """The draft and the bytes; the key went to the API and never to the result's host."""
    async with asking(tmp_path, mode) as ask:
        job = ask.job()
        result = collected(await ask())
        draft = result.draft
        assert result.body
        assert result.body.load() == job.audio
        assert (draft.type, draft.job_id, draft.ref) == ("speech.completed", JOB, "order-42")
        assert draft.idempotency_key == draft.second_key == f"job:{JOB}:complete"
        assert (draft.occurred_at, draft.stage, draft.remote) == (NOW, Stage.FINAL, None)
        assert draft.audio
        assert draft.audio.content_type == "audio/mpeg"
        assert draft.provider_data["id"] == JOB
        api, result_host = ask.standin.requests
    assert api.path == f"/api/v2/tts/{JOB}"
    assert api.headers["authorization"] == f"Bearer {API_KEY}"
    assert api.headers["x-user-id"] == USER_ID
    assert api.headers["accept"] == ("text/event-stream" if mode == "sse" else "application/json")
    assert result_host.path == f"/pigeon/{JOB}_0.mp3"
    assert {"authorization", "x-user-id"}.isdisjoint(result_host.headers)


async def test_a_link_that_a_callback_told_is_downloaded_and_nothing_else_asked(
    mode: str, tmp_path: Path
) -> None:
    """What the callback told of the job stays: its time, its fields, that it was late."""
    async with asking(tmp_path, mode) as ask:
        job = ask.job()
        draft = collected(await ask(**_told(job.result_url(ask.base)))).draft
        assert [request.path for request in ask.standin.requests] == [f"/pigeon/{JOB}_0.mp3"]
    assert (draft.occurred_at, draft.late, draft.remote, draft.document) == (NOW - 5000, True, None, None)
    assert draft.provider_data == {"status": "complete", "version": "2"}
    assert draft.audio


async def test_a_link_that_has_run_out_is_asked_for_again(mode: str, tmp_path: Path) -> None:
    async with asking(tmp_path, mode) as ask:
        job = ask.job(result_query="?sig=renewed1")
        draft = collected(await ask(**_told(job.result_url(ask.base) + "-old"))).draft
        assert len(ask.standin.requests) == 3
    assert draft.audio
    assert draft.provider_data["status"] == "complete"
    assert "renewed1" not in repr(draft)


async def test_a_link_that_has_run_out_and_nothing_to_ask_with_fails(mode: str, tmp_path: Path) -> None:
    async with asking(tmp_path, mode, require_token=True) as ask:
        job = ask.job(result_query="?sig=renewed1")
        found = failed(await ask(job_id="not plain", **_told(job.result_url(ask.base) + "-old")))
    assert (found.kind, found.status) == (OutcomeKind.REFUSED, 403)
    assert found.detail == f"http://{ask.at} answered 403 for the audio"


async def test_a_link_that_is_refused_while_the_job_has_no_output_fails(mode: str, tmp_path: Path) -> None:
    """A callback said that the job had ended, so this is the link's trouble: "not yet" would hide it."""
    async with asking(tmp_path, mode) as ask:
        unfinished = ask.standin.add("other").document(ask.base, finished=False)
        ask.job(answers=[JSONResponse(unfinished)])
        found = failed(await ask(**_told(f"{ask.base}/pigeon/nothing_0.mp3")))
    assert (found.kind, found.status) == (OutcomeKind.REFUSED, 403)


async def test_a_link_that_has_run_out_of_a_forgotten_job_is_gone(mode: str, tmp_path: Path) -> None:
    async with asking(tmp_path, mode) as ask:
        found = await ask(**_told(f"{ask.base}/pigeon/{JOB}_0.mp3"))
    assert isinstance(found, Gone)
    assert found.error.code == "unknown_job"


async def test_a_result_on_another_host_is_not_fetched(mode: str, tmp_path: Path) -> None:
    async with asking(tmp_path, mode, result_hosts=["results.example.test"]) as ask:
        ask.job()
        found = failed(await ask())
        assert len(ask.standin.requests) == 1
    assert found.kind is OutcomeKind.BLOCKED


async def test_without_a_link_and_a_job_nothing_can_be_asked(mode: str, tmp_path: Path) -> None:
    async with asking(tmp_path, mode) as ask:
        found = failed(await ask(job_id=None))
        assert ask.standin.requests == []
    assert found.kind is OutcomeKind.REFUSED
    assert "api_key and user_id" in found.detail


async def test_a_job_that_is_not_known_is_gone(mode: str, tmp_path: Path) -> None:
    async with asking(tmp_path, mode) as ask:
        found = await ask()
    assert isinstance(found, Gone)
    assert found.error.code == "unknown_job"
    assert found.error.message.endswith("it keeps them for 48 hours: there is no such job")


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_names_the_settings_and_no_key(mode: str, tmp_path: Path, status: int) -> None:
    async with asking(tmp_path, mode) as ask:
        ask.job(answers=[error(status, f"no: {API_KEY}\u0007")])
        found = failed(await ask())
    assert (found.kind, found.status) == (OutcomeKind.REFUSED, status)
    assert found.detail == (
        f"http://{ask.at} answered {status}; compare api_key and user_id in [sources.ph]: no: [redacted]"
    )


@pytest.mark.parametrize("status", [429, 503])
async def test_the_provider_says_when_to_ask_again(mode: str, tmp_path: Path, status: int) -> None:
    async with asking(tmp_path, mode) as ask:
        ask.job(answers=[error(status, "slow down", {"retry-after": "7"})])
        found = failed(await ask())
    assert (found.kind, found.status, found.retry_after) == (OutcomeKind.REFUSED, status, 7.0)
    assert found.detail.endswith(f"answered {status}: slow down")


async def test_a_redirect_is_not_followed_with_the_key(mode: str, tmp_path: Path) -> None:
    async with asking(tmp_path, mode) as ask:
        ask.job(answers=[RedirectResponse("/pigeon/elsewhere_0.mp3")])
        found = failed(await ask())
        assert len(ask.standin.requests) == 1
    assert (found.kind, found.status) == (OutcomeKind.REFUSED, 307)
    assert "correct base_url in [sources.ph]" in found.detail


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"output":{}}', b'{"output":{"url":"ftp://x/y"}}'])
async def test_a_job_that_cannot_be_read_is_unusable(mode: str, tmp_path: Path, body: bytes) -> None:
    async with asking(tmp_path, mode) as ask:
        ask.job(answers=[Response(body, media_type="application/json")])
        found = failed(await ask())
    assert (found.kind, found.status) == (OutcomeKind.UNUSABLE, 200)


async def test_an_unfinished_job_is_asked_for_again_ever_more_slowly(mode: str, tmp_path: Path) -> None:
    """Also for a service that answers the event stream's question with the job's JSON."""
    async with asking(tmp_path, mode) as ask:
        answer = ask.standin.add("other").document(ask.base, finished=False)
        job, waits = ask.job(), []
        for attempts in (0, 1, 2, 10, 5000):
            job.answers.append(JSONResponse(answer))
            waits.append(not_yet(await ask(attempts=attempts)).retry_in)
    assert waits == [2.0, 3.0, 4.5, 30.0, 30.0]


async def test_a_job_that_answers_with_an_error_message_has_failed(mode: str, tmp_path: Path) -> None:
    async with asking(tmp_path, mode) as ask:
        ask.job(answers=[JSONResponse({"id": JOB, "output": None, "error_message": f"no voice, {API_KEY}"})])
        found = await ask()
    assert isinstance(found, Gone)
    assert found.error.message == "no voice, [redacted]"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Response(b"<!doctype html><title>Sign in</title>" * 60_000, media_type="text/html"), "web page"),
        (Response(b'{"error":"gone"}', media_type="application/json"), "JSON"),
        (Response(b"", media_type="audio/mpeg"), "empty"),
    ],
)
async def test_bytes_that_are_no_audio_are_unusable_and_thrown_away(
    mode: str, tmp_path: Path, answer: Response, words: str
) -> None:
    async with asking(tmp_path, mode) as ask:
        ask.job(result=answer)
        found = failed(await ask())
    assert found.kind is OutcomeKind.UNUSABLE
    assert words in found.detail
    assert not [path for path in (tmp_path / "spool").iterdir() if path.is_file()]


async def test_a_result_over_the_limit_says_so(mode: str, tmp_path: Path) -> None:
    async with asking(tmp_path, mode, max_audio_bytes=1000) as ask:
        ask.job()
        assert failed(await ask()).too_large


async def test_nobody_listening_is_a_failure_without_the_path(mode: str, tmp_path: Path) -> None:
    async with asking(tmp_path, mode, base_url="http://127.0.0.1:9/api/v2") as ask:
        found = failed(await ask())
    assert found.kind is OutcomeKind.UNREACHABLE
    assert JOB not in found.detail


async def test_raw_audio_is_told_by_what_the_job_asked_for(mode: str, tmp_path: Path) -> None:
    """mu-law has no magic bytes; what a pickup was given for a format says what it is."""
    async with asking(tmp_path, mode) as ask:
        untyped = Response(b"\xff\x7f" * 500, media_type="application/octet-stream")
        ask.job(output_format="mulaw", result=untyped)
        draft = collected(await ask(format={"output_format": "mulaw", "sample_rate": 8000})).draft
    assert draft.audio
    assert (draft.audio.codec, draft.audio.sample_rate_hz) == ("mulaw", 8000)


async def test_raw_audio_is_told_by_the_jobs_own_input(mode: str, tmp_path: Path) -> None:
    async with asking(tmp_path, mode) as ask:
        untyped = Response(b"\xff\x7f" * 500, media_type="application/octet-stream")
        job = ask.job(output_format="mulaw", result=untyped)
        job.answers.append(JSONResponse(job.document(ask.base, finished=True)))
        draft = collected(await ask()).draft
    assert draft.audio
    assert draft.audio.codec == "mulaw"
