"""Three processes, some of them killed: together they keep to a destination's rate and breaker, and none forgets a pause."""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_left
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from receiver.app.wiring import build_store
from receiver.core.clock import wall_clock
from receiver.core.destinations import FIRST_PROBE_SECONDS, DestinationState, DestinationStatus
from receiver.core.work import DeliveryFilter
from receiver.engine.holds import act_on_destination
from receiver.settings.load import load_settings
from receiver.storage.store.store import Store
from tests.crash.conftest import Place
from tests.support.clients import local_client
from tests.support.patience import PATIENCE
from tests.support.processes import Process, send_once
from tests.support.running import settings_text
from tests.support.senders import transcript
from tests.support.sink import Answer, Received, Sink

pytestmark = [pytest.mark.usefixtures("nothing_left_running"), pytest.mark.soak]
COUNT, RATE = 160, 40
OBEYED = 1.0
"""Seconds within which every process obeys."""


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as made:
        yield made


FAILURES, COUNT_HELD = 3, 9
NAMES = ("one", "two", "three")


def process(place: Place, folder: Path, url: str, more: str, name: str = "receiver") -> Process:
    folder.mkdir(exist_ok=True)
    config = folder / f"{name}.toml"
    retry = "{retries = 50, wait = 5}"
    config.write_text(settings_text(folder, destination=url, extra=f"{more}\n{place.settings}", retry=retry))
    return Process(config, environ=place.environ | {"CRASHING_AHEAD": "0"})


@contextlib.asynccontextmanager
async def store_of(one: Process) -> AsyncIterator[Store]:
    store = build_store(load_settings(str(one.config)))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def act(one: Process, action: str) -> None:
    async with store_of(one) as store:
        await act_on_destination(store, ["app"], "app", action, now=wall_clock())


async def state(store: Store, status: DestinationStatus) -> DestinationState:
    """Return the destination's state once it has this status."""
    async with asyncio.timeout(PATIENCE):
        while True:
            known = (await store.destinations(wall_clock())).get("app")
            if known is not None and known.status is status:
                return known


async def quiet(sink: Sink, seconds: float) -> None:
    """Insist that nothing comes for a time."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await sink.until(len(sink.received) + 1)


@pytest.mark.parametrize("place", ["embedded", "shared"], indirect=True)
async def test_rate_and_pause_hold_over_three_processes_that_are_killed(
    place: Place, sink: Sink, tmp_path: Path
) -> None:
    names = NAMES if place.shared else ("one", "one", "one")
    fleet = [process(place, tmp_path / name, sink.url, f'rate = "{RATE}/s"') for name in names]
    for one in fleet:
        await one.start()
    await act(fleet[0], "pause")
    for number in range(COUNT):
        await send(fleet[number % 3], number)
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
        while len({one.headers["webhook-id"] for one in sink.received}) < COUNT:
            await sink.until(len(sink.received) + 1)
    # When attempts began, and not when they came: on a busy machine the sink reads at once what was sent over a second.
    async with store_of(fleet[0]) as store:
        async with asyncio.timeout(PATIENCE):
            while any(one.due_at for one in await store.deliveries(DeliveryFilter(limit=COUNT))):
                pass
        found = await store.deliveries(DeliveryFilter(limit=COUNT))
        made = [attempt for one in found for attempt in await store.attempts(one.id)]
    times = sorted(attempt.started_at for attempt in made)
    assert len(times) >= COUNT
    most = max(bisect_left(times, start + 1_000) - number for number, start in enumerate(times))
    print(f"most in a second: {most}, allowed {RATE}")
    assert most <= RATE * 1.1
    for one in fleet:
        await one.stop()


async def send(one: Process, number: int) -> None:
    sent = transcript(f"job-{number}")
    async with local_client() as client:
        answer = await send_once(client, one.port, sent.path, sent.headers, sent.body)
    assert answer is not None
    assert answer.is_success


async def came(sink: Sink, count: int) -> Received:
    """Return the request of this number, from 1, once it has come."""
    async with asyncio.timeout(PATIENCE):
        await sink.until(count)
    return sink.received[count - 1]


@pytest.mark.parametrize("place", ["embedded", "shared"], indirect=True)
async def test_a_breaker_holds_over_three_processes_though_who_opens_it_and_who_probes_are_killed(
    place: Place, sink: Sink, tmp_path: Path
) -> None:
    more = f"breaker_failures = {FAILURES}\ntimeout_seconds = 1"
    fleet: dict[str, Process] = {}
    for name in NAMES:  # each sends to a path of its own, which tells who sent
        folder = tmp_path / (name if place.shared else "one")
        fleet[f"/hooks/{name}"] = process(place, folder, f"{sink.url}/{name}", more, name)
        await fleet[f"/hooks/{name}"].start()
    sink.default = Answer(status=500)
    async with store_of(fleet["/hooks/one"]) as store:
        for number, one in enumerate(fleet.values()):
            await send(one, number)
        opened = await state(store, DestinationStatus.FAILING)
        failed, last = len(sink.received), sink.received[-1]
        sink.default = Answer(manner="hang")
        opener = fleet.pop(last.path)
        await opener.kill()
        for number in range(FAILURES, COUNT_HELD):
            await send(next(iter(fleet.values())), number)
        probe = await came(sink, failed + 1)
        prober = fleet.pop(probe.path)
        await prober.kill()
        assert probe.at - last.at > FIRST_PROBE_SECONDS * 0.9
        for killed in (opener, prober):
            await killed.start()
        await quiet(sink, OBEYED + 1)
        now = await state(store, DestinationStatus.FAILING)
        assert (now.opened_at, now.failures) == (opened.opened_at, FAILURES)
        deliveries = await store.deliveries(DeliveryFilter())
        assert sum(one.attempts - one.round_start for one in deliveries) == failed
        sink.default = Answer()
        await came(sink, failed + 1 + COUNT_HELD)
        await state(store, DestinationStatus.ACTIVE)
        assert len({one.headers["webhook-id"] for one in sink.received[failed + 1 :]}) == COUNT_HELD
    for killed in (opener, prober):
        await killed.kill()
    ((survivor, one),) = fleet.items()
    await send(one, COUNT_HELD)
    assert (await came(sink, failed + 2 + COUNT_HELD)).path == survivor, "it is closed there too"
    await one.stop()
