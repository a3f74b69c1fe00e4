"""A fleet as it is run: relays of three receivers at one destination, and a storm over the real command."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from receiver.app.wiring import Ports
from receiver.core.clock import wall_clock
from receiver.storage.store.postgres import PostgresStore
from tests.crash.conftest import Place
from tests.crash.test_storm import storm_over
from tests.support.fleet import Node, Shared
from tests.support.postgres import execute
from tests.support.processes import Process
from tests.support.running import Running, running, settings_text
from tests.support.senders import transcript
from tests.support.sink import Sink

SHARED = pytest.mark.parametrize("place", ["shared"], indirect=True)
EVENTS = 120
CALLERS = 12
MINUTE = 60_000
AHEAD = {"right": 0, "early": 5 * MINUTE, "late": -10 * MINUTE}
"""Milliseconds that each machine's clock is ahead."""


# ---------------------------------------------------------------- a race of relays


def _clock(ahead: int) -> Callable[[], int]:
    return lambda: wall_clock() + ahead


def _with_clock(database: str, clock: Callable[[], int]) -> Callable[[Ports], Ports]:
    """The whole machine's clock is wrong, so what the store compares with the database's is as well."""

    def shape(ports: Ports) -> Ports:
        ports.store = PostgresStore(database, clock=clock)
        return ports

    return shape


async def _send_all(fleet: list[Running]) -> set[str]:
    """Send events to all receivers at once, each to one; return their ids."""
    numbers = iter(range(EVENTS))
    told: set[str] = set()

    async def caller() -> None:
        for number in numbers:
            sent = transcript(f"job-{number}")
            client = fleet[number % len(fleet)].client
            answer = await client.post(sent.path, headers=sent.headers, content=sent.body)
            assert answer.status_code == 200, answer.text
            told.add(answer.json()["event_id"])

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return told


async def _settled(fleet: list[Running]) -> None:
    """Wait until as many attempts are reported as there are deliveries, looking whenever one of the receivers reports."""

    def all_are() -> bool:
        return sum(len(up.seen.attempts) for up in fleet) >= EVENTS

    tasks = [asyncio.create_task(up.seen.until(all_are)) for up in fleet]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all_are()


@SHARED
async def test_three_relays_whose_clocks_differ_attempt_each_delivery_once(
    place: Place, tmp_path: Path
) -> None:
    """They are woken at once and want the same rows; a quarter of an hour lies between what two of them call now."""
    assert place.shared is not None
    database = place.shared.database
    async with Sink() as sink, AsyncExitStack() as stack:
        fleet: list[Running] = []
        for name, ahead in AHEAD.items():
            text = settings_text(tmp_path / name, destination=sink.url, extra=place.settings)
            clock = _clock(ahead)
            shape = _with_clock(database, clock)
            fleet.append(
                await stack.enter_async_context(running(tmp_path / name, text, shape=shape, clock=clock))
            )
        told = await _send_all(fleet)
        await _settled(fleet)
        came = Counter(request.headers["webhook-id"] for request in sink.received)
    assert came == dict.fromkeys(told, 1)
    assert len(told) == EVENTS
    assert all(up.seen.attempts for up in fleet), "each had a share"
    assert execute(database, "SELECT state, attempts, count(*) FROM deliveries GROUP BY 1, 2") == [
        ("delivered", 1, EVENTS)
    ]
    assert execute(database, "SELECT count(*) FROM attempts") == [(EVENTS,)]


# ---------------------------------------------------------------- the real command


@dataclass
class Serving(Process):
    """`receiver serve`, with nothing of a test's inside: it has this machine's clock."""

    node: Node | None = None

    async def start(self) -> None:
        self.node = Node(Shared("", "", ""), self.config)
        try:
            await self.node.start()
        except BaseException:
            await self.node.end()
            raise
        self.port = int(self.node.base.rpartition(":")[2])

    async def died(self) -> int:
        assert self.node is not None
        return await self.node.child.process.wait()

    async def kill(self) -> None:
        assert self.node is not None
        await self.node.end()

    async def stop(self) -> int:
        assert self.node is not None
        return await self.node.stop()


@pytest.mark.soak
@SHARED
async def test_a_storm_over_receiver_serve_loses_and_doubles_nothing(place: Place, tmp_path: Path) -> None:
    """As the quick storm, but leases take the time that they take: two minutes until the last deliveries."""
    await storm_over(
        place, tmp_path, kills=40, seed=1, seconds=400, kind=Serving, clock=wall_clock, patience=240
    )
