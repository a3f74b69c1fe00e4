"""The whole receiver over a real bucket: audio in, one event out, its link fetched; and what an outage of S3 does."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pytest

from receiver.app.wiring import Ports
from receiver.core.clock import wall_clock
from receiver.storage.blobs.s3 import S3Blobs
from receiver.storage.blobs.s3_options import S3Options
from tests.support import s3
from tests.support.clients import local_client
from tests.support.kept_events import kept_events
from tests.support.running import Running, running, settings_text
from tests.support.s3 import BUCKET, Weed
from tests.support.s3_wire import Wire
from tests.support.senders import SPEECH, Sent, deapi, speech, transcript
from tests.support.sink import Sink

weed, s3_credentials = s3.weed, s3.s3_credentials
pytestmark = pytest.mark.usefixtures("s3_credentials")


def over(options: S3Options) -> Callable[[Ports], Ports]:
    """Return what gives a receiver this bucket."""

    def shape(ports: Ports) -> Ports:
        ports.blobs = S3Blobs(options)
        return ports

    return shape


@pytest.fixture
async def wire(weed: Weed) -> AsyncIterator[Wire]:
    async with Wire(weed.http_port) as wire:
        yield wire


async def _send(up: Running, sent: Sent) -> httpx2.Response:
    return await up.client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)


@pytest.mark.parametrize("times", [1, 2200], ids=["small", "large"])
async def test_audio_lies_in_the_bucket_and_the_event_links_to_it(
    weed: Weed, tmp_path: Path, times: int
) -> None:
    prefix = f"{uuid.uuid4().hex}/"
    sent = speech("job", times=times)
    async with Sink() as sink:
        text = settings_text(tmp_path, destination=sink.url)
        async with running(tmp_path, text, shape=over(weed.options(prefix))) as up:
            answer = await _send(up, sent)
            assert answer.status_code == 200, answer.text
            await sink.until(1)
            assert (await _send(up, sent)).json()["status"] == "duplicate"
        sound = json.loads(sink.received[0].body)["data"]["audio"]
    assert sound["uri"].startswith(f"s3://{BUCKET}/{prefix}deepgram/20")
    async with local_client() as client:
        fetched = await client.get(sound["url"])
    assert fetched.content == sent.body == SPEECH.read_bytes() * times
    assert fetched.headers["content-type"] == sound["content_type"] == "audio/mpeg"
    found = weed.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
    assert [item["Key"] for item in found] == [sound["uri"].removeprefix(f"s3://{BUCKET}/")]


async def test_what_came_while_the_bucket_was_out_is_journaled_and_drained(
    weed: Weed, wire: Wire, tmp_path: Path
) -> None:
    """Audio goes to the journal and the provider is told to send again; what needs no bucket is recorded as ever."""
    options = weed.options(f"{uuid.uuid4().hex}/", endpoint_url=wire.url)
    ahead = [0]

    def clock() -> int:
        return wall_clock() + ahead[0]

    text = settings_text(tmp_path)
    async with running(tmp_path, text, shape=over(options), work=False, clock=clock) as up:
        assert (await up.client.get("/readyz")).status_code == 200
        await wire.stop()
        answers = [await _send(up, sent) for sent in (speech("sound"), transcript("text"), deapi("image"))]
        assert [answer.status_code for answer in answers] == [503, 200, 200]
        assert up.receiver.journal.depth == 1
        ahead[0] += 1500  # past the second for which readiness is remembered
        ready = await up.client.get("/readyz")
        assert ready.status_code == 503
        assert "cannot be reached" in ready.json()["parts"]["blobs"]
        await wire.start()
        await up.seen.until(lambda: up.receiver.journal.depth == 0)
        events = await kept_events(up.receiver.store)
        assert sorted(str(event.job_id) for event in events) == ["image", "sound", "text"]
        assert (await _send(up, speech("sound"))).json()["status"] == "duplicate"
        ahead[0] += 1500
        assert (await up.client.get("/readyz")).status_code == 200
        key = next(event.blob_key for event in events if event.blob_key)
        assert await up.receiver.blobs.get(key) == SPEECH.read_bytes()


async def test_receiver_starts_while_the_bucket_is_out(weed: Weed, wire: Wire, tmp_path: Path) -> None:
    options = weed.options(f"{uuid.uuid4().hex}/", endpoint_url=wire.url)
    await wire.stop()
    async with running(tmp_path, settings_text(tmp_path), shape=over(options), work=False) as up:
        assert (await _send(up, speech("sound"))).status_code == 503
        assert up.receiver.journal.depth == 1
        await wire.start()
        await up.seen.until(lambda: up.receiver.journal.depth == 0)
        assert [event.job_id for event in await kept_events(up.receiver.store)] == ["sound"]
