"""Every cause that a job can have comes about through the front door, and the API tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from receiver.core.errors import StoreUnavailable
from receiver.core.explain import Cause
from receiver.core.retention import Prune, Walk
from receiver.core.submission import SubmissionState
from tests.contract.submission_suite import ended, new
from tests.support.running import APP_SECRET, BASIC, Running, api_token, running, settings_text
from tests.support.senders import transcript
from tests.support.sink import Answer, Sink

TOKEN = "a-token-of-some-length"
DESTINATIONS = {
    "delivered": "retry = {retries = 3, wait = 60}",
    "sending": "retry = {retries = 3, wait = 60}",
    "retrying": "retry = {retries = 3, wait = 60}",
    "dead": "retry = {retries = 0, wait = 1}",
    "held": "retry = {retries = 3, wait = 60}\nbreaker_failures = 1",
    "paused": "",
}
"""A destination for each, which takes the events of a source of the same name."""


def settings(folder: Path, sink: Sink) -> str:
    """Return a source and a destination for each cause that is about deliveries."""
    text = f'public_url = "https://hooks.example.com"\n{settings_text(folder)}{api_token("app", TOKEN)}'
    text += f'[sources.deepdub]\nprovider = "deepdub"\napi_key = "a-key"\nbase_url = "{sink.url}/api"\n'
    text += 'allow = ["127.0.0.0/8"]\n'
    for name, how in DESTINATIONS.items():
        text += f'[sources.{name}]\nprovider = "deepgram"\nbasic = ["{BASIC}"]\n'
        text += f'[destinations.{name}]\nurl = "{sink.url}/{name}"\nsources = ["{name}"]\n'
        text += f'secrets = ["{APP_SECRET}"]\nallow = ["127.0.0.0/8"]\n{how}\n'
    return text


async def post(up: Running, path: str, body: Any) -> Any:
    answer = await up.client.post(f"/api/v1/{path}", json=body)
    assert answer.is_success, answer.text
    return answer.json()


async def taken(up: Running, name: str, source: str, body: bytes | None = None) -> None:
    """Have a transcript of the job `name` taken."""
    sent = transcript(name)
    answer = await up.client.post(f"/callbacks/{source}", headers=sent.headers, content=body or sent.body)
    assert answer.status_code == 200, answer.text


async def issued(up: Running, ref: str, **more: Any) -> str:
    """Return the path of a callback URL for a ref."""
    made = await post(up, "callback-urls", {"source": "deepgram", "ref": ref, **more})
    return httpx2.URL(made["url"]).path


async def cause(up: Running, name: str) -> str:
    answer = await up.client.get(f"/api/v1/jobs/{name}")
    assert answer.status_code == 200
    return str(answer.json()["cause"])


async def submitted(up: Running) -> None:
    """Have a submission to a provider that refused it."""
    made = new(1, ref="submitted")
    await up.receiver.store.begin_submission(*made)
    await up.receiver.store.end_submission(ended(made, SubmissionState.REFUSED))


async def deliveries_end(up: Running) -> None:
    """Have a job for each destination, and wait until each was tried, or waits."""
    await post(up, "destinations/paused/pause", {})
    for name in DESTINATIONS:
        await taken(up, name, name)
    await up.seen.until(
        lambda: {one.destination for one in up.seen.attempts} == set(DESTINATIONS) - {"sending", "paused"}
    )


async def pickups_wait(up: Running) -> None:
    """Have jobs whose callbacks or results are expected, do not come, or come and are forgotten."""
    await issued(up, "expected", expect_within_seconds=3600)
    await issued(up, "overdue", expect_within_seconds=0.001)
    for ref, seconds in (("pickup_waiting", 3600), ("pickup_gone", 0)):
        wanted = {"source": "deepdub", "result": f"job-{ref}", "ref": ref, "expect_within_seconds": seconds}
        wanted = {name: value for name, value in wanted.items() if value}
        await post(up, "pickups", {**wanted, "deadline_seconds": 0.001 if not seconds else 7200})
    await up.seen.until(lambda: {one.ref for one in up.seen.pickups} == {"overdue", "pickup_gone"})


async def callbacks_come(up: Running) -> None:
    """Have callbacks that are refused, not understood, taken by no destination, erased, or too old."""
    refused = await up.client.post(await issued(up, "rejected"), content=b"{}")
    assert refused.status_code == 401
    await up.receiver.intake.rejections.flush()
    sent = transcript("erased")
    for ref, body in (("removed", transcript("removed").body), ("erased", sent.body), ("parked", b"{}")):
        within = {"expect_within_seconds": 3600} if ref == "removed" else {}
        path = await issued(up, ref, **within)
        assert (await up.client.post(path, headers=sent.headers, content=body)).status_code == 200
        if ref == "removed":
            later = up.receiver.clock() + 60_000
            gone = await up.receiver.store.prune(Prune(walk=Walk.EVENTS, before=later, dead_before=0))
            assert gone.count
    await post(up, "erasures", {"ref": "erased"})
    await taken(up, "no_route", "deepgram")


async def journaled(up: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a callback kept by the journal, from now on."""

    async def out(*_: Any) -> None:
        raise StoreUnavailable("the store does not answer")

    monkeypatch.setattr(type(up.receiver.intake._recorder), "record", out)
    sent = transcript("journaled")
    answer = await up.client.post(sent.path, headers=sent.headers, content=sent.body)
    assert answer.status_code == 503


async def test_each_cause_comes_about_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Sink() as sink:
        for name in ("retrying", "dead", "held"):
            sink.scripts[f"/hooks/{name}"] = Answer(status=500)
        sink.scripts["/hooks/sending"] = Answer(manner="hang")
        async with running(tmp_path, settings(tmp_path, sink)) as up:
            up.client.headers["authorization"] = f"Bearer {TOKEN}"
            await submitted(up)
            await callbacks_come(up)
            await deliveries_end(up)
            await pickups_wait(up)
            await journaled(up, monkeypatch)
            told = {one.value: await cause(up, one.value) for one in Cause}
            assert told == {one.value: one.value for one in Cause}
            sink.released.set()
