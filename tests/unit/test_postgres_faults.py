"""The PostgreSQL store and its server: what fails is told apart from what is recorded, and passes without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator

import psycopg
import pytest

from receiver.core.errors import ConfigError, StoreUnavailable
from receiver.core.event import RecordStatus
from receiver.storage.store import postgres_connection
from receiver.storage.store.postgres import PostgresBackend, PostgresStore
from receiver.storage.store.postgres_session import PostgresSession
from tests.contract import pickup_suite
from tests.contract.store_suite import T0, claim, one_delivery, recording, settlement
from tests.support.kept_events import kept_events
from tests.support.postgres import Server, execute, server


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    """A server that waits for its disk, so that what it acknowledged survives a crash."""
    with server("max_connections=30", "deadlock_timeout=1500ms", durable=True) as made:
        (made.folder / "pg_hba.conf").write_text(
            "host all secured 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
            "host replication all 127.0.0.1/32 trust\n"
        )
        made.execute("SELECT pg_reload_conf()")
        yield made


@pytest.fixture(scope="module")
def template(running: Server) -> str:
    """A migrated database without rows."""
    name = running.new_database()
    asyncio.run(PostgresStore(running.url(name)).migrate())
    return name


@pytest.fixture
def url(running: Server, template: str) -> Iterator[str]:
    name = running.new_database(template)
    yield running.url(name, more="?connect_timeout=2")
    running.drop_database(name)


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    made = PostgresStore(url, answer_seconds=2)
    await made.open()
    yield made
    await made.close()


async def record_until(store: PostgresStore, stop: asyncio.Event) -> tuple[list[str], list[BaseException]]:
    """Sixteen callers record without a pause; return the ids acknowledged and the errors."""
    acknowledged: list[str] = []
    failed: list[BaseException] = []

    async def caller() -> None:
        while not stop.is_set():
            try:
                acknowledged.append((await store.record(recording("app"))).event_id)
            except Exception as error:
                failed.append(error)
                await asyncio.sleep(0)

    await asyncio.gather(*(caller() for _ in range(16)))
    return acknowledged, failed


def ids_in(url: str) -> set[str]:
    """What another process sees."""
    return {str(row[0]) for row in execute(url, "SELECT id FROM events")}


async def again(call: Callable[[], object]) -> None:
    """Call until the store is back."""
    async with asyncio.timeout(15):
        while True:
            try:
                await call()  # type: ignore[misc]
            except StoreUnavailable:
                await asyncio.sleep(0.02)
            else:
                return


_OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


async def test_killed_connections_lose_nothing_that_was_acknowledged(store: PostgresStore, url: str) -> None:
    stop = asyncio.Event()
    recording_ = asyncio.create_task(record_until(store, stop))
    killed = 0
    while killed < 12:
        await asyncio.sleep(0.02)
        rows = await asyncio.to_thread(execute, url, f"SELECT pg_terminate_backend(pid) {_OTHERS}")
        killed += len(rows)
    stop.set()
    acknowledged, failed = await recording_
    assert acknowledged
    assert set(acknowledged) <= ids_in(url)
    assert all(isinstance(error, StoreUnavailable) for error in failed)
    await again(store.ping)


async def test_an_idle_connection_that_was_killed_is_no_trouble(store: PostgresStore, url: str) -> None:
    """Its successor takes over, for writing and for reading, and nobody is told."""
    wanted = recording("app")
    await store.record(wanted)
    await store.event(wanted.event.id)
    assert len(execute(url, f"SELECT pg_terminate_backend(pid) {_OTHERS}")) == 2
    assert (await store.record(recording("app"))).status is RecordStatus.RECORDED
    assert await store.event(wanted.event.id) == wanted.event


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
async def test_a_server_that_starts_again_has_all_that_was_acknowledged(
    store: PostgresStore, running: Server, url: str, how: signal.Signals
) -> None:
    """After an orderly stop and after a crash."""
    stop = asyncio.Event()
    recording_ = asyncio.create_task(record_until(store, stop))
    while not await asyncio.to_thread(ids_in, url):
        await asyncio.sleep(0.01)
    await asyncio.to_thread(running.stop, how)
    with pytest.raises(StoreUnavailable):
        await store.ping()
    with pytest.raises(StoreUnavailable):
        await kept_events(store)
    stop.set()
    running.start()
    acknowledged, failed = await recording_
    await again(store.ping)
    await again(lambda: kept_events(store))
    assert acknowledged
    assert set(acknowledged) <= ids_in(url)
    assert failed


async def test_a_server_that_answers_no_more_is_noticed_and_used_again(
    store: PostgresStore, running: Server
) -> None:
    """As when the network is cut: no connection is closed, nothing comes."""
    await kept_events(store)
    wanted = recording("app")
    running.signal_all(signal.SIGSTOP)
    began = time.monotonic()
    try:
        answers = await asyncio.gather(
            store.record(wanted), store.event(wanted.event.id), return_exceptions=True
        )
        assert time.monotonic() - began < 3.5, "what says nothing is waited for once, not to undo it as well"
        assert [type(one) for one in answers] == [StoreUnavailable] * 2
        assert "does not answer" in str(answers[1])
        with pytest.raises(StoreUnavailable):
            await store.record(wanted)
        assert time.monotonic() - began < 15
    finally:
        running.signal_all(signal.SIGCONT)
    await again(store.ping)
    await store.record(wanted)
    assert await store.event(wanted.event.id) == wanted.event


async def test_no_connection_left_is_said_and_passes(running: Server, url: str) -> None:
    hoard: list[psycopg.Connection[object]] = []
    with contextlib.suppress(psycopg.OperationalError):
        while True:
            hoard.append(psycopg.connect(running.url()))
    store = PostgresStore(url)
    try:
        with pytest.raises(StoreUnavailable, match="no connection left"):
            await store.open()
    finally:
        for one in hoard:
            one.close()
    await again(store.open)
    await store.ping()
    await store.close()


# ---------------------------------------------------------------- commits whose answer is lost


def hang_up(connection: psycopg.Connection[object]) -> None:
    with socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


def swallow_the_answer(connection: psycopg.Connection[object]) -> None:
    """See that the server has committed, lose its answer, and hang up."""
    connection.pgconn.pipeline_sync()
    while connection.pgconn.flush():
        pass
    with socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.settimeout(5)
        while b"COMMIT\0" not in wire.recv(65536, socket.MSG_PEEK):
            pass
        wire.setblocking(False)
        wire.recv(1 << 20)
    hang_up(connection)


@pytest.fixture
def cutting(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Break the connection at the next commit: before it was sent, or, `delivered`, after it was done."""

    def arm(delivered: bool) -> None:
        name = "_leave_pipeline" if delivered else "commit"
        real = getattr(PostgresBackend, name)

        def broken(self: PostgresBackend) -> None:
            monkeypatch.setattr(PostgresBackend, name, real)
            assert self._connection is not None
            (swallow_the_answer if delivered else hang_up)(self._connection)
            real(self)

        monkeypatch.setattr(PostgresBackend, name, broken)

    return arm


