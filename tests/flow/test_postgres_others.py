"""What another session of PostgreSQL holds, or may not do, concerns those who want the same and nobody else."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

from receiver.core.errors import StoreUnavailable
from receiver.core.event import Recorded, RecordStatus
from receiver.storage.store import postgres
from receiver.storage.store.postgres import PostgresBackend, PostgresStore
from receiver.storage.store.writer import Waits
from tests.contract.store_suite import T0, claim, recording, settlement
from tests.support.postgres import database, execute, own_database

LEASE = T0 + 60_000


@pytest.fixture
def url() -> Iterator[str]:
    with database() as made:
        yield made


@pytest.fixture
async def store(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PostgresStore]:
    monkeypatch.setattr(postgres, "LOCK_MS", 1500)
    # What a failing try costs on a busy machine is no wait for a lock: a dozen of them stay far below this, and nine locks do not.
    made = PostgresStore(url, waits=Waits(retry_budget=12))
    await made.open()
    yield made
    await made.close()


async def record(store: PostgresStore, key: str) -> tuple[Recorded | BaseException, float]:
    """Return the answer, and how long it took."""
    began = time.monotonic()
    try:
        answer: Recorded | BaseException = await store.record(recording("app", key=key))
    except StoreUnavailable as error:
        answer = error
    return answer, time.monotonic() - began


async def test_callbacks_that_wait_for_nothing_pass_those_that_a_sleeping_transaction_holds_up(
    store: PostgresStore, url: str
) -> None:
    """Also those that come while the others are waited for, and again and again while the sleeper's are sent once more.

    Were each that is held waited for as long as a lock may take, all would wait 18 s, and those after the eighth be refused.
    """
    held = [f"held-{number}" for number in range(12)]
    for key in held:
        await record(store, key)
    with psycopg.connect(url) as sleeper:
        sleeper.execute("DELETE FROM callbacks")
        waves = []
        for wave in range(3):
            mixed = [
                key for pair in zip(held, (f"{wave}-{n}" for n in range(12)), strict=True) for key in pair
            ]
            waves.append(asyncio.gather(*(record(store, key) for key in mixed)))
            await asyncio.wait([waves[-1]], timeout=0.3)
        answers = [one for wave in await asyncio.gather(*waves) for one in wave]
        free = [answer for answer, _ in answers[1::2]]
        assert [one.status for one in free if isinstance(one, Recorded)] == [RecordStatus.RECORDED] * 36
        assert max(took for _, took in answers[1::2]) < 15
        assert {type(answer) for answer, _ in answers[::2]} == {StoreUnavailable}
        sleeper.rollback()
    assert (await store.record(recording("app", key="held-1"))).status is RecordStatus.DUPLICATE


async def test_what_nobody_can_do_is_given_up_in_bounded_time(
    url: str,
) -> None:
    """A table is locked: each would wait by itself."""
    store = PostgresStore(url, waits=Waits(retry_budget=0.3))
    await store.open()
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE callbacks")
        answers = await asyncio.gather(*(record(store, f"k{number}") for number in range(100)))
        assert {type(answer) for answer, _ in answers} == {StoreUnavailable}
        # Each waiting in its turn, all together would take many times as long.
        assert max(took for _, took in answers) < 10
    assert isinstance((await record(store, "after"))[0], Recorded)
    await store.close()


async def test_a_statement_that_is_stopped_is_repeated_apart(store: PostgresStore, url: str) -> None:
    await store.record(recording("app"))
    (one,) = await claim(store)
    with psycopg.connect(url) as other:
        other.execute("UPDATE deliveries SET updated_at = updated_at")
        first = asyncio.create_task(store.settle(settlement(one)))
        stuck = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        while not await asyncio.to_thread(execute, url, f"SELECT 1 {stuck}"):
            await asyncio.sleep(0.01)
        rest = asyncio.gather(
            store.settle(settlement(one)), *(record(store, f"k{n}") for n in range(8)), return_exceptions=True
        )
        with pytest.raises(StoreUnavailable):
            await first
        while not await asyncio.to_thread(execute, url, f"SELECT pg_cancel_backend(pid) {stuck}"):
            await asyncio.sleep(0.01)
        answers = await rest
    assert isinstance(answers[0], StoreUnavailable)
    assert all(isinstance(answer[0], Recorded) for answer in answers[1:])


async def test_a_missing_right_concerns_only_what_needs_it() -> None:
    with own_database(migrated=True) as url:
        role = f"halfway_{os.getpid()}"
        execute(url, f"CREATE ROLE {role} LOGIN")
        rights = f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"
        execute(url, f"{rights}; REVOKE ALL ON pickups FROM {role}")
        store = PostgresStore(url.replace("postgres@", f"{role}@"))
        await store.open()
        asked = [store.claim_pickups("s", worker="w", limit=1, now=T0, lease_until=LEASE) for _ in range(3)]
        answers = await asyncio.gather(
            *asked,
            *(record(store, f"k{number}") for number in range(20)),
            store.ping(),
            return_exceptions=True,
        )
        await store.close()
        execute(url, f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert {type(one).__base__ for one in answers[:3]} <= {StoreUnavailable, StoreUnavailable.__base__}
    assert all(isinstance(one, StoreUnavailable) and "right" in one.message for one in answers[:3])
    assert all(isinstance(one[0], Recorded) for one in answers[3:-1])  # type: ignore[index]
    assert answers[-1] is None


async def test_what_is_in_doubt_is_not_done_again_one_by_one(
    store: PostgresStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried apart from a claim that must wait, the callbacks are committed together, and the answer is lost."""
    asleep, wake = threading.Event(), threading.Event()
    real = PostgresBackend.commit
    commits: list[int] = []

    def commit(self: PostgresBackend) -> None:
        commits.append(1)
        if len(commits) == 1:  # all that follows queues behind it, and makes one transaction
            asleep.set()
            wake.wait(20)
        real(self)
        if len(commits) == 2:
            raise psycopg.OperationalError("the answer is lost")

    monkeypatch.setattr(PostgresBackend, "commit", commit)
    first = asyncio.create_task(store.ping())
    await asyncio.to_thread(asleep.wait, 20)
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE pickups")
        claiming = store.claim_pickups("s", worker="w", limit=1, now=T0, lease_until=LEASE)
        rest = asyncio.gather(claiming, *(record(store, f"k{n}") for n in range(3)), return_exceptions=True)
        await asyncio.sleep(0)  # each of them runs until it has queued
        wake.set()
        answers = await rest
    await first
    assert isinstance(answers[0], StoreUnavailable)
    assert [type(one[0]) for one in answers[1:]] == [StoreUnavailable] * 3  # type: ignore[index]
    assert execute(url, "SELECT count(*) FROM events") == [(3,)]
    assert len(commits) == 2
    assert (await store.record(recording("app", key="k1"))).status is RecordStatus.DUPLICATE


async def test_a_process_that_sleeps_after_its_probe_holds_up_no_other(
    store: PostgresStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the statement and its commit, as by SIGSTOP."""
    sleeper = PostgresStore(url)
    await sleeper.open()
    asleep, wake = threading.Event(), threading.Event()
    real = PostgresBackend.commit

    def commit(self: PostgresBackend) -> None:
        monkeypatch.setattr(PostgresBackend, "commit", real)
        asleep.set()
        wake.wait(20)
        real(self)

    monkeypatch.setattr(PostgresBackend, "commit", commit)
    sleeping = asyncio.create_task(sleeper.ping())
    try:
        await asyncio.to_thread(asleep.wait, 20)
        began = time.monotonic()
        await store.ping()
        assert time.monotonic() - began < 1.2, "it waited for no lock"
    finally:
        wake.set()
        await sleeping
        await sleeper.close()
