"""Under which key a callback's audio is put: the same when it is tried again, a fresh one where the old may be an orphan."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from receiver.core.callback import MemoryBody
from receiver.core.clock import DAY
from receiver.core.event import AudioDraft, EventDraft, Recording, new_id
from receiver.core.observe import Observers
from receiver.core.retention import ORPHAN_SECONDS, Retention
from receiver.core.routing import Router
from receiver.core.work import Pickup, PickupKind
from receiver.engine.janitor import Janitor
from receiver.engine.recorder import Recorder
from receiver.storage.blobs import BlobEntry
from receiver.storage.blobs.keys import KeyTemplate
from receiver.storage.blobs.local import LocalBlobs
from receiver.system.body_buffer import BodyBuffer
from tests.contract.store_suite import recording
from tests.support.memory import MemoryStore

HOUR = 3_600_000
T0 = 20_833 * DAY * 1000
"""The beginning of a day."""


class Redacting:
    provider = "scripted"

    def redact(self, body: bytes) -> bytes:
        return body


class Desk:
    """A recorder over real parts, and a clock that the test moves."""

    def __init__(self, folder: Path, template: str) -> None:
        self.folder, self.now = folder, T0
        self.store, self.blobs = MemoryStore(), LocalBlobs(str(folder / "blobs"), KeyTemplate(template))
        self.recorder = Recorder(
            store=self.store,
            blobs=self.blobs,
            bodies=BodyBuffer(str(folder / "spool")),
            router=Router([]),
            keys=KeyTemplate(template),
            clock=lambda: self.now,
            expect=lambda names: lambda _: None,
            wake=lambda names: None,
            wake_pickups=lambda source: None,
        )

    async def put(self, came: int, now: int) -> Recording:
        """Store what came at `came`, at `now`; nothing is committed yet."""
        self.now = now
        pickup = Pickup(
            id="pku_1", source="voices", kind=PickupKind.RESULT, key="job:1", event_id=new_id("evt", now),
            deadline_at=now, due_at=now, created_at=came, updated_at=came,
        )  # fmt: skip
        draft = EventDraft(
            type="speech.completed", idempotency_key="job:1", occurred_at=came,
            audio=AudioDraft(content_type="audio/wav", extension="wav"),
        )  # fmt: skip
        found = await self.recorder.result(cast("Any", Redacting()), pickup, draft, MemoryBody(b"RIFF"))
        key = str(found.event.blob_key)
        os.utime(self.folder / "blobs" / key, (now / 1000, now / 1000))
        return found

    def janitor(self) -> Janitor:
        return Janitor(self.store, self.blobs, Retention(), Observers([]), lambda: self.now)


@pytest.fixture(
    params=["{source}/{name}", "{source}/{year}/{month}/{name}", "{source}/{year}/{month}/{day}/{name}"]
)
async def desk(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path, request.param)
    await desk.store.open()
    await desk.blobs.open()
    yield desk
    await desk.blobs.close()


async def test_what_is_tried_again_soon_has_the_same_key(desk: Desk) -> None:
    keys = [(await desk.put(T0 + 20 * HOUR, T0 + hours * HOUR)).event.blob_key for hours in (20, 23, 25, 31)]
    assert len(set(keys)) == 1
    assert desk.blobs.is_ours(str(keys[0]))


async def test_what_may_be_an_orphan_by_now_is_never_put_upon(desk: Desk) -> None:
    """Whenever two puts share a key, the first is younger than what is swept; with half a day to spare for the commit."""
    first: dict[str, int] = {}
    # The provider sends it again and again; each waits in a journal for up to four days.
    for came in range(0, 100, 7):
        for waited in (0, 1, 6, 11, 12, 23, 24, 47, 96):
            at = T0 + (came + waited) * HOUR
            key = str((await desk.put(T0 + came * HOUR, at)).event.blob_key)
            first[key] = min(first.get(key, at), at)
            assert at - first[key] <= ORPHAN_SECONDS * 1000 - 12 * HOUR


async def test_audio_that_is_put_while_an_older_try_of_it_is_swept_stays(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit had failed, and for three days the callback lay in the journal."""
    await desk.store.record(recording(at=T0))
    old = await desk.put(T0, T0)
    later = T0 + 3 * DAY * 1000
    kept: list[Recording] = []
    entries: Callable[..., Any] = desk.blobs.entries

    async def listed(*args: Any, **more: Any) -> Sequence[BlobEntry]:
        page: Sequence[BlobEntry] = await entries(*args, **more)
        if not kept:
            kept.append(await desk.put(T0, later))
        return page

    monkeypatch.setattr(desk.blobs, "entries", listed)
    assert (await desk.janitor().step(later))["orphans"] == 1
    await desk.store.record(kept[0])
    assert desk.blobs.local(str(kept[0].event.blob_key)) is not None
    assert desk.blobs.local(str(old.event.blob_key)) is None
