"""Sources that settings describe, through the front door: proofs, handshakes, published keys, results that are fetched."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from receiver.core.clock import wall_clock
from receiver.core.errors import PickupRefused
from receiver.engine.pickups import new_expectation, new_pickup
from receiver.providers import public_keys
from tests.support.provider_host import ProviderHost, Talk, reply
from tests.support.running import Running, running
from tests.support.sink import Sink

SECRET = "example-secret-0123456789abcdef"
KEY = "provider-key-0123456789abcdef"
PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = base64.urlsafe_b64encode(PRIVATE.public_key().public_bytes_raw()).decode().rstrip("=")
MP3 = (b"\xff\xfb\x90\x64" + bytes(413)) * 8


def text(folder: Path, source: str, sink: str = "") -> str:
    """Return a receiver.toml with one source, and one destination if there is a sink."""
    out = f'[destinations.app]\nurl = "{sink}"\nallow = ["127.0.0.0/8"]\n' if sink else ""
    return f'data = "{folder / "data"}"\npublic_url = "https://hooks.example.com"\n{out}[sources.x]\n{source}'


def signed(body: bytes, secret: str = SECRET) -> dict[str, str]:
    """Return ElevenLabs' header."""
    stamp = int(time.time())
    digest = hmac.new(secret.encode(), f"{stamp}.".encode() + body, "sha256").hexdigest()
    return {"ElevenLabs-Signature": f"t={stamp},v0={digest}"}


async def post(up: Running, body: bytes, headers: dict[str, str], path: str = "/callbacks/x") -> Any:
    return await up.client.post(path, content=body, headers={"content-type": "application/json", **headers})


async def test_one_line_of_settings_takes_a_provider_from_callback_to_event(tmp_path: Path) -> None:
    body = json.dumps(
        {
            "type": "speech_to_text_transcription",
            "data": {"request_id": "r1", "transcription": {"text": "Hello there.", "language_code": "en"}},
        }
    ).encode()
    async with (
        Sink() as sink,
        running(tmp_path, text(tmp_path, f'recipe = "elevenlabs"\nsecrets = ["{SECRET}"]', sink.url)) as up,
    ):
        assert (await post(up, body, signed(body))).json()["status"] == "recorded"
        assert (await post(up, body, signed(body))).json()["status"] == "duplicate"
        assert (await post(up, body, signed(body, "another-secret"))).status_code == 401
        await sink.until(1)
        (request,) = sink.received
        event = json.loads(request.body)
        assert (event["type"], event["data"]["job_id"]) == ("transcript.completed", "r1")
        assert event["data"]["transcript"]["text"] == "Hello there."


async def test_what_the_settings_ignore_is_answered_and_not_kept(tmp_path: Path) -> None:
    body = b'{"type":"voice_removed","data":{}}'
    async with running(
        tmp_path, text(tmp_path, f'recipe = "elevenlabs"\nsecrets = ["{SECRET}"]'), work=False
    ) as up:
        answer = await post(up, body, signed(body))
        assert (answer.status_code, answer.json()) == (200, {"status": "ignored"})
        assert up.seen.callbacks[-1].answer == "ignored"
        assert not list((tmp_path / "data" / "blobs").rglob("*.*"))


async def test_audio_within_a_document_is_stored_as_audio(tmp_path: Path) -> None:
    body = json.dumps(
        {
            "type": "post_call_audio",
            "data": {"conversation_id": "c1", "full_audio": base64.b64encode(MP3).decode()},
        }
    ).encode()
    async with running(
        tmp_path, text(tmp_path, f'recipe = "elevenlabs"\nsecrets = ["{SECRET}"]'), work=False
    ) as up:
        assert (await post(up, body, signed(body))).json()["status"] == "recorded"
        (stored,) = (tmp_path / "data" / "blobs").rglob("*.mp3")
        assert stored.read_bytes() == MP3


# ---------------------------------------------------------------- handshakes


def signed_by_zoom(body: bytes, secret: str = SECRET) -> dict[str, str]:
    """Return Zoom's headers."""
    stamp = str(int(time.time()))
    digest = hmac.new(secret.encode(), f"v0:{stamp}:".encode() + body, "sha256").hexdigest()
    return {"x-zm-signature": f"v0={digest}", "x-zm-request-timestamp": stamp}


