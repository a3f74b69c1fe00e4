"""Three processes, some of them killed: together they keep to a destination's rate, and none forgets a pause."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from receiver.app.wiring import build_store
from receiver.core.clock import wall_clock
from receiver.engine.destination_actions import act_on_destination
from receiver.settings.load import load_settings
from tests.crash.conftest import Place
from tests.support.clients import local_client
from tests.support.patience import PATIENCE
from tests.support.processes import Process, send_once
from tests.support.running import settings_text
from tests.support.senders import transcript
from tests.support.sink import Sink

pytestmark = [pytest.mark.usefixtures("nothing_left_running"), pytest.mark.soak]
COUNT, RATE = 160, 40
OBEYED = 1.0
"""Seconds within which every process obeys."""


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as made:
        yield made


def process(place: Place, folder: Path, sink: Sink) -> Process:
    folder.mkdir(exist_ok=True)
    config = folder / "receiver.toml"
    more = f'rate = "{RATE}/s"\n{place.settings}'
    config.write_text(settings_text(folder, destination=sink.url, extra=more))
    return Process(config, environ=place.environ | {"CRASHING_AHEAD": "0"})


async def act(one: Process, action: str) -> None:
    store = build_store(load_settings(str(one.config)))
    await store.open()
    try:
        await act_on_destination(store, ["app"], "app", action, now=wall_clock())
    finally:
        await store.close()


async def quiet(sink: Sink, seconds: float) -> None:
    """Insist that nothing comes for a time."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await sink.until(len(sink.received) + 1)


@pytest.mark.parametrize("place", ["embedded", "shared"], indirect=True)
async def test_rate_and_pause_hold_over_three_processes_that_are_killed(
    place: Place, sink: Sink, tmp_path: Path
) -> None:
    names = ("one", "one", "one") if place.shared is None else ("one", "two", "three")
    fleet = [process(place, tmp_path / name, sink) for name in names]
    for one in fleet:
        await one.start()
    await act(fleet[0], "pause")
    async with local_client() as client:
        for number in range(COUNT):
            sent = transcript(f"job-{number}")
            answer = await send_once(client, fleet[number % 3].port, sent.path, sent.headers, sent.body)
            assert answer is not None
    await fleet[0].kill()
    await fleet[0].start()
    await quiet(sink, OBEYED + 1)
    assert sink.received == [], "a pause outlives a kill"
    await act(fleet[0], "resume")
    async with asyncio.timeout(PATIENCE):
        await sink.until(COUNT // 4)
    await fleet[1].kill()
    await act(fleet[0], "pause")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(OBEYED):
            await sink.until(COUNT + 1)
    await quiet(sink, 1)
    await fleet[1].start()
    await quiet(sink, 1)
    await act(fleet[2], "resume")
    async with asyncio.timeout(PATIENCE):
        while len({came.headers["webhook-id"] for came in sink.received}) < COUNT:
            await sink.until(len(sink.received) + 1)
    times = [came.at for came in sink.received]
    most = max(bisect_left(times, start + 1) - number for number, start in enumerate(times))
    print(f"most in a second: {most}, allowed {RATE}")
    assert most <= RATE * 1.1
    for one in fleet:
        await one.stop()
