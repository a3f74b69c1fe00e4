"""A kept callback is read again by today's code: what differs becomes an event that names the old one, once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from receiver.core.callback import VerifiedCallback
from receiver.core.errors import MalformedCallback
from receiver.core.event import EventDraft, Recorded
from receiver.core.retention import Erasure, Prune, Subject, SubjectKind, Walk
from tests.support.running import Running, api_token, running, settings_text
from tests.support.senders import Sent, deapi, speech, transcript

TOKEN = "a-token-of-some-length"
RESULT = "https://results.example.com/first.mp3"


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Running]:
    """A process that works not: deliveries stay as they are."""
    text = settings_text(tmp_path, destination="http://127.0.0.1:9/hooks", extra=api_token("ops", TOKEN))
    async with running(tmp_path, text, work=False) as live:
        live.client.headers["authorization"] = f"Bearer {TOKEN}"
        yield live


async def taken(up: Running, sent: Sent, path: str = "") -> str:
    answer = await up.client.request(sent.method, path or sent.path, headers=sent.headers, content=sent.body)
    assert answer.status_code == 200
    return str(answer.json()["event_id"])


async def post(up: Running, path: str, body: Any = None, status: int = 200) -> Any:
    answer = await up.client.post(f"/api/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


async def parked(up: Running, sent: Sent | str, path: str = "") -> str:
    """Send a callback to a version that does not understand it; a transcript, where it is only named."""

    def malformed(callback: VerifiedCallback) -> EventDraft:
        raise MalformedCallback("this version does not know it")

    with pytest.MonkeyPatch.context() as older:
        for provider in up.receiver.ports.providers.values():
            older.setattr(provider, "normalize", malformed)
        return await taken(up, transcript(sent) if isinstance(sent, str) else sent, path)


async def test_a_parked_callback_that_is_understood_now_becomes_an_event_once(up: Running) -> None:
    token = up.receiver.tokens.issue("deepgram", ref="order-7")
    old = await parked(up, "first", f"/callbacks/deepgram/{token}")
    made = await post(up, f"events/{old}/renormalize")
    assert made["replaces"] == old
    event = (await up.client.get(f"/api/v1/events/{made['event_id']}")).json()
    assert (event["type"], event["job_id"], event["ref"]) == ("transcript.completed", "first", "order-7")
    assert event["data"]["replaces"] == old
    assert event["callback"]["proofs"] == "basic,token"
    assert [one["destination"] for one in event["deliveries"]] == ["app"]
    assert await post(up, f"events/{old}/renormalize") == made, "the same reading makes no second event"
    assert (await up.client.get(f"/api/v1/events/{old}")).json()["type"] == "callback.parked"
    assert (await up.client.get("/api/v1/jobs/order-7")).json()["cause"] == "sending"


async def test_what_is_read_as_before_makes_no_event(up: Running) -> None:
    for sent in (transcript("text"), speech("sound")):
        event_id = await taken(up, sent)
        assert (await post(up, f"events/{event_id}/renormalize"))["event_id"] is None
    answer = await up.client.post("/callbacks/deepgram", headers=transcript("x").headers, content=b"{}")
    assert (await post(up, f"events/{answer.json()['event_id']}/renormalize"))["event_id"] is None


async def test_many_are_read_again_as_an_operation(up: Running) -> None:
    old = [await parked(up, name) for name in ("first", "second")]
    await taken(up, transcript("third"))
    counted = await post(up, "renormalizations", {"dry_run": True})
    assert (counted["found"], counted["operation"]["kind"]) == (2, "renormalize")
    later = await parked(up, "later")
    await post(up, f"operations/{counted['operation']['id']}/resume")
    while await up.receiver.bulk.step():
        pass
    done = (await up.client.get(f"/api/v1/operations/{counted['operation']['id']}")).json()
    assert (done["state"], done["done"], done["changed"]) == ("done", 2, 2)
    events = (await up.client.get("/api/v1/events", params={"type": "transcript.*"})).json()["items"]
    replaced = {one["data"].get("replaces") for one in events}
    assert replaced == {*old, None}
    assert later not in replaced


async def test_a_bug_that_one_callback_meets_does_not_stop_the_others(
    up: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = [await parked(up, name) for name in ("bad", "good")]
    counted = await post(up, "renormalizations", {})
    deepgram = up.receiver.ports.providers["deepgram"]
    normalize = deepgram.normalize

    def buggy(callback: VerifiedCallback) -> EventDraft:
        draft = normalize(callback)
        return {"good": draft}[str(draft.job_id)]

    monkeypatch.setattr(deepgram, "normalize", buggy)
    while await up.receiver.bulk.step():
        pass
    done = (await up.client.get(f"/api/v1/operations/{counted['operation']['id']}")).json()
    assert (done["state"], done["done"], done["changed"]) == ("done", 2, 1)
    assert ("error", "operations.event_failed", {"event_id": bad, "error": "KeyError"}) in up.seen.notes
    assert good


@pytest.mark.parametrize("fetched", [False, True])
async def test_what_is_erased_while_it_is_read_again_does_not_come_back(
    up: Running, monkeypatch: pytest.MonkeyPatch, fetched: bool
) -> None:
    old = await parked(up, deapi("first", result_url=RESULT) if fetched else transcript("first"))
    recorder = up.receiver.renormalizer.recorder
    record = recorder.record

    async def erased(_: object, *args: Any) -> Recorded:
        subject = Subject(kind=SubjectKind.EVENT, key=old)
        await up.receiver.store.erase(Erasure(subject=subject, tombstone_id="tmb_1", digest="d", now=1))
        return await record(*args)

    monkeypatch.setattr(type(recorder), "record", erased)
    assert "erased" in (await post(up, f"events/{old}/renormalize", status=404))["detail"]
    for listed in ("events", "pickups"):
        assert (await up.client.get(f"/api/v1/{listed}")).json()["items"] == []


async def test_an_erased_event_takes_with_it_what_was_read_from_its_callback(up: Running) -> None:
    for sent, found in (
        (transcript("text"), {"events": 2, "callbacks": 2, "pickups": 0}),
        (deapi("sound", result_url=RESULT), {"events": 1, "callbacks": 2, "pickups": 1}),
    ):
        old = await parked(up, sent)
        made = await post(up, f"events/{old}/renormalize")
        assert made["event_id"]
        erased = await post(up, "erasures", {"event_id": old})
        assert {name: erased[name] for name in found} == found
    for listed in ("events", "pickups"):
        assert (await up.client.get(f"/api/v1/{listed}")).json()["items"] == []


async def test_what_is_not_kept_any_more_cannot_be_read_again(tmp_path: Path) -> None:
    async with running(tmp_path, settings_text(tmp_path, extra=api_token("ops", TOKEN)), work=False) as up:
        up.client.headers["authorization"] = f"Bearer {TOKEN}"
        event_id = await taken(up, transcript("gone"))
        later = up.receiver.clock() + 1000
        await up.receiver.store.prune(Prune(walk=Walk.BODIES, before=later))
        assert "not kept" in (await post(up, f"events/{event_id}/renormalize", status=404))["detail"]
        await post(up, "events/evt_0/renormalize", status=404)