async def test_zooms_question_is_answered_with_its_token_signed(tmp_path: Path) -> None:
    """`plainToken` and its HMAC, to a question that Zoom signs (https://github.com/zoom/webhook-sample)."""
    body = b'{"event":"endpoint.url_validation","payload":{"plainToken":"abc"}}'
    async with running(
        tmp_path, text(tmp_path, f'recipe = "zoom"\nsecrets = ["{SECRET}"]'), work=False
    ) as up:
        answer = await post(up, body, signed_by_zoom(body))
        digest = hmac.new(SECRET.encode(), b"abc", "sha256").hexdigest()
        assert answer.json() == {"plainToken": "abc", "encryptedToken": digest}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert up.seen.callbacks[-1].answer == "handshake"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
@pytest.mark.parametrize("headers", [{}, signed_by_zoom(b"", "another-secret-0123")])
async def test_a_stranger_has_nothing_signed(tmp_path: Path, method: str, headers: dict[str, str]) -> None:
    """What a stranger has signed would be the proof of a callback: `v0:`, a time and a body."""
    token = 'v0:1705315845:{"event":"recording.completed"}'
    body = json.dumps({"event": "endpoint.url_validation", "payload": {"plainToken": token}})
    async with running(
        tmp_path, text(tmp_path, f'recipe = "zoom"\nsecrets = ["{SECRET}"]'), work=False
    ) as up:
        answer = await up.client.request(method, "/callbacks/x", content=body, headers=headers)
        assert answer.status_code == (405 if method == "GET" else 401)
        assert hmac.new(SECRET.encode(), token.encode(), "sha256").hexdigest() not in answer.text


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_token_in_the_query_is_echoed_as_plain_text(tmp_path: Path, method: str) -> None:
    async with running(
        tmp_path, text(tmp_path, f'recipe = "azure-speech"\nsecrets = ["{SECRET}"]'), work=False
    ) as up:
        answer = await up.client.request(method, "/callbacks/x?validationToken=abc-1")
        assert (answer.status_code, answer.text) == (200, "abc-1")
        assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("value", ["a" * 1025, "a%0Ab", "%00", ""], ids=["long", "line feed", "NUL", "empty"])
async def test_an_echo_reflects_nothing_but_short_printable_text(tmp_path: Path, value: str) -> None:
    async with running(
        tmp_path, text(tmp_path, f'recipe = "azure-speech"\nsecrets = ["{SECRET}"]'), work=False
    ) as up:
        answer = await up.client.get(f"/callbacks/x?validationToken={value}")
        assert answer.status_code == 405


async def test_options_is_answered_where_a_provider_asks_so(tmp_path: Path) -> None:
    async with running(
        tmp_path, text(tmp_path, f'recipe = "heygen"\nsecrets = ["{SECRET}"]'), work=False
    ) as up:
        assert (await up.client.options("/callbacks/x")).status_code == 200
        assert (await up.client.get("/callbacks/x")).status_code == 405
    async with running(
        tmp_path, text(tmp_path, f'recipe = "elevenlabs"\nsecrets = ["{SECRET}"]'), work=False
    ) as up:
        assert (await up.client.options("/callbacks/x")).status_code == 405


