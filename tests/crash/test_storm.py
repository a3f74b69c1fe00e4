"""Random kills under load of mixed callbacks: every acknowledged one is delivered in the end, under one id."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path
from typing import Any

import httpx2
import pytest

from receiver.standins.deapi_results import Work
from tests.support.crashing import fast_clock
from tests.support.delivered import Delivered
from tests.support.processes import Acknowledged, Process, send_once
from tests.support.pulling import AUDIO, KEY, Providers, asked_providers
from tests.support.running import settings_text
from tests.support.senders import Sent, deapi, speech, transcript
from tests.support.sink import Answer, Sink

pytestmark = pytest.mark.usefixtures("nothing_left_running")

SENDERS = 6
PROCESSED, COMPLETED = "job.processing", "job.completed"


class Storm:
    """Senders that keep each callback until it is acknowledged, against a receiver that keeps dying."""

    def __init__(self, config: Path, providers: Providers, seed: int) -> None:
        self._providers = providers
        self.oracle = Acknowledged()
        self._config = config
        self._random = random.Random(seed)
        self._process = Process(config)
        self._up = asyncio.Event()
        self._over = False
        self._tries = 0
        self._tried = asyncio.Condition()

    def _next(self, number: int, sender: int) -> Sent:
        name = f"job-{sender}-{number}"
        kind = number % 4
        if kind == 0:
            return speech(name, method="PUT" if number % 8 else "POST", times=1 + 3 * (number % 3))
        if kind == 1:
            return self._deapi(name, number)
        # Long transcripts go to the blob store, short ones into the row.
        return transcript(name, text=f"This is {name}. " * (1 if kind == 2 else 3000))

    def _deapi(self, name: str, number: int) -> Sent:
        """By turns: without a link, with one that has expired (the API is asked in both cases), without, and with a good one."""
        at, job = fast_clock() // 1000, self._providers.deapi
        job.works.setdefault(name, Work(result=AUDIO))
        if number % 8 < 4:
            return deapi(name, at=at)
        link = job.link(self._providers.deapi_base, name)
        return deapi(name, at=at, result_url=f"{link}0" if number % 16 < 8 else link)

    async def send(self, sender: int) -> None:
        """Send one callback after the other, each until it is answered 2xx, as the provider would."""
        async with httpx2.AsyncClient(trust_env=False) as client:
            number = 0
            while not self._over:
                number += 1
                while True:
                    await self._up.wait()
                    sent = self._next(number, sender)
                    answer = await send_once(
                        client, self._process.port, sent.path, sent.headers, sent.body, sent.method
                    )
                    async with self._tried:
                        self._tries += 1
                        self._tried.notify_all()
                    if answer is not None and answer.is_success:
                        self.oracle.note(sent.name, answer.json().get("event_id"))
                        break
                    if answer is not None:
                        assert answer.status_code == 503, answer.text

    async def kill(self, times: int) -> None:
        """Start, let a random number of callbacks pass, kill; then leave a healthy one running."""
        for _ in range(times):
            await self._process.start()
            self._up.set()
            until = self._tries + self._random.randint(1, 60)
            async with self._tried:
                await self._tried.wait_for(lambda until=until: self._tries >= until)  # type: ignore[misc]
            self._up.clear()
            await self._process.kill()
        await self._process.start()
        self._up.set()

    async def run(self, kills: int, seconds: float) -> None:
        """Storm until it was killed so often, and every sender has its last answer."""
        senders = [asyncio.create_task(self.send(number)) for number in range(SENDERS)]
        try:
            async with asyncio.timeout(seconds):
                await self.kill(kills)
                self._over = True
                await asyncio.gather(*senders)
        finally:
            for task in senders:
                task.cancel()
            await asyncio.gather(*senders, return_exceptions=True)

    async def stop(self) -> None:
        """End the last process."""
        await self._process.stop()


def _check_audio(events: list[dict[str, Any]]) -> int:
    """Every audio that an event refers to is there, whole; return how many were fetched from deAPI."""
    fetched = 0
    for event in events:
        audio = event["data"]["audio"]
        if audio:
            kept = Path(audio["uri"].removeprefix("file://")).read_bytes()
            assert hashlib.sha256(kept).hexdigest() == audio["sha256"]
            fetched += event["data"]["source"] == "deapi" and kept == AUDIO
    return fetched


async def _storm(folder: Path, kills: int, seconds: float, seed: int) -> None:
    with asked_providers() as providers:
        await _storm_over(folder, providers, kills, seconds, seed)


def _settings(folder: Path, providers: Providers, destination: str) -> str:
    text = settings_text(folder, destination=destination, retry="{retries = 1000, wait = 1}")
    asked = f'api_key = "{KEY}"\napi_url = "{providers.deapi_base}"\nresult_hosts = ["127.0.0.1"]\n'
    more = f'{asked}allow = ["127.0.0.0/8"]\nattempt_seconds = 5\n'
    return text.replace("[sources.deapi]\n", f"[sources.deapi]\n{more}")


async def _storm_over(folder: Path, providers: Providers, kills: int, seconds: float, seed: int) -> None:
    async with Sink() as sink:
        # The application has its bad moments as well.
        sink.script.extend(Answer(status=500) for _ in range(20))
        config = folder / "receiver.toml"
        config.write_text(_settings(folder, providers, sink.url))
        storm = Storm(config, providers, seed)
        delivered = Delivered(sink)
        try:
            await storm.run(kills, seconds)
            wanted = storm.oracle.events
            assert len(wanted) > kills
            await delivered.until(lambda: delivered.ids.keys() >= wanted.keys(), 60)
        finally:
            await storm.stop()
        delivered.look()
        doubled = {name: ids for name, ids in delivered.ids.items() if len(ids) > 1}
        assert doubled == {}
        # A callback answered "journaled" names no event yet; all others name the one that was delivered.
        assert {name: ids for name, ids in wanted.items() if ids and ids != delivered.ids[name]} == {}
        assert _check_audio(delivered.events) > kills / 5
        assert providers.deapi.asked_for("/api/"), "links had expired, so the API was asked"


@pytest.mark.timeout(240)
async def test_forty_kills_under_load_lose_and_double_nothing(tmp_path: Path) -> None:
    await _storm(tmp_path, kills=40, seconds=200, seed=20261121)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
async def test_a_long_storm_loses_and_doubles_nothing(tmp_path: Path, seed: int) -> None:
    await _storm(tmp_path, kills=200, seconds=1200, seed=seed)
