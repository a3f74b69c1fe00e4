"""Several receivers, as processes, over one PostgreSQL database and one S3 bucket."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support import postgres, s3
from tests.support.clients import local_client
from tests.support.delivered import Delivered
from tests.support.fleet import Balancer, Node, Shared, node, shared, started
from tests.support.house import receiver
from tests.support.patience import PATIENCE
from tests.support.postgres import execute
from tests.support.s3 import Weed
from tests.support.s3_wire import Wire
from tests.support.senders import SPEECH, Sent, deapi, over_in_a_pause, speech, transcript
from tests.support.sink import Answer, Sink

weed, s3_credentials = s3.weed, s3.s3_credentials
pytestmark = pytest.mark.usefixtures("s3_credentials")


@pytest.fixture
def common(weed: Weed) -> Iterator[Shared]:
    with shared(weed) as made:
        yield made


def draining(seconds: float, stop: float = 10) -> str:
    return f"[server]\ndrain_seconds = {seconds}\nstop_seconds = {stop}\nlog = 'json'\n"


async def _send(one: Node, sent: Sent) -> httpx2.Response:
    async with local_client(base_url=one.base, timeout=20) as client:
        return await client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)


def _cli(config: Path, *words: str) -> Any:
    said = receiver("--config", config, *words, "--json")
    return json.loads(said.out)


def _listed(config: Path, *words: str) -> Any:
    return _cli(config, *words)["items"]


async def test_what_one_takes_any_other_delivers_with_a_link_that_works(
    common: Shared, tmp_path: Path
) -> None:
    """One only takes in, one only works; a third has no data of either."""
    sent = speech("job", times=30)
    async with Sink() as sink:
        first, second = (node(common, tmp_path / name, destination=sink.url) for name in ("one", "two"))
        one, other = Node(common, first, "serve", "--port", "0", "--no-work"), Node(common, second, "work")
        async with started(one, other):
            assert (await _send(one, sent)).json()["status"] == "recorded"
            async with asyncio.timeout(PATIENCE):
                await sink.until(1)
            assert await one.stop() == await other.stop() == 0
    audio = json.loads(sink.received[0].body)["data"]["audio"]
    async with local_client() as client:
        assert (await client.get(audio["url"])).content == SPEECH.read_bytes() * 30
    third = node(common, tmp_path / "three")
    [event] = await asyncio.to_thread(_listed, third, "events")
    assert event["job_id"] == "job"
    assert audio["sha256"] == hashlib.sha256(sent.body).hexdigest()


async def test_a_rolling_deploy_fails_no_callback_though_nobody_tries_again(
    common: Shared, tmp_path: Path
) -> None:
    """Both are replaced one after the other under a steady load of audio and documents."""
    numbers, over = itertools.count(), asyncio.Event()
    answers: dict[str, str] = {}

    async def call_on(balancer: Balancer) -> None:
        while not await over_in_a_pause(over):
            number = next(numbers)
            sent = speech(f"job-{number}", times=20) if number % 3 == 0 else transcript(f"job-{number}")
            answer = await balancer.send(sent)
            answers[sent.name] = answer.json()["status"] if answer.is_success else answer.text

    nodes = [Node(common, node(common, tmp_path / name, extra=draining(0.6))) for name in ("one", "two")]
    async with started(*nodes), Balancer(nodes) as balancer:
        await balancer.until(0, 1)
        callers = [asyncio.create_task(call_on(balancer)) for _ in range(3)]
        for number, one in enumerate(nodes):
            before = len(answers)
            one.child.process.send_signal(signal.SIGTERM)
            await balancer.until(1 - number)
            assert one.child.process.returncode is None, "it still takes what was on its way"
            assert await one.stop() == 0
            assert len(answers) > before
            await one.start()
            await balancer.until(0, 1)
        over.set()
        await asyncio.gather(*callers)
    assert set(answers.values()) == {"recorded"}
    rows = execute(common.database, "SELECT DISTINCT job_id FROM events")
    assert {str(job) for (job,) in rows} == answers.keys()


async def test_between_the_signal_and_the_stop_it_says_so_and_hangs_up_politely(
    common: Shared, tmp_path: Path
) -> None:
    """A second signal cuts the wait short."""
    one = Node(common, node(common, tmp_path / "one", extra=draining(60)))
    async with (
        started(one),
        local_client(base_url=one.base or "http://x", timeout=20) as client,
    ):
        base = one.base
        before = await client.get(f"{base}/readyz")
        assert (before.status_code, before.headers.get("connection")) == (200, None)
        one.child.process.send_signal(signal.SIGTERM)
        await one.child.said('"receiver.draining"')
        for path, status in (("/readyz/intake", 503), ("/readyz", 503), ("/healthz", 200)):
            answer = await client.get(base + path)
            assert (answer.status_code, answer.headers["connection"]) == (status, "close")
        assert answer.json() == {"status": "ok"}
        sent = transcript("late-comer")
        taken = await client.post(base + sent.path, headers=sent.headers, content=sent.body)
        assert (taken.json()["status"], taken.headers["connection"]) == ("recorded", "close")
        began = time.monotonic()
        assert await one.stop() == 0
        assert time.monotonic() - began < 10


async def test_a_graceful_stop_hands_its_claims_back_and_another_goes_on_at_once(
    common: Shared, tmp_path: Path
) -> None:
    """The application hangs; what the first had claimed is no lost minute for the second."""
    jobs = {f"job-{number}" for number in range(12)}
    async with Sink() as sink:
        sink.default = Answer(manner="hang")
        slow = draining(0, stop=1)
        names = ("one", "two")
        configs = [node(common, tmp_path / name, destination=sink.url, extra=slow) for name in names]
        one, other = (Node(common, config) for config in configs)
        async with started(one):
            for name in sorted(jobs):
                assert (await _send(one, transcript(name))).status_code == 200
            async with asyncio.timeout(PATIENCE):
                await sink.until(len(jobs))
            began = time.monotonic()
            assert await one.stop() == 0
            assert time.monotonic() - began < 10
        sink.default = Answer()
        delivered = Delivered(sink)
        async with started(other):
            await delivered.until(lambda: delivered.ids.keys() >= jobs and len(sink.received) >= 24)
            assert await other.stop() == 0
    states = execute(common.database, "SELECT state, count(*) FROM deliveries GROUP BY 1")
    assert states == [("delivered", 12)]


async def test_while_postgresql_is_out_each_keeps_a_journal_and_a_lost_machines_is_drained_by_hand(
    weed: Weed, tmp_path: Path
) -> None:
    """Both answer deAPI 200; one is killed, and its disk mounted elsewhere."""
    with postgres.server(durable=True) as server, shared(weed) as place:
        common = Shared(server.url(server.new_database()), place.s3_url, place.prefix)
        async with Sink() as sink:
            names = ("one", "two")
            configs = [node(common, tmp_path / name, destination=sink.url) for name in names]
            assert (await asyncio.to_thread(receiver, "--config", configs[0], "migrate")).status == 0
            one, other = (Node(common, config) for config in configs)
            async with started(one, other):
                server.stop(signal.SIGQUIT)
                assert (await _send(one, deapi("image-1"))).json() == {"status": "journaled"}
                assert (await _send(other, deapi("image-2"))).json() == {"status": "journaled"}
                assert (await _send(other, speech("sound"))).status_code == 503
                [kept] = await asyncio.to_thread(_listed, configs[0], "journal", "list")
                assert (kept["source"], kept["bytes"] > 0) == ("deapi", True)
                await one.stop(signal.SIGKILL)
                left = await asyncio.to_thread(_listed, configs[1], "journal", "list")
                assert len(left) == 2
                server.start()
                delivered = Delivered(sink)
                await delivered.until(lambda: delivered.ids.keys() >= {"image-2", "sound"})
                assert "image-1" not in delivered.ids
                drained = await asyncio.to_thread(_cli, configs[0], "journal", "drain")
                assert drained.pop("journal").endswith("/one/data/journal")
                assert drained == {"recorded": 1, "known": 0, "left": 0, "reason": ""}
                await delivered.until(lambda: "image-1" in delivered.ids)
                assert (await _send(other, deapi("image-1"))).json()["status"] == "duplicate"
            assert {job: len(ids) for job, ids in delivered.ids.items()} == dict.fromkeys(delivered.ids, 1)


async def test_a_receiver_that_starts_while_s3_is_out_warns_takes_what_comes_and_records_it_later(
    weed: Weed, tmp_path: Path
) -> None:
    async with Wire(weed.http_port) as wire:
        await wire.stop()
        with shared(weed, s3_url=wire.url) as common:
            one = Node(common, node(common, tmp_path / "one"))
            async with started(one):
                assert any("warning W017 blobs.url: " in line for line in one.child.lines)
                assert (await _send(one, speech("sound"))).status_code == 503
                assert (await _send(one, transcript("text"))).json()["status"] == "recorded"
                await wire.start()
                await one.child.said('"journal.drained"')
                assert (await _send(one, speech("sound"))).json()["status"] == "duplicate"
                assert await one.stop() == 0
