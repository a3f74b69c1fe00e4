"""Parts that fail under a running receiver: the promised answer, nothing lost, recovery without a restart."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import httpx2
import pytest

from receiver.app.wiring import Ports, Timing
from receiver.settings.load import sqlite_path
from receiver.storage.store.sqlite import SqliteStore
from tests.faultvfs import FaultVFS
from tests.support.kept_events import kept_events
from tests.support.running import Running, running, settings_text
from tests.support.senders import Sent, deapi, speech, transcript


def mixed() -> tuple[Sent, ...]:
    """Return one callback of each kind, signed now: an import may be longer ago than a signature holds."""
    return speech("job-speech"), transcript("job-text"), deapi("job-deapi")


class Faulty:
    """A receiver whose SQLite stands on a file system with switches."""

    def __init__(self) -> None:
        self.vfs = FaultVFS()

    def shape(self, ports: Ports) -> Ports:
        path = self.path
        ports.store = SqliteStore(path, vfs=self.vfs.name, busy_timeout=0.2)
        return ports

    path = ""


@pytest.fixture
async def faulty(tmp_path: Path) -> AsyncIterator[tuple[Running, Faulty]]:
    fault = Faulty()
    fault.path = str(tmp_path / "data" / "receiver.db")
    async with running(tmp_path, settings_text(tmp_path), shape=fault.shape, work=False) as up:
        yield up, fault


async def _send(up: Running, sent: Sent) -> httpx2.Response:
    return await up.client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)


async def _by_trait(up: Running) -> None:
    """While the store or the blobs are out: Deepgram is told to send again, deAPI is not, and both are kept."""
    answers = {sent.name: await _send(up, sent) for sent in mixed()}
    assert {name: answer.status_code for name, answer in answers.items()} == {
        "job-speech": 503,
        "job-text": 503,
        "job-deapi": 200,
    }
    assert answers["job-deapi"].json() == {"status": "journaled"}
    assert answers["job-speech"].headers["retry-after"] == "30"
    assert up.receiver.journal.depth == 3


async def _recovers(up: Running) -> None:
    """Without a restart the journal drains down the same road, and what is sent again is a duplicate."""
    await up.seen.until(lambda: up.receiver.journal.depth == 0)
    events = await kept_events(up.receiver.store)
    assert sorted(str(event.job_id) for event in events) == ["job-deapi", "job-speech", "job-text"]
    assert (await _send(up, speech("job-speech"))).json()["status"] == "duplicate"
    assert (await up.client.get("/readyz")).status_code == 200


async def test_a_store_locked_by_another_process(faulty: tuple[Running, Faulty]) -> None:
    up, fault = faulty
    other = apsw.Connection(fault.path)
    other.execute("BEGIN EXCLUSIVE")
    await _by_trait(up)
    other.execute("ROLLBACK")
    other.close()
    await _recovers(up)


async def test_a_sync_that_fails(faulty: tuple[Running, Faulty]) -> None:
    """A failed fsync is fatal for that connection; what was answered 2xx before and after is there."""
    up, fault = faulty
    before = await _send(up, transcript("before"))
    assert before.status_code == 200
    fault.vfs.fail_sync = ("-wal", ".db")
    await _by_trait(up)
    assert (await up.client.get("/readyz")).status_code == 503
    fault.vfs.fail_sync = ()
    await up.seen.until(lambda: up.receiver.journal.depth == 0)
    kept = {event.job_id for event in await kept_events(up.receiver.store)}
    assert kept == {"before", "job-speech", "job-text", "job-deapi"}


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("replaced", [False, True])
async def test_a_database_that_is_taken_away_from_under_its_receiver(
    tmp_path: Path, suffix: str, replaced: bool
) -> None:
    """What is committed to a file without a name is lost at the next start, so it counts as an outage from then on."""
    async with running(tmp_path, work=False, timing=Timing(ready_seconds=0)) as up:
        assert (await _send(up, transcript("before"))).status_code == 200
        assert (await up.client.get("/readyz")).status_code == 200
        path = tmp_path / "data" / f"receiver.db{suffix}"
        aside = path.rename(path.with_name("aside"))
        if replaced:
            path.write_bytes(aside.read_bytes())
        await _by_trait(up)
        ready = (await up.client.get("/readyz")).json()
        assert "was removed or replaced" in ready["parts"]["store"]
        aside.rename(path)
        await up.seen.until(lambda: up.receiver.journal.depth == 0)
    async with running(tmp_path, work=False) as up:
        kept = {event.job_id for event in await kept_events(up.receiver.store)}
        assert kept == {"before", "job-speech", "job-text", "job-deapi"}


async def test_a_restart_begins_with_the_database_that_was_put_in_the_place(tmp_path: Path) -> None:
    async with running(tmp_path, work=False) as up:
        path = tmp_path / "data" / "receiver.db"
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink()
        await _by_trait(up)
        assert not path.exists(), "it is for a person to say that a new one shall begin"
    async with running(tmp_path, work=False) as up:
        await _recovers(up)


async def test_a_full_disk_under_the_store(faulty: tuple[Running, Faulty]) -> None:
    up, fault = faulty
    fault.vfs.full = True
    await _by_trait(up)
    fault.vfs.full = False
    await _recovers(up)


async def test_a_store_that_turned_read_only(faulty: tuple[Running, Faulty]) -> None:
    """As when the kernel remounts a damaged file system: the answer by trait, and recovery once it may be written."""
    up, fault = faulty
    fault.vfs.read_only = True
    await _by_trait(up)
    fault.vfs.read_only = False
    await _recovers(up)


async def test_a_store_that_refuses_a_row(tmp_path: Path) -> None:
    """Whatever the database has against it, a proved callback is kept until it has not."""
    async with running(tmp_path, settings_text(tmp_path), work=False) as up:
        other = apsw.Connection(sqlite_path(up.receiver.settings))
        other.set_busy_timeout(5000)
        other.execute("CREATE TRIGGER refuse BEFORE INSERT ON callbacks BEGIN SELECT RAISE(ABORT, 'no'); END")
        await _by_trait(up)
        other.execute("DROP TRIGGER refuse")
        other.close()
        await _recovers(up)


async def test_a_blob_folder_that_is_gone(tmp_path: Path) -> None:
    """Audio waits in the journal; what needs no blob is recorded as ever."""
    always_asked = Timing(ready_seconds=0)
    async with running(tmp_path, settings_text(tmp_path), work=False, timing=always_asked) as up:
        blobs = tmp_path / "data" / "blobs"
        blobs.rename(tmp_path / "away")
        assert [(await _send(up, sent)).status_code for sent in mixed()] == [503, 200, 200]
        ready = await up.client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["parts"]["blobs"] != "ok"
        (tmp_path / "away").rename(blobs)
        await _recovers(up)


async def test_nothing_can_keep_it(tmp_path: Path) -> None:
    """Store and journal both out: 503 for every provider, never 2xx, and it works again afterwards."""
    fault = Faulty()
    fault.path = str(tmp_path / "data" / "receiver.db")
    async with running(tmp_path, settings_text(tmp_path), shape=fault.shape, work=False) as up:
        fault.vfs.full = True
        journal = tmp_path / "data" / "journal"
        journal.rename(tmp_path / "away")
        for sent in mixed():
            answer = await _send(up, sent)
            assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
        (tmp_path / "away").rename(journal)
        fault.vfs.full = False
        for sent in mixed():
            assert (await _send(up, sent)).json()["status"] == "recorded"


async def test_a_store_slower_than_the_budget(tmp_path: Path) -> None:
    """Past the budget the journal answers; the slow commit that still succeeds makes a duplicate of nothing."""
    fault = Faulty()
    fault.path = str(tmp_path / "data" / "receiver.db")
    text = settings_text(tmp_path).replace("[sources.deapi]", "[sources.deapi]\nbudget_seconds = 0.05")

    def shape(ports: Ports) -> Ports:
        ports.store = SqliteStore(fault.path, busy_timeout=20)
        return ports

    async with running(tmp_path, text, shape=shape, work=False) as up:
        other = apsw.Connection(fault.path)
        other.execute("BEGIN EXCLUSIVE")
        answer = await _send(up, deapi("slow"))
        assert answer.json() == {"status": "journaled"}
        other.execute("ROLLBACK")
        other.close()
        await up.seen.until(lambda: up.receiver.journal.depth == 0)
        assert [event.job_id for event in await kept_events(up.receiver.store)] == ["slow"]


async def test_the_journal_survives_a_restart(tmp_path: Path) -> None:
    """What waited when the process ended is recorded by the next one."""
    fault = Faulty()
    fault.path = str(tmp_path / "data" / "receiver.db")
    async with running(tmp_path, settings_text(tmp_path), shape=fault.shape, work=False) as up:
        fault.vfs.full = True
        await _by_trait(up)
    async with running(tmp_path, settings_text(tmp_path), work=False) as up:
        await _recovers(up)


_WRITER = """
import asyncio, resource, signal, sys
from pathlib import Path
from receiver.storage.blobs.local import LocalBlobs
from receiver.app.wiring import Timing
from receiver.core.errors import BlobsUnavailable
from receiver.core.callback import MemoryBody
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
async def main():
    blobs = LocalBlobs(sys.argv[1]); await blobs.open()
    try:
        await blobs.put("a.mp3", MemoryBody(b"x" * 5000), content_type="audio/mpeg")
    except BlobsUnavailable as error:
        print(error.message)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await blobs.put("a.mp3", MemoryBody(b"x" * 5000), content_type="audio/mpeg")
    print(sorted(path.name for path in Path(sys.argv[1]).iterdir()))
asyncio.run(main())
"""


def test_a_disk_that_takes_only_half_of_the_audio(tmp_path: Path) -> None:
    """The kernel refuses in the middle of the file: unavailable, no half object, and then it works."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", _WRITER, str(tmp_path / "b")],
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    said, files = done.stdout.splitlines()
    assert said.startswith("the blob folder cannot be used")
    assert files == "['a.mp3']"
