"""Applications submit jobs through receiver: the key is swapped, the callback is set, and nothing is sent twice."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from pydantic import SecretStr

from receiver.core.errors import StoreUnavailable, SubmissionRefused
from receiver.core.retention import Subject, SubjectKind, Traces
from receiver.core.submission import SubmissionFilter
from receiver.core.work import PickupFilter
from receiver.engine.erasure import FoundOf
from receiver.engine.submissions import OPEN_SECONDS
from receiver.engine.submissions.allowances import Allowance
from receiver.engine.submissions.bodies import Pace
from receiver.providers.deapi import signed
from receiver.settings.model import Kind, SubmitToken
from tests.contract.submission_suite import new
from tests.support.house import receiver
from tests.support.kept_events import kept_events
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.running import BASIC, DEAPI_SECRET, Running, running
from tests.support.submitting import (
    DEAPI_KEY,
    DEEPGRAM_KEY,
    OTHER,
    READER,
    TOKEN,
    Api,
    Asked,
    Behave,
    accepted,
    response,
    settings,
    submitting,
)
from tests.support.submitting import api as provider

LISTEN = "/submit/deepgram/v1/listen"
SPEECH, JOBS = "/submit/deapi/api/v2/audio/speech", "/submit/deapi/api/v2/jobs"
AUDIO = b"RIFF" + bytes(200_000)
Both = tuple[Running, Api]
MIB = 1 << 20
BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Both]:
    async with submitting(tmp_path) as made:
        yield made


def callback_of(asked: Asked) -> str:
    """Return the path of the callback URL that the provider was given."""
    url = parse_qs(urlsplit(asked.target).query)["callback"][0]
    assert f"{BASIC}@hooks.example.com/callbacks/deepgram/" in url
    return urlsplit(url).path


async def test_the_command_lists_what_was_submitted(both: Both, tmp_path: Path) -> None:
    up, _ = both
    await up.client.post(LISTEN, content=AUDIO, headers={"x-receiver-ref": "order-7"})
    config = tmp_path / "receiver.toml"
    config.write_text(f'data = "{up.receiver.settings.data}"\n[sources.deepgram]\nprovider = "deepgram"\n')
    words = ("--config", config, "submissions")
    table = await asyncio.to_thread(receiver, *words, "--application", "crm")
    assert table.out.split()[:6] == ["id", "state", "status", "application", "source", "job"], table.err
    [row] = (await asyncio.to_thread(receiver, *words, "--source", "deep*", "--json")).items
    assert (row["state"], row["job_id"], row["ref"]) == ("accepted", "job-1", "order-7")
    nothing = await asyncio.to_thread(receiver, *words, "--application", "other")
    assert "no submission fits" in nothing.err


async def test_a_listener_of_its_own_takes_submissions_and_nothing_else(tmp_path: Path) -> None:
    port = free_port()
    async with submitting(tmp_path, submit=f'listen = "127.0.0.1:{port}"') as (up, api):
        there = f"http://127.0.0.1:{port}"
        told = [
            (await up.client.post(f"{base}{path}", content=b"a")).status_code
            for base in (up.base, there)
            for path in (LISTEN, "/callbacks/deepgram")
        ]
        assert (told, len(api.asked)) == ([404, 401, 200, 404], 1)
        assert (await up.client.get(f"{there}/readyz")).status_code == 404


async def call_back(up: Running, path: str, job: str) -> str:
    """Call back as Deepgram does; return the status that receiver answers."""
    user, _, password = BASIC.partition(":")
    document = {"metadata": {"request_id": job, "duration": 1}, "results": {"channels": []}}
    headers = {"content-type": "application/json"}
    answer = await up.client.post(path, json=document, headers=headers, auth=httpx2.BasicAuth(user, password))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["status"])


async def test_a_submission_is_the_providers_own_with_the_callback_and_its_key(both: Both) -> None:
    up, api = both
    headers = {"x-receiver-ref": "order-7", "cookie": "a=b", "x-api-key": "slipped-in", "user-agent": "sdk/1"}
    answer = await up.client.post(f"{LISTEN}?model=nova-3&tag=a%20b", content=AUDIO, headers=headers)
    assert answer.status_code == 200
    assert answer.json()["request_id"] == "job-1"
    [asked] = api.asked
    assert asked.target.startswith("/v1/listen?model=nova-3&tag=a%20b&callback=https%3A%2F%2F")
    assert asked.body == AUDIO
    assert asked.headers["authorization"] == f"Token {DEEPGRAM_KEY}"
    assert asked.headers["user-agent"] == "sdk/1"
    assert not {"cookie", "x-api-key", "x-receiver-ref"} & set(asked.headers)
    assert TOKEN not in str(asked)
    [row] = await up.receiver.store.submissions(SubmissionFilter())
    assert row.id == answer.headers["x-receiver-submission"]
    assert (row.application, row.job_id, row.ref, row.state) == ("crm", "job-1", "order-7", "accepted")
    [expected] = await up.receiver.store.pickups(PickupFilter())
    assert (expected.kind, expected.job_id, expected.ref) == ("expected", "job-1", "order-7")
    assert await call_back(up, callback_of(asked), "job-1") == "recorded"
    [event] = await kept_events(up.receiver.store)
    assert (event.ref, event.job_id) == ("order-7", "job-1")
    reader = {"authorization": f"Bearer {READER}"}
    listed = (await up.client.get("/api/v1/submissions?ref=order-7", headers=reader)).json()["items"]
    assert [(one["id"], one["request"], one["status"]) for one in listed] == [
        (row.id, "POST /v1/listen", 200)
    ]
    assert all("answer" not in name and "fingerprint" not in name for name in listed[0])
    steps = (await up.client.get("/api/v1/jobs/order-7", headers=reader)).json()["steps"]
    assert [step["what"] for step in steps][:2] == ["submitted", "pickup"]
    [resolved] = await up.receiver.store.pickups(PickupFilter())
    assert (resolved.state, resolved.event_id) == ("collected", event.id)
    await up.seen.until(lambda: bool(up.seen.submissions))
    [report] = up.seen.submissions
    assert (report.application, report.outcome, report.bytes_in) == ("crm", "forwarded", len(AUDIO))


async def test_a_callback_that_is_faster_than_its_answer_has_the_ref(both: Both) -> None:
    up, api = both
    recorded: list[str] = []

    async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        recorded.append(await call_back(up, callback_of(asked), "job-1"))
        await accepted({"request_id": "job-1"})(asked, writer)

    api.behave = behave
    answer = await up.client.post(
        "/submit/deepgram/ref:fr%C3%BCh%207/v1/listen", json={"url": "https://x.test/a.wav"}
    )
    assert (answer.status_code, recorded) == (200, ["recorded"])
    [event] = await kept_events(up.receiver.store)
    assert event.ref == "früh 7"
    [row] = await up.receiver.store.submissions(SubmissionFilter())
    assert row.job_id == "job-1"


async def test_json_and_forms_get_the_callback_and_stay_as_they_are(both: Both) -> None:
    up, api = both
    up.client.headers["authorization"] = f"Bearer {TOKEN}"
    text = b'{ "text" : "Gr\\u00fc\xc3\x9fe", "speed": 1.0 }\n'
    answer = await up.client.post(
        SPEECH, content=text, headers={"content-type": "application/json; charset=utf-8"}
    )
    assert answer.status_code == 200, answer.text
    assert api.asked[0].body.startswith(text.rstrip()[:-2])
    fields = json.loads(api.asked[0].body)
    assert fields["webhook_url"].startswith("https://hooks.example.com/callbacks/deapi/")
    assert len(fields["webhook_secret"]) == 64
    assert api.asked[0].headers["authorization"] == f"Bearer {DEAPI_KEY}"
    null = {"text": "x", "webhook_url": None}
    assert (await up.client.post(SPEECH, json=null)).status_code == 200
    assert json.loads(api.asked[1].body)["webhook_url"].startswith("https://hooks")
    for audio in (b"abc", AUDIO * 10):
        sent = await up.client.post(SPEECH, data={"text": "x"}, files={"ref_audio": ("a.wav", audio)})
        assert sent.status_code == 200, sent.text
        body = api.asked[-1].body
        assert audio in body
        assert body.count(b'name="webhook_url"\r\n\r\nhttps://hooks.example.com/callbacks/deapi/') == 1
        assert body.count(b'name="webhook_secret"') == 1
        assert int(api.asked[-1].headers["content-length"]) == len(body)


JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=b"}
FIELD = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\nhttps://evil.test\r\n--b--\r\n'
REFUSED: list[tuple[str, str, dict[str, str], bytes, int]] = [
    ("POST", f"{LISTEN}?callback=https://evil.test", JSON, b"{}", 422),
    ("POST", f"{LISTEN}?c%61llback=https://evil.test", JSON, b"{}", 422),
    ("POST", f"{LISTEN}?Callback=https://evil.test", JSON, b"{}", 422),
    ("POST", f"{LISTEN}?a=1;callback=https://evil.test", JSON, b"{}", 422),
    ("POST", f"{LISTEN}?callback_method=put", JSON, b"{}", 422),
    ("POST", f"{LISTEN}?_method=DELETE", {}, b"x", 422),
    ("POST", f"{LISTEN}?a=1;X-HTTP-%4dethod-Override=GET", {}, b"x", 422),
    ("GET", "/submit/deapi/api/v2/jobs/job-1?_method=DELETE", {}, b"", 422),
    ("POST", SPEECH, JSON, b'{"text": "x", "_Method": "DELETE"}', 422),
    ("POST", SPEECH, FORM, FIELD % b"_method", 422),
    ("POST", SPEECH, FORM, FIELD % b" .method", 422),
    ("POST", SPEECH, FORM, FIELD % b"webhook.url", 422),
    ("POST", SPEECH, FORM, FIELD % b" webhook url[x]", 422),
    ("POST", SPEECH, FORM, FIELD % b"webhook[url", 422),
    ("POST", f"{LISTEN}?+callback%00x=https://evil.test", JSON, b"{}", 422),
    ("POST", LISTEN, {}, b"", 422),
    ("POST", "/submit/deepgram/ref:a%0d%0ax-evil:%201/v1/listen", {}, b"x", 422),
    ("POST", f"/submit/deepgram/ref:{'a' * 501}/v1/listen", {}, b"x", 422),
    ("POST", f"{LISTEN}?{'a' * 8193}", {}, b"x", 404),
    ("POST", SPEECH, JSON, b'{"webhook_url": "https://evil.test"}', 422),
    ("POST", SPEECH, JSON, b'{"WebHook_URL": "https://evil.test"}', 422),
    ("POST", SPEECH, JSON, b'{"webhook\\u005furl": "https://evil.test"}', 422),
    ("POST", SPEECH, JSON, b'{"webhook_url": null, "webhook_url": "https://evil.test"}', 422),
    ("POST", SPEECH, JSON, b"[1]", 422),
    ("POST", SPEECH, JSON, b"[" * 100_000, 422),
    ("POST", SPEECH, JSON, b"", 422),
    ("POST", SPEECH, JSON, '{"text": "x"}'.encode("utf-16"), 422),
    ("POST", SPEECH, {"content-type": "text/plain"}, b"{}", 415),
    ("POST", SPEECH, {"content-type": "application/x-www-form-urlencoded"}, b"text=x", 415),
    ("POST", SPEECH, FORM, FIELD % b"webhook_url", 422),
    ("POST", SPEECH, FORM, FIELD % b"Webhook_Url[]", 422),
    ("POST", SPEECH, FORM, FIELD % b"x\"; name*=utf-8''webhook_url; y=\"", 422),
    ("POST", SPEECH, FORM, b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", 422),
    ("POST", SPEECH, FORM, b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nno end', 422),
    ("POST", SPEECH, {"content-type": "multipart/form-data"}, b"x", 422),
    ("POST", SPEECH, FORM, FIELD[:-7] % b"text" * 1001 + b"--b--\r\n", 422),
    ("GET", "/submit/deepgram/v1/projects", {}, b"", 404),
    ("DELETE", LISTEN, {}, b"", 404),
    ("GET", LISTEN, {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-key": "x"}, b"", 404),
    ("POST", "/submit/deepgram//v1/listen", {}, b"x", 404),
    ("POST", "/submit/deepgram/v1/%6cisten", {}, b"x", 404),
    ("POST", "/submit/nobody/v1/listen", {}, b"x", 404),
    ("POST", "/submit/speech", {}, b"x", 404),
    ("GET", "/submit/deapi/api/v2/jobs/job-of-nobody", {}, b"", 404),
]


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        (f"{LISTEN}?callback=https://own.test", {"content": b"RIFF"}),
        (SPEECH, {"json": {"text": "x", "webhook_url": "https://own.test"}}),
        (SPEECH, {"data": {"text": "x", "webhook_url": "https://own.test"}, "files": {"f": AUDIO}}),
    ],
    ids=["query", "json", "form"],
)
async def test_a_callback_of_the_callers_own_passes_where_the_source_lets_it(
    tmp_path: Path, path: str, sent: dict[str, Any]
) -> None:
    """The job is known and may be asked about; no callback is expected."""
    own = 'own_callback = "pass"'
    async with submitting(tmp_path, source=f"{own}\n", deapi=own) as (up, api):
        if path == SPEECH:
            up.client.headers["authorization"] = f"Bearer {TOKEN}"
        answer = await up.client.post(path, **sent)
        assert answer.status_code == 200, answer.text
        [asked] = api.asked
        told = f"{asked.target}{asked.body!r}"
        assert "own.test" in told
        assert "hooks.example.com" not in told
        if path == SPEECH:
            job = await up.client.get("/submit/deapi/api/v2/jobs/job-1")
            assert job.status_code == 200
        [row] = await up.receiver.store.submissions(SubmissionFilter())
        assert (row.job_id, row.state, row.token_id) == ("job-1", "accepted", None)
        assert await up.receiver.store.pickups(PickupFilter()) == []


async def test_what_is_not_passed_on_reaches_no_provider(both: Both) -> None:
    """Among it each submission whose callback could not be set, or has one of the caller's own."""
    up, api = both
    told = []
    for method, path, headers, body, _ in REFUSED:
        scheme = "Token" if "deepgram" in path else "Bearer"
        sent = {**headers, "authorization": f"{scheme} {TOKEN}"}
        url = httpx2.URL(up.base).copy_with(raw_path=path.encode())
        answer = await up.client.request(method, url, headers=sent, content=body)
        told.append((method, path, headers, body, answer.status_code))
        assert "evil.test" not in answer.text
    assert told == REFUSED
    assert (api.asked, api.broken_off) == ([], 0)
    assert await up.receiver.store.submissions(SubmissionFilter()) == []
    assert await up.receiver.store.pickups(PickupFilter()) == []