# ---------------------------------------------------------------- published keys


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def https(authority: trustme.CA) -> ProviderHost:
    """Return a host that proves to be `localhost`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return ProviderHost(tls=context)


def published(host: ProviderHost, authority: trustme.CA, folder: Path) -> str:
    """Return a source whose keys are published at a host."""
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return f"""provider = "custom"
allow = ["127.0.0.0/8"]
ca_file = "{folder / "ca.pem"}"
event = {{family = "speech", job = "id"}}
result = {{from = "none"}}
[[sources.x.proof]]
kind = "public-key"
jwks = "{host.url("/keys", "localhost")}"
header = "X-Signature"
no_clock = true
"""


def keys(*kinds: dict[str, str]) -> bytes:
    return json.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": PUBLIC, "kid": "k"}, *kinds]}).encode()


async def test_keys_are_fetched_once_for_many_callbacks(tmp_path: Path, authority: trustme.CA) -> None:
    async with (
        https(authority) as host,
        running(tmp_path, text(tmp_path, published(host, authority, tmp_path)), work=False) as up,
    ):
        host.scripts["/keys"] = reply(200, keys({"kty": "unheard"}))
        for number in range(5):
            body = b'{"id":"%d"}' % number
            answer = await post(up, body, {"X-Signature": PRIVATE.sign(body).hex()})
            assert answer.json()["status"] == "recorded"
            assert (await post(up, body, {"X-Signature": "00" * 64})).status_code == 401
        assert len(host.requests) == 1


@pytest.mark.parametrize(
    "lie",
    [
        reply(500),
        reply(200, b"<html>"),
        reply(200, b'{"keys":[]}'),
        reply(302, headers={"location": "/keys"}),
    ],
)
async def test_keys_that_cannot_be_had_make_for_a_503_and_no_storm(
    tmp_path: Path, authority: trustme.CA, lie: bytes
) -> None:
    """A real callback must not be refused for good, and a stranger must not make us ask the provider again and again."""
    async with (
        https(authority) as host,
        running(tmp_path, text(tmp_path, published(host, authority, tmp_path)), work=False) as up,
    ):
        host.scripts["/keys"] = lie
        for _ in range(3):
            answer = await post(up, b'{"id":"1"}', {"X-Signature": PRIVATE.sign(b'{"id":"1"}').hex()})
            assert answer.status_code == 503
            assert "keys" in answer.json()["error"]
        assert len(host.requests) == 1


async def test_keys_that_hang_hold_a_callback_up_for_seconds_only(
    tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_keys, "FETCH_SECONDS", 0.2)
    async with (
        https(authority) as host,
        running(tmp_path, text(tmp_path, published(host, authority, tmp_path)), work=False) as up,
    ):

        async def hang(talk: Talk) -> None:
            await talk.hang()

        host.scripts["/keys"] = hang
        answer = await post(up, b'{"id":"1"}', {"X-Signature": PRIVATE.sign(b'{"id":"1"}').hex()})
        assert answer.status_code == 503
        assert len(host.requests) <= 1


async def test_keys_inside_a_private_network_are_not_asked_for(tmp_path: Path, authority: trustme.CA) -> None:
    async with https(authority) as host:
        inside = published(host, authority, tmp_path).replace('allow = ["127.0.0.0/8"]', "")
        async with running(tmp_path, text(tmp_path, inside), work=False) as up:
            answer = await post(up, b'{"id":"1"}', {"X-Signature": PRIVATE.sign(b'{"id":"1"}').hex()})
            assert answer.status_code == 503
            assert host.requests == []


# ---------------------------------------------------------------- results


def fetched_by(recipe: str, result: str) -> str:
    return f"""recipe = "{recipe}"
