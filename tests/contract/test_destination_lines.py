"""A file and standard output take events as lines, whole and on disk, and say what is in the way."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from receiver.core.errors import ConfigError
from receiver.core.work import OutcomeKind
from receiver.outbound.destinations import kind_of
from receiver.outbound.destinations.file import FileDestination, FileSettings
from receiver.settings.model import DestinationSettings
from tests.contract.destination_suite import BODY, T0


def settings(kind: str, **fields: Any) -> DestinationSettings:
    return DestinationSettings.model_validate({"name": "app", "kind": kind} | fields)


async def test_many_events_are_lines_of_a_file_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new events.jsonl"
    made = kind_of(settings("file"))(settings("file", url=f"file://{tmp_path}/new%20events.jsonl"))
    await made.open()
    bodies = [b'{"n":%d}' % number for number in range(20)]
    outcomes = await asyncio.gather(*(made.send(f"evt_{body!r}", body, timestamp=T0) for body in bodies))
    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.DELIVERED}
    assert sorted(path.read_bytes().splitlines()) == sorted(bodies)
    assert path.stat().st_mode & 0o077 == 0


async def test_a_line_that_a_crash_cut_off_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"whole":1}\n{"cut')
    await FileDestination(settings("file", url=f"file://{path}")).send("evt_1", BODY, timestamp=T0)
    first, cut, last = path.read_bytes().splitlines()
    assert (first, cut, json.loads(last)) == (b'{"whole":1}', b'{"cut', json.loads(BODY))


async def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    made = FileDestination(settings("file", url=f"file://{path}"))
    await made.send("evt_1", BODY, timestamp=T0)
    path.rename(tmp_path / "events.jsonl.1")
    await made.send("evt_2", BODY, timestamp=T0)
    assert path.read_bytes() == BODY + b"\n"


async def test_the_name_of_a_new_file_is_on_disk_before_its_event_counts_as_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bool] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(fd).st_mode))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    made = FileDestination(settings("file", url=f"file://{tmp_path}/events.jsonl"))
    await made.send("evt_1", BODY, timestamp=T0)
    assert synced == [False, True]
    await made.send("evt_2", BODY, timestamp=T0)
    assert synced == [False, True, False]


async def test_a_file_that_cannot_be_written_is_unreachable_with_the_reason(tmp_path: Path) -> None:
    made = FileDestination(settings("file", url=f"file://{tmp_path}/gone/events.jsonl"))
    outcome = await made.send("evt_1", BODY, timestamp=T0)
    assert outcome.kind is OutcomeKind.UNREACHABLE
    assert "no such file" in outcome.detail
    folder = FileDestination(settings("file", url=f"file://{tmp_path}"))
    with pytest.raises(ConfigError, match="is a folder"):
        await folder.open()
    (finding,) = FileDestination.findings("x", FileSettings(url=f"file://{tmp_path}/gone/events.jsonl"))
    assert (finding.code, finding.where) == ("E009", "x.url")


_STDOUT = """
import asyncio, os, select, sys
from receiver.outbound.destinations.stdout import StdoutDestination
from receiver.settings.model import DestinationSettings

def made(seconds):
    settings = {"name": "app", "kind": "stdout", "timeout_seconds": seconds}
    return StdoutDestination(DestinationSettings.model_validate(settings))

async def main():
    outcomes = [await made(30).send("evt_1", b"x" * 300_000, timestamp=1)]
    read, write = os.pipe()
    os.dup2(write, 1)
    slow = made(0.1)
    outcomes.append(await slow.send("evt_2", b"y" * 300_000, timestamp=1))  # nobody reads
    while select.select([read], [], [], 0)[0]:
        os.read(read, 65_536)
    outcomes.append(await slow.send("evt_3", b"{}", timestamp=1))
    line = os.read(read, 100)
    os.close(read)
    outcomes.append(await slow.send("evt_4", b"{}", timestamp=1))
    print([str(one.kind) for one in outcomes], line, file=sys.stderr)

asyncio.run(main())
"""


def test_standard_output_takes_lines_however_long_and_says_when_nobody_reads() -> None:
    done = subprocess.run([sys.executable, "-c", _STDOUT], capture_output=True, timeout=60, check=True)
    assert done.stdout == b"x" * 300_000 + b"\n"
    kinds, line = ["delivered", "timeout", "delivered", "unreachable"], b"\n{}\n"
    assert done.stderr.decode().strip() == f"{kinds} {line!r}", "what was cut off is ended first"
