"""Kill -9 at each step of the pull road, restart, and the promise holds: each job comes to exactly one event, with its audio."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import httpx2
import pytest

from tests.support.crashing import DRAIN, PULL, fast_clock
from tests.support.delivered import Delivered
from tests.support.processes import Acknowledged, Process, send_once
from tests.support.pulling import AUDIO, Providers, asked_providers, hand_over
from tests.support.sink import Sink

pytestmark = pytest.mark.usefixtures("nothing_left_running")
SHA = hashlib.sha256(AUDIO).hexdigest()
FAST = "attempt_seconds = 5\npickup_concurrency = 2"
"""A claim that was lost to a kill holds 85 s by the children's clock: a second and a half."""


@pytest.fixture(scope="module")
def providers() -> Iterator[Providers]:
    with asked_providers() as found:
        found.deepdub.not_ready = 1
        yield found


class Kept:
    """What lies on disk when no receiver runs."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "data" / "blobs"
        self._store = apsw.Connection(str(folder / "data" / "receiver.db"))

    def rows(self, statement: str) -> list[Any]:
        return list(self._store.execute(statement))

    def check_events(self) -> None:
        """No event refers to a blob that is not there, whole."""
        for job, key in self.rows("SELECT job_id, blob_key FROM events WHERE type LIKE '%.completed'"):
            assert hashlib.sha256((self._blobs / key).read_bytes()).hexdigest() == SHA, job

    def check_ends(self, jobs: set[str]) -> None:
        """Every job has one event that ends it, every pickup is collected, its attempts numbered without a gap."""
        ends = self.rows("SELECT job_id, count(*) FROM events WHERE type NOT LIKE '%.processing' GROUP BY 1")
        assert dict(ends) == dict.fromkeys(jobs, 1)
        assert self.rows("SELECT DISTINCT state FROM pickups") == [("collected",)]
        assert len(self.rows("SELECT id FROM pickups")) == len(jobs)
        numbered = self.rows(
            "SELECT p.attempts, count(a.number), min(a.number), max(a.number) FROM pickups AS p "
            "JOIN pickup_attempts AS a ON a.pickup_id = p.id GROUP BY p.id"
        )
        assert all(row == (row[0], row[0], 1, row[0]) for row in numbered), numbered
        assert len(numbered) == len(jobs)

    def close(self) -> None:
        self._store.close()


async def _push(process: Process, providers: Providers, jobs: list[str], oracle: Acknowledged) -> None:
    """Send each callback that was not answered 2xx so far, once."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        for job in jobs:
            if job in oracle.events:
                continue
            sent = providers.pushed(job, at=fast_clock() // 1000)
            answer = await send_once(client, process.port, sent.path, sent.headers, sent.body)
            if answer is not None and answer.is_success:
                oracle.note(job, answer.json().get("event_id"))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("step", "passes"), PULL)
async def test_a_kill_at_this_step_of_the_pull_road_loses_and_doubles_nothing(
    step: str, passes: int, when: str, providers: Providers, tmp_path: Path
) -> None:
    """One job is pushed, two are handed over, and one is both; all of that happens once it is acknowledged, and no more."""
    pushed, both = providers.deapi_job(), providers.deapi_job("processing", "processing", "done")
    dubbed, played = providers.deepdub.submit(), providers.playht_job()
    jobs = {pushed, both, dubbed, played}
    oracle = Acknowledged()
    async with Sink() as sink:
        text = providers.text(tmp_path, sink.url, retry="{retries = 100, wait = 0.2}", more=FAST)
        config = tmp_path / "receiver.toml"
        config.write_text(text)
        handed = await hand_over(text, {both: "deapi", dubbed: "deepdub", played: "playht"}, fast_clock())
        dying = Process(config, step, when, environ={"CRASHING_PASSES": str(passes)})
        await dying.start()
        if dying.port:
            await _push(dying, providers, [pushed, both], oracle)
        assert await dying.died() == -9
        kept = Kept(tmp_path)
        kept.check_events()
        kept.close()
        healthy = Process(config)
        await healthy.start()
        delivered = Delivered(sink)
        try:
            await _push(healthy, providers, [pushed, both], oracle)
            await delivered.until(lambda: delivered.ends.keys() >= jobs, 30)
        finally:
            await healthy.stop()
        delivered.look()
    promised = oracle.events | {job: {pickup.event_id} for job, pickup in handed.items()}
    assert delivered.ends == promised
    assert oracle.events[both] == {handed[both].event_id}
    kept = Kept(tmp_path)
    kept.check_events()
    kept.check_ends(jobs)
    kept.close()
    assert list((tmp_path / "data" / "journal" / "spool").iterdir()) == []


@pytest.mark.parametrize(("step", "when"), DRAIN)
async def test_a_kill_while_the_journal_is_drained_into_a_pickup_loses_and_doubles_nothing(
    step: str, when: str, providers: Providers, tmp_path: Path
) -> None:
    """The store was out when the callback came; deAPI had its 200 and does not send it again."""
    job, oracle = providers.deapi_job(), Acknowledged()
    async with Sink() as sink:
        config = tmp_path / "receiver.toml"
        config.write_text(providers.text(tmp_path, sink.url, retry="{retries = 100, wait = 0.2}", more=FAST))
        dying = Process(config, step, when, environ={"CRASHING_STORE_OUT": "1"})
        await dying.start()
        await _push(dying, providers, [job], oracle)
        assert oracle.events == {job: set()}, "answered 200, and no event yet"
        assert await dying.died() == -9
        healthy = Process(config)
        await healthy.start()
        delivered = Delivered(sink)
        try:
            await delivered.until(lambda: job in delivered.ends, 30)
        finally:
            await healthy.stop()
        delivered.look()
    assert len(delivered.ends[job]) == 1
    kept = Kept(tmp_path)
    kept.check_events()
    kept.check_ends({job})
    kept.close()
    assert not list((tmp_path / "data" / "journal").glob("*.json"))
