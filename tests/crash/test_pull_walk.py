"""Kill -9 at each step of the pull road, restart, and the promise holds: each job comes to exactly one event, with its audio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.conftest import Place
from tests.support.clients import local_client
from tests.support.crashing import DRAIN, PULL, fast_clock
from tests.support.delivered import Delivered
from tests.support.processes import Acknowledged, Process, send_once
from tests.support.pulling import Providers, asked_providers, hand_over
from tests.support.sink import Sink

pytestmark = pytest.mark.usefixtures("nothing_left_running")
FAST = "attempt_seconds = 5\npickup_concurrency = 2"
"""A claim that was lost to a kill holds 85 s by the children's clock: a second and a half."""


@pytest.fixture(scope="module")
def providers() -> Iterator[Providers]:
    with asked_providers() as found:
        found.deepdub.not_ready = 1
        yield found


_QUICK = {("store.defer", "after"), ("blobs.put", "after"), ("settle.transact", "before")}
"""Over PostgreSQL and S3, those that differ most from the embedded parts; the others run with `-m soak`."""


def _walk() -> Iterator[object]:
    for step, passes in PULL:
        for when in ("before", "after"):
            yield pytest.param(step, passes, when, "embedded")
            if step != "folder.sync":
                marks = () if (step, when) in _QUICK else (pytest.mark.soak,)
                yield pytest.param(step, passes, when, "shared", marks=marks)


async def _push(process: Process, providers: Providers, jobs: list[str], oracle: Acknowledged) -> None:
    """Send each callback that was not answered 2xx so far, once."""
    async with local_client() as client:
        for job in jobs:
            if job in oracle.events:
                continue
            sent = providers.pushed(job, at=fast_clock() // 1000)
            answer = await send_once(client, process.port, sent.path, sent.headers, sent.body)
            if answer is not None and answer.is_success:
                oracle.note(job, answer.json().get("event_id"))


@pytest.mark.parametrize(("step", "passes", "when", "place"), [*_walk()], indirect=["place"])
async def test_a_kill_at_this_step_of_the_pull_road_loses_and_doubles_nothing(
    step: str, passes: int, when: str, place: Place, providers: Providers, tmp_path: Path
) -> None:
    """One job is pushed, two are handed over, and one is both; all of that happens once it is acknowledged, and no more."""
    pushed, both = providers.deapi_job(), providers.deapi_job("processing", "processing", "done")
    dubbed, played = providers.deepdub.submit(), providers.playht_job()
    jobs = {pushed, both, dubbed, played}
    oracle = Acknowledged()
    async with Sink() as sink:
        text = providers.text(tmp_path, sink.url, retry="{retries = 100, wait = 0.2}", more=FAST)
        text += place.settings
        config = tmp_path / "receiver.toml"
        config.write_text(text)
        handed = await hand_over(text, {both: "deapi", dubbed: "deepdub", played: "playht"}, fast_clock())
        dying = Process(config, step, when, environ=place.environ | {"CRASHING_PASSES": str(passes)})
        await dying.start()
        if dying.port:
            await _push(dying, providers, [pushed, both], oracle)
        assert await dying.died() == -9
        kept = place.kept(tmp_path)
        kept.check_events()
        healthy = Process(config, environ=place.environ)
        await healthy.start()
        delivered = Delivered(sink)
        try:
            await _push(healthy, providers, [pushed, both], oracle)
            await delivered.until(lambda: delivered.ends.keys() >= jobs)
        finally:
            await healthy.stop()
        delivered.look()
    promised = oracle.events | {job: {pickup.event_id} for job, pickup in handed.items()}
    assert delivered.ends == promised
    assert oracle.events[both] == {handed[both].event_id}
    kept.check_events()
    kept.check_ends(jobs)
    assert list((tmp_path / "data" / "journal" / "spool").iterdir()) == []


@pytest.mark.parametrize("place", ["embedded", pytest.param("shared", marks=pytest.mark.soak)], indirect=True)
@pytest.mark.parametrize(("step", "when"), DRAIN)
async def test_a_kill_while_the_journal_is_drained_into_a_pickup_loses_and_doubles_nothing(
    step: str, when: str, place: Place, providers: Providers, tmp_path: Path
) -> None:
    """The store was out when the callback came; deAPI had its 200 and does not send it again."""
    job, oracle = providers.deapi_job(), Acknowledged()
    async with Sink() as sink:
        config = tmp_path / "receiver.toml"
        text = providers.text(tmp_path, sink.url, retry="{retries = 100, wait = 0.2}", more=FAST)
        config.write_text(text + place.settings)
        dying = Process(config, step, when, environ=place.environ | {"CRASHING_STORE_OUT": "1"})
        await dying.start()
        await _push(dying, providers, [job], oracle)
        assert oracle.events == {job: set()}, "answered 200, and no event yet"
        assert await dying.died() == -9
        healthy = Process(config, environ=place.environ)
        await healthy.start()
        delivered = Delivered(sink)
        try:
            await delivered.until(lambda: job in delivered.ends)
        finally:
            await healthy.stop()
        delivered.look()
    assert len(delivered.ends[job]) == 1
    kept = place.kept(tmp_path)
    kept.check_events()
    kept.check_ends({job})
    assert not list((tmp_path / "data" / "journal").glob("*.json"))