secrets = ["{SECRET}"]
require_token = false
api_key = "{KEY}"
allow = ["127.0.0.0/8"]
{result}
"""


def fetched(host: ProviderHost, result: str) -> str:
    return fetched_by("soniox", result.replace("HOST", host.url("")))


async def test_a_thin_callback_is_completed_by_asking_the_provider(tmp_path: Path) -> None:
    result = '[sources.x.result]\nurl = "HOST/t/{job}"\nhosts = ["127.0.0.1"]\nevery = 1'
    body = b'{"id":"s/1","status":"completed"}'
    async with ProviderHost() as host, Sink() as sink:
        host.scripts["/t/s%2F1"] = reply(200, b'{"text": "Hello.", "tokens": [1]}')
        async with running(tmp_path, text(tmp_path, fetched(host, result), sink.url)) as up:
            answer = await post(up, body, {"X-Soniox-Webhook-Secret": SECRET})
            assert answer.status_code == 200
            await sink.until(1)
            (request,) = sink.received
        event = json.loads(request.body)
        assert (event["type"], request.headers["webhook-id"]) == (
            "transcript.completed",
            answer.json()["event_id"],
        )
        assert event["data"]["transcript"]["text"] == "Hello."
        (kept,) = (tmp_path / "data" / "blobs").rglob("*.json")
        assert kept.read_bytes() == b'{"text":"Hello.","tokens":[1]}'
        assert host.requests[0].headers["authorization"] == f"Bearer {KEY}"


async def test_an_answer_that_is_the_result_is_stored(tmp_path: Path) -> None:
    """Of Rev AI nothing tells where the text is: the event brings the whole transcript as its document."""
    own = fetched_by("revai", '[sources.x.result]\nurl = "HOST/t/{job}"\nhosts = ["127.0.0.1"]\nevery = 1')
    said = b'{"monologues":[{"elements":[{"value":"Hello."}]}]}'
    async with ProviderHost() as host, Sink() as sink:
        host.scripts["/t/7"] = reply(200, said)
        async with running(tmp_path, text(tmp_path, own.replace("HOST", host.url("")), sink.url)) as up:
            body = b'{"job":{"id":"7","status":"transcribed"}}'
            assert (await post(up, body, {"Authorization": f"Bearer {SECRET}"})).status_code == 200
            await sink.until(1)
        event = json.loads(sink.received[0].body)
        assert event["data"]["document"]["sha256"] == hashlib.sha256(said).hexdigest()


async def test_an_answer_may_lead_on_to_the_result(tmp_path: Path) -> None:
    """By any number of further questions. The key goes to the API alone: a redirect and the link in an answer get none."""
    source = """provider = "custom"
secrets = ["SECRET"]
api_key = "KEY"
require_token = false
allow = ["127.0.0.0/8"]
proof = [{kind = "same", at = "header:X-Secret"}]
event = {family = "speech", job = "id"}
[sources.x.result]
from = "get"
url = "HOST/jobs/{job}"
hosts = ["127.0.0.1"]
auth = {header = "X-Key"}
state = "status"
completed = ["done"]
failed = ["failed"]
error = "reason"
every = 1
[sources.x.result.then]
from = "get"
at = "files"
hosts = ["127.0.0.1"]
auth = {header = "X-Key"}
then = {from = "link", at = "links[0].href", hosts = ["127.0.0.1"]}
"""
    async with ProviderHost() as host, Sink() as sink:
        source = source.replace("SECRET", SECRET).replace("KEY", KEY).replace("HOST", host.url(""))
        links = json.dumps({"links": [{"href": host.url("/a.mp3")}]}).encode()
        host.scripts["/jobs/1"] = reply(
            200, json.dumps({"status": "done", "files": host.url("/files")}).encode()
        )
        host.scripts["/files"] = reply(302, b"", {"Location": "/store/1"})
        host.scripts["/store/1"] = reply(200, links)
        host.scripts["/jobs/2"] = reply(200, b'{"status":"failed","reason":"no voice"}')
        host.scripts["/a.mp3"] = reply(200, MP3, {"content-type": "audio/mpeg"})
        async with running(tmp_path, text(tmp_path, source, sink.url)) as up:
            for job in (b'{"id":1}', b'{"id":2}'):
                assert (await post(up, job, {"X-Secret": SECRET})).status_code == 200
            await sink.until(2)
        events = {e["data"]["job_id"]: e for e in (json.loads(r.body) for r in sink.received)}
        assert events["1"]["data"]["audio"]["sha256"] == hashlib.sha256(MP3).hexdigest()
        assert (events["2"]["type"], events["2"]["data"]["error"]["message"]) == ("speech.failed", "no voice")
        assert {r.path: "x-key" in r.headers for r in host.requests} == {
            "/jobs/1": True,
            "/jobs/2": True,
            "/files": True,
            "/store/1": False,
            "/a.mp3": False,
        }


async def test_nothing_is_fetched_from_a_host_that_is_not_named(tmp_path: Path) -> None:
    source = f"""provider = "custom"
