"""Two whole receivers over one store and one place for blobs: each pickup is collected once, each job comes to one event."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from receiver.app.wiring import Ports
from receiver.core.clock import wall_clock
from receiver.core.fetch import Fetch
from receiver.core.work import OutcomeKind, Pickup, PickupFilter, PickupState
from receiver.engine.pickups import new_pickup
from tests.crash.conftest import Place
from tests.support.kept import Kept
from tests.support.kept_events import kept_events
from tests.support.pulling import Providers, asked_providers
from tests.support.running import Running, running
from tests.support.sink import Sink

PICKUPS = 15
AHEAD = 5 * 60_000
SPEED = 20


@pytest.fixture
def providers() -> Iterator[Providers]:
    with asked_providers() as found:
        found.deepdub.not_ready = 2
        yield found


class _Holding:
    """Stands before a provider: an attempt goes on only once the other receiver has begun one of the same pickup."""

    def __init__(self, inner: Any, stolen: dict[str, asyncio.Event]) -> None:
        self._inner, self._stolen = inner, stolen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Any:
        await self._stolen.setdefault(pickup.id, asyncio.Event()).wait()
        return await self._inner.collect(pickup, fetch, now=now)


class _Telling(_Holding):
    """Stands before the other's."""

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Any:
        if pickup.id in self._stolen:
            self._stolen[pickup.id].set()
        return await self._inner.collect(pickup, fetch, now=now)


PLACES = pytest.mark.parametrize("place", ["embedded", "shared"], indirect=True)


def _settings(place: Place, folder: Path, providers: Providers, destination: str, more: str) -> list[str]:
    """Return the settings of both: embedded they share a folder; over PostgreSQL and S3 each has its own."""
    folders = [folder, folder] if place.shared is None else [folder / "one", folder / "other"]
    return [providers.text(each, destination, more=more) + place.settings for each in folders]


def _clock(since: int, ahead: int = 0) -> Callable[[], int]:
    """A clock that runs `SPEED` times as fast, so that "not yet" is soon over."""
    return lambda: since + (wall_clock() - since) * SPEED + ahead


async def _hand_over_all(up: Running, providers: Providers) -> set[str]:
    jobs: set[str] = set()
    for number in range(PICKUPS):
        source = ("deapi", "deepdub", "playht")[number % 3]
        job = {
            "deapi": lambda: providers.deapi_job("pending", "processing", "done"),
            "deepdub": providers.deepdub.submit,
            "playht": providers.playht_job,
        }[source]()
        pickup = new_pickup(up.receiver.ports.pulls[source], job, now=up.receiver.clock())
        await up.receiver.store.add_pickup(pickup)
        jobs.add(job)
    return jobs


async def _ended(*both: Running) -> None:
    """Wait until every pickup is collected, looking whenever one of the two reports."""

    def all_are() -> bool:
        return sum(report.state == "collected" for up in both for report in up.seen.pickups) >= PICKUPS

    tasks = [asyncio.create_task(up.seen.until(all_are)) for up in both]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _check(one: Running, other: Running, jobs: set[str], kept: Kept) -> None:
    """One event for each job, its audio whole; attempts without gap or double, and none of a claim that was lost."""
    store = one.receiver.store
    ends = Counter(
        event.job_id
        for event in await kept_events(store, limit=500)
        if not event.type.endswith(".processing")
    )
    assert ends == dict.fromkeys(jobs, 1)
    pickups = await store.pickups(PickupFilter(limit=500))
    assert {pickup.state for pickup in pickups} == {PickupState.COLLECTED}
    counted = 0
    for pickup in pickups:
        attempts = await store.pickup_attempts(pickup.id)
        assert [made.number for made in attempts] == list(range(1, pickup.attempts + 1))
        assert [made.outcome for made in attempts if made.outcome is OutcomeKind.COLLECTED] == [
            attempts[-1].outcome
        ]
        counted += len(attempts)
    assert counted == sum(report.state != "lost" for up in (one, other) for report in up.seen.pickups)
    await asyncio.to_thread(kept.check_events)


@PLACES
async def test_two_receivers_share_the_pickups_and_collect_each_once(
    place: Place, providers: Providers, tmp_path: Path
) -> None:
    clock = _clock(wall_clock())
    async with Sink() as sink:
        mine, others = _settings(place, tmp_path, providers, sink.url, "pickup_concurrency = 2")
        async with (
            running(tmp_path, mine, clock=clock) as one,
            running(tmp_path, others, clock=clock) as other,
        ):
            jobs = await _hand_over_all(one, providers)
            await _ended(one, other)
            await _check(one, other, jobs, place.kept(tmp_path))
            assert all(up.seen.pickups for up in (one, other)), "both had a share"
            assert not [r for up in (one, other) for r in up.seen.pickups if r.state == "lost"]


@PLACES
async def test_a_clock_five_minutes_ahead_takes_claims_too_soon_and_doubles_no_event(
    place: Place, providers: Providers, tmp_path: Path
) -> None:
    """By its clock the other's leases have ended, so it attempts what is under way as well; the later settle writes nothing.

    The store over PostgreSQL is not told of the wrong clock, so it cannot make up for it: what holds then is the conditional settle.
    """
    since = wall_clock()
    stolen: dict[str, asyncio.Event] = {}

    def wrap(kind: Callable[[Any, dict[str, asyncio.Event]], Any]) -> Callable[[Ports], Ports]:
        def shape(ports: Ports) -> Ports:
            ports.pulls = {name: kind(provider, stolen) for name, provider in ports.pulls.items()}
            return ports

        return shape

    async with Sink() as sink:
        more = "pickup_concurrency = 2\nattempt_seconds = 40"
        mine, others = _settings(place, tmp_path, providers, sink.url, more)
        async with running(tmp_path, mine, clock=_clock(since), shape=wrap(_Holding)) as one:
            jobs = await _hand_over_all(one, providers)
            for source in ("deapi", "deepdub", "playht"):
                one.receiver.collector.wake([source])
            while len(stolen) < 6:
                await asyncio.sleep(0)
            ahead = _clock(since, AHEAD)
            async with running(tmp_path, others, clock=ahead, shape=wrap(_Telling)) as other:
                await _ended(one, other)
                await one.seen.until(lambda: any(r.state == "lost" for r in one.seen.pickups))
                await _check(one, other, jobs, place.kept(tmp_path))
                for event in stolen.values():
                    event.set()  # what is still held may end before the stop
