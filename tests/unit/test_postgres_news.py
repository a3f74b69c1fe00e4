"""What processes on one PostgreSQL hear of each other, and what their clocks may do."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator, Iterable, Iterator

import pytest
from msgspec.structs import replace

from receiver.core.clock import wall_clock
from receiver.core.work import DeliveryFilter
from receiver.storage.store import postgres, postgres_session
from receiver.storage.store.postgres import PostgresStore
from receiver.storage.store.postgres_connection import Connection
from receiver.storage.store.store import Store
from tests.contract import pickup_suite
from tests.contract.store_suite import recording, settlement
from tests.support.postgres import database, execute

MINUTES = 10 * 60_000
LEASE = 30_000


@pytest.fixture
def url() -> Iterator[str]:
    with database() as made:
        yield made


class Ears:
    """Notes what a store heard."""

    def __init__(self, store: PostgresStore) -> None:
        self.heard: asyncio.Queue[tuple[tuple[str, ...], tuple[str, ...]]] = asyncio.Queue()
        store.listen(self._note)

    def _note(self, destinations: Iterable[str], sources: Iterable[str]) -> None:
        self.heard.put_nowait((tuple(destinations), tuple(sources)))

    async def until(self, destinations: set[str], sources: set[str]) -> int:
        """Wait until all of these were heard of; return in how many notes."""
        seen_destinations: set[str] = set()
        seen_sources: set[str] = set()
        notes = 0
        async with asyncio.timeout(10):
            while not (destinations <= seen_destinations and sources <= seen_sources):
                heard = await self.heard.get()
                seen_destinations |= set(heard[0])
                seen_sources |= set(heard[1])
                notes += 1
        return notes


@pytest.fixture
async def pair(url: str) -> AsyncIterator[tuple[PostgresStore, PostgresStore, Ears]]:
    """Two stores, and the ears of the second."""
    one, other = PostgresStore(url), PostgresStore(url)
    ears = Ears(other)
    for store in (one, other):
        await store.open()
    await listening(url)
    yield one, other, ears
    for store in (one, other):
        await store.close()


async def listening(url: str, *, not_: object = None) -> object:
    """Wait until a session listens, other than `not_`; return its process."""
    text = (
        "SELECT pid FROM pg_stat_activity "
        "WHERE datname = current_database() AND query LIKE 'LISTEN%' AND state = 'idle'"
    )
    async with asyncio.timeout(10):
        while True:
            for (found,) in await asyncio.to_thread(execute, url, text):
                if found != not_:
                    return found
            await asyncio.sleep(0.01)


async def test_what_one_process_records_another_hears_of(
    pair: tuple[PostgresStore, PostgresStore, Ears],
) -> None:
    one, _, ears = pair
    await one.record(recording("app", "audit"))
    await one.add_pickup(pickup_suite.pickup("k"))
    await ears.until({"app", "audit"}, {"deapi"})


async def test_what_wakes_is_there_to_be_claimed(pair: tuple[PostgresStore, PostgresStore, Ears]) -> None:
    one, other, ears = pair
    at = wall_clock()
    await one.record(recording("app", at=at))
    await ears.until({"app"}, set())
    assert len(await other.claim("app", worker="w", limit=1, now=at, lease_until=at + LEASE)) == 1


async def test_nobody_is_told_of_what_it_recorded_itself_nor_of_duplicates(
    pair: tuple[PostgresStore, PostgresStore, Ears],
) -> None:
    one, other, ears = pair
    wanted = recording("own")
    await other.record(wanted)
    await one.record(wanted)
    await one.record(recording("app"))
    await ears.until({"app"}, set())
    assert ears.heard.empty()


async def test_under_load_notes_are_few_and_the_last_is_not_forgotten(
    pair: tuple[PostgresStore, PostgresStore, Ears],
) -> None:
    one, _, ears = pair
    began = time.monotonic()
    for number in range(300):
        await one.record(recording(f"app-{number % 7}"))
    await one.record(recording("last"))
    notes = await ears.until({"last"}, set())
    assert notes <= (time.monotonic() - began) / 0.02 + 2


async def test_more_than_fits_into_a_note_is_left_to_the_poll(
    pair: tuple[PostgresStore, PostgresStore, Ears],
) -> None:
    one, _, ears = pair
    await one.record(recording(*(f"{number:03d}" + "x" * 60 for number in range(200))))
    async with asyncio.timeout(10):
        while ears.heard.empty():  # notes of one moment go together, too many or not
            await one.record(recording("app"))
    assert ears.heard.get_nowait() == (("app",), ())


async def test_a_listener_whose_connection_is_killed_listens_again(
    pair: tuple[PostgresStore, PostgresStore, Ears], url: str
) -> None:
    one, _, ears = pair
    before = await listening(url)
    execute(url, f"SELECT pg_terminate_backend({before})")
    await listening(url, not_=before)
    await one.record(recording("app"))
    await ears.until({"app"}, set())


async def test_a_listener_hears_however_many_files_the_process_has_open(url: str) -> None:
    """`select` takes no descriptor beyond 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("this user may not open as many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    hoard: list[int] = []
    try:
        while not hoard or hoard[-1] < 1030:
            hoard.append(os.open(os.devnull, os.O_RDONLY))
        one, other = PostgresStore(url), PostgresStore(url)
        ears = Ears(other)
        for store in (one, other):
            await store.open()
        await listening(url)
        await one.record(recording("app"))
        await ears.until({"app"}, set())
        for store in (one, other):
            await store.close()
    finally:
        for descriptor in hoard:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_listener_survives_what_nobody_foresaw(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = PostgresStore(url), PostgresStore(url)
    ears = Ears(other)
    real = postgres.Listener._listen

    def listen(self: postgres.Listener, connection: Connection) -> bool:
        monkeypatch.setattr(postgres.Listener, "_listen", real)
        raise ValueError("filedescriptor out of range")

    monkeypatch.setattr(postgres.Listener, "_listen", listen)
    for store in (one, other):
        await store.open()
    await listening(url)
    await one.record(recording("app"))
    await ears.until({"app"}, set())
    for store in (one, other):
        await store.close()


# ---------------------------------------------------------------- clocks


@pytest.fixture
async def apart(url: str) -> AsyncIterator[tuple[PostgresStore, PostgresStore]]:
    """Two stores, the clock of the second ten minutes ahead."""
    stores = PostgresStore(url), PostgresStore(url, clock=lambda: wall_clock() + MINUTES)
    for store in stores:
        await store.open()
    yield stores
    for store in stores:
        await store.close()


async def take(store: Store, now: int, worker: str = "w") -> int:
    return len(await store.claim("app", worker=worker, limit=10, now=now, lease_until=now + LEASE))


async def test_a_clock_that_is_ahead_takes_no_row_whose_lease_holds(
    apart: tuple[PostgresStore, PostgresStore],
) -> None:
    right, ahead = apart
    now = wall_clock()
    await right.record(recording("app", at=now))
    assert abs((ahead.skew_ms or 0) + MINUTES) < 1_000
    assert right.skew_ms == 0
    assert await take(right, now) == 1
    assert await take(ahead, now + MINUTES + LEASE - 1_000) == 0
    assert await take(ahead, now + MINUTES + LEASE + 1_000) == 1
    assert await take(right, now + LEASE + 1_000) == 0, "the second claim holds as long, by both clocks"
    assert await take(right, now + 2 * LEASE + 3_000) == 1


async def test_what_a_clock_ahead_records_is_due_for_all_at_once(
    apart: tuple[PostgresStore, PostgresStore],
) -> None:
    right, ahead = apart
    now = wall_clock()
    recorded = await ahead.record(recording("app", at=now + MINUTES))
    (shown,) = await ahead.deliveries(DeliveryFilter(event_id=recorded.event_id))
    assert shown.due_at == shown.created_at == now + MINUTES, "each process sees its own time"
    due_at = await right.next_due("app")
    assert due_at is not None
    assert abs(due_at - now) < 1_000
    assert await take(right, now + 1_000) == 1


async def test_retries_and_replays_of_a_clock_ahead_are_due_in_time(
    apart: tuple[PostgresStore, PostgresStore],
) -> None:
    right, ahead = apart
    now = wall_clock()
    await ahead.record(recording("app", at=now + MINUTES))
    (held,) = await ahead.claim(
        "app", worker="w", limit=1, now=now + MINUTES, lease_until=now + MINUTES + LEASE
    )
    assert held.lease_until == now + MINUTES + LEASE
    await ahead.release([held], now=now + MINUTES)
    (held,) = await right.claim("app", worker="w", limit=1, now=now + 1_000, lease_until=now + LEASE)
    dead = settlement(held, at=now)
    assert await right.settle(dead)
    assert await ahead.replay([held.id], now=now + MINUTES) == [held.id]
    assert await take(right, now + 1_000) == 1
    stats = await ahead.stats(now + MINUTES + LEASE + 5_000)
    assert abs((stats.due[0].oldest_due_at or 0) - now - MINUTES - LEASE - 1_000) < 1_000


async def test_pickups_are_kept_in_the_databases_time_as_well(
    apart: tuple[PostgresStore, PostgresStore],
) -> None:
    right, ahead = apart
    now = wall_clock()
    wanted = replace(pickup_suite.pickup("k"), due_at=now + MINUTES, created_at=now + MINUTES)
    await ahead.add_pickup(wanted)
    assert (await ahead.pickup(wanted.id)).due_at == now + MINUTES
    (held,) = await right.claim_pickups(
        "deapi", worker="w", limit=1, now=now + 1_000, lease_until=now + LEASE
    )
    stolen = await ahead.claim_pickups(
        "deapi", worker="v", limit=1, now=now + MINUTES + LEASE - 2_000, lease_until=now + MINUTES + 2 * LEASE
    )
    assert (held.pickup.id, stolen) == (wanted.id, [])


async def test_a_clock_that_is_set_is_measured_again_at_once(url: str) -> None:
    ahead = 0
    store = PostgresStore(url, clock=lambda: wall_clock() + ahead)
    await store.open()
    assert store.skew_ms == 0
    ahead = MINUTES
    await store.ping()
    assert abs((store.skew_ms or 0) + MINUTES) < 1_000
    ahead = postgres_session.BAND_MS // 2
    await store.ping()
    assert store.skew_ms == 0, "so little is none"
    await store.close()
