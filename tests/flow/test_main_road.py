"""The main job over real HTTP: audio stored and fetched again, one signed event, retries, routes, long transcripts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from receiver.core.clock import wall_clock
from receiver.core.work import DeliveryFilter
from tests.support.golden import ROOT
from tests.support.running import APP_SECRET, Running, running, settings_text
from tests.support.senders import Sent, deapi, speech, transcript
from tests.support.sink import Answer, Received, Sink

OLD_SECRET = "whsec_" + "b2xkLXNlY3JldC1vZi10aGUtYXBwbGljYXRpb24h"


async def _send(up: Running, sent: Sent) -> dict[str, Any]:
    answer = await up.client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def _verified(request: Received, *secrets: str) -> dict[str, Any]:
    """Check the request as an application would, with the public library."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    for secret in secrets or (APP_SECRET,):
        Webhook(secret).verify(request.body, headers)
    event: dict[str, Any] = json.loads(request.body)
    assert headers["webhook-id"] == event["data"]["event_id"]
    assert headers["content-type"] == "application/json"
    assert len(request.body) < 20_000
    return event


@pytest.mark.parametrize(
    ("file", "content_type", "codec", "rate", "estimated"),
    [
        ("speech.mp3", "audio/mpeg", "mp3", 22050, False),
        ("speech-xing.mp3", "audio/mpeg", "mp3", 22050, False),
        ("speech.wav", "audio/wav", "linear16", 8000, False),
        ("speech-streamed.wav", "audio/wav", "linear16", 8000, False),
        ("speech.flac", "audio/flac", "flac", 8000, False),
        ("speech.ogg", "audio/ogg;codecs=opus", "opus", 48000, False),
        ("speech.mulaw", "audio/mulaw;rate=8000", "mulaw", 8000, False),
        ("speech.alaw", "audio/alaw;rate=8000", "alaw", 8000, False),
        ("speech.l16", "audio/l16;rate=8000", "linear16", 8000, False),
        ("speech.aac", "audio/aac", "aac", 22050, False),
    ],
)
async def test_audio_of_each_format_is_stored_whole_and_described(
    file: str, content_type: str, codec: str, rate: int, estimated: bool, tmp_path: Path
) -> None:
    """The application gets one event; its link gives the very bytes; the 1.2 s are told, or said to be an estimate."""
    audio = (ROOT / "audio" / file).read_bytes()
    sent = replace(speech("job", content_type=content_type), body=audio)
    async with Sink() as sink, running(tmp_path, settings_text(tmp_path, destination=sink.url)) as up:
        told = await _send(up, sent)
        await sink.until(1)
        event = _verified(sink.received[0])
        sound = event["data"]["audio"]
        assert (event["type"], event["data"]["event_id"]) == ("speech.completed", told["event_id"])
        assert (sound["codec"], sound["sample_rate_hz"]) == (codec, rate)
        assert sound["channels"] == 1
        assert sound["duration_seconds"] == pytest.approx(1.2, abs=0.06)
        assert sound["duration_estimated"] is estimated
        fetched = await up.client.get(sound["url"])
        assert fetched.content == audio
        assert (sound["bytes"], sound["sha256"]) == (len(audio), hashlib.sha256(audio).hexdigest())
        assert Path(sound["uri"].removeprefix("file://")).read_bytes() == audio


async def test_post_and_put_are_the_same(tmp_path: Path) -> None:
    async with running(tmp_path, work=False) as up:
        told = [await _send(up, speech(f"job-{method}", method=method)) for method in ("POST", "PUT")]
        assert [answer["status"] for answer in told] == ["recorded", "recorded"]
        events = [await up.receiver.store.event(answer["event_id"]) for answer in told]
        first, second = (json.loads(event.data)["audio"] for event in events)
        assert (first["sha256"], first["codec"]) == (second["sha256"], second["codec"])


async def test_every_secret_signs_during_a_rotation(tmp_path: Path) -> None:
    async with Sink() as sink:
        text = settings_text(tmp_path, destination=sink.url).replace(
            f'secrets = ["{APP_SECRET}"]', f'secrets = ["{OLD_SECRET}", "{APP_SECRET}"]'
        )
        async with running(tmp_path, text) as up:
            await _send(up, transcript("job"))
            await sink.until(1)
            _verified(sink.received[0], OLD_SECRET, APP_SECRET)


async def test_an_application_that_is_down_gets_it_once_when_it_is_up(tmp_path: Path) -> None:
    """500, then nobody listens, then up: the same webhook-id, a new timestamp and a fresh link; delivered once."""
    ahead = [0]
    async with Sink() as sink:
        sink.default = Answer(status=500)
        text = settings_text(tmp_path, destination=sink.url, retry="{retries = 50, wait = 1}")
        async with running(tmp_path, text, clock=lambda: wall_clock() + ahead[0]) as up:
            told = await _send(up, speech("job"))
            await up.seen.until(lambda: len(up.seen.attempts) >= 1)
            await sink.stop()
            ahead[0] += 2000
            await up.seen.until(lambda: up.seen.attempts[-1].outcome.kind.value == "unreachable")
            sink.default = Answer(status=204)
            await sink.__aenter__()
            ahead[0] += 5000
            await up.seen.until(lambda: up.seen.attempts[-1].state == "delivered")
            first, last = sink.received[0], sink.received[-1]
            assert first.headers["webhook-id"] == last.headers["webhook-id"] == told["event_id"]
            assert int(last.headers["webhook-timestamp"]) > int(first.headers["webhook-timestamp"])
            before, after = (json.loads(request.body)["data"]["audio"] for request in (first, last))
            assert after["url"] != before["url"]
            assert after["url_expires_at"] > before["url_expires_at"]
            assert after | {"url": 0, "url_expires_at": 0} == before | {"url": 0, "url_expires_at": 0}
            assert (await up.client.get(after["url"])).content == speech("job").body
            assert sum(report.state == "delivered" for report in up.seen.attempts) == 1
            delivery = (await up.receiver.store.deliveries(DeliveryFilter()))[0]
            assert (delivery.state, delivery.attempts) == ("delivered", len(up.seen.attempts))
            assert await up.receiver.store.next_due("app") is None