secrets = ["{SECRET}"]
require_token = false
allow = ["127.0.0.0/8"]
proof = [{{kind = "same", at = "header:X-Secret"}}]
event = {{family = "speech", job = "id"}}
result = {{from = "link", at = "url", hosts = ["files.example.com"]}}
"""
    async with ProviderHost() as host, running(tmp_path, text(tmp_path, source)) as up:
        body = json.dumps({"id": "1", "url": host.url("/a.mp3")}).encode()
        assert (await post(up, body, {"X-Secret": SECRET})).status_code == 200
        await up.seen.until(lambda: bool(up.seen.pickups))
        assert host.requests == []
        assert up.seen.pickups[0].outcome.kind.value == "blocked"


# ---------------------------------------------------------------- what comes in the query


QUERY = f"""provider = "custom"
secrets = ["{SECRET}"]
methods = ["GET", "POST"]
body = "query"
require_token = false
proof = [{{kind = "same", at = "query:key"}}]
event = {{family = "transcript", job = "job", state = "state", completed = ["DONE"], processing = ["RUNNING"]}}
"""


async def test_callbacks_by_query_are_told_apart_and_kept_without_their_secret(tmp_path: Path) -> None:
    """With an empty body they had all been one, and their content was lost."""
    async with running(tmp_path, text(tmp_path, QUERY), work=False) as up:
        said = []
        for job, state in [("1", "RUNNING"), ("2", "RUNNING"), ("1", "ODD"), ("2", "ODD"), ("1", "DONE")]:
            answer = await up.client.get(f"/callbacks/x?key={SECRET}&job={job}&state={state}")
            said.append((answer.json()["status"], answer.json()["event_id"]))
        assert [status for status, _ in said] == ["recorded", "recorded", "parked", "parked", "recorded"]
        kept = await up.receiver.store.body(said[3][1])
        assert kept == b'{"job":"2","state":"ODD"}'
        parked = await up.receiver.store.event(said[2][1])
        assert b"the state 'ODD' at field:state is in none of" in parked.data
        again = await up.client.get(f"/callbacks/x?key={SECRET}&job=1&state=ODD")
        assert again.json()["status"] == "duplicate"
        assert (await up.client.get("/callbacks/x?key=wrong&job=1&state=DONE")).status_code == 401


@pytest.mark.parametrize("job", ["..", "."])
async def test_a_job_id_does_not_lead_to_another_path_of_the_api(tmp_path: Path, job: str) -> None:
    result = '[sources.x.result]\nurl = "HOST/t/{job}/text"\nhosts = ["127.0.0.1"]\nevery = 1'
    async with (
        ProviderHost() as host,
        running(tmp_path, text(tmp_path, fetched(host, result)), work=False) as up,
    ):
        body = json.dumps({"id": job, "status": "completed"}).encode()
        answer = await post(up, body, {"X-Soniox-Webhook-Secret": SECRET})
        assert answer.json()["status"] == "parked"


# ---------------------------------------------------------------- asking for what nobody called back about


ASKED = f"""provider = "custom"
secrets = ["{SECRET}"]
api_key = "{KEY}"
require_token = false
allow = ["127.0.0.0/8"]
proof = [{{kind = "same", at = "header:X-Secret"}}]
event = {{family = "transcript", job = "id", state = "state", completed = "done", failed = "failed", processing = "begun"}}
result = {{from = "get", url = "HOST/t/{{job}}", hosts = ["127.0.0.1"], auth = "bearer", every = 1, then = {{from = "text", at = "text"}}}}
"""
POLLED = f"""provider = "custom"
api_key = "{KEY}"
allow = ["127.0.0.0/8"]
result = {{speech = {{from = "get", url = "HOST/a/{{job}}", hosts = ["127.0.0.1"], auth = {{header = "X-Key"}}, every = 1}}}}
"""


def ordered(up: Running, job: str, *, within: float = 0) -> Any:
    """Return the pickup of a job, as `receiver pickup x JOB --expect-within` makes it."""
    pull = up.receiver.ports.pulls["x"]
    return new_pickup(pull, job, ref="order-9", expect_seconds=within, now=wall_clock())


async def test_a_job_whose_callback_does_not_come_is_asked_for(tmp_path: Path) -> None:
    async with ProviderHost() as host, Sink() as sink:
        host.scripts["/t/1"] = reply(200, b'{"text":"Hello."}')
        async with running(tmp_path, text(tmp_path, ASKED.replace("HOST", host.url("")), sink.url)) as up:
            made = ordered(up, "1", within=0.5)
            assert made.due_at == made.created_at + 500
            await up.receiver.store.add_pickup(made)
            up.receiver.collector.wake(["x"])
            await sink.until(1)
            late = await post(up, b'{"id":"1","state":"done"}', {"X-Secret": SECRET})
            assert (late.json()["status"], late.json()["event_id"]) == ("duplicate", made.event_id)
        event = json.loads(sink.received[0].body)
        assert (event["type"], event["data"]["ref"]) == ("transcript.completed", "order-9")
        assert len(host.requests) == 1


async def test_a_callback_in_time_brings_the_result_of_a_job_that_was_handed_over(tmp_path: Path) -> None:
    """There is one event, with the id and the ref of the pickup, and nothing is asked a second time."""
    async with ProviderHost() as host, Sink() as sink:
        host.scripts["/t/1"] = reply(200, b'{"text":"Hello."}')
        async with running(tmp_path, text(tmp_path, ASKED.replace("HOST", host.url("")), sink.url)) as up:
            made = ordered(up, "1", within=3600)
            await up.receiver.store.add_pickup(made)
            answer = await post(up, b'{"id":"1","state":"done"}', {"X-Secret": SECRET})
            assert answer.json()["event_id"] == made.event_id
            await sink.until(1)
            ended = await up.receiver.store.pickup(made.id)
        event = json.loads(sink.received[0].body)
        assert (event["data"]["ref"], event["data"]["transcript"]["text"]) == ("order-9", "Hello.")
        assert (ended.state.value, len(host.requests)) == ("collected", 1)


async def test_results_of_two_families_of_one_job_are_two_events(tmp_path: Path) -> None:
    """A call's transcript and its audio have one id."""
    source = f"""provider = "custom"
secrets = ["{SECRET}"]
require_token = false
allow = ["127.0.0.0/8"]
proof = [{{kind = "same", at = "header:X-Secret"}}]
event = {{family_at = "kind", families = {{a = "transcript", b = "speech"}}, job = "id"}}
result.transcript = {{from = "get", url = "HOST/t/{{job}}", hosts = ["127.0.0.1"], then = {{from = "text", at = "text"}}}}
result.speech = {{from = "none"}}
"""
    async with (
        ProviderHost() as host,
        running(tmp_path, text(tmp_path, source.replace("HOST", host.url("")))) as up,
    ):
        host.scripts["/t/1"] = reply(200, b'{"text":"Hello."}')
        await up.receiver.store.add_pickup(ordered(up, "1"))
        up.receiver.collector.wake(["x"])
        await up.seen.until(lambda: bool(up.seen.pickups))
        said = []
        for kind in ("a", "b"):
            body = json.dumps({"id": "1", "kind": kind}).encode()
            said.append((await post(up, body, {"X-Secret": SECRET})).json()["status"])
        assert said == ["duplicate", "recorded"]


