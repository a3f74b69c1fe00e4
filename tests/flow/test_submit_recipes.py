"""Providers without code: each recipe's submissions get the callback where the provider wants it, and the key where it looks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from receiver.core.submission import SubmissionFilter
from receiver.core.webhook import sign, webhook_key
from receiver.core.work import PickupFilter, PickupKind
from tests.support.kept_events import kept_events
from tests.support.running import Running, running
from tests.support.submitting import PUBLIC, TOKEN, Api, accepted, api, response

Both = tuple[Running, Api]
RECIPES = (
    *("assemblyai", "soniox", "sarvam", "speechmatics", "revai", "gladia", "replicate", "fal", "openai"),
    "elevenlabs",
)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = "provider-key-0123456789"
HERE = "http://receiver.internal:8090"


def settings(folder: Path, base: str) -> str:
    sources = "".join(
        f'[sources.{name}]\nrecipe = "{name}"\nsecrets = ["{SECRET}"]\napi_key = "{KEY}"\nsubmit = true\n'
        f'allow = ["127.0.0.0/8"]\n[sources.{name}.submission]\nbase = "{base}"\n'
        for name in RECIPES
    )
    deepdub = f'[sources.deepdub]\nprovider = "deepdub"\napi_key = "{KEY}"\nbase_url = "{base}/api/v1"\nsubmit = true\nallow = ["127.0.0.0/8"]\n'
    deepdub += f'[sources.playht]\nprovider = "playht"\napi_key = "{KEY}"\nuser_id = "u-1"\nbase_url = "{base}/api/v2"\nsubmit = true\nallow = ["127.0.0.0/8"]\n'
    names = json.dumps([*RECIPES, "deepdub", "playht"])
    return (
        f'public_url = "{PUBLIC}"\ndata = "{folder}/data"\n{sources}{deepdub}[submit]\nurl = "{HERE}"\nanswer_seconds = 20\n'
        f'[submit.hosts]\n"gladia.internal" = "gladia"\n'
        f'[[submit.tokens]]\nname = "crm"\nsecrets = ["{TOKEN}"]\nsources = {names}\nmay = ["submit", "upload", "read", "cancel"]\nper_minute = 100000\nat_once = 200\n'
    )


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Both]:
    async with api() as there, running(tmp_path, settings(tmp_path, there.base), work=False) as up:
        yield up, there


def headers(name: str) -> dict[str, str]:
    """Return what the provider's own package sends, with receiver's token as the key."""
    kinds = {
        "assemblyai": ("authorization", TOKEN),
        "sarvam": ("api-subscription-key", TOKEN),
        "gladia": ("x-gladia-key", TOKEN),
        "elevenlabs": ("xi-api-key", TOKEN),
        "deepdub": ("x-api-key", TOKEN),
        "fal": ("authorization", f"Key {TOKEN}"),
    }
    header, value = kinds.get(name, ("authorization", f"Bearer {TOKEN}"))
    return {header: value, "x-receiver-ref": f"ref-{name}"}


FILE = {"file": ("a.wav", b"RIFF\x00\x01", "audio/wav")}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "assemblyai": ("/v2/transcript", {"json": {"audio_url": "u", "webhook_url": None}}, {"id": "j"}),
    "soniox": ("/v1/transcriptions", {"json": {"model": "m"}}, {"id": "j"}),
    "sarvam": ("/speech-to-text/job/v1", {"json": {"callback": None}}, {"job_id": "j"}),
    "speechmatics": (
        "/v2/jobs?sm-sdk=x",
        {"data": {"config": '{"type": "transcription"}'}, "files": FILE},
        {"id": "j"},
    ),
    "revai": ("/speechtotext/v1/jobs", {"files": {"media": FILE["file"]}}, {"id": "j"}),
    "gladia": (
        "/v2/pre-recorded",
        {"json": {"audio_url": "u"}},
        {"id": "j", "result_url": "{base}/v2/pre-recorded/j"},
    ),
    "replicate": (
        "/v1/predictions",
        {"json": {"input": {}}},
        {"id": "j", "urls": {"get": "{base}/v1/predictions/j"}},
    ),
    "fal": (
        "/fal-ai/whisper",
        {"json": {}},
        {"request_id": "j", "status_url": "{base}/fal-ai/whisper/requests/j/status"},
    ),
    "openai": ("/v1/responses", {"json": {"model": "m", "background": True}}, {"id": "j"}),
    "elevenlabs": (
        "/v1/speech-to-text",
        {"data": {"webhook_metadata": "null"}, "files": FILE},
        {"request_id": "j"},
    ),
}


@pytest.mark.parametrize("name", CASES)
async def test_each_recipes_job_carries_key_and_callback_and_is_expected(both: Both, name: str) -> None:
    up, there = both
    path, sent, answered = CASES[name]
    fields = json.loads(json.dumps(answered).replace("{base}", there.base))
    there.behave = accepted(fields, status=201)
    answer = await up.client.post(f"/submit/{name}{path}", headers=headers(name), **sent)
    assert answer.status_code == 201, answer.text
    [asked] = there.asked
    whole = str(asked)
    assert KEY in whole
    assert TOKEN not in whole
    if name not in ("openai", "elevenlabs"):
        url = f"{PUBLIC}/callbacks/{name}/"
        assert whole.replace("%3A", ":").replace("%2F", "/").count(url) == 1
        token = whole.replace("%3A", ":").replace("%2F", "/").partition(url)[2][:40]
        assert up.receiver.tokens.read_short(name, token)
    if name in ("assemblyai", "soniox", "sarvam", "speechmatics", "revai"):
        assert SECRET in whole
    assert answer.text == json.dumps(fields).replace(there.base, f"{HERE}/submit/{name}")
    assert int(answer.headers.get("content-length", len(answer.content))) == len(answer.content)
    [row] = await up.receiver.store.submissions(SubmissionFilter())
    assert (row.state, row.job_id, row.ref) == ("accepted", "j", f"ref-{name}")
    [expected] = await up.receiver.store.pickups(PickupFilter())
    assert (expected.kind, expected.job_id) == (PickupKind.EXPECTED, "j")


async def test_what_makes_no_job_or_names_a_callback_is_refused(both: Both) -> None:
    up, there = both
    wrong: list[tuple[str, str, dict[str, Any]]] = [
        ("openai", "/v1/responses", {"json": {"model": "m"}}),
        ("revai", "/speechtotext/v1/jobs", {"json": {"callback_url": "https://evil.test"}}),
        (
            "revai",
            "/speechtotext/v1/jobs",
            {"data": {"options": '{"notification_config": {}}'}, "files": FILE},
        ),
        (
            "revai",
            "/speechtotext/v1/jobs",
            {"data": {"Options[0]": '{"notification_config": {}}'}, "files": FILE},
        ),
        ("gladia", "/v2/pre-recorded", {"json": {"callback_config": {"url": "https://evil.test"}}}),
        ("replicate", "/v1/predictions", {"json": {"webhook_completed": "https://evil.test"}}),
        ("fal", "/fal-ai/whisper?fal_webhook=https://evil.test", {"json": {}}),
        ("elevenlabs", "/v1/speech-to-text", {"data": {"webhook_id": "w"}, "files": FILE}),
        ("playht", "/api/v2/tts", {"json": {"text": "x", "webHookUrl": "https://evil.test"}}),
        ("openai", "/v1/responses", {"json": {"model": "m", "background": True, "stream": True}}),
    ]
    for url in (
        "https://fal.run/a/b",
        "https://queue.fal.run:444/a/b",
        "https://queue.fal.run@evil.test/a/b",
        "http://queue.fal.run/a/b",
        "https://queue.fal.run/a/b?x=1#y",
        "https://queue.fal.run/a/b?fal_webhook=https://evil.test",
        "",
    ):
        elsewhere = {**headers("fal"), "x-fal-target-url": url}
        answer = await up.client.post("/submit/fal/_target", headers=elsewhere, json={})
        assert answer.status_code == (422 if "evil.test" in url and "?" in url else 404), url
    for name, path, sent in wrong:
        answer = await up.client.post(f"/submit/{name}{path}", headers=headers(name), **sent)
        assert (name, answer.status_code) == (name, 422)
    assert there.asked == []


async def test_a_job_may_refer_only_to_one_of_the_same_application_and_only_that_is_cancelled(
    both: Both,
) -> None:
    up, there = both
    there.behave = accepted({"id": "resp-1"})
    told = []
    for earlier in (None, "resp-1", "resp-of-others"):
        job = {"model": "m", "background": True, "previous_response_id": earlier}
        answer = await up.client.post("/submit/openai/v1/responses", headers=headers("openai"), json=job)
        told.append(answer.status_code)
    for job_id in ("resp-1", "resp-of-others"):
        path = f"/submit/openai/v1/responses/{job_id}/cancel"
        told.append((await up.client.post(path, headers=headers("openai"))).status_code)
    assert (told, len(there.asked)) == ([200, 200, 404, 200, 404], 3)


async def test_no_spelling_of_the_json_hides_a_job_of_others(both: Both) -> None:
    """Some JSON is read by one program and refused by another; a form is no JSON at all."""
    up, there = both
    base = b'{"model":"m","background":true,"previous_response_id":%b}'
    other = b'"resp-of-others"'
    bodies = [
        base % (other + rb',"user":"\ud800"'),
        base % (other + b',"top_p":1e999'),
        base.replace(b"previous_r", b"Previous_R") % other,
        base.replace(b"previous_response_id", b"conversation") % b'"conv-of-others"',
        base.replace(b"previous_response_id", b"conversation") % b'{"id":"conv-of-others"}',
        *(base % odd for odd in (b"7", b'["resp-of-others"]', '"resp-of-others\u200b"'.encode())),
    ]
    sent = {**headers("openai"), "content-type": "application/json"}
    told = [
        (await up.client.post("/submit/openai/v1/responses", headers=sent, content=body)).status_code
        for body in bodies
    ]
    form = {"model": "m", "background": "true", "previous_response_id": "resp-of-others"}
    answer = await up.client.post(
        "/submit/openai/v1/responses", headers=headers("openai"), data=form, files=FILE
    )
    assert (told, answer.status_code, there.asked) == ([404] * 8, 415, [])


async def test_a_ref_that_looks_like_a_place_for_the_secret_brings_no_secret(both: Both) -> None:
    up, there = both
    sent = {**headers("elevenlabs"), "x-receiver-ref": "{secret}{callback}{token}"}
    answer = await up.client.post(
        "/submit/elevenlabs/v1/speech-to-text", headers=sent, data={"model_id": "m"}, files=FILE
    )
    assert answer.status_code == 200, answer.text
    assert b'{"ref": "{secret}{callback}{token}"}' in there.asked[0].body
    assert SECRET not in str(there.asked)


async def test_no_second_content_type_makes_another_body_of_what_was_looked_through(both: Both) -> None:
    up, there = both
    hidden = b'{"x": "&webhook_url=https://evil.test&"}'
    both_types = [("content-type", "application/json"), ("content-type", "application/x-www-form-urlencoded")]
    sent = [*headers("soniox").items(), *both_types]
    assert (await up.client.post("/submit/soniox/v1/transcriptions", headers=sent, content=hidden)).is_success
    assert there.asked[0].headers["content-type"] == "application/json"
    coded = [*headers("soniox").items(), both_types[0], ("content-encoding", "deflate")]
    answer = await up.client.post("/submit/soniox/v1/transcriptions", headers=coded, content=b"{}")
    assert (answer.status_code, len(there.asked)) == (415, 1)


async def test_a_host_name_stands_for_a_source(both: Both) -> None:
    up, there = both
    there.behave = accepted({"id": "j"}, status=201)
    there_too = {**headers("gladia"), "host": "gladia.internal:8090"}
    answer = await up.client.post("/v2/pre-recorded", headers=there_too, json={"audio_url": "u"})
    assert answer.status_code == 201, answer.text
    assert there.asked[0].target == "/v2/pre-recorded"


async def test_a_callback_without_an_address_of_its_own_is_joined_by_its_jobs_id(both: Both) -> None:
    """It comes before the answer that tells the id, and waits for that."""
    up, there = both
    answered = asyncio.Event()

    async def call_back() -> httpx2.Response:
        body = json.dumps({"type": "response.completed", "data": {"id": "resp-1"}}).encode()
        signed = sign([webhook_key(SECRET)], "wh-1", up.receiver.clock() // 1000, body)
        return await up.client.post("/callbacks/openai", content=body, headers=signed)

    async def behave(asked: Any, writer: asyncio.StreamWriter) -> None:
        early.append(asyncio.create_task(call_back()))
        await answered.wait()
        await accepted({"id": "resp-1"})(asked, writer)

    early: list[asyncio.Task[httpx2.Response]] = []
    there.behave = behave
    job = {"model": "m", "background": True}
    submitting = asyncio.create_task(
        up.client.post("/submit/openai/v1/responses", headers=headers("openai"), json=job)
    )
    while not early:
        await asyncio.sleep(0)
    answered.set()
    assert (await submitting).status_code == 200
    assert (await early[0]).status_code == 200
    pickups = {p.kind: p for p in await up.receiver.store.pickups(PickupFilter())}
    assert pickups[PickupKind.EXPECTED].state == "collected"
    assert pickups[PickupKind.RESULT].ref == "ref-openai"
    assert await kept_events(up.receiver.store) == []


@pytest.mark.parametrize("jobs", [10, pytest.param(300, marks=pytest.mark.soak)])
async def test_callbacks_that_race_their_answers_have_the_ref(both: Both, jobs: int) -> None:
    """With a token in the URL they come before, with and after the answer; those joined by the job's id with it and after it."""
    up, there = both
    calls: list[asyncio.Task[int]] = []

    async def call_back(asked: Any, job: str) -> int:
        if asked.target == "/v1/responses":
            body = json.dumps({"type": "response.completed", "data": {"id": job}}).encode()
            sent = sign([webhook_key(SECRET)], f"wh-{job}", up.receiver.clock() // 1000, body)
            return (await up.client.post("/callbacks/openai", content=body, headers=sent)).status_code
        fields = json.loads(asked.body)
        proof = {fields["webhook_auth_header_name"]: fields["webhook_auth_header_value"]}
        path = fields["webhook_url"].removeprefix(PUBLIC)
        done = {"id": job, "status": "completed"}
        return (await up.client.post(path, json=done, headers=proof)).status_code

    async def behave(asked: Any, writer: asyncio.StreamWriter) -> None:
        number = len(there.asked)
        job = f"job-{number}"
        calls.append(asyncio.create_task(call_back(asked, job)))
        if number % 2 and asked.target != "/v1/responses":
            await calls[-1]
        await accepted({"id": job}, status=201)(asked, writer)

    there.behave = behave
    at_once = asyncio.Semaphore(50)

    async def submit(name: str, path: str, number: int) -> tuple[str, str]:
        sent = {**headers(name), "x-receiver-ref": f"{name}-{number}"}
        job = {"model": "m", "background": True}
        async with at_once:  # what a client waits for a connection, and receiver for an answer, has a limit
            answer = await up.client.post(f"/submit/{name}{path}", headers=sent, json=job)
        return answer.json()["id"], f"{name}-{number}"

    kinds = (("openai", "/v1/responses"), ("soniox", "/v1/transcriptions"))
    made = await asyncio.gather(*(submit(*kind, number) for number in range(jobs) for kind in kinds))
    assert {await call for call in calls} == {200}
    found = await up.receiver.store.pickups(PickupFilter(limit=4 * jobs + 1))
    results = {one.job_id: one.ref for one in found if one.kind is PickupKind.RESULT}
    assert results == dict(made)
    expected = [one for one in found if one.kind is PickupKind.EXPECTED]
    assert ({one.state for one in expected}, len(expected)) == ({"collected"}, 2 * jobs)


async def test_deepdubs_answer_becomes_a_pickup_and_leads_back_to_receiver(both: Both) -> None:
    up, there = both
    url = f"{there.base}/api/v1/tts/retroactive/job1"
    there.behave = accepted({"url": url})
    answer = await up.client.post(
        "/submit/deepdub/api/v1/tts/retroactive", headers=headers("deepdub"), json={"targetText": "x"}
    )
    assert answer.json() == {"url": f"{HERE}/submit/deepdub/api/v1/tts/retroactive/job1"}
    escaped = json.dumps({"url": url}).replace("/", "\\/").encode()

    async def behave(asked: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(response(200, escaped))

    there.behave = behave
    again = await up.client.post(
        "/submit/deepdub/api/v1/tts/retroactive", headers=headers("deepdub"), json={"targetText": "y"}
    )
    assert again.json() == answer.json()
    assert json.loads(there.asked[0].body) == {"targetText": "x"}
    [pickup] = await up.receiver.store.pickups(PickupFilter())
    assert (pickup.kind, pickup.job_id, pickup.ref) == (PickupKind.RESULT, "job1", "ref-deepdub")
    read = await up.client.get("/submit/deepdub/api/v1/tts/retroactive/job1", headers=headers("deepdub"))
    assert read.status_code == 200
    assert there.asked[-1].headers["x-api-key"] == KEY


async def test_playhts_jobs_are_asked_about_as_json_with_both_of_its_credentials(both: Both) -> None:
    up, there = both
    here = f"{there.base}/api/v2/tts/job1"
    links = [{"rel": rel, "href": here} for rel in ("self", "self")]
    there.behave = accepted({"id": "job1", "status": "gen", "_links": links}, status=201)
    sent = {**headers("playht"), "x-user-id": "theirs", "accept": "text/event-stream"}
    answer = await up.client.post("/submit/playht/api/v2/tts", headers=sent, json={"text": "x"})
    assert answer.status_code == 201, answer.text
    assert {link["href"] for link in answer.json()["_links"]} == {f"{HERE}/submit/playht/api/v2/tts/job1"}
    asked = there.asked[0]
    assert (json.loads(asked.body), asked.headers["accept"]) == ({"text": "x"}, "application/json")
    assert (asked.headers["authorization"], asked.headers["x-user-id"]) == (f"Bearer {KEY}", "u-1")
    [pickup] = await up.receiver.store.pickups(PickupFilter())
    assert (pickup.kind, pickup.job_id, pickup.ref) == (PickupKind.RESULT, "job1", "ref-playht")
    read = await up.client.get("/submit/playht/api/v2/tts/job1", headers=headers("playht"))
    assert read.status_code == 201
    assert (await up.client.get("/submit/playht/api/v2/tts/job2", headers=sent)).status_code == 404
