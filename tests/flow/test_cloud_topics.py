"""Topics of Amazon's and a handshake that is a GET, through the front door: a real S3 server, and a provider on this machine."""

from __future__ import annotations

import json
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from receiver.core.clock import wall_clock
from receiver.engine.pickups import new_pickup
from tests.support import s3 as s3_server
from tests.support.provider_host import ProviderHost, Script, reply
from tests.support.running import running
from tests.support.s3 import ACCESS_KEY, BUCKET, SECRET_KEY, Weed
from tests.support.sink import Sink
from tests.unit.test_sns import TOPIC, message, pem

SECRET = "example-secret-0123456789abcdef"
weed = s3_server.weed
SAID = {"results": {"language_code": "en-US", "transcripts": [{"transcript": "Hello."}]}}
MP3 = (b"\xff\xfb\x90\x64" + bytes(413)) * 8
HEADERS = {"x-amz-sns-message-type": "Notification", "content-type": "text/plain; charset=UTF-8"}


def settings(folder: Path, s3: str, sink: str) -> str:
    return f"""data = "{folder / "data"}"
[destinations.app]
url = "{sink}"
allow = ["127.0.0.0/8"]
[sources.aws]
provider = "sns"
topics = ["{TOPIC}"]
certificate = {json.dumps(pem().decode())}
transcripts = "s3://{BUCKET}/our transcripts/"
access_key_id = "{ACCESS_KEY}"
secret_access_key = "{SECRET_KEY}"
endpoint_url = "{s3}"
allow = ["127.0.0.0/8"]
"""


def told(document: Any, id: str) -> bytes:
    now = datetime.fromtimestamp(wall_clock() // 1000, UTC)
    return message(Message=json.dumps(document), MessageId=id, Timestamp=now.isoformat())


async def test_results_are_read_from_s3_with_a_request_that_receiver_signs(
    tmp_path: Path, weed: Weed
) -> None:
    """A transcript of Transcribe's, speech of Polly's, and a job that was handed over; S3 judges the signatures."""
    transcribe = {"detail": {"TranscriptionJobName": "call-1", "TranscriptionJobStatus": "COMPLETED"}}
    polly = {
        "taskId": "t-1",
        "taskStatus": "completed",
        "outputUri": f"https://s3.us-east-1.amazonaws.com/{BUCKET}/topics/a b.mp3",
    }
    s3 = weed.client()
    for job in ("call-1", "call-2"):
        s3.put_object(Bucket=BUCKET, Key=f"our transcripts/{job}.json", Body=json.dumps(SAID).encode())
    s3.put_object(Bucket=BUCKET, Key="topics/a b.mp3", Body=MP3, ContentType="audio/mpeg")
    async with Sink() as sink, running(tmp_path, settings(tmp_path, weed.http, sink.url)) as up:
        for number, document in enumerate((transcribe, polly)):
            body = told(document, f"m-{number}")
            answer = await up.client.post("/callbacks/aws", content=body, headers=HEADERS)
            assert answer.status_code == 200
        pull = up.receiver.ports.pulls["aws"]
        await up.receiver.store.add_pickup(new_pickup(pull, "call-2", now=wall_clock()))
        up.receiver.collector.wake(["aws"])
        await sink.until(3)
    events = {e["data"]["job_id"]: e for e in (json.loads(r.body) for r in sink.received)}
    for job in ("call-1", "call-2"):
        assert events[job]["type"] == "transcript.completed"
        assert events[job]["data"]["transcript"]["text"] == "Hello."
    assert events["t-1"]["data"]["audio"]["content_type"] == "audio/mpeg"
    assert not [r for r in sink.received if SECRET_KEY.encode() in r.body or b"Signature=" in r.body]


async def test_a_forged_message_is_refused_and_one_of_another_kind_parked(tmp_path: Path) -> None:
    async with running(
        tmp_path, settings(tmp_path, "http://127.0.0.1:9", "http://127.0.0.1:9"), work=False
    ) as up:
        body = told({"hello": 1}, "m-1")
        forged = body.replace(b"hello", b"HELLO")
        assert (await up.client.post("/callbacks/aws", content=forged, headers=HEADERS)).status_code == 401
        answer = await up.client.post("/callbacks/aws", content=body, headers=HEADERS)
        assert answer.json()["status"] == "parked"


@pytest.mark.parametrize(
    ("script", "status"),
    [(reply(200), 200), (reply(500), 503), (reply(302, headers={"location": "/elsewhere"}), 503)],
    ids=["confirmed", "refused", "redirected"],
)
async def test_a_proved_handshake_fetches_its_url_before_it_is_answered(
    tmp_path: Path, script: Script, status: int
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    source = f"""data = "{tmp_path / "data"}"
[sources.x]
provider = "custom"
secrets = ["{SECRET}"]
require_token = false
allow = ["127.0.0.0/8"]
ca_file = "{tmp_path / "ca.pem"}"
proof = [{{kind = "same", at = "header:X-Secret"}}]
event = {{family = "speech", job = "id"}}
[[sources.x.handshake]]
kind = "confirm-get"
when = {{at = "type", is = "confirm"}}
value = "url"
hosts = ["localhost"]
"""
    async with ProviderHost(tls=context) as host, running(tmp_path, source, work=False) as up:
        host.scripts["/yes"] = script

        async def ask(url: str, secret: str) -> int:
            body = json.dumps({"type": "confirm", "id": "1", "url": url}).encode()
            return (
                await up.client.post("/callbacks/x", content=body, headers={"X-Secret": secret})
            ).status_code

        assert await ask(host.url("/yes", "localhost"), "a-stranger") == 401
        assert host.requests == []
        assert await ask(host.url("/yes", "localhost"), SECRET) == status
        assert [request.path for request in host.requests] == ["/yes"]
        for elsewhere in (host.url("/yes", "127.0.0.1"), "https://example.com/yes", "http://localhost/yes"):
            await ask(elsewhere, SECRET)
        assert len(host.requests) == 1
        assert not [event for event in up.seen.callbacks[1:2] if event.answer == "recorded"]