async def test_an_expectation_learns_its_job_and_asks_when_it_is_overdue(tmp_path: Path) -> None:
    """`callback-url --expect-within`: the callback of progress came, that of the end did not."""
    async with ProviderHost() as host, Sink() as sink:
        host.scripts["/t/7"] = reply(200, b'{"text":"Hello."}')
        async with running(tmp_path, text(tmp_path, ASKED.replace("HOST", host.url("")), sink.url)) as up:
            now = wall_clock()
            token = up.receiver.tokens.issue("x", ref="order-9", expect_by=now + 1500)
            claims = up.receiver.tokens.read(token)
            assert claims is not None
            pull = up.receiver.ports.pulls["x"]
            await up.receiver.store.add_pickup(new_expectation("x", claims, pull, now=now))
            body = b'{"id":"7","state":"begun"}'
            answer = await post(up, body, {"X-Secret": SECRET}, f"/callbacks/x/{token}")
            assert answer.json()["status"] == "recorded"
            up.receiver.collector.wake(["x"])
            await sink.until(2)
        types = [json.loads(request.body)["type"] for request in sink.received]
        assert types == ["transcript.processing", "transcript.completed"]


async def test_a_source_that_is_only_polled_needs_no_callback(tmp_path: Path) -> None:
    """404 until it is ready, then audio; a callback to it is refused."""
    async with ProviderHost() as host, Sink() as sink:
        answers = [reply(404), reply(200, MP3, {"content-type": "audio/mpeg"})]

        async def next_answer(talk: Talk) -> None:
            await talk.send(answers.pop(0))

        host.scripts["/a/j-1"] = next_answer
        async with running(tmp_path, text(tmp_path, POLLED.replace("HOST", host.url("")), sink.url)) as up:
            made = ordered(up, "j-1")
            await up.receiver.store.add_pickup(made)
            up.receiver.collector.wake(["x"])
            await sink.until(1)
            assert (await post(up, b"{}", {})).status_code == 401
        event = json.loads(sink.received[0].body)
        assert (event["type"], event["data"]["job_id"], event["data"]["ref"]) == (
            "speech.completed",
            "j-1",
            "order-9",
        )
        assert event["data"]["audio"]["sha256"] == hashlib.sha256(MP3).hexdigest()
        assert [request.headers["x-key"] for request in host.requests] == [KEY, KEY]


