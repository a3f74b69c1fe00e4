"""The API shows what happened: events in the order of recording, their bodies and audio, deliveries, and what waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from receiver.core.clock import iso
from tests.support.running import APP_SECRET, BASIC, Running, api_token, running, settings_text
from tests.support.senders import Sent, speech, transcript

TOKEN = "a-token-of-some-length"
NOBODY = "http://127.0.0.1:9/hooks"


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Running]:
    """A process that works not: deliveries stay as they are."""
    text = settings_text(tmp_path, destination=NOBODY, extra=api_token("app", TOKEN, '["read"]'))
    async with running(tmp_path, text, work=False) as live:
        live.client.headers["authorization"] = f"Bearer {TOKEN}"
        yield live


async def send(up: Running, one: Sent) -> None:
    answer = await up.client.request(one.method, one.path, headers=one.headers, content=one.body)
    assert answer.status_code == 200


async def got(up: Running, path: str, **query: object) -> Any:
    answer = await up.client.get(f"/api/v1/{path}", params={k: str(v) for k, v in query.items()})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_events_are_shown_with_all_that_belongs_to_them(up: Running) -> None:
    await send(up, transcript("first"))
    await send(up, speech("second"))
    (second, first) = (await got(up, "events"))["items"]
    assert (first["type"], first["job_id"], second["type"]) == (
        "transcript.completed",
        "first",
        "speech.completed",
    )
    assert second["data"]["audio"]["content_type"] == "audio/mpeg"
    whole = await got(up, f"events/{first['id']}")
    assert whole["callback"]["proofs"] == "basic"
    assert (whole["callback"]["method"], whole["pickup"]) == ("POST", None)
    assert [(one["destination"], one["state"], one["attempts_made"]) for one in whole["deliveries"]] == [
        ("app", "pending", [])
    ]
    assert whole["routing"] == [{"destination": "app", "sent": True, "rule": "sources and events fit"}]
    body = await up.client.get(f"/api/v1/events/{first['id']}/body")
    assert body.json()["metadata"]["request_id"] == "first"
    assert body.headers["content-disposition"].startswith("attachment")
    listed = (await got(up, "deliveries", state="pending", type="transcript.*"))["items"]
    assert [one["event_id"] for one in listed] == [first["id"]]
    assert (await got(up, f"deliveries/{listed[0]['id']}"))["attempts_made"] == []
    assert (await got(up, f"deliveries/{listed[0]['id']}/attempts")) == {"items": [], "next": None}
    assert (await got(up, "stats"))["due_deliveries"] == {"app": 2}
    (destination,) = (await got(up, "destinations"))["items"]
    assert (destination["name"], destination["due"], destination["dead"]) == ("app", 2, 0)
    sources = {one["name"]: one for one in (await got(up, "sources"))["items"]}
    assert sources["deepgram"]["calls_back"]
    assert APP_SECRET not in str(destination)


async def test_what_came_is_counted_by_the_minute_and_processes_are_listed(up: Running) -> None:
    await send(up, transcript("first"))
    await send(up, transcript("first"))
    await up.client.post("/callbacks/deepgram", content=b"{}", headers={"authorization": ""})
    await up.receiver.tallies.tell()
    for by in ("minute", "hour", "all"):
        found = await got(up, "tallies", by=by)
        counts: dict[tuple[str, str, str], int] = {}
        for one in found["items"]:
            key = (one["kind"], one["name"], one["outcome"])
            counts[key] = counts.get(key, 0) + one["count"]
        assert counts == {
            ("callbacks", "deepgram", "recorded"): 1,
            ("callbacks", "deepgram", "duplicate"): 1,
            ("callbacks", "deepgram", "rejected"): 1,
        }
        assert sum(one["count"] for one in found["ack"]) == 2
        assert all(1 <= one["p50_ms"] <= one["p99_ms"] for one in found["ack"])
    assert (await got(up, "tallies", until="2026-01-01T00:00:00Z")) == {"items": [], "ack": []}
    (process,) = (await got(up, "processes"))["items"]
    assert (process["id"], process["role"], process["alive"]) == (
        up.receiver.worker,
        "intake",
        True,
    )


async def test_a_job_is_told_with_every_step(up: Running) -> None:
    await send(up, transcript("told"))
    job = await got(up, "jobs/told")
    assert (job["cause"], [step["what"] for step in job["steps"]]) == (
        "sending",
        ["callback", "recorded", "next"],
    )
    by_event = await got(up, f"jobs/{job['events'][0]}")
    assert (by_event["cause"], by_event["steps"]) == ("sending", job["steps"])
    assert (await got(up, "jobs/nobody"))["cause"] == "unknown"


async def test_how_a_callback_came_is_kept_without_secrets_and_told(tmp_path: Path) -> None:
    """By a URL that was made for it, proved by the second of two secrets."""
    text = settings_text(tmp_path, extra=api_token("app", TOKEN)).replace(
        'basic = ["', 'basic = ["old:old", "'
    )
    text, sent = f'public_url = "https://hooks.example.com"\n{text}', transcript("told")
    async with running(tmp_path, text, work=False) as up:
        up.client.headers["authorization"] = f"Bearer {TOKEN}"
        for short in (False, True):
            now = up.receiver.clock()
            made = await up.client.post(
                "/api/v1/callback-urls", json={"source": "deepgram", "ref": "order-7", "short": short}
            )
            path = httpx2.URL(made.json()["url"]).path
            headers = sent.headers | {"x-mine": "a-secret-value", "user-agent": "Deepgram/1"}
            headers["x-forwarded-uri"] = f"{path}?x=1"
            body = transcript(f"told-{short}").body
            answer = await up.client.post(path, headers=headers, content=body)
            shown = (await got(up, f"events/{answer.json()['event_id']}"))["callback"]
            assert (shown["secret"], shown["peer"], shown["token_id"]) == (2, "127.0.0.1", shown["token_id"])
            assert shown["headers"]["user-agent"] == "Deepgram/1"
            assert (shown["headers"]["x-mine"], shown["headers"]["authorization"]) == (None, None)
            assert shown["issued_at"][:16] in {iso(now)[:16], iso(now + 60_000)[:16]}
            assert 0 <= shown["body_ms"] <= shown["proved_ms"] <= shown["stored_ms"] < 10_000
            steps = (await got(up, f"jobs/told-{short}"))["steps"]
            assert [step["what"] for step in steps] == ["issued", "callback", "recorded"]
            assert "basic, token, secret 2 of its setting, body after" in steps[1]["detail"]
        whole = str(await up.receiver.store.callback(answer.json()["event_id"]))
        assert BASIC not in whole
        assert path.rpartition("/")[2] not in whole
        assert headers["authorization"] not in whole


async def test_a_job_whose_callbacks_are_refused_is_told_so_by_its_ref(up: Running) -> None:
    token = up.receiver.tokens.issue("deepgram", ref="order-7")
    answer = await up.client.post(f"/callbacks/deepgram/{token}", content=b"{}")
    assert answer.status_code == 401
    await up.receiver.intake.rejections.flush()
    job = await got(up, "jobs/order-7")
    assert (job["cause"], job["steps"][0]["what"]) == ("rejected", "rejected")
    (kept,) = (await got(up, "rejections", ref="order-7"))["items"]
    assert kept["token_id"]
    assert kept["setting"] == "sources.deepgram.basic"
    assert token not in str(kept)


async def test_audio_comes_by_a_fresh_link(up: Running) -> None:
    await send(up, speech("job"))
    ((event,)) = (await got(up, "events"))["items"]
    path = f"/api/v1/events/{event['id']}/audio"
    led = await up.client.get(path)
    assert led.status_code == 302
    audio = await up.client.get(httpx2.URL(led.headers["location"]).path, headers={"authorization": ""})
    assert (audio.status_code, audio.headers["content-type"]) == (200, "audio/mpeg")
    told = await got(up, f"events/{event['id']}/audio", redirect="false")
    assert told["url"].startswith("http")
    assert told["content_type"] == "audio/mpeg"
    await send(up, transcript("text"))
    (text, _) = (await got(up, "events"))["items"]
    assert (await up.client.get(f"/api/v1/events/{text['id']}/audio")).status_code == 404


async def test_pages_in_the_order_of_recording_go_on_where_they_ended(up: Running) -> None:
    empty = await got(up, "events", order="oldest")
    assert empty == {"items": [], "next": None, "cursor": None}
    await asyncio.gather(*(send(up, transcript(f"job-{number}")) for number in range(5)))
    first = await got(up, "events", order="oldest", limit=3)
    second = await got(up, "events", order="oldest", limit=3, after=first["next"])
    assert (len(first["items"]), len(second["items"]), second["next"]) == (3, 2, None)
    await send(up, transcript("later"))
    third = await got(up, "events", order="oldest", after=second["cursor"])
    assert [one["job_id"] for one in third["items"]] == ["later"]
    at_end = await got(up, "events", order="oldest", after=third["cursor"])
    assert at_end == {"items": [], "next": None, "cursor": third["cursor"]}


async def test_a_cursor_that_the_database_has_not_come_to_is_refused_with_what_to_do(up: Running) -> None:
    await send(up, transcript("first"))
    for path in (
        "events?order=oldest&after=99999.evt_1",
        "events?after=99999.evt_1",
        "stream?after=99999.evt_1",
    ):
        answer = await up.client.get(f"/api/v1/{path}")
        assert (answer.status_code, "Begin again at 0.evt_0" in answer.json()["detail"]) == (409, True)
    end = (await up.receiver.store.positions()).end
    assert await got(up, "events", order="oldest", after=f"{end}.evt_z")


FILTERS: list[tuple[dict[str, str], set[str]]] = [
    ({"type": "speech.*"}, {"audio"}),
    ({"type": "media.*"}, set()),
    ({"job_id": "text"}, {"text"}),
    ({"provider": "deepgram", "source": "deepgram"}, {"audio", "text"}),
    ({"source": "deapi"}, set()),
    ({"min_bytes": "1"}, {"audio"}),
    ({"max_seconds": "3600"}, {"audio"}),
    ({"state": "pending", "destination": "app"}, {"audio", "text"}),
    ({"state": "dead"}, set()),
    ({"since": "2020-01-01T00:00:00Z", "until": "2020-01-02T00:00:00+01:00"}, set()),
]
REFUSED = [
    ("after=x", "cursor"),
    ("since=yesterday", "since"),
    ("since=2026-11-21T10:00:00", "since"),
    ("order=random", "order"),
    ("state=lost", "state"),
    ("min_bytes=-1", "min_bytes"),
    ("sauce=1", "sauce"),
    ("type=speech.complete", "did you mean speech.completed?"),
    ("type=nothing.*", "there is no event type"),
]


async def test_events_are_filtered_and_a_filter_that_is_not_understood_is_refused_by_name(
    up: Running,
) -> None:
    await send(up, transcript("text"))
    await send(up, speech("audio"))
    for query, found in FILTERS:
        items = (await got(up, "events", **query))["items"]
        assert {"audio" if one["type"] == "speech.completed" else "text" for one in items} == found, query
    for wrong, named in REFUSED:
        answer = await up.client.get(f"/api/v1/events?{wrong}")
        assert (answer.status_code, named in answer.json()["detail"]) == (400, True), wrong


async def test_rejections_are_listed(up: Running) -> None:
    answer = await up.client.post("/callbacks/deepgram", content=b"{}", headers={"X-Signature": "abc"})
    assert answer.status_code == 401
    await up.receiver.intake.rejections.flush()
    (one,) = (await got(up, "rejections", source="deepgram"))["items"]
    assert (one["status"], one["kind"]) == (401, "malformed")
    assert "x-signature" in one["headers"]
    assert "abc" not in str(one)
