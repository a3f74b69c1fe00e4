"""Every golden request over real HTTP: its answer, and the event that a real application gets for it."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from receiver.core.clock import wall_clock
from receiver.core.errors import NotFound
from tests.support.golden import PUBLIC_URL, ROOT, TOKEN_SECRETS, Case, cases, tokens, toml_value
from tests.support.running import APP_SECRET, Running, running
from tests.support.sink import Sink

STARTED = wall_clock()
DATA = {
    "event_id",
    "schema",
    "source",
    "provider",
    "job_id",
    "ref",
    "late",
    "audio",
    "transcript",
    "media",
    "document",
} | {
    "error",
    "provider_data",
}
STORED = {"uri", "url", "url_expires_at", "content_type", "bytes", "sha256"}
SOUND = STORED | {"duration_seconds", "duration_estimated", "sample_rate_hz", "channels", "codec"}
TEXT = {"text", "confidence", "language", "duration_seconds", "channels"}


def _identities(case: Case) -> set[str]:
    """What makes two callbacks the same, or one of them late: those go to receivers of their own."""
    event = case.expected.get("event", {})
    found = (event.get("idempotency_key"), event.get("second_key"), event.get("job_id"))
    return {case.request.body.hex(), *(str(name) for name in found if name)}


def _groups(verdicts: set[str]) -> list[list[Case]]:
    """Put cases together that one receiver can take, in the order of their times: one source each, and no two the same."""
    groups: list[tuple[dict[str, Any], set[str], list[Case]]] = []
    for case in cases():
        if case.verdict not in verdicts:
            continue
        for sources, taken, members in groups:
            fits = sources.get(case.request.source, case.settings) == case.settings
            if fits and not (case.verdict != "rejected" and taken & _identities(case)):
                sources[case.request.source] = case.settings
                taken |= _identities(case)
                members.append(case)
                break
        else:
            groups.append(({case.request.source: case.settings}, _identities(case), [case]))
    return [sorted(members, key=_now) for _, _, members in groups]


def _now(case: Case) -> int:
    """When the request is sent: as written, or now where a signature over the time can be made afresh."""
    return STARTED if case.provider == "deapi" and case.verdict != "rejected" else case.received_at


def _text(folder: Path, group: list[Case], url: str) -> str:
    text = f'data = "{folder}"\npublic_url = "{PUBLIC_URL}"\n[tokens]\nsecrets = ["{TOKEN_SECRETS[0]}"]\n'
    for name, settings in {case.request.source: case.settings for case in group}.items():
        lines = (f"{key} = {toml_value(value)}" for key, value in settings.items())
        text += "\n".join((f"[sources.{name}]", *lines, ""))
    return f'{text}[destinations.app]\nurl = "{url}"\nsecrets = ["{APP_SECRET}"]\nallow = ["127.0.0.0/8"]\n'


class _At:
    """A clock that stands at the time when a request was sent."""

    now = 0

    def __call__(self) -> int:
        return self.now


async def _send(up: Running, at: _At, case: Case) -> tuple[int, dict[str, Any]]:
    at.now = _now(case)
    request = case.request if _now(case) == case.received_at else case.fresh_request(_now(case))
    answer = await up.client.request(
        request.method, request.target, headers=list(request.headers), content=request.body
    )
    return answer.status_code, answer.json()


@pytest.mark.parametrize("group", _groups({"accepted", "parked"}), ids=lambda group: group[0].name)
async def test_an_understood_or_parked_callback_reaches_the_application(
    group: list[Case], tmp_path: Path
) -> None:
    """200 with an event id; one event with exactly the documented keys, and a link to the very bytes."""
    text, at = partial(_text, tmp_path / "data", group), _At()
    at.now = _now(group[0])
    async with Sink() as sink, running(tmp_path, text(sink.url), clock=at) as up:
        await up.receiver.collector.stop(0)  # the hosts that these callbacks name are not ours to ask
        told = [case for case in group if "remote" not in case.expected.get("event", {})]
        sent = 0

        def attempted() -> bool:
            return len(up.seen.attempts) == sent

        for case in group:
            if at.now != _now(case):  # no delivery is under way while years pass
                await up.seen.until(attempted)
            status, answer = await _send(up, at, case)
            parked = case.verdict == "parked"
            sent += case in told
            assert (status, answer["status"]) == (200, "parked" if parked else "recorded"), case.name
            if case in told:
                expected = "callback.parked" if parked else case.expected["event"]["type"]
                event = await up.receiver.store.event(answer["event_id"])
                assert event.type == expected, case.name
            else:
                await _check_pickup(up, case, answer)
        await sink.until(len(told))
        by_job = {json.loads(request.body)["data"]["event_id"]: request for request in sink.received}
        assert len(by_job) == len(told)
        for case in group:
            _, again = await _send(up, at, case)
            assert again["status"] == "duplicate", case.name
            if case in told:
                await _check(up, case, json.loads(by_job[again["event_id"]].body))
        assert len(sink.received) == len(told)


async def _check_pickup(up: Running, case: Case, answer: dict[str, Any]) -> None:
    """The result lies elsewhere: a pickup knows where, and the event waits for it."""
    remote = case.expected["event"]["remote"]
    pickup = await up.receiver.store.pickup(answer["pickup_id"])
    assert pickup.event_id == answer["event_id"]
    # What only the job's own URL proves has an identity of its own.
    own = set(case.expected["accepted"]["proofs"]) <= {"token", "job_secret"}
    claims = tokens().read(case.request.token or "")
    start = f"{claims.expectation}:" if own and claims else ""
    assert (pickup.key, pickup.target) == (start + remote["key"], remote.get("url")), case.name
    assert pickup.draft is not None
    assert pickup.draft.type == case.expected["event"]["type"]
    with pytest.raises(NotFound):
        await up.receiver.store.event(answer["event_id"])


async def _check(up: Running, case: Case, body: dict[str, Any]) -> None:
    data = body["data"]
    expected = case.expected.get("event", {})
    assert body.keys() == {"type", "timestamp", "data"}
    assert data.keys() == DATA, case.name
    assert (data["schema"], data["source"], data["provider"]) == (1, case.request.source, case.provider)
    assert (data["job_id"], data["ref"]) == (
        expected.get("job_id"),
        expected.get("ref"),
    ) or case.verdict == "parked"
    assert (data["error"] is not None) == (body["type"].endswith((".failed", ".parked"))), case.name
    for name, whole in (("audio", SOUND), ("transcript", TEXT), ("media", STORED), ("document", STORED)):
        part = data[name]
        if part is not None:
            assert part.keys() == whole, (case.name, name)
    if "audio" in expected:
        sound = data["audio"]
        fetched = await up.client.get(sound["url"].removeprefix(PUBLIC_URL))
        within = case.provider == "custom"  # the audio is base64 in a document
        assert within or fetched.content == case.request.body, case.name
        assert sound["sha256"] == hashlib.sha256(fetched.content).hexdigest()
        assert sound["bytes"] == len(fetched.content)
        assert sound["content_type"] == expected["audio"]["content_type"] == fetched.headers["content-type"]


@pytest.mark.parametrize("group", _groups({"rejected"}), ids=lambda group: group[0].name)
async def test_what_was_not_proved_is_refused_and_tells_the_application_nothing(
    group: list[Case], tmp_path: Path
) -> None:
    """401 or 403 as of the time when it was sent; kept as a rejection, without an event."""
    async with Sink() as sink:
        text, at = _text(tmp_path / "data", group, sink.url), _At()
        at.now = _now(group[0])
        async with running(tmp_path, text, clock=at) as up:
            for case in group:
                status, answer = await _send(up, at, case)
                assert status == case.expected["rejected"]["status"], (case.name, answer)
                assert answer["error"]
            await up.receiver.intake.rejections.flush()
            kept = await up.receiver.store.rejections(None, limit=200)
            assert len(kept) == len(group)
        assert sink.received == []


def test_the_groups_hold_every_case() -> None:
    found = [
        case.name
        for verdicts in ({"accepted", "parked"}, {"rejected"})
        for g in _groups(verdicts)
        for case in g
    ]
    assert len(found) == len(list(ROOT.glob("*/*/case.toml")))
