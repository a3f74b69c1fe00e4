"""`serve --processes N`: several processes on one port, and the supervisor that keeps them running."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from receiver.web.supervisor import FIRST_PAUSE, LONGEST_PAUSE, SETTLED_SECONDS, _Slot, _Supervisor
from tests.support import postgres
from tests.support.clients import local_client
from tests.support.house import receiver
from tests.support.ingress import Child
from tests.support.patience import PATIENCE
from tests.support.postgres import execute
from tests.support.processes import ROOT
from tests.support.running import settings_text
from tests.support.senders import transcript


@pytest.fixture
def database() -> Iterator[str]:
    with postgres.database() as url:
        yield url


def _config(folder: Path, url: str, extra: str = "") -> Path:
    path = folder / "receiver.toml"
    parts = f'[store]\nurl = "{url}"\n[tokens]\nsecrets = ["a-secret-of-these-processes"]\n'
    path.write_text(settings_text(folder, extra=parts + "[server]\nlog = 'json'\n" + extra))
    path.chmod(0o600)
    return path


@dataclass
class Several:
    child: Child
    base: str
    folder: Path

    @property
    def pids(self) -> list[int]:
        """Those of the serving processes."""
        return [process.pid for process in psutil.Process(self.child.process.pid).children()]


@contextlib.asynccontextmanager
async def _several(config: Path, count: int) -> AsyncIterator[Several]:
    ready = config.parent / "ready.json"
    words = ["--config", str(config), "serve", "--port", "0", "--processes", str(count)]
    command = [sys.executable, "-m", "receiver", *words, "--ready-file", str(ready)]
    child = await Child.start(command, os.environ | {"PYTHONPATH": str(ROOT)}, config.parent)
    try:
        await child.said('"receiver.ready"', count)
        while not ready.exists():  # written by the supervisor once the last one told it
            await asyncio.sleep(0.01)
        told = json.loads(ready.read_text())
        assert told["pid"] == child.process.pid
        yield Several(child, told["url"], config.parent)
    finally:
        if child.process.returncode is None:
            await child.stop()


async def test_a_process_killed_under_load_comes_back_and_nothing_answered_is_lost(
    tmp_path: Path, database: str
) -> None:
    """The port stays served meanwhile. Metrics are of all, also of the one that was killed. One SIGTERM ends all."""
    numbers, over = itertools.count(), asyncio.Event()
    answered: set[str] = set()

    async def call_on(client: httpx2.AsyncClient, base: str) -> None:
        while not over.is_set():
            sent = transcript(f"job-{next(numbers)}")
            headers = sent.headers | {"connection": "close"}  # so that both are asked
            with contextlib.suppress(
                httpx2.TransportError
            ):  # of the one that is killed; a provider tries again
                answer = await client.post(base + sent.path, headers=headers, content=sent.body)
                assert answer.json()["status"] == "recorded"
                answered.add(sent.name)

    async with _several(_config(tmp_path, database), 2) as several, local_client() as client:
        callers = [asyncio.create_task(call_on(client, several.base)) for _ in range(4)]
        before = several.pids
        while len(answered) < 20:
            await asyncio.sleep(0.01)
        os.kill(before[0], signal.SIGKILL)
        await several.child.said('"process.ended"')
        assert (await client.get(f"{several.base}/readyz")).status_code == 200
        await several.child.said('"receiver.ready"', 3)
        over.set()
        await asyncio.gather(*callers)
        assert before[1] in several.pids
        assert len(several.pids) == 2
        text = (await client.get(f"{several.base}/metrics")).text
        assert 'receiver_notes_total{event="process.ended",level="error"} 1.0' in text
        line = 'receiver_callbacks_total{answer="recorded",source="deepgram"} '
        counted = float(text.partition(line)[2].partition("\n")[0])
        left = several.pids
        assert await several.child.stop() == 0
        assert not any(psutil.pid_exists(pid) for pid in left)
    assert not (tmp_path / "ready.json").exists()
    recorded = {job for (job,) in execute(database, "SELECT DISTINCT job_id FROM events")}
    assert answered <= recorded
    assert len(answered) <= counted <= len(recorded)
    ended = json.loads(next(line for line in several.child.lines if '"process.ended"' in line))
    assert (ended["pid"], ended["signal"], ended["again_in_seconds"]) == (before[0], "SIGKILL", FIRST_PAUSE)


async def test_all_processes_reload_and_none_outlives_its_supervisor(tmp_path: Path, database: str) -> None:
    config = _config(tmp_path, database)
    async with _several(config, 2) as several:
        config.write_text(config.read_text() + '[retention]\nbodies = "3d"\n')
        several.child.process.send_signal(signal.SIGHUP)
        await several.child.said('"settings_changed":"retention.bodies"', 2)
        said = await asyncio.to_thread(receiver, "--config", config, "reload")
        assert sorted(said.out.splitlines()) == sorted(
            f"process {pid}: nothing changed" for pid in several.pids
        )
        processes = [psutil.Process(pid) for pid in several.pids]
        await several.child.stop(signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            while any(map(_alive, processes)):
                await asyncio.sleep(0.02)


async def test_one_that_takes_anothers_place_reads_the_settings_as_any_start_and_reloads_as_soon_as_it_can(
    tmp_path: Path, database: str
) -> None:
    """It serves by no settings that are long out of date, and a reload does not end one that is not ready yet."""
    config = _config(tmp_path, database)
    text = config.read_text()
    async with _several(config, 2) as several:
        config.write_text(text + "[nonsense]\n")
        os.kill(several.pids[0], signal.SIGKILL)
        await several.child.said('"status":2')
        assert "nonsense: no such setting" in "".join(several.child.lines)
        config.write_text(text)
        ready = asyncio.create_task(several.child.said('"receiver.ready"', 3))
        while not ready.done():
            several.child.process.send_signal(signal.SIGHUP)
            await asyncio.wait([ready], timeout=0.05)
        assert not any('"SIGHUP"' in line for line in several.child.lines)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def test_a_settings_error_is_told_once(tmp_path: Path, database: str) -> None:
    config = _config(tmp_path, database, "[journal]\npath = '/dev/null/journal'\n")
    command = [sys.executable, "-m", "receiver", "--config", str(config), "serve", "--processes", "3"]
    child = await Child.start(command, os.environ | {"PYTHONPATH": str(ROOT)}, tmp_path)
    assert await child.process.wait() == 2
    await child.until(lambda lines: lines[-1:] == [""])
    errors = [line for line in child.lines if '"error"' in line]
    assert len(errors) == 1, child.lines
    assert "journal.path" in errors[0]


async def test_a_port_that_other_processes_share_is_taken(tmp_path: Path, database: str) -> None:
    config = _config(tmp_path, database)
    async with _several(config, 1) as several:
        port = several.base.rpartition(":")[2]
        refused = await asyncio.to_thread(
            receiver, "--config", config, "serve", "--port", port, "--processes", "1"
        )
    assert (refused.status, f"port {port} on 127.0.0.1 is taken" in refused.err) == (1, True)


def test_on_sqlite_several_processes_are_refused_with_the_reason(tmp_path: Path) -> None:
    config = tmp_path / "receiver.toml"
    config.write_text(settings_text(tmp_path))
    said = receiver("--config", config, "serve", "--port", "0", "--processes", "2")
    assert (said.status, "--processes needs PostgreSQL" in said.err) == (2, True)


class _Noting:
    def __init__(self) -> None:
        self.fields: list[dict[str, Any]] = []

    def note(self, level: str, event: str, **fields: Any) -> None:
        self.fields.append(fields)


def _supervisor(*, served: bool) -> tuple[_Supervisor, list[dict[str, Any]]]:
    """Return one that has begun already, and what it tells."""
    supervisor, noting = _Supervisor.__new__(_Supervisor), _Noting()
    supervisor._served, supervisor._stopping, supervisor.status = served, False, 0
    supervisor._observer = noting  # type: ignore[assignment]
    return supervisor, noting.fields


@pytest.mark.parametrize(("status", "told"), [(2, 2), (1, 1), (0, 1), (-9, 1)])
def test_the_first_process_that_never_gets_ready_ends_all_with_its_status(status: int, told: int) -> None:
    supervisor, notes = _supervisor(served=False)
    slot = _Slot(1)
    supervisor._ended(slot, status)
    assert (supervisor.status, slot.due, notes) == (told, None, [])


def test_what_ends_again_and_again_is_started_ever_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("receiver.web.supervisor.time.monotonic", lambda: now[0])
    supervisor, notes = _supervisor(served=True)
    slot = _Slot(1)
    for lived in (SETTLED_SECONDS, *[1.0] * 12, SETTLED_SECONDS):
        slot.began, slot.due, now[0] = now[0], None, now[0] + lived
        supervisor._ended(slot, 1)
        assert slot.due == now[0] + notes[-1]["again_in_seconds"]
    pauses = [note["again_in_seconds"] for note in notes]
    assert pauses[:4] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]
    assert pauses[12:] == [LONGEST_PAUSE, FIRST_PAUSE]