async def test_a_token_opens_its_own_sources_kinds_and_jobs_and_nothing_else(both: Both) -> None:
    up, api = both
    job = "/submit/deapi/api/v2/jobs/job-1"
    mine, others = {"authorization": f"Bearer {TOKEN}"}, {"authorization": f"Bearer {OTHER}"}
    assert (await up.client.post(SPEECH, json={}, headers=mine)).status_code == 200
    assert (await up.client.get(job, headers=mine)).status_code == 200
    assert api.asked[-1].headers["authorization"] == f"Bearer {DEAPI_KEY}"
    count = len(api.asked)
    cases = [
        (job, "GET", others, 404),
        (SPEECH, "POST", others, 403),
        (LISTEN, "POST", {"authorization": f"Token {OTHER}"}, 403),
        (LISTEN, "POST", {"authorization": f"Token {TOKEN}x"}, 401),
        (LISTEN, "POST", {"authorization": f"Basic {TOKEN}"}, 401),
        (LISTEN, "POST", {"authorization": ""}, 401),
        (LISTEN, "POST", {"authorization": f"Token {DEEPGRAM_KEY}"}, 401),
        (LISTEN, "OPTIONS", {"authorization": f"Token {TOKEN}"}, 404),
    ]
    for path, method, headers, status in cases:
        answer = await up.client.request(method, path, headers=headers, content=b"x")
        assert (path, method, answer.status_code) == (path, method, status)
    twice = [("authorization", f"Token {TOKEN}")] * 2
    assert (await up.client.post(LISTEN, headers=twice, content=b"x")).status_code == 401
    assert (await up.client.get("/api/v1/pickups", headers=mine)).status_code in (401, 403)
    assert len(api.asked) == count


