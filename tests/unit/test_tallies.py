"""Counts by the minute reach the store whole."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from receiver.core.observe import CallbackReport, Process, TallyBatch
from receiver.engine import tallies
from receiver.storage.store.sqlite import SqliteStore


class _Held(SqliteStore):
    """A store that holds up counts until it is told to go on."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def add_tallies(self, batch: TallyBatch) -> None:
        self.asked.set()
        await self.go_on.wait()
        await super().add_tallies(batch)


async def test_a_stop_loses_no_count_that_is_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "EVERY_SECONDS", 0.0)
    store = _Held(str(tmp_path / "store.db"))
    await store.prepare()
    process = Process(id="a", host="b", version="c", role="serve", started_at=0, seen_at=0)
    counting = tallies.Tallies(store, process, lambda: 60_000)
    counting.callback(CallbackReport(method="POST", source="deepgram", answer="recorded", status=503))
    counting.start("serve")
    await store.asked.wait()
    store.go_on.set()
    await counting.stop()
    await store.close()  # ends what is on its way
    await store.prepare()
    assert [one.count for one in await store.tallies(0, 120_000, 60_000)] == [1]
    await store.close()
