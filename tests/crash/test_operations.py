"""After SIGKILL in the middle of a replay of many, it goes on where it was: each delivery gets one more round, none gets two."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.crash.conftest import Place
from tests.support.clients import local_client
from tests.support.patience import PATIENCE
from tests.support.processes import Process, send_once
from tests.support.running import api_token, settings_text
from tests.support.senders import transcript
from tests.support.sink import Sink

pytestmark = pytest.mark.usefixtures("nothing_left_running")
TOKEN = "a-token-of-some-length"
COUNT, RATE = 24, 8


@pytest.mark.parametrize("place", ["embedded", "shared"], indirect=True)
async def test_a_replay_of_many_goes_on_after_a_kill_and_replays_each_once(
    place: Place, tmp_path: Path
) -> None:
    async with Sink() as sink, local_client() as client, asyncio.timeout(PATIENCE):
        config = tmp_path / "receiver.toml"
        extra = f"{place.settings}\n{api_token('ops', TOKEN)}"
        config.write_text(settings_text(tmp_path, destination=sink.url, extra=extra))
        process = Process(config, environ=place.environ | {"CRASHING_AHEAD": "0"})
        await process.start()
        for number in range(COUNT):
            sent = transcript(f"job-{number}")
            assert await send_once(client, process.port, sent.path, sent.headers, sent.body)
        await sink.until(COUNT)
        answer = await client.post(
            f"http://127.0.0.1:{process.port}/api/v1/replays",
            headers={"authorization": f"Bearer {TOKEN}"},
            json={"state": "delivered", "rate": RATE},
        )
        found = answer.json()["found"]
        assert found >= COUNT - 1, "the last may be on its way to be settled"
        await sink.until(COUNT + RATE // 2)
        await process.kill()
        await process.start()
        kept = place.kept(tmp_path)
        while kept.rows("SELECT state, done, changed FROM operations") != [("done", found, found)]:
            await asyncio.sleep(0.1)
        while kept.rows("SELECT count(*) FROM deliveries WHERE due_at IS NOT NULL") != [(0,)]:
            await asyncio.sleep(0.1)
        rounds = kept.rows("SELECT state, round_start, count(*) FROM deliveries GROUP BY 1, 2 ORDER BY 2")
        assert rounds[-1] == ("delivered", 1, found)
        assert sum(row[2] for row in rounds) == COUNT
        await process.stop()
