"""A machine that lacks something for a moment while it reads a callback: no bug, no rejection, and nothing is parked for it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from receiver.core.callback import MemoryBody
from receiver.core.errors import StoreUnavailable
from tests.support.intaking import Made, opening
from tests.support.kept_events import kept_events

SHORTAGES = [OSError(errno.EMFILE, os.strerror(errno.EMFILE)), OSError(errno.EIO, "I/O"), MemoryError()]


@pytest.mark.parametrize("step", ["verify", "normalize"])
@pytest.mark.parametrize("size", [10, 300_000])
@pytest.mark.parametrize("short", SHORTAGES, ids=["descriptors", "disk", "memory"])
async def test_what_this_machine_lacks_for_a_moment_is_no_bug_and_no_rejection(
    tmp_path: Path, step: str, size: int, short: Exception
) -> None:
    """503 and nothing kept: the provider sends it again, and then it is recorded."""
    async with opening(tmp_path, Made(broken=step, short=[short])) as up:
        answer = await up.send(b"x" * size)
        assert (answer.status, answer.payload["status"]) == (503, "unavailable")
        assert [name for _, name, _ in up.seen.notes] == ["callback.not_kept"]
        assert await kept_events(up.receiver.store) == []
        await up.receiver.intake.rejections.flush()
        assert await up.receiver.store.rejections("made", limit=9) == []
        assert (await up.send(b"x" * size)).payload["status"] == "recorded"


async def test_a_parked_body_that_cannot_be_read_for_a_moment_is_a_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(body: MemoryBody) -> bytes:
        raise OSError(errno.EIO, "I/O")

    async with opening(tmp_path, Made(malformed=True)) as up:
        with monkeypatch.context() as patch:
            patch.setattr(MemoryBody, "load", fail)
            assert (await up.send()).status == 503
        assert [name for _, name, _ in up.seen.notes] == ["callback.not_kept"]
        assert (await up.send()).payload["status"] == "parked"


async def test_it_stays_in_the_journal_until_it_can_be_read(tmp_path: Path) -> None:
    """However often: it is refused, and never parked or left for a bug."""
    made = Made()
    async with opening(tmp_path, made) as up:
        up.failing["record"] = StoreUnavailable()
        await up.send()
        up.failing.clear()
        made.broken, made.short = "normalize", [SHORTAGES[0]] * 3
        for _ in range(3):
            assert await up.receiver.journal_drain.drain() == 0
        assert (up.receiver.journal.depth, up.receiver.journal.refused) == (
            1,
            f"the journal's entry {next(iter(up.receiver.journal._entries))} cannot be used: Too many open files",
        )
        assert await up.receiver.journal_drain.drain() == 1
        [event] = await kept_events(up.receiver.store)
        assert event.type == "speech.completed"
        told = [name for _, name, _ in up.seen.notes]
        assert told == ["journal.drain_stopped", "journal.drained"], "the first once, and no bug"
