"""The PlayHT stand-in keeps to PlayHT's contract: what is tested against it means something."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest

from receiver.demo.playht import API_KEY, END, USER_ID, WHOLE_STREAM, Playht, generating
from receiver.demo.serving import served
from tests.support.clients import NO_AUTHORITIES

PROOF = {"AUTHORIZATION": f"Bearer {API_KEY}", "X-USER-ID": USER_ID}
WANTED = {"text": "Good morning.", "voice": "s3://voice", "output_format": "mp3"}


@pytest.fixture
def service() -> Iterator[tuple[Playht, httpx2.Client]]:
    """A stand-in, and a client with the right key."""
    standin = Playht()
    with (
        served(standin.app) as base,
        httpx2.Client(base_url=base, headers=PROOF, verify=NO_AUTHORITIES, trust_env=False) as client,
    ):
        yield standin, client


def _events(text: str) -> list[tuple[str, str]]:
    blocks = [block.splitlines() for block in text.split("\r\n\r\n") if block]
    return [(name.removeprefix("event: "), data.removeprefix("data: ")) for name, data in blocks]


@pytest.mark.parametrize("missing", ["AUTHORIZATION", "X-USER-ID"])
def test_key_and_user_id_are_both_checked(service: tuple[Playht, httpx2.Client], missing: str) -> None:
    _, client = service
    answer = client.get("/api/v2/tts/x", headers={missing: "wrong"})
    assert answer.status_code == 403
    assert "error_message" in answer.json()


def test_a_job_is_made_as_json(service: tuple[Playht, httpx2.Client]) -> None:
    """201, the job's path in Location, and no output yet."""
    _, client = service
    answer = client.post("/api/v2/tts", json=WANTED, headers={"accept": "application/json"})
    job = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"/api/v2/tts/{job['id']}")
    assert set(job) == {"id", "created", "input", "output", "_links"}
    assert job["output"] is None


@pytest.mark.parametrize(
    ("accept", "query"), [("text/event-stream", ""), ("*/*", ""), ("*/*", "?format=event-stream")]
)
def test_a_job_is_made_as_a_stream(service: tuple[Playht, httpx2.Client], accept: str, query: str) -> None:
    """201 with Content-Location, and the events to the end."""
    _, client = service
    answer = client.post(f"/api/v2/tts{query}", json=WANTED, headers={"accept": accept})
    location = answer.headers["location"]
    assert answer.status_code == 201
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["content-location"] == f"{location}?format=event-stream"
    events = _events(answer.text)
    assert [name for name, _ in events] == [*["generating"] * 2, "ping", *["generating"] * 2, "completed"]
    told = json.loads(events[-1][1])
    assert set(told) == {"id", "progress", "stage", "url", "duration", "size"}
    assert told["url"].endswith(f"/pigeon/{told['id']}_0.mp3")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"text":"x"}'])
def test_a_job_without_text_and_voice_is_refused(service: tuple[Playht, httpx2.Client], body: bytes) -> None:
    assert service[1].post("/api/v2/tts", content=body).status_code == 400


def test_a_job_is_asked_for_until_it_is_there(service: tuple[Playht, httpx2.Client]) -> None:
    standin, client = service
    job = standin.add(unfinished=1)
    asked = [client.get(f"/api/v2/tts/{job.id}", headers={"accept": "application/json"}) for _ in range(2)]
    assert [answer.json()["output"] is None for answer in asked] == [True, False]
    output = asked[1].json()["output"]
    fetched = httpx2.get(output["url"], verify=NO_AUTHORITIES, trust_env=False)
    assert fetched.content == job.audio
    assert (output["size"], fetched.headers["content-type"]) == (len(job.audio), "audio/mpeg")


def test_a_forgotten_job_is_404(service: tuple[Playht, httpx2.Client]) -> None:
    standin, client = service
    job = standin.add()
    del standin.jobs[job.id]
    assert client.get(f"/api/v2/tts/{job.id}").status_code == 404


def test_each_time_it_is_asked_for_the_stream_does_the_next_thing(
    service: tuple[Playht, httpx2.Client],
) -> None:
    standin, client = service
    job = standin.add(streams=[(generating(0.5), END), WHOLE_STREAM])
    ask = {"accept": "text/event-stream"}
    ends = [_events(client.get(f"/api/v2/tts/{job.id}", headers=ask).text)[-1][0] for _ in range(3)]
    assert ends == ["generating", "completed", "completed"]


def test_a_signed_link_needs_its_signature(service: tuple[Playht, httpx2.Client]) -> None:
    standin, client = service
    job = standin.add(result_query="?sig=1")
    signed = job.result_url(str(client.base_url).rstrip("/"))
    assert [
        httpx2.get(url, verify=NO_AUTHORITIES, trust_env=False).status_code
        for url in (signed, signed.partition("?")[0])
    ] == [200, 403]


def test_every_request_is_remembered(service: tuple[Playht, httpx2.Client]) -> None:
    standin, client = service
    client.get("/api/v2/tts/x")
    assert [(request.method, request.path) for request in standin.requests] == [("GET", "/api/v2/tts/x")]
    assert standin.requests[0].headers["x-user-id"] == USER_ID
    assert API_KEY not in repr(standin.requests)