@pytest.mark.parametrize("delivered", [True, False])
async def test_after_a_commit_whose_answer_is_lost_a_repeat_is_harmless(
    store: PostgresStore, cutting: Callable[[bool], None], delivered: bool
) -> None:
    """The callers are refused. What they repeat is a duplicate if the server had committed, and recorded if it had not."""
    await one_delivery(store)
    (held,) = await claim(store)
    cutting(delivered)
    new = recording("app")
    answers = await asyncio.gather(store.record(new), store.settle(settlement(held)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 2
    repeated = await store.record(new)
    status = RecordStatus.DUPLICATE if delivered else RecordStatus.RECORDED
    assert (repeated.status, repeated.event_id) == (status, new.event.id)
    assert await store.settle(settlement(held)) is not delivered
    assert len(await store.attempts(held.id)) == 1


# ---------------------------------------------------------------- rows that others hold


async def test_a_deadlock_is_repeated(store: PostgresStore, url: str) -> None:
    await asyncio.gather(*(store.record(recording("app")) for _ in range(2)))
    first, second = sorted(await claim(store), key=lambda one: one.id)
    touch = "UPDATE deliveries SET updated_at = updated_at WHERE id = '{}'"
    with psycopg.connect(url) as other:
        other.execute("SET deadlock_timeout = '60s'")  # it is the store that notices, and gives way
        other.execute(touch.format(second.id).encode())
        settling = asyncio.gather(*(store.settle(settlement(one)) for one in (first, second)))
        waiting = f"SELECT 1 {_OTHERS} AND wait_event_type = 'Lock'"
        while not await asyncio.to_thread(execute, url, waiting):
            await asyncio.sleep(0.01)
        await asyncio.to_thread(other.execute, touch.format(first.id).encode())
        other.commit()
        assert await settling == [True, True]
    assert len(await store.attempts(first.id)) == 1


async def test_a_lock_that_is_never_let_go_is_unavailable(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_connection, "LOCK_MS", 200)
    store = PostgresStore(url)
    await store.open()
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE callbacks")
        with pytest.raises(StoreUnavailable, match="kept a row locked"):
            await store.record(recording("app"))
    assert (await store.record(recording("app"))).status is RecordStatus.RECORDED
    await store.close()


async def test_a_pickup_that_ends_while_another_process_asks_for_it_is_asked_for_again(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """It stood when the row was refused, and is gone when it is looked up: the transaction is repeated."""
    old, new = pickup_suite.pickup("k"), pickup_suite.pickup("k")
    await store.add_pickup(old)
    real = PostgresSession.run

    def run(self: PostgresSession, name: str, *arguments: object) -> object:
        if name == "list_pickups":
            monkeypatch.setattr(PostgresSession, "run", real)
            execute(url, "UPDATE pickups SET state = 'gone', due_at = NULL")
        return real(self, name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(PostgresSession, "run", run)
    assert await store.add_pickup(new) == (new, True)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"user": "secured", "password": "hunter2"}, "refused the user or the password"),
        ({"user": "nobody-here"}, "refused the user or the password"),
        ({"database": "absent"}, "no database of the name"),
    ],
)
async def test_a_connection_that_is_refused_says_why_and_no_secret(
    running: Server, more: dict[str, str], sentence: str
) -> None:
    running.execute("DROP ROLE IF EXISTS secured")
    running.execute("CREATE ROLE secured LOGIN PASSWORD 'other'")
    with pytest.raises(StoreUnavailable, match=sentence) as caught:
        await PostgresStore(running.url(**more)).open()
    named = more.get("database") or more["user"]
    assert named in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_server_that_is_not_there_says_so() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await PostgresStore(f"postgresql://me:secret@127.0.0.1:{port}/x").open()


async def test_a_server_that_takes_no_writes_is_left(running: Server, url: str) -> None:
    """The old primary comes back as a standby: what reaches it fails, and the next attempt looks for another."""
    name = url.rpartition("/")[2].partition("?")[0]
    running.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    store = PostgresStore(url)
    with pytest.raises(StoreUnavailable, match="takes no writes"):
        await store.open()
    running.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    await again(store.open)
    await store.ping()
    await store.close()


async def test_a_server_that_is_too_old_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_connection, "OLDEST", 1_000_000)
    with pytest.raises(ConfigError, match="PostgreSQL 13"):
        await PostgresStore(url).open()


async def test_time_is_given_as_a_parameter_and_kept(store: PostgresStore) -> None:
    """With clocks that agree nothing is shifted."""
    await one_delivery(store)
    assert await store.next_due("app") == T0
    assert store.skew_ms == 0
