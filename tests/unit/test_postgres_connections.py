"""A connection of the PostgreSQL store that ends in an unusual place: it is replaced, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from psycopg import errors

from receiver.errors import StoreUnavailable
from receiver.model import Event, RecordStatus
from receiver.store import postgres
from receiver.store.base import EventFilter
from receiver.store.postgres import PostgresBackend, PostgresStore
from receiver.store.postgres_session import PostgresSession
from receiver.store.reading import events
from receiver.store.sql import Session
from tests.contract.store_suite import recording
from tests.support.postgres import database
from tests.unit.test_postgres_faults import hang_up

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


async def test_a_commit_of_which_the_server_knows_nothing_was_not_done_and_is_repeated(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PostgresBackend.commit

    def commit(self: PostgresBackend) -> None:
        monkeypatch.setattr(PostgresBackend, "commit", real)
        assert self._connection is not None
        hang_up(self._connection)
        real(self)

    monkeypatch.setattr(PostgresBackend, "commit", commit)
    monkeypatch.setattr(PostgresSession, "transaction_id", lambda self: NOT_GIVEN_OUT)
    assert (await store.record(recording("app"))).status is RecordStatus.RECORDED


async def test_a_commit_that_the_server_has_forgotten_is_waited_for_no_more(store: PostgresStore) -> None:
    assert store._writer is not None
    backend = store._writer._backend
    assert isinstance(backend, PostgresBackend)
    backend._waiting = NOT_GIVEN_OUT
    assert (await store.record(recording("app"))).status is RecordStatus.RECORDED
    assert backend._waiting is None


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


async def test_a_connection_that_could_not_be_prepared_is_not_used(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = postgres._history
    kept: list[object] = []

    def history(connection: object) -> str | None:
        monkeypatch.setattr(postgres, "_history", real)
        kept.append(connection)
        raise errors.ObjectNotInPrerequisiteState

    store = PostgresStore(url)
    monkeypatch.setattr(postgres, "_history", history)
    with pytest.raises(StoreUnavailable):
        await store.open()
    assert [one.closed for one in kept] == [True]  # type: ignore[attr-defined]
    await store.open()
    await store.close()


async def test_a_reading_thread_that_was_left_to_itself_does_not_use_its_successors_connection(
    store: PostgresStore,
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def listing(session: Session) -> list[Event]:
        if not asked.is_set():
            asked.set()
            go_on.wait(20)
            raise LookupError  # as for a row that has vanished: it is asked for again
        return events(session, EventFilter())

    store._close_seconds = 0.05
    asked_for = asyncio.create_task(store._read(listing))
    await asyncio.to_thread(asked.wait, 20)
    await store.close()
    go_on.set()
    with pytest.raises(StoreUnavailable):
        await asked_for