AZURE = f"""recipe = "azure-speech"
secrets = ["{SECRET}"]
api_key = "{KEY}"
allow = ["127.0.0.0/8"]
[sources.x.result]
hosts = ["127.0.0.1"]
every = 1
[sources.x.result.then]
hosts = ["127.0.0.1"]
[sources.x.result.then.then]
hosts = ["127.0.0.1"]
"""
"""The recipe as it ships, with a stand-in for Azure's API."""


async def test_a_job_of_azure_is_handed_over_by_its_url_and_asked_for_to_its_text(tmp_path: Path) -> None:
    """One as `receiver pickup` hands it over, one with `--expect-within`, one that failed. The text's link gets no key."""
    async with ProviderHost() as host, Sink() as sink:
        jobs = host.url("/speechtotext/transcriptions")
        done = json.dumps({"status": "Succeeded", "links": {"files": f"{jobs}/1/files"}}).encode()
        answers = [reply(200, b'{"status":"Running"}'), reply(200, done), reply(200, done)]

        async def next_answer(talk: Talk) -> None:
            await talk.send(answers.pop(0))

        files = {"values": [{"kind": "Transcription", "links": {"contentUrl": host.url("/blob/1?sig=s")}}]}
        failed = {"status": "Failed", "properties": {"error": {"code": "InvalidData", "message": "no audio"}}}
        host.scripts["/speechtotext/transcriptions/1"] = next_answer
        host.scripts["/speechtotext/transcriptions/2"] = reply(200, json.dumps(failed).encode())
        host.scripts["/speechtotext/transcriptions/3"] = next_answer
        host.scripts["/speechtotext/transcriptions/1/files"] = reply(200, json.dumps(files).encode())
        host.scripts["/blob/1"] = reply(200, b'{"combinedRecognizedPhrases":[{"display":"Hello."}]}')
        async with running(tmp_path, text(tmp_path, AZURE, sink.url)) as up:
            for count, job, within in ((1, "1", 0), (2, "2", 0), (3, "3", 0.5)):
                await up.receiver.store.add_pickup(ordered(up, f"{jobs}/{job}", within=within))
                up.receiver.collector.wake(["x"])
                await sink.until(count)
            with pytest.raises(PickupRefused, match="the job's whole URL"):
                ordered(up, "00000000-0000-0000-0000-000000000001")
        said = [json.loads(request.body) for request in sink.received]
        assert [event["type"] for event in said] == [
            "transcript.completed",
            "transcript.failed",
            "transcript.completed",
        ]
        assert said[0]["data"]["document"]["content_type"] == "application/json"
        assert said[0]["data"]["transcript"]["text"] == "Hello."
        assert (said[1]["data"]["error"]["message"], said[2]["data"]["ref"]) == ("no audio", "order-9")
        keys = {r.path: r.headers.get("ocp-apim-subscription-key") for r in host.requests}
        assert keys.pop("/blob/1") is None
        assert set(keys.values()) == {KEY}