async def test_each_destination_gets_what_its_route_asks_for(tmp_path: Path) -> None:
    """Sources and event types, with `*` for anything; an event that nobody asked for is recorded all the same."""
    async with Sink() as one, Sink() as two:
        extra = "".join(
            f'[destinations.{name}]\nurl = "{sink.url}"\nallow = ["127.0.0.0/8"]\n{route}\n'
            for name, sink, route in (
                ("texts", one, 'events = ["transcript.*"]'),
                ("deapi-ends", two, 'sources = ["dea*"]\nevents = ["*.completed", "*.failed"]'),
            )
        )
        async with running(tmp_path, settings_text(tmp_path, extra=extra)) as up:
            for sent in (
                speech("speech"),
                transcript("text"),
                deapi("begun", "job.processing"),
                deapi("done"),
                deapi("broken", "job.failed"),
            ):
                await _send(up, sent)
            await one.until(1)
            await two.until(2)
            await up.seen.until(lambda: len(up.seen.attempts) == 3)
        assert [json.loads(r.body)["data"]["job_id"] for r in one.received] == ["text"]
        assert {json.loads(r.body)["data"]["job_id"] for r in two.received} == {"done", "broken"}


async def test_a_transcript_of_two_megabytes_goes_by_link(tmp_path: Path) -> None:
    """The event stays small and the link gives the document that came."""
    sent = transcript("long", "Grüße aus Köln. " * 125_000)
    assert len(sent.body) > 2_000_000
    async with Sink() as sink, running(tmp_path, settings_text(tmp_path, destination=sink.url)) as up:
        await _send(up, sent)
        await sink.until(1)
        data = _verified(sink.received[0])["data"]
        assert data["transcript"]["text"] is None
        assert data["transcript"]["confidence"] == 0.99
        document = data["document"]
        fetched = await up.client.get(document["url"])
        assert fetched.content == sent.body
        assert fetched.headers["content-type"] == document["content_type"] == "application/json"
        assert document["sha256"] == hashlib.sha256(sent.body).hexdigest()


async def test_a_text_that_json_makes_six_times_as_long_still_fits(tmp_path: Path) -> None:
    """A control character takes six in JSON; the limit counts what is sent."""
    async with Sink() as sink, running(tmp_path, settings_text(tmp_path, destination=sink.url)) as up:
        await _send(up, transcript("control", "\x01" * 7_900))
        failed = deapi("failed", "job.failed")
        body = json.loads(failed.body)
        body["data"] |= {"error_message": "\x02" * 5_000, "error_code": "\x03" * 300}
        await _send(up, _signed(failed, body))
        await sink.until(2)
        for request in sink.received:
            assert _verified(request)["data"]["document"]["uri"]


def _signed(sent: Sent, body: dict[str, Any], secret: str | None = None) -> Sent:
    from receiver.core.proofs import hmac_sha256_hex
    from tests.support.running import DEAPI_SECRET

    data = json.dumps(body).encode()
    stamp = sent.headers["x-deapi-timestamp"]
    signature = "sha256=" + hmac_sha256_hex(secret or DEAPI_SECRET, stamp.encode() + b"." + data)
    return replace(sent, body=data, headers=sent.headers | {"x-deapi-signature": signature})


async def test_a_job_with_a_secret_of_its_own_is_proved_by_it_alone(tmp_path: Path) -> None:
    """The URL's token names the job and its secret; the account's secret does not stand in for it."""
    async with Sink() as sink, running(tmp_path, settings_text(tmp_path, destination=sink.url)) as up:
        token = up.receiver.tokens.issue("deapi", ref="tenant-4", job_secret=True)
        other = up.receiver.tokens.issue("deapi", job_secret=True)
        sent = replace(deapi("own"), path=f"/callbacks/deapi/{token}")
        body = json.loads(sent.body)
        for secret in (None, up.receiver.tokens.job_secrets(other)[0]):
            wrong = _signed(sent, body, secret)
            refused = await up.client.post(wrong.path, headers=wrong.headers, content=wrong.body)
            assert refused.status_code == 401
        told = await _send(up, _signed(sent, body, up.receiver.tokens.job_secrets(token)[0]))
        await sink.until(1)
        event = _verified(sink.received[0])
        assert (event["data"]["event_id"], event["data"]["ref"]) == (told["event_id"], "tenant-4")


async def test_one_process_takes_in_and_another_relays(tmp_path: Path) -> None:
    """`--no-work` and a worker share nothing but the store, the blobs and the token secret."""
    async with Sink() as sink:
        text = settings_text(tmp_path, destination=sink.url)
        async with running(tmp_path, text, work=False) as taking:
            told = [await _send(taking, sent) for sent in (speech("one"), transcript("two"), deapi("three"))]
            assert sink.received == []
            async with running(tmp_path, text) as working:
                await sink.until(3)
                ids = {_verified(request)["data"]["event_id"] for request in sink.received}
                assert ids == {answer["event_id"] for answer in told}
                links = [json.loads(r.body)["data"]["audio"] for r in sink.received]
                url = next(link["url"] for link in links if link)
                assert url.startswith(working.base)
                elsewhere = url.replace(working.base, taking.base)
                assert (await taking.client.get(elsewhere)).content == speech("one").body
            assert len(sink.received) == 3
