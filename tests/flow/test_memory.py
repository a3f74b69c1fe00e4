"""Memory stays flat whatever the body's size: three times what may be added, through a receiver in a process of its own."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from receiver.core.clock import wall_clock
from tests.support.patience import PATIENCE
from tests.support.processes import Process
from tests.support.provider_host import ProviderHost, Talk, reply
from tests.support.raw import exchange, head
from tests.support.running import Running, running, settings_text
from tests.support.senders import SPEECH, Sent, deapi, speech, transcript
from tests.support.sink import Sink

pytestmark = pytest.mark.usefixtures("nothing_left_running")

MIB = 1024 * 1024
ALLOWED = 32 * MIB
HUGE = 96 * MIB


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Process]:
    if shutil.disk_usage(tmp_path).free < 2 * 1024 * MIB:
        pytest.skip("less than 2 GiB are free on the disk of the temporary folder")
    config = tmp_path / "receiver.toml"
    limit = f"max_audio_bytes = {600 * MIB}\n[sources.speech]"
    config.write_text(settings_text(tmp_path).replace("[sources.speech]", limit))
    process = Process(config)
    await process.start()
    yield process
    await process.kill()
    shutil.rmtree(tmp_path / "data")


async def test_an_answered_callback_leaves_nothing_for_the_garbage_collector(tmp_path: Path) -> None:
    """Else bodies wait for it, and those that it meets while they are under way wait for hours."""
    async with running(tmp_path) as up:
        await _send(up, transcript("first"))
        gc.collect()
        gc.disable()
        try:
            for number in range(8):
                await _send(up, transcript(f"job-{number}"))
                await _send(up, speech(f"speech-{number}"))
            left = Counter(type(one).__name__ for one in gc.get_objects())
        finally:
            gc.enable()
    assert (left["Exchange"], left["RequestResponseCycle"]) == (0, 1), "a connection keeps its last request's"


async def _send(up: Running, sent: Sent) -> None:
    answer = await up.client.request(sent.method, sent.path, content=sent.body, headers=sent.headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_huge_body_adds_less_than_32_mb(serving: Process, tmp_path: Path, chunked: bool) -> None:
    """The peak while it is sent, above what the process had after its first callback; and every byte arrives."""
    assert serving.child is not None
    process = psutil.Process(serving.child.pid)
    first = speech("warm-up", times=100)
    length = {"content-length": str(len(first.body))}
    status, _, _ = await exchange(
        serving.port, [head(first.path, first.headers | length, method="PUT"), first.body]
    )
    assert status == 200
    before = peak = process.memory_info().rss
    piece = bytes(range(256)) * (MIB // 256)
    digest = hashlib.sha256()

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal peak
        framing = {"transfer-encoding": "chunked"} if chunked else {"content-length": str(HUGE)}
        yield head("/callbacks/deepgram", first.headers | {"dg-request-id": "huge"} | framing, method="PUT")
        for _ in range(HUGE // MIB):
            digest.update(piece)
            yield b"%x\r\n%b\r\n" % (MIB, piece) if chunked else piece
            peak = max(peak, process.memory_info().rss)
        if chunked:
            yield b"0\r\n\r\n"

    async def watch() -> None:
        nonlocal peak
        while True:  # the answer is waited for with the body on its way from file to file
            peak = max(peak, process.memory_info().rss)
            await asyncio.to_thread(lambda: process.cpu_percent(0.02))

    watching = asyncio.create_task(watch())
    status, _, body = await exchange(serving.port, pieces())
    watching.cancel()
    assert (status, b"recorded" in body) == (200, True)
    assert peak - before < ALLOWED, f"{(peak - before) / MIB:.1f} MiB more"
    stored = [path for path in (tmp_path / "data" / "blobs").rglob("*.mp3") if path.stat().st_size == HUGE]
    with stored[0].open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest.hexdigest()
    assert list((tmp_path / "data" / "journal" / "spool").iterdir()) == []


async def test_a_huge_result_that_is_downloaded_adds_less_than_32_mb(tmp_path: Path) -> None:
    """The peak until its event is delivered, above what the process had after its first result; and every byte arrives."""
    first = SPEECH.read_bytes()
    piece = bytes(range(256)) * (MIB // 256)
    digest = hashlib.sha256(first)
    peak = 0

    async def huge(talk: Talk) -> None:
        nonlocal peak
        head = (
            b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        )
        await talk.send(head % (len(first) + HUGE) + first)
        for _ in range(HUGE // MIB):
            digest.update(piece)
            await talk.send(piece)
            peak = max(peak, process.memory_info().rss)

    small = reply(200, first * 100, {"content-type": "audio/mpeg"})
    async with Sink() as sink, ProviderHost(scripts={"/small": small, "/huge": huge}) as host:
        config = tmp_path / "receiver.toml"
        local = f'max_audio_bytes = {600 * MIB}\nresult_hosts = ["127.0.0.1"]\nallow = ["127.0.0.0/8"]\n'
        text = settings_text(tmp_path, destination=sink.url)
        config.write_text(text.replace("[sources.deapi]\n", f"[sources.deapi]\n{local}"))
        serving = Process(config, since=wall_clock())
        await serving.start()
        assert serving.child is not None
        process = psutil.Process(serving.child.pid)
        await _push(serving, deapi("small", result_url=host.url("/small")))
        await sink.until(1)
        before = process.memory_info().rss
        await _push(serving, deapi("huge", result_url=host.url("/huge")))
        async with asyncio.timeout(PATIENCE):
            await sink.until(2)
        peak = max(peak, process.memory_info().rss)
        sound = json.loads(sink.received[1].body)["data"]["audio"]
        assert (sound["bytes"], sound["sha256"]) == (len(first) + HUGE, digest.hexdigest())
        assert peak - before < ALLOWED, f"{(peak - before) / MIB:.1f} MiB more"
        await serving.kill()
    shutil.rmtree(tmp_path / "data")


async def _push(serving: Process, sent: Sent) -> None:
    pieces = [head(sent.path, sent.headers | {"content-length": str(len(sent.body))}), sent.body]
    status, _, body = await exchange(serving.port, pieces)
    assert (status, b"recorded" in body) == (200, True), body