async def test_an_outcome_that_is_not_known_is_424_and_a_redirect_is_none(both: Both) -> None:
    up, api = both

    async def hang_up(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def half(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{"request_id"')

    async def never(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def away(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 307 X\r\nlocation: https://evil.test/\r\ncontent-length: 0\r\n\r\n")

    async def switched(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 X\r\nupgrade: x\r\n\r\n")

    ways = (hang_up, half, never, away, switched)
    for number, behave in enumerate(ways, 1):
        api.behave = behave
        ref = {"x-receiver-ref": f"order-{number}"}
        answer = await up.client.post(LISTEN, content=b"%d" % number, headers=ref)
        assert answer.status_code == 424, answer.text
        assert answer.json()["status"] == "unknown"
        assert answer.json()["submission"].startswith("sub_")
        assert "location" not in answer.headers
        assert await call_back(up, callback_of(api.asked[-1]), f"job-{number}") == "recorded"
    assert len(api.asked) == len(ways)
    states = {row.state for row in await up.receiver.store.submissions(SubmissionFilter())}
    assert states == {"unknown"}
    told = await kept_events(up.receiver.store, types=("submission.unknown",))
    assert sorted(event.ref or "" for event in told) == [f"order-{number}" for number in range(1, 6)]


async def test_an_answer_that_never_ends_is_bounded_in_time_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it: a start that does not come is an unknown outcome, a rest that does not end is broken off."""
    monkeypatch.setattr(Pace, "SECONDS", 0.3)
    body = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"

    def endless(head: bytes, piece: bytes, seconds: float) -> Behave:
        async def behave(asked: Asked, writer: asyncio.StreamWriter) -> None:
            writer.write(head)
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(seconds)

        return behave

    async with submitting(tmp_path, submit="max_body_bytes = 1_000_000") as (up, api):
        told = []
        for number, behave in enumerate(
            (
                endless(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n", 0),
                endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0),
                endless(body, b" ", 0.05),
                endless(body, bytes(60_000), 0),
                endless(body + bytes(70_000), b" ", 0.05),
            )
        ):
            api.behave = behave
            try:
                told.append((await up.client.post(LISTEN, content=b"%d" % number)).status_code)
            except httpx2.TransportError:
                told.append(0)
        assert told == [424, 424, 424, 0, 0]
        again = await up.client.post(LISTEN, content=b"4")  # as an SDK does whose answer was broken off
        assert (again.status_code, len(api.asked)) == (424, 5)
        rows = await up.receiver.store.submissions(SubmissionFilter())
        assert [row.state for row in rows] == ["accepted"] * 2 + ["unknown"] * 3
        sizes = [report.bytes_out for report in up.seen.submissions]
        assert 0 < max(sizes) <= 1_000_000


async def test_a_call_that_a_stop_cuts_off_is_answered_so_that_nobody_repeats_it(both: Both) -> None:
    up, api = both

    async def never(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    api.behave = never
    before = asyncio.all_tasks()
    call = asyncio.create_task(up.client.post(LISTEN, content=AUDIO))
    while not api.asked:
        await asyncio.sleep(0)
    served = [one for one in asyncio.all_tasks() - before if "run_asgi" in repr(one)]
    assert len(served) == 1
    served[0].cancel()
    answer = await call
    assert (answer.status_code, answer.json()["status"]) == (424, "unknown")
    [row] = await up.receiver.store.submissions(SubmissionFilter())
    assert (row.id, row.state) == (answer.json()["submission"], "unknown")


async def test_what_the_provider_refuses_is_passed_back_and_expects_nothing(both: Both) -> None:
    up, api = both
    api.behave = accepted({"err_code": "INVALID_MODEL"}, status=400)
    answer = await up.client.post(LISTEN, content=AUDIO)
    assert (answer.status_code, answer.json()) == (400, {"err_code": "INVALID_MODEL"})
    assert await up.receiver.store.pickups(PickupFilter()) == []


async def test_odd_answers_are_passed_back_and_say_no_job(both: Both) -> None:
    """The job is known by its callback alone: its id is none, or its header is no text."""
    up, api = both
    for number, body in enumerate((b'{"request_id": ["a"]}', b'{"request_id": "a\\nb"}', b"no JSON")):

        async def behave(asked: Asked, writer: asyncio.StreamWriter, body: bytes = body) -> None:
            odd = ("x-odd: ?", "set-cookie: a=b", "x-receiver-replayed: 1")
            head = response(200, body, *odd).replace(b"?", b"\xff\x01")
            writer.write(head)

        api.behave = behave
        answer = await up.client.post(LISTEN, content=b"%d" % number)
        assert (answer.status_code, answer.content) == (200, body)
        assert not {"x-odd", "set-cookie", "x-receiver-replayed"} & set(answer.headers)
    rows = await up.receiver.store.submissions(SubmissionFilter())
    assert [(row.state, row.job_id) for row in rows] == [("accepted", None)] * 3


async def test_what_the_store_could_not_take_after_the_sending_is_recorded_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is passed on meanwhile: the job costs money."""

    async def gone(*ended: object) -> None:
        raise StoreUnavailable("gone")

    async with provider() as api:
        text = settings(tmp_path, api.base)
        async with running(tmp_path, text, work=False) as up:
            monkeypatch.setattr(up.receiver.store, "end_submission", gone)
            ref = {"x-receiver-ref": "order-7"}
            assert (await up.client.post(SPEECH, json={}, headers=BEARER | ref)).status_code == 200
            assert (await up.client.get(f"{JOBS}/job-1", headers=BEARER)).status_code == 404
            found = await up.receiver.eraser.look(Subject(kind=SubjectKind.REF, key="order-7"))
            assert (up.receiver.journal.depth, len(found.journaled)) == (1, 1)  # an erasure would take it
        async with running(tmp_path, text, work=False) as up:
            async with asyncio.timeout(PATIENCE):
                while not await up.receiver.store.submissions(SubmissionFilter(job_id="job-1")):
                    await asyncio.sleep(0)
            assert (await up.client.get(f"{JOBS}/job-1", headers=BEARER)).status_code == 200


@pytest.mark.parametrize("here", [True, False])
async def test_erasing_a_job_takes_what_the_journal_keeps_of_its_submission(
    here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another machine's journal keeps it: then as soon as that is drained."""

    async def gone(*ended: object) -> None:
        raise StoreUnavailable("gone")

    async with submitting(tmp_path) as (up, _):
        store, eraser = up.receiver.store, up.receiver.eraser
        await up.receiver.journal_drain.stop()
        with monkeypatch.context() as away:
            away.setattr(store, "end_submission", gone)
            ref = {"x-receiver-ref": "order-7"}
            assert (await up.client.post(SPEECH, json={}, headers=BEARER | ref)).status_code == 200
            assert up.receiver.journal.depth == 1
            job = Subject(kind=SubjectKind.JOB, key="job-1")
            found = await eraser.look(job) if here else FoundOf(traces=Traces(), journaled=())
            assert len(found.journaled) == here
        if not here:
            monkeypatch.setattr(eraser, "journal", None)
        removed = await eraser.erase(job, found, now=up.receiver.clock())
        assert removed.journal_entries == here
        await up.receiver.journal_drain.drain()
        assert up.receiver.journal.depth == 0
        assert await store.submissions(SubmissionFilter()) == []
        assert await store.pickups(PickupFilter()) == []


async def test_a_compressed_answer_that_nobody_asked_for_names_its_job(both: Both) -> None:
    """What cannot be decoded within bounds is passed back as it is, and names none."""
    up, api = both
    said = b'{"request_id": "job-%d"}'
    bomb = gzip.compress(said % 3 + bytes(1_000_000))
    ways = (
        ("gzip", gzip.compress(said % 1), said % 1, "job-1"),
        ("deflate", zlib.compress(said % 2), said % 2, "job-2"),
    )
    for coding, sent, body, job in ways:

        async def behave(
            asked: Asked, writer: asyncio.StreamWriter, coding: str = coding, sent: bytes = sent
        ) -> None:
            writer.write(response(200, sent, f"content-encoding: {coding}"))

        api.behave = behave
        answer = await up.client.post(LISTEN, content=body)
        assert (answer.status_code, answer.content) == (200, body)
        [row] = await up.receiver.store.submissions(SubmissionFilter(limit=1))
        assert row.job_id == job
    for sent in (bomb, bomb[:-5]):

        async def broken(asked: Asked, writer: asyncio.StreamWriter, sent: bytes = sent) -> None:
            writer.write(response(200, sent, "content-encoding: gzip"))

        api.behave = broken
        async with up.client.stream("POST", LISTEN, content=sent) as raw:
            assert (raw.status_code, b"".join([piece async for piece in raw.aiter_raw()])) == (200, sent)
        [row] = await up.receiver.store.submissions(SubmissionFilter(limit=1))
        assert (row.state, row.job_id) == ("accepted", None)


async def test_while_nothing_can_be_sent_a_repetition_is_asked_for_and_nothing_is_kept(both: Both) -> None:
    up, _ = both
    parts, sources = up.receiver.submissions.parts, up.receiver.submissions.parts.sources
    api = sources["deepgram"].api
    away = api.table.model_copy(update={"base": f"http://127.0.0.1:{free_port()}"})
    parts.sources = {"deepgram": replace(sources["deepgram"], api=replace(api, table=away))}
    answer = await up.client.post(LISTEN, content=AUDIO)
    parts.sources = sources
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "submission" not in answer.json()
    assert await up.receiver.store.submissions(SubmissionFilter()) == []
    assert await up.receiver.store.pickups(PickupFilter()) == []


# ---------------------------------------------------------------- never twice


async def _pieces() -> AsyncIterator[bytes]:
    for start in range(0, len(AUDIO), 50_000):
        yield AUDIO[start : start + 50_000]


@pytest.mark.parametrize("manner", ["json", "form", "length", "chunked"])
async def test_a_repetition_after_a_lost_answer_gets_that_answer_and_a_wish_a_new_job(
    both: Both, manner: str
) -> None:
    """The first caller gives up while the provider works; the job is not submitted twice."""
    up, api = both
    going, numbers = asyncio.Event(), iter(range(1, 9))

    async def slow(asked: Asked, writer: asyncio.StreamWriter) -> None:
        number = next(numbers)
        if number == 1:
            await going.wait()
        await accepted({"request_id": f"job-{number}", "data": {"request_id": f"job-{number}"}})(
            asked, writer
        )

    api.behave = slow

    async def submit() -> httpx2.Response:
        if manner == "json":
            return await up.client.post(
                SPEECH, json={"text": "x"}, headers={"authorization": f"Bearer {TOKEN}"}
            )
        if manner == "form":
            headers = {"authorization": f"Bearer {TOKEN}"}
            return await up.client.post(SPEECH, data={"text": "x"}, files={"f": AUDIO}, headers=headers)
        body = AUDIO if manner == "length" else _pieces()
        return await up.client.post(LISTEN, content=body)

    first = asyncio.create_task(submit())
    while not api.asked:
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(submit())
    while api.received < 2 * len(api.asked[0].body) - 120_000 and manner in ("length", "chunked"):
        await asyncio.sleep(0)
    going.set()
    again = await second
    assert again.status_code == 200, again.text
    assert "job-1" in again.text
    assert again.headers["x-receiver-replayed"] == "1"
    assert len(api.asked) == 1
    assert "job-2" in (await submit()).text
    assert len(api.asked) == 2
    await up.seen.until(lambda: len(up.seen.submissions) == 3)
    outcomes = [report.outcome for report in up.seen.submissions]
    assert sorted(outcomes) == ["forwarded", "forwarded", "replayed"]
    assert len(await up.receiver.store.submissions(SubmissionFilter())) == 2


async def test_an_idempotency_key_brings_the_first_answer_and_no_other_job(both: Both) -> None:
    up, api = both
    key = {"idempotency-key": "order-7"}
    api.behave = accepted({"error": "busy"}, status=503)
    assert (await up.client.post(LISTEN, content=b"a", headers=key)).status_code == 503
    api.behave = accepted({"request_id": "job-1"})
    first = await up.client.post(LISTEN, content=b"a", headers=key)
    again = await up.client.post(LISTEN, content=b"a", headers=key)
    assert first.json() == again.json() == {"request_id": "job-1"}
    assert first.headers["x-receiver-submission"] == again.headers["x-receiver-submission"]
    assert again.headers["x-receiver-replayed"] == "1"
    assert (await up.client.post(LISTEN, content=b"b", headers=key)).status_code == 422
    assert (await up.client.post(LISTEN, content=b"b")).status_code == 200
    assert len(api.asked) == 3
    assert "idempotency-key" not in api.asked[0].headers


@pytest.mark.parametrize("key", [{}, {"idempotency-key": "order-7"}])
async def test_what_waits_for_an_identical_call_is_sent_once_that_was_refused(
    both: Both, key: dict[str, str]
) -> None:
    up, api = both
    going = asyncio.Event()

    async def busy_at_first(asked: Asked, writer: asyncio.StreamWriter) -> None:
        first = len(api.asked) == 1
        await going.wait()
        await accepted({"request_id": "job-2"}, status=503 if first else 200)(asked, writer)

    api.behave = busy_at_first
    submit = partial(up.client.post, LISTEN, content=b"a", headers=key)
    lost = asyncio.create_task(submit())
    while not api.asked:
        await asyncio.sleep(0)
    lost.cancel()
    waiting = asyncio.create_task(submit())
    while up.receiver.submissions.applications.under_way < 2:
        await asyncio.sleep(0)
    for _ in range(5):  # until it has found the first
        await up.receiver.store.submissions(SubmissionFilter())
    going.set()
    assert (await waiting).status_code == 200
    assert len(api.asked) == 2


async def test_an_answer_is_forgotten_in_time_and_what_a_crash_left_open_is_given_up(both: Both) -> None:
    up, _ = both
    await up.client.post(LISTEN, content=b"a", headers={"idempotency-key": "k"})
    store = up.receiver.store
    [row] = await store.submissions(SubmissionFilter())
    assert row.answer is not None
    late = row.created_at + 1
    await store.forget_answers(before=late)
    [row] = await store.submissions(SubmissionFilter())
    assert (row.answer, row.idempotency_key) == (None, None)


async def test_the_key_of_what_a_crash_left_open_is_good_for_another_job(both: Both) -> None:
    up, _ = both
    await up.client.post(LISTEN, content=b"a")
    store = up.receiver.store
    [row] = await store.submissions(SubmissionFilter())
    left, claims, expected = new(
        1, at=row.created_at, application=row.application, source=row.source, idempotency_key="k"
    )
    assert await store.begin_submission(left, claims, expected) is None
    later = row.created_at + (OPEN_SECONDS + 1) * 1000
    up.receiver.submissions.parts.clock = lambda: later
    for _ in range(2):
        await up.receiver.submissions.sweep()
    [told] = await kept_events(store, types=("submission.unknown",))
    assert told.ref == left.ref
    up.receiver.submissions.parts.clock = up.receiver.clock
    async with asyncio.timeout(PATIENCE):
        again = await up.client.post(LISTEN, content=b"b", headers={"idempotency-key": "k"})
    assert (again.status_code, again.headers.get("x-receiver-replayed")) == (200, None)


async def test_bounds_of_bodies_and_of_calls_at_once(tmp_path: Path) -> None:
    bounds = "max_json_bytes = 100\nmax_body_bytes = 1000\nidle_seconds = 0.3"
    async with submitting(tmp_path, submit=bounds, limits="jobs_per_day = 1\nbytes_per_day = 9000") as (
        up,
        api,
    ):
        bearer = {"authorization": f"Bearer {TOKEN}"}
        assert (await up.client.post(SPEECH, json={"text": "x" * 200}, headers=bearer)).status_code == 413
        assert (await up.client.post(LISTEN, content=bytes(2000))).status_code == 413

        async def slow() -> AsyncIterator[bytes]:
            yield b"a"
            await asyncio.sleep(5)

        assert (await up.client.post(LISTEN, content=slow())).status_code == 408
        assert (await up.client.post(LISTEN, content=b"a")).status_code == 200  # none of those was a job
        full = await up.client.post(LISTEN, content=b"a")
        assert (full.status_code, int(full.headers["retry-after"]) > 0) == (429, True)
        submissions = up.receiver.submissions
        sent = [("authorization", f"Token {TOKEN}")]
        allowance = submissions.applications.prove(sent, submissions.parts.sources["deepgram"].api.table)
        allowance.settings = allowance.settings.model_copy(update={"at_once": 0})
        busy = await up.client.post(LISTEN, content=b"a")
        assert (busy.status_code, "0 calls are under way" in busy.text) == (429, True)
        assert len(api.asked) == 1
        assert len(await up.receiver.store.submissions(SubmissionFilter(limit=5))) == 1


@pytest.mark.parametrize("processes", [1, 3])
async def test_limits_hold_over_all_processes_and_begin_anew_with_their_window(
    both: Both, processes: int
) -> None:
    token = SubmitToken(
        name="crm",
        secrets=(SecretStr(TOKEN),),
        sources=("deepgram",),
        per_minute=100,
        reads_per_second=2,
        jobs_per_day=70,
        bytes_per_day=5000,
    )
    fleet, store, day = [Allowance(token) for _ in range(processes)], both[0].receiver.store, 86_400_000

    async def admitted(kind: Kind, at: int, size: int = 0) -> int:
        """Return how many calls go through, each process taking its turn until all are refused."""
        count, asking = 0, list(fleet)
        while asking:
            one = asking.pop(0)
            with contextlib.suppress(SubmissionRefused):
                await one.admit(kind, store, lambda: at)
                one.bytes.left -= size
                count += 1
                asking.append(one)
        return count

    assert await admitted("upload", 10 * day) == 100
    assert await admitted("read", 10 * day) == 20
    assert await admitted("read", 10 * day + 10_000) == 20
    assert await admitted("submit", 10 * day + 60_000) == 70
    assert await admitted("submit", 10 * day + 120_000) == 0
    by_bytes = await admitted("upload", 11 * day, size=1000)
    assert 5 <= by_bytes <= 5 + processes
    assert await admitted("upload", 12 * day, size=2000) <= 3 + processes


async def test_calls_that_ask_for_room_while_a_window_ends_are_both_admitted(both: Both) -> None:
    token = SubmitToken(name="crm", secrets=(SecretStr(TOKEN),), sources=("deepgram",), per_minute=32)
    allowance, store = Allowance(token), both[0].receiver.store
    calls = [chain([59_999], repeat(60_000)), repeat(60_000)]
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(allowance.admit("upload", store, partial(next, at)) for at in calls))


async def test_many_calls_at_once_leave_other_processes_their_share(both: Both) -> None:
    token = SubmitToken(name="crm", secrets=(SecretStr(TOKEN),), sources=("deepgram",), per_minute=100)
    busy, other, store = Allowance(token), Allowance(token), both[0].receiver.store
    at = 20 * 86_400_000
    await asyncio.gather(*(busy.admit("upload", store, lambda: at) for _ in range(10)))
    await other.admit("upload", store, lambda: at)


@pytest.mark.parametrize("size", [2 * MIB, pytest.param(256 * MIB, marks=pytest.mark.soak)])
async def test_an_upload_that_is_cut_off_makes_no_job_and_leaves_nothing(tmp_path: Path, size: int) -> None:
    """At each tenth: the provider never has the whole of it."""
    async with submitting(tmp_path) as (up, api):
        api.keep_bodies = False
        for tenth in range(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(up.base.rpartition(":")[2]))
            head = f"POST {LISTEN} HTTP/1.1\r\nHost: a\r\nAuthorization: Token {TOKEN}\r\nContent-Length: {size}\r\n\r\n"
            writer.write(head.encode())
            for _ in range(size * tenth // 10 // 65536):
                writer.write(bytes(65536))
                await writer.drain()
            writer.write(b"a")
            await writer.drain()
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await reader.read()
            await up.seen.until(lambda wanted=tenth + 1: len(up.seen.submissions) == wanted)  # type: ignore[misc]
        assert {report.outcome for report in up.seen.submissions} == {"refused"}
        assert api.asked == []
        assert await up.receiver.store.submissions(SubmissionFilter()) == []
        assert await up.receiver.store.pickups(PickupFilter()) == []


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.soak)])
async def test_applications_at_their_limits_do_not_take_anothers_share(tmp_path: Path, count: int) -> None:
    tokens = {f"app-{number}": f"rcvsub{number:040d}" for number in range(count)}
    extra = "".join(
        f'[[submit.tokens]]\nname = "{name}"\nsecrets = ["{token}"]\nsources = ["deepgram"]\nper_minute = 2\n'
        for name, token in tokens.items()
    )
    async with submitting(tmp_path, more=extra, answer_seconds="60") as (up, api):
        now = up.receiver.clock()
        up.receiver.submissions.parts.clock = lambda: now  # one window for all

        at_once = asyncio.Semaphore(50)

        async def calls(name: str) -> list[int]:
            sent = {"authorization": f"Token {tokens[name]}"}
            async with at_once:  # the client waits no longer than that for a connection
                return [
                    (await up.client.post(LISTEN, content=f"{name} {n}".encode(), headers=sent)).status_code
                    for n in range(3)
                ]

        told = await asyncio.gather(*map(calls, tokens))
        assert {tuple(one) for one in told} == {(200, 200, 429)}
        assert len(api.asked) == 2 * count
        assert (await up.client.post(LISTEN, content=b"RIFF")).status_code == 200


async def test_an_answer_before_the_body_has_ended_is_passed_back(both: Both) -> None:
    up, api = both
    whole = response(413, b'{"err_code": "TOO_LARGE"}')
    api.early = whole[:-9]

    async def rest(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(whole[-9:])

    api.behave = rest

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield bytes(50_000)

    answer = await up.client.post(LISTEN, content=endless())
    assert (answer.status_code, answer.json()) == (413, {"err_code": "TOO_LARGE"})
    assert await up.receiver.store.pickups(PickupFilter()) == []


async def test_a_callback_of_deapis_is_proved_by_the_secret_that_was_given_with_the_job(both: Both) -> None:
    up, api = both
    bearer = {"authorization": f"Bearer {TOKEN}", "x-receiver-ref": "order-8"}
    assert (await up.client.post(SPEECH, json={"text": "x"}, headers=bearer)).status_code == 200
    given = json.loads(api.asked[0].body)
    path = urlsplit(given["webhook_url"]).path
    body = json.dumps(
        {"event": "job.processing", "data": {"job_request_id": "job-1", "job_type": "txt2audio"}}
    )
    for secret, status in ((DEAPI_SECRET, 401), (given["webhook_secret"], 200)):
        headers = signed(secret, body.encode(), now=up.receiver.clock())
        answer = await up.client.post(path, content=body, headers=headers)
        assert answer.status_code == status, answer.text
    [event] = await kept_events(up.receiver.store)
    assert (event.ref, event.job_id) == ("order-8", "job-1")
