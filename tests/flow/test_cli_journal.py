"""`receiver journal list` and `receiver journal drain`: what waits on a machine's disk, seen and brought home by hand."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import sys
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from receiver.app.wiring import Ports
from receiver.cli import journal as commands
from receiver.core.callback import MemoryBody, VerifiedCallback
from receiver.core.clock import wall_clock
from receiver.core.errors import StoreUnavailable
from receiver.core.observe import Observers
from receiver.storage import journal
from receiver.storage.store.store import Store
from tests.support import forking
from tests.support.house import Said, receiver
from tests.support.kept_events import kept_events
from tests.support.processes import ROOT
from tests.support.running import DEAPI_SECRET, Running, running, settings_text
from tests.support.senders import Sent, deapi, speech

SPEECHES, IMAGES = 20, 30


class _Out:
    """A store that takes nothing in."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def record(self, recording: object) -> None:
        raise StoreUnavailable


def out(ports: Ports) -> Ports:
    ports.store = cast("Store", _Out(ports.store))
    return ports


async def _send(up: Running, sent: Sent) -> int:
    answer = await up.client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)
    return answer.status_code


async def _fill(folder: Path, count: int = 1) -> str:
    """Leave `count` of deAPI's callbacks in the journal; return the settings file."""
    text = settings_text(folder)
    async with running(folder, text, shape=out, work=False) as up:
        for number in range(count):
            assert await _send(up, deapi(f"job-{number}")) == 200
        assert up.receiver.journal.depth == count
    path = folder / "receiver.toml"
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def _cli(config: str, *words: str) -> Said:
    return receiver("--config", config, "journal", *words)


async def _jobs(folder: Path) -> list[str]:
    """Return the jobs of all events."""
    async with running(folder, settings_text(folder), work=False) as up:
        events = await kept_events(up.receiver.store, limit=1000)
    return sorted(str(event.job_id) for event in events)


async def test_what_waits_is_listed_while_receiver_runs_without_bodies_or_secrets(tmp_path: Path) -> None:
    text = settings_text(tmp_path)
    config = tmp_path / "receiver.toml"
    config.write_text(text)
    journal_ = tmp_path / "data" / "journal"
    async with running(tmp_path, text, shape=out, work=False) as up:
        assert _cli(str(config), "list").err == f"nothing waits in the journal at {journal_}\n"
        assert await _send(up, deapi("the-job")) == 200
        assert await _send(up, speech("sound", times=20)) == 503
        said = _cli(str(config), "list", "--json")
        listed = _cli(str(config), "list")
        table = listed.out
        ready = (await up.client.get("/readyz")).json()["journal"]
    assert (said.status, ready["depth"]) == (0, 2)
    first, second = said.items
    assert set(first) == {"entry", "source", "received_at", "age_seconds", "bytes", "reason"}
    assert (first["source"], second["source"]) == ("deapi", "deepgram")
    assert second["bytes"] == len(speech("sound", times=20).body)
    assert first["reason"].startswith("The store cannot be written")
    assert 0 <= first["age_seconds"] < 60
    assert len(table.splitlines()) == 3
    assert listed.err == f"in the journal at {journal_}:\n"
    for secret in (DEAPI_SECRET, "the-job", "authorization", "correct-horse"):
        assert secret not in said.out + table


async def test_what_waits_is_drained_down_the_same_road(tmp_path: Path) -> None:
    config = await _fill(tmp_path, 3)
    said = _cli_in_thread(config, "drain", "--json")
    path = str(tmp_path / "data" / "journal")
    assert (await said).json == {"recorded": 3, "known": 0, "left": 0, "reason": "", "journal": path}
    assert _cli(config, "list", "--json").items == []
    assert await _jobs(tmp_path) == ["job-0", "job-1", "job-2"]
    said_again = await _cli_in_thread(config, "drain")
    assert said_again.status == 0
    counts = ["recorded", "0", "known", "already", "0", "left", "0"]
    assert said_again.out.split() == [*counts, "journal", path]


async def _cli_in_thread(config: str, *words: str) -> Said:
    return await asyncio.to_thread(_cli, config, *words)


