"""After SIGKILL, what was under way goes on within seconds; what a process that lives has under way stays its own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.crash.conftest import Place
from tests.support.clients import local_client
from tests.support.patience import PATIENCE
from tests.support.processes import Process, send_once
from tests.support.running import settings_text
from tests.support.senders import transcript
from tests.support.sink import Answer, Sink

pytestmark = pytest.mark.usefixtures("nothing_left_running")
COUNT = 5
RESTARTED, OTHER_MACHINE = 5.0, 10.0
"""Seconds until the last delivery, at most."""
ALIVE = 3.5
"""Seconds in which a worker that lives would have been taken for dead."""


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as made:
        made.default = Answer(manner="hang")
        yield made


def worker(place: Place, folder: Path, sink: Sink) -> Process:
    """A receiver by the wall's clock: its leases are of a minute."""
    folder.mkdir(exist_ok=True)
    config = folder / "receiver.toml"
    config.write_text(settings_text(folder, destination=sink.url, extra=place.settings))
    return Process(config, environ=place.environ | {"CRASHING_AHEAD": "0"})


async def under_way(process: Process, sink: Sink) -> set[str]:
    """Have the process begin deliveries that are not answered; return their ids."""
    async with local_client() as client:
        for number in range(COUNT):
            sent = transcript(f"job-{number}")
            answer = await send_once(client, process.port, sent.path, sent.headers, sent.body)
            assert answer is not None
    async with asyncio.timeout(PATIENCE):
        await sink.until(COUNT)
    return {request.headers["webhook-id"] for request in sink.received}


async def delivered_again(sink: Sink, ids: set[str], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await sink.until(2 * COUNT)
    assert {request.headers["webhook-id"] for request in sink.received[COUNT:]} == ids


@pytest.mark.parametrize("place", ["embedded", "shared"], indirect=True)
async def test_what_was_under_way_at_a_kill_goes_on_within_seconds_of_the_restart(
    place: Place, sink: Sink, tmp_path: Path
) -> None:
    process = worker(place, tmp_path, sink)
    await process.start()
    ids = await under_way(process, sink)
    await process.kill()
    sink.default = Answer()
    await process.start()
    began = time.monotonic()
    await delivered_again(sink, ids, RESTARTED)
    print(f"{(place.shared is None and 'embedded') or 'shared'}: {time.monotonic() - began:.2f} s")
    await process.stop()


@pytest.mark.parametrize("place", ["embedded", "shared"], indirect=True)
async def test_a_worker_that_stands_still_keeps_its_claims_and_a_killed_one_is_succeeded(
    place: Place, sink: Sink, tmp_path: Path
) -> None:
    one = worker(place, tmp_path / "one", sink)
    # Embedded, both have one file; else a machine each.
    other = worker(place, tmp_path / ("one" if place.shared is None else "other"), sink)
    await one.start()
    ids = await under_way(one, sink)
    assert one.child is not None
    os.kill(one.child.pid, signal.SIGSTOP)
    sink.default = Answer()
    await other.start()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(ALIVE):
            await sink.until(COUNT + 1)
    await one.kill()
    await delivered_again(sink, ids, OTHER_MACHINE)
    await other.stop()
