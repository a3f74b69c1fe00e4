"""Workers on machines whose clocks are wrong by minutes, over one PostgreSQL: each delivery is attempted once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.crash.conftest import Place
from tests.support.clients import local_client
from tests.support.patience import PATIENCE
from tests.support.postgres import execute
from tests.support.processes import Process, send_once
from tests.support.running import settings_text
from tests.support.senders import transcript
from tests.support.sink import Answer, Sink

pytestmark = pytest.mark.usefixtures("nothing_left_running")
MINUTES = 8
FIRST, THEN = 12, 12


@pytest.mark.parametrize("place", ["shared"], indirect=True)
async def test_two_processes_with_clocks_sixteen_minutes_apart_take_nothing_from_each_other(
    place: Place, tmp_path: Path
) -> None:
    """A lease of a minute stands although the other's clock says that it ended long ago, or begins in the future."""
    assert place.shared is not None
    async with Sink() as sink:
        sink.default = Answer(manner="hang")
        fleet = []
        for name, ahead in (("early", MINUTES), ("late", -MINUTES)):
            folder = tmp_path / name
            folder.mkdir()
            config = folder / "receiver.toml"
            config.write_text(settings_text(folder, destination=sink.url, extra=place.settings))
            environ = place.environ | {"CRASHING_AHEAD": str(ahead * 60_000)}
            fleet.append(Process(config, environ=environ))
        await asyncio.gather(*(one.start() for one in fleet))
        await _send(fleet, 0, FIRST)
        await _until(sink, FIRST)
        # All of those are under way. What comes now has both claim whatever they think is due.
        await _send(fleet, FIRST, THEN)
        await _until(sink, FIRST + THEN)
        sink.default = Answer()
        sink.released.set()
        await _delivered(place.shared.database)
        for one in fleet:
            await one.stop()
        assert len(sink.received) == len({request.headers["webhook-id"] for request in sink.received})
    assert execute(place.shared.database, "SELECT count(*) FROM attempts") == [(FIRST + THEN,)]
    assert execute(place.shared.database, "SELECT DISTINCT state FROM deliveries") == [("delivered",)]
    apart = "SELECT max(recorded_at) - min(recorded_at) > 15 * 60000 FROM events"
    assert execute(place.shared.database, apart) == [(True,)], "each recorded with its own clock"


async def _send(fleet: list[Process], first: int, count: int) -> None:
    async with local_client() as client:
        for number in range(first, first + count):
            sent = transcript(f"job-{number}")
            answer = await send_once(client, fleet[number % 2].port, sent.path, sent.headers, sent.body)
            assert answer is not None
            assert answer.status_code == 200


async def _delivered(database: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while execute(database, "SELECT DISTINCT state FROM deliveries") != [("delivered",)]:
            await asyncio.sleep(0.05)  # no process tells when it has settled


async def _until(sink: Sink, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        await sink.until(count)