async def test_what_the_provider_sent_again_meanwhile_is_known_already(tmp_path: Path) -> None:
    config = await _fill(tmp_path)
    copy = {path: path.read_bytes() for path in (tmp_path / "data" / "journal").glob("*.[bj]*")}
    assert (await _cli_in_thread(config, "drain", "--json")).json["recorded"] == 1
    for path, data in copy.items():
        path.write_bytes(data)
    assert (await _cli_in_thread(config, "drain", "--json")).json["known"] == 1
    assert await _jobs(tmp_path) == ["job-0"]


async def test_an_outage_that_goes_on_leaves_all_where_it_is(tmp_path: Path) -> None:
    config = await _fill(tmp_path, 2)
    database = tmp_path / "data" / "receiver.db"
    database.rename(tmp_path / "kept.db")
    for path in database.parent.glob("receiver.db-*"):
        path.unlink()
    database.write_bytes(b"this is no database " * 100)
    said = await _cli_in_thread(config, "drain")
    assert said.status == 1
    assert "not a database" in said.err
    assert len(_cli(config, "list", "--json").items) == 2
    database.unlink()
    (tmp_path / "kept.db").rename(database)
    assert (await _cli_in_thread(config, "drain", "--json")).json["recorded"] == 2


async def test_an_entry_of_a_source_that_is_gone_stays_and_the_rest_is_recorded(tmp_path: Path) -> None:
    config = await _fill(tmp_path, 2)
    text = Path(config).read_text().replace("[sources.deapi]", "[sources.images]")
    (tmp_path / "other.toml").write_text(text)
    said = await _cli_in_thread(str(tmp_path / "other.toml"), "drain", "--json")
    assert (said.status, said.json["left"]) == (1, 2)
    assert said.json["reason"] == "no source is named deapi any more: put it back into the settings"
    assert (await _cli_in_thread(config, "drain", "--json")).json["recorded"] == 2


async def test_while_another_process_drains_it_is_left_to_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_BUSY_SECONDS", 0.0)
    config = await _fill(tmp_path)
    with journal._locked(tmp_path / "data" / "journal" / ".draining", wait=False):
        said = await _cli_in_thread(config, "drain", "--json")
    assert (said.status, said.json["left"]) == (1, 1)
    assert said.json["reason"] == "another process is draining the journal"


def test_without_a_journal_there_is_a_sentence(tmp_path: Path) -> None:
    config = tmp_path / "receiver.toml"
    config.write_text(settings_text(tmp_path))
    for command in ("list", "drain"):
        said = _cli(str(config), command)
        assert (said.status, said.err.count("\n")) == (1, 1)
        assert f"there is no journal at {tmp_path}/data/journal" in said.err
        assert not (tmp_path / "data").exists()


async def test_the_journal_of_another_machine_is_named_and_drained_in_place_of_our_own(
    tmp_path: Path,
) -> None:
    """Files of mode 0600 that are this user's; what waits here meanwhile is left alone."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    await _fill(theirs, 3)
    config = await _fill(ours)
    old = theirs / "data" / "journal"
    assert {path.stat().st_mode & 0o777 for path in old.glob("*.[bj]*")} == {0o600}
    listed = await _cli_in_thread(config, "list", "--folder", str(old))
    assert (len(listed.out.splitlines()), listed.err) == (4, f"in the journal at {old}:\n")
    said = await _cli_in_thread(config, "drain", "--folder", str(old), "--json")
    assert said.json == {"recorded": 3, "known": 0, "left": 0, "reason": "", "journal": str(old)}
    nothing = await _cli_in_thread(config, "list", "--folder", str(old))
    assert nothing.err == f"nothing waits in the journal at {old}\n"
    assert (await _cli_in_thread(config, "drain", "--json")).json["known"] == 1
    assert await _jobs(ours) == ["job-0", "job-1", "job-2"]


@pytest.mark.parametrize("command", ["list", "drain"])
def test_a_folder_that_is_no_journal_is_told_from_one_in_which_nothing_waits(
    command: str, tmp_path: Path
) -> None:
    """A person who reads that nothing is left throws the disk away."""
    config = tmp_path / "receiver.toml"
    config.write_text(settings_text(tmp_path))
    said = _cli(str(config), command, "--folder", str(tmp_path / "none"))
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert f"there is no folder {tmp_path}/none" in said.err
    assert "--folder" in said.err
    (tmp_path / "old" / "journal").mkdir(parents=True)
    said = _cli(str(config), command, "--folder", str(tmp_path / "old"))
    assert (said.status, said.out) == (1, "")
    assert f"write --folder {tmp_path}/old/journal" in said.err
    assert not (tmp_path / "data").exists()


BOUND = "import ctypes, os, sys; [ctypes.CDLL(None).prctl(24, n, 0, 0, 0) for n in (1, 2)]; os.execv(sys.argv[1], sys.argv[1:])"
"""Runs a program for which the modes of files count, root or not: PR_CAPBSET_DROP of prctl(2) takes root's leave to ignore them."""


