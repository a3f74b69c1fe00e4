"""A connection of the PostgreSQL store that ends in an unusual place: it is replaced, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors, waiting

from receiver.core.clock import wall_clock
from receiver.core.errors import StoreUnavailable
from receiver.core.event import Event, EventSearch, RecordStatus
from receiver.storage.store.events import search
from receiver.storage.store.postgres import Pauses, PostgresBackend, PostgresStore
from receiver.storage.store.postgres_connection import Connection, connect, parse
from receiver.storage.store.postgres_session import Skew
from receiver.storage.store.statements import Session
from tests.contract.store_suite import recording
from tests.support.kept_events import kept_events
from tests.support.postgres import database

NOT_GIVEN_OUT = "9999999999"
"""The number of a transaction that the server has not come to, as after a crash in which it forgot some."""


@pytest.fixture
def url() -> Iterator[str]:
    with database() as made:
        yield made


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    made = PostgresStore(url)
    await made.open()
    yield made
    await made.close()


@pytest.mark.parametrize("kind", [errors.IdleInTransactionSessionTimeout, errors.IdleSessionTimeout])
async def test_a_session_that_the_server_ended_for_its_sleep_is_replaced_unseen(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch, kind: type[psycopg.Error]
) -> None:
    """As after SIGSTOP. Its words speak of a timeout, which is not ours: everything was undone, and is repeated."""
    real = PostgresBackend.commit

    def commit(self: PostgresBackend) -> None:
        monkeypatch.setattr(PostgresBackend, "commit", real)
        raise kind("terminating connection due to a timeout")

    await store.ping()
    monkeypatch.setattr(PostgresBackend, "commit", commit)
    assert (await store.record(recording("app"))).status is RecordStatus.RECORDED


async def test_a_reading_thread_that_was_left_to_itself_does_not_use_its_successors_connection(
    store: PostgresStore,
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def listing(session: Session) -> list[Event]:
        if not asked.is_set():
            asked.set()
            go_on.wait(20)
            raise LookupError  # as for a row that has vanished: it is asked for again
        return [one.event for one in search(session, EventSearch())]

    store.close_seconds = 0.05
    asked_for = asyncio.create_task(store.read(listing))
    await asyncio.to_thread(asked.wait, 20)
    await store.close()
    go_on.set()
    with pytest.raises(StoreUnavailable):
        await asked_for


# ---------------------------------------------------------------- short of something ourselves


HELD = [os.dup(0) for _ in range(4)]
"""Taken before any test ran: what is open below stays open, whatever other threads and garbage give back meanwhile."""


@contextlib.contextmanager
def descriptors(spare: int) -> Iterator[None]:
    """Let this process open so many more, one at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (HELD[-1] + 1, hard))
    if spare:
        os.close(HELD.pop())
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("spare", [0, 1], ids=["for the socket", "for the wait"])
async def test_without_file_descriptors_the_store_is_out_and_then_back(url: str, spare: int) -> None:
    """The second error is the system's own, and came through as if it were a bug of ours."""
    store = PostgresStore(url, pauses=Pauses(first=0.0))
    with (
        descriptors(spare),
        pytest.raises(StoreUnavailable, match="no file descriptor left: raise its limit"),
    ):
        await store.open()
    await store.open()
    with (
        descriptors(spare),
        pytest.raises(StoreUnavailable, match="no file descriptor left: raise its limit"),
    ):
        await kept_events(store)
    assert await kept_events(store) == []
    await store.close()


async def test_a_commit_whose_answer_the_system_kept_from_us_is_refused_and_may_be_repeated(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was done, and nobody can know."""
    real, wait = PostgresBackend._leave_pipeline, waiting.wait
    waits: list[int] = []

    def starved(gen: Any, fileno: int, **more: Any) -> None:
        waits.append(fileno)
        wait(gen, fileno, **more)
        raise OSError(errno.EMFILE, "Too many open files")

    def leave(self: PostgresBackend) -> None:
        monkeypatch.setattr(PostgresBackend, "_leave_pipeline", real)
        with monkeypatch.context() as patched:
            patched.setattr(waiting, "wait", starved)
            real(self)

    await store.ping()
    monkeypatch.setattr(PostgresBackend, "_leave_pipeline", leave)
    new = recording("app")
    with pytest.raises(StoreUnavailable):
        await store.record(new)
    assert waits
    assert (await store.record(new)).status is RecordStatus.DUPLICATE


def test_what_keeps_us_from_connecting_is_an_outage_with_a_pause(url: str) -> None:
    tries: list[Exception] = [MemoryError(), OSError(errno.EMFILE, "Too many open files")]

    def connected() -> Connection:
        if tries:
            raise tries.pop()
        return connect(parse(url), writes=True)

    backend = PostgresBackend(connected, Skew(wall_clock), None, Pauses(first=60.0))
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="no file descriptor left"):
            backend.begin()
        assert len(tries) == 1, "within the pause nothing is tried"
    backend._not_before = 0.0
    with pytest.raises(StoreUnavailable, match="no memory left"):
        backend.begin()
    backend._not_before = 0.0
    backend.begin()
    backend.close()


def test_what_we_ran_out_of_within_a_transaction_concerns_all_of_it(url: str) -> None:
    backend = PostgresBackend(lambda: connect(parse(url), writes=True), Skew(wall_clock), None)
    for error in (OSError(errno.EMFILE, "Too many open files"), MemoryError()):
        backend.begin()
        told, all_affected, _ = backend.trouble(error)
        assert isinstance(told, StoreUnavailable)
        assert all_affected
        assert backend._connection is None, "nobody knows what is left on its wire"
    backend.close()
