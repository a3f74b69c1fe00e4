"""Age and erasure under a running receiver: what goes, what stays, and that what was erased does not come back."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from receiver.app.wiring import Ports
from receiver.core.clock import DAY, wall_clock
from receiver.core.event import new_id
from receiver.core.retention import Retention
from receiver.core.work import DeliveryFilter
from receiver.demo.stage import clean_environment
from receiver.engine.janitor import Janitor
from receiver.storage.store.sqlite import SqliteStore
from tests.faultvfs import FaultVFS
from tests.support.house import Said, receiver
from tests.support.kept_events import kept_events
from tests.support.running import Running, running, settings_text
from tests.support.senders import Sent, deapi, speech, transcript
from tests.support.sink import Sink


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of whoever runs the tests."""
    for name in set(os.environ) - set(clean_environment(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


async def _send(up: Running, sent: Sent) -> dict[str, Any]:
    answer = await up.client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)
    told: dict[str, Any] = answer.json()
    return told


def _janitor(up: Running) -> Janitor:
    parts = up.receiver
    return Janitor(parts.store, parts.blobs, Retention(), up.seen, parts.clock)


def _objects(folder: Path) -> list[Path]:
    return [path for path in (folder / "data" / "blobs").rglob("*") if path.is_file()]


async def _command(folder: Path, *words: str) -> Said:
    return await asyncio.to_thread(receiver, "--config", str(folder / "receiver.toml"), *words)


async def test_a_delivered_event_goes_in_its_time_and_its_link_then_finds_nothing(tmp_path: Path) -> None:
    async with Sink() as sink, running(tmp_path, settings_text(tmp_path, destination=sink.url)) as up:
        await _send(up, speech("old"))
        await sink.until(1)
        await up.seen.until(lambda: len(up.seen.attempts) == 1)
        url = json.loads(sink.received[0].body)["data"]["audio"]["url"]
        janitor = _janitor(up)
        assert await janitor.step(wall_clock() + 29 * DAY * 1000) == {}
        assert (await up.client.get(url)).status_code == 200
        done = await janitor.step(wall_clock() + 91 * DAY * 1000)
        assert (done["events"], done["blobs"]) == (1, 1)
        assert _objects(tmp_path) == []
        assert (await up.client.get(url)).status_code == 404
        assert (await up.client.get("/readyz")).status_code == 200


async def test_nothing_that_still_has_to_be_delivered_goes_however_old(tmp_path: Path) -> None:
    text = settings_text(tmp_path, destination="http://127.0.0.1:9/")
    async with running(tmp_path, text, work=False) as up:
        told = await _send(up, speech("waits"))
        assert await _janitor(up).step(wall_clock() + 10_000 * DAY * 1000) == {}
        event = await up.receiver.store.event(told["event_id"])
        assert up.receiver.blobs.local(str(event.blob_key)) is not None


async def test_an_erased_job_is_gone_everywhere_and_its_callback_is_a_duplicate(tmp_path: Path) -> None:
    """With a receiver that runs on: the command line erases beside it."""
    text = settings_text(tmp_path, destination="http://127.0.0.1:9/")
    (tmp_path / "receiver.toml").write_text(text)
    async with running(tmp_path, text, work=False) as up:
        for one in (speech("mine"), transcript("mine too"), speech("other")):
            assert (await _send(up, one))["status"] == "recorded"
        for job in ("mine", "mine too"):
            said = await _command(tmp_path, "erase", "--job", job, "--yes", "--json")
            assert said.status == 0, said.err
            assert (said.json["events"], said.json["callbacks"], said.json["deliveries"]) == (1, 1, 1)
        assert [one.job_id for one in await kept_events(up.receiver.store)] == ["other"]
        assert len(await up.receiver.store.deliveries(DeliveryFilter())) == 1
        assert len(_objects(tmp_path)) == 1
        again = await _send(up, transcript("mine too"))
        assert again["status"] == "duplicate"
        assert [one.job_id for one in await kept_events(up.receiver.store)] == ["other"]
        said = await _command(tmp_path, "erase", "--job", "mine", "--yes", "--json")
        assert (said.status, said.json["found"]) == (0, False)
        assert said.json["erased_before"] is not None
    kept = (tmp_path / "data" / "receiver.db").read_bytes()
    stones = [line for line in kept.split(b"tmb_")[1:] if b"mine" in line[:200]]
    assert stones == []


async def test_what_waits_in_the_journal_is_erased_there_and_does_not_come_back(tmp_path: Path) -> None:
    text = settings_text(tmp_path)
    (tmp_path / "receiver.toml").write_text(text)
    fault = FaultVFS()

    def shape(ports: Ports) -> Ports:
        ports.store = SqliteStore(str(tmp_path / "data" / "receiver.db"), vfs=fault.name, busy_timeout=0.2)
        return ports

    mine = deapi("mine", at=int(wall_clock() / 1000))
    async with running(tmp_path, text, shape=shape, work=False) as up:
        fault.full = True
        for one in (mine, speech("mine-2"), transcript("other")):
            await _send(up, one)
        assert up.receiver.journal.depth == 3
    for job in ("mine", "mine-2"):
        said = await _command(tmp_path, "erase", "--job", job, "--yes", "--json")
        assert said.status == 0, said.err
        assert said.json["journal_entries"] == 1
        assert said.json["journal"] == str(tmp_path / "data" / "journal")
    async with running(tmp_path, text, work=False) as up:
        await up.seen.until(lambda: up.receiver.journal.depth == 0)
        assert [one.job_id for one in await kept_events(up.receiver.store)] == ["other"]
        for one in (mine, speech("mine-2")):
            assert (await _send(up, one))["status"] == "duplicate"
        assert len(await kept_events(up.receiver.store)) == 1
        # Its audio had been stored before the store failed: an orphan now, which goes as one.
        assert (await _janitor(up).step(wall_clock() + 3 * DAY * 1000))["orphans"] >= 1
        assert _objects(tmp_path) == []


async def test_an_entry_of_the_journal_that_cannot_be_read_is_named_and_the_rest_is_erased(
    tmp_path: Path,
) -> None:
    """Status 1, whether there was something or not: it may be the subject's."""
    text = settings_text(tmp_path)
    (tmp_path / "receiver.toml").write_text(text)
    async with running(tmp_path, text, work=False) as up:
        await _send(up, speech("mine"))
        (tmp_path / "data" / "journal" / "broken.json").symlink_to("/proc/self/mem")
        for found in (True, False):
            said = await _command(tmp_path, "erase", "--job", "mine", "--yes", "--json")
            assert (said.status, said.json["found"]) == (1, found)
            told = "not looked at, so it may be left: the journal's entry broken cannot be used: "
            assert told in said.err
        assert await kept_events(up.receiver.store) == []


async def test_what_is_asked_of_erase_is_checked_and_shown_first(tmp_path: Path) -> None:
    text = settings_text(tmp_path)
    (tmp_path / "receiver.toml").write_text(text)
    assert (await _command(tmp_path, "erase", "--job", "j", "--yes")).status == 1  # no store yet
    async with running(tmp_path, text, work=False) as up:
        told = await _send(up, speech("mine"))
        for wrong in ((), ("--ref", "r", "--job", "j"), ("--ref", "r", "--source", "deepgram")):
            said = await _command(tmp_path, "erase", *wrong)
            assert (said.status, "Traceback" in said.err) == (2, False)
        said = await _command(tmp_path, "erase", "--event", told["event_id"])
        assert said.status == 2
        assert "1 event, 1 callback, 1 stored object would be erased for good: add --yes" in said.err
        assert len(await kept_events(up.receiver.store)) == 1
        said = await _command(tmp_path, "erase", "--event", told["event_id"], "--yes")
        assert (said.status, "other machines" in said.err) == (0, True)
        assert await kept_events(up.receiver.store) == []
        said = await _command(tmp_path, "erase", "--event", new_id("evt", 1), "--yes")
        assert (said.status, said.out) == (0, "")


async def test_a_journal_that_is_not_there_is_told_and_never_made_nor_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when `erase` runs in another folder than `serve`, which `data` is relative to."""
    text = settings_text(tmp_path)
    (tmp_path / "receiver.toml").write_text(text)
    async with running(tmp_path, text, work=False) as up:
        told = await _send(up, speech("mine"))
        monkeypatch.setenv("RECEIVER__DATA", "elsewhere")
        monkeypatch.setenv("RECEIVER__STORE__URL", f"sqlite:///{tmp_path}/data/receiver.db")
        monkeypatch.setenv("RECEIVER__BLOBS__URL", f"file://{tmp_path}/data/blobs")
        words = ("erase", "--event", told["event_id"], "--yes")
        said = await _command(tmp_path, *words)
        assert (said.status, said.out, said.err.count("\n")) == (1, "", 1)
        assert f"there is no journal at {tmp_path}/elsewhere/journal" in said.err
        assert "--no-journal" in said.err
        assert not (tmp_path / "elsewhere").exists()
        assert len(await kept_events(up.receiver.store)) == 1
        monkeypatch.setenv("RECEIVER__TOKENS__SECRETS", '["token-secret-0123456789"]')
        said = await _command(tmp_path, *words, "--no-journal", "--json")
        assert (said.status, said.json["events"], said.json["journal"]) == (0, 1, None)
        assert not (tmp_path / "elsewhere" / "journal").exists()


async def test_sweep_removes_what_is_old_now(tmp_path: Path) -> None:
    text = settings_text(tmp_path)
    (tmp_path / "receiver.toml").write_text(text)
    then = wall_clock() - 100 * DAY * 1000
    async with running(tmp_path, text, clock=lambda: then, work=False) as up:
        for n in range(5):
            await _send(up, speech(f"old-{n}"))
    said = await _command(tmp_path, "sweep", "--json")
    assert said.status == 0, said.err
    assert (said.json["events"], said.json["blobs"]) == (5, 5)
    assert _objects(tmp_path) == []
    assert (await _command(tmp_path, "sweep")).out == "nothing is older than it is kept\n"


async def test_sweep_tells_what_it_left(tmp_path: Path) -> None:
    text = settings_text(tmp_path)
    (tmp_path / "receiver.toml").write_text(text)
    async with running(tmp_path, text, work=False):
        orphan = tmp_path / "data" / "blobs" / "deepgram" / "2026" / "01" / "31" / f"{'0f' * 16}.mp3"
        orphan.parent.mkdir(parents=True)
        orphan.write_bytes(b"audio")
        os.utime(orphan, (0, 0))
    said = await _command(tmp_path, "sweep")
    assert (said.status, said.out) == (0, "nothing is older than it is kept\n")
    assert "janitor.orphans_left" in said.err
    assert orphan.name in said.err
