"""Putting the parts together: what cannot start says why, what was started is stopped, and what loops survives a bug."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from receiver.app.wiring import Receiver, build, open_receiver
from receiver.core.callback import VerifiedCallback
from receiver.core.errors import (
    BlobsUnavailable,
    ConfigError,
    JournalUnavailable,
    ReceiverError,
    StoreUnavailable,
)
from receiver.settings.load import parse
from tests.support.kept_events import kept_events
from tests.support.running import Running, Seen, running, settings_text
from tests.support.senders import Sent, deapi, transcript
from tests.support.sink import Answer, Sink


def _build(folder: Path, extra: str = "", seen: Seen | None = None) -> Receiver:
    text = settings_text(folder, destination="http://127.0.0.1:9/hooks", extra=extra)
    return build(parse(text, {}, lambda name: ""), observers=[seen or Seen()])


async def _send(up: Running, sent: Sent) -> int:
    answer = await up.client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)
    return answer.status_code


@pytest.mark.parametrize(
    ("setting", "error", "said"),
    [
        ("[blobs]\nurl = 'file://{}'\n", BlobsUnavailable, "the blob folder cannot be used: Not a directory"),
        (
            "[journal]\npath = '{}'\n",
            JournalUnavailable,
            "/file cannot be used: Not a directory; make it writable, or name",
        ),
        ("[store]\nurl = 'sqlite:///{}/a.db'\n", ReceiverError, ""),
    ],
)
async def test_a_part_that_cannot_be_opened_is_named_and_nothing_stays_running(
    tmp_path: Path, setting: str, error: type[ReceiverError], said: str
) -> None:
    (tmp_path / "file").write_text("")
    receiver = _build(tmp_path, setting.format(tmp_path / "file"))
    before = asyncio.all_tasks()
    with pytest.raises(error) as caught:
        async with open_receiver(receiver):
            raise AssertionError("it must not open")
    assert said in caught.value.message
    assert isinstance(caught.value, ConfigError | StoreUnavailable | BlobsUnavailable | JournalUnavailable)
    assert asyncio.all_tasks() == before


async def test_a_stop_ends_every_task_and_gives_back_every_descriptor(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    counts = []
    for _ in range(3):
        async with open_receiver(_build(tmp_path)):
            assert len(asyncio.all_tasks()) > len(before)
        assert asyncio.all_tasks() == before
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[2] <= counts[1], "what an earlier test left may still go"


async def test_an_attempt_under_way_at_the_stop_is_finished_and_settled(tmp_path: Path) -> None:
    """Stopping waits for the answer of a destination that is slow, within stop_seconds."""
    async with Sink() as sink:
        sink.default = Answer(manner="hang")
        async with running(tmp_path, settings_text(tmp_path, destination=sink.url)) as up:
            assert await _send(up, transcript("job")) == 200
            await sink.until(1)
            asyncio.get_running_loop().call_later(0.05, sink.released.set)
        assert [report.state for report in up.seen.attempts] == ["delivered"]
        async with running(tmp_path, settings_text(tmp_path, destination=sink.url)) as up:
            assert await up.receiver.store.next_due("app") is None
        assert len(sink.received) == 1


async def test_the_journal_is_drained_even_after_a_bug_in_draining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad turn is told and the next one comes; the callback does not wait for the next start."""
    async with running(tmp_path, settings_text(tmp_path), work=False) as up:
        store, real, turns = up.receiver.store, up.receiver.journal.drain, iter(range(100))

        async def drain(*given: Any) -> int:
            if next(turns) < 2:
                raise RuntimeError("a bug")
            return await real(*given)

        async def out(recording: object) -> None:
            raise StoreUnavailable

        with monkeypatch.context() as patch:
            patch.setattr(up.receiver.journal, "drain", drain)
            patch.setattr(store, "record", out)
            assert await _send(up, deapi("job")) == 200
            patch.delattr(store, "record")
            await up.seen.until(lambda: up.receiver.journal.depth == 0)
        assert ("error", "journal.drain_failed", {"error": "RuntimeError"}) in up.seen.notes
        assert [event.job_id for event in await kept_events(store)] == ["job"]


async def test_a_poisoned_journal_entry_waits_without_stopping_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, settings_text(tmp_path), work=False) as up:
        drain, real = up.receiver.journal_drain, up.receiver.journal_drain.take_back

        async def take_back(callback: VerifiedCallback) -> None:
            if b"poison" in callback.body.load():
                raise RuntimeError("a bug")
            await real(callback)

        async def out(recording: object) -> None:
            raise StoreUnavailable

        with monkeypatch.context() as patch:
            patch.setattr(drain, "take_back", take_back)
            patch.setattr(up.receiver.store, "record", out)
            assert [await _send(up, deapi(name)) for name in ("poison", "one", "two")] == [200, 200, 200]
            patch.delattr(up.receiver.store, "record")
            failed = ("error", "journal.entry_failed")
            await up.seen.until(lambda: failed in [note[:2] for note in up.seen.notes])
            await up.seen.until(lambda: up.receiver.journal.depth == 1)
        kept = {event.job_id for event in await kept_events(up.receiver.store)}
        assert kept == {"one", "two"}
    async with running(tmp_path, settings_text(tmp_path), work=False) as up:
        await up.seen.until(lambda: up.receiver.journal.depth == 0)
        assert "poison" in {event.job_id for event in await kept_events(up.receiver.store)}