async def _bound(config: str, *words: str) -> Said:
    command = [sys.executable, "-m", "receiver", "--config", config, "journal", *words]
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", BOUND, *command), cwd=ROOT, stdout=-1, stderr=-1
    )
    out, err = await child.communicate()
    return Said(int(child.returncode or 0), out.decode(), err.decode())


async def test_a_journal_that_this_user_may_not_read_or_empty_is_told_and_left_alone(tmp_path: Path) -> None:
    config = await _fill(tmp_path, 2)
    folder = tmp_path / "data" / "journal"
    before = sorted(os.listdir(folder))
    body = min(folder.glob("*.body"))
    told = []
    for path, mode, command in (
        (body, 0o000, "drain"),
        (folder, 0o000, "list"),
        (folder, 0o500, "drain"),
    ):
        usual = path.stat().st_mode
        path.chmod(mode)
        said = await _bound(config, command, "--folder", str(folder))
        path.chmod(usual)
        assert (said.status, said.out) == (1, "")
        assert f"chown -R {pwd.getpwuid(os.geteuid()).pw_name} {folder}" in said.err
        told.append(said.err)
    assert f"(1 files, {body.name} among them)" in told[0]
    assert "cannot be read (Permission denied)" in told[1]
    assert "may remove nothing" in told[2]
    assert sorted(os.listdir(folder)) == before


async def test_processes_that_drain_one_folder_at_once_lose_and_double_nothing(
    tmp_path: Path,
) -> None:
    """Three by hand, and a receiver that takes what comes meanwhile."""
    config = await _fill(tmp_path, IMAGES)

    async def drained() -> dict[str, int]:
        words = ["--config", config, "journal", "drain", "--json"]
        child = await forking.start("receiver", words, os.environ)
        assert await child.wait() == 0
        counts: dict[str, int] = json.loads(await child.stdout.read())
        return counts

    async with running(tmp_path, settings_text(tmp_path), work=False) as up:
        by_hand = asyncio.gather(*(drained() for _ in range(3)))
        for number in range(SPEECHES):
            assert await _send(up, speech(f"speech-{number}")) == 200
        counts = await by_hand
        await up.seen.until(lambda: up.receiver.journal.depth == 0)
        notes = up.seen.notes
    by_itself = sum(name == "journal.drained" for _, name, _ in notes)
    assert sum(one["recorded"] for one in counts) + by_itself == IMAGES
    assert not [name for _, name, _ in notes if name in ("journal.entry_failed", "journal.entry_damaged")]
    wanted = [f"job-{number}" for number in range(IMAGES)] + [f"speech-{n}" for n in range(SPEECHES)]
    assert await _jobs(tmp_path) == sorted(wanted)
    left = os.listdir(tmp_path / "data" / "journal")
    assert sorted(left) == [".draining", "spool"]


async def test_a_callback_kept_while_it_is_being_removed_is_kept_whole(tmp_path: Path) -> None:
    """One process has recorded an entry and removes it, another keeps the same callback anew: body and commit fit."""
    config = await _fill(tmp_path)
    folder = tmp_path / "data" / "journal"
    opened = []
    for _ in range(2):
        one = journal.Journal(str(folder), max_bytes=10**9, observer=Observers([]), clock=wall_clock)
        await one.open()
        opened.append(one)
    [entry] = journal.look(str(folder))
    [restored] = await opened[0]._restore([entry])
    assert isinstance(restored, VerifiedCallback)
    callback = msgspec.structs.replace(restored, body=MemoryBody(restored.body.load()))
    meta = journal._meta(callback, "again", frozenset())
    for _ in range(50):
        await asyncio.gather(
            asyncio.to_thread(opened[0]._remove, [entry.stem]),
            asyncio.to_thread(opened[1]._keep, entry.stem, meta, callback),
        )
        bodies, commits = ({p.stem for p in folder.glob(f"*.{kind}")} for kind in ("body", "json"))
        assert bodies == commits
    assert (await _cli_in_thread(config, "drain", "--json")).status == 0
