"""The janitor: what it removes by which age, in which pieces, and what it does while a part is out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from receiver.core.callback import MemoryBody
from receiver.core.clock import DAY
from receiver.core.errors import BlobsUnavailable, StoreUnavailable
from receiver.core.event import Recording, RecordStatus
from receiver.core.retention import KEYS_SECONDS, ORPHAN_SECONDS, Prune, Pruned, Retention, age
from receiver.core.work import DeliveryState
from receiver.engine.janitor import Janitor, Limits
from receiver.storage.blobs.keys import outline_of
from receiver.storage.blobs.local import LocalBlobs
from tests.contract.erase_suite import REF, erase, subject
from tests.contract.store_suite import T0, claim, recording, settlement
from tests.support.kept_events import kept_events
from tests.support.memory import MemoryStore
from tests.support.running import Seen

NEVER = Retention(bodies=None, attempts=None, audio=None, dead_letters=None, events=None)
MS = 1000


class Store(MemoryStore):
    """Counts batches, and can be out."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Prune] = []
        self.out = 0

    async def prune(self, asked: Prune) -> Pruned:
        if self.out:
            self.out -= 1
            raise StoreUnavailable("out")
        self.batches.append(asked)
        return await super().prune(asked)


class Blobs(LocalBlobs):
    """Can be out when asked to delete, and remembers what it was asked."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.out = False
        self.deleted: list[str] = []

    async def delete(self, keys: Sequence[str]) -> None:
        if self.out:
            raise BlobsUnavailable("out")
        self.deleted += keys
        await super().delete(keys)


ORPHAN = "0123456789abcdef" * 2 + ".mp3"


class House:
    """The parts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store()
        self.blobs = Blobs(str(folder / "blobs"))
        self.seen = Seen()
        self.now = T0
        self.up = 100.0
        """Seconds since the machine started."""
        self.rests: list[float] = []

    def janitor(self, kept: Retention, *, batch: int = 100, budget: float = 60.0, **limits: int) -> Janitor:
        async def rest(seconds: float) -> None:
            self.rests.append(seconds)

        return Janitor(
            self.store,
            self.blobs,
            kept,
            self.seen,
            lambda: self.now,
            limits=Limits(batch=batch, budget_seconds=budget, **limits),
            rest=rest,
            uptime=lambda: self.up,
        )

    async def put(self, key: str, *, at: int) -> None:
        await self.blobs.put(key, MemoryBody(b"audio"), content_type="audio/mpeg")
        os.utime(self.folder / "blobs" / key, (at / MS, at / MS))

    async def recorded(self, *destinations: str, at: int = T0) -> Recording:
        """An event with its object."""
        wanted = recording(*destinations, at=at)
        await self.put(str(wanted.event.blob_key), at=at)
        await self.store.record(wanted)
        return wanted

    async def deliver(self, state: DeliveryState) -> None:
        for held in await claim(self.store):
            await self.store.settle(settlement(held, state))

    def there(self, wanted: Recording) -> bool:
        return self.blobs.local(str(wanted.event.blob_key)) is not None


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path)
    await made.store.open()
    await made.blobs.open()
    yield made
    await made.blobs.close()


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 30 * DAY), ("12h", 43_200), ("2w", 14 * DAY), ("never", None)]
)
def test_ages_are_read(text: str, seconds: int | None) -> None:
    assert age(text) == seconds


@pytest.mark.parametrize("text", ["", "0d", "30", "d", "-1d", "0.5s", "30 days", "forever"])
def test_what_is_no_age_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="30d, 12h or 2w, or never"):
        age(text)


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (30, {}),
        (31, {"bodies": 2, "attempts": 1}),
        (91, {"audio": 2, "dead_letters": 1, "events": 2, "blobs": 2, "bodies": 2, "attempts": 1}),
    ],
)
async def test_by_default_each_class_goes_in_its_time(
    house: House, days: int, expected: dict[str, int]
) -> None:
    await house.recorded("app")
    await house.deliver(DeliveryState.DELIVERED)
    await house.recorded("app")
    await house.deliver(DeliveryState.DEAD)
    done = await house.janitor(Retention()).step(T0 + days * DAY * MS)
    # The dead letter takes its attempt with it, uncounted.
    assert done == expected


async def test_never_removes_nothing(house: House) -> None:
    await house.recorded("app")
    await house.deliver(DeliveryState.DELIVERED)
    await house.put(ORPHAN, at=T0)
    assert await house.janitor(NEVER).step(T0 + 10**12) == {}
    assert house.blobs.local(ORPHAN) is not None


async def test_keys_of_what_was_erased_go_even_then(house: House) -> None:
    await house.store.record(recording(ref="r"))
    await erase(house.store, subject(REF, "r"))
    janitor = house.janitor(NEVER)
    assert await janitor.step(T0 + KEYS_SECONDS * MS) == {}
    assert await janitor.step(T0 + KEYS_SECONDS * MS + DAY * MS) == {"keys": 1}


async def test_an_event_stays_as_long_as_its_audio(house: House) -> None:
    wanted = await house.recorded()
    kept = Retention(events=DAY, audio=10 * DAY)
    await house.janitor(kept).step(T0 + 9 * DAY * MS)
    assert house.there(wanted)
    assert len(await kept_events(house.store)) == 1
    await house.janitor(kept).step(T0 + 11 * DAY * MS)
    assert not house.there(wanted)
    assert await kept_events(house.store) == []


@pytest.mark.parametrize("audio", [None, 1])
async def test_a_callback_that_is_sent_again_within_two_days_is_a_duplicate_whatever_is_kept(
    house: House, audio: int | None
) -> None:
    kept = Retention(events=1, audio=audio, dead_letters=1, bodies=1)
    await house.store.record(recording(key="same"))
    await house.janitor(kept).step(T0 + 2 * DAY * MS)
    again = await house.store.record(recording(key="same"))
    assert again.status is RecordStatus.DUPLICATE
    assert (await house.janitor(kept).step(T0 + 2 * DAY * MS + 1))["events"] == 1


async def test_audio_that_is_never_removed_does_not_hold_its_event_and_outlives_it(house: House) -> None:
    """The bucket's own rules remove it."""
    wanted = await house.recorded()
    done = await house.janitor(Retention(audio=None)).step(T0 + 91 * DAY * MS)
    assert done["events"] == 1
    assert house.there(wanted)


@pytest.mark.parametrize(("dead_letters", "left"), [(None, 1), (200 * DAY, 1), (DAY, 0)])
async def test_an_event_stays_as_long_as_its_dead_letter(
    house: House, dead_letters: int | None, left: int
) -> None:
    await house.recorded("app")
    await house.deliver(DeliveryState.DEAD)
    await house.janitor(Retention(dead_letters=dead_letters)).step(T0 + 100 * DAY * MS)
    assert len(await kept_events(house.store)) == left


async def test_batches_are_bounded_and_rested_after(house: House) -> None:
    for n in range(25):
        await house.recorded(at=T0 + n)
    done = await house.janitor(Retention(), batch=10).step(T0 + 91 * DAY * MS)
    assert done["events"] == done["bodies"] == done["blobs"] == 25
    assert {asked.limit for asked in house.store.batches} == {10}
    assert len(house.rests) >= 6
    assert all(0 <= seconds < 1 for seconds in house.rests)


async def test_without_time_each_sweep_does_a_batch_and_the_next_goes_on(house: House) -> None:
    """Also past what has to stay, and until all is done."""
    for n in range(30):
        await house.recorded(*(["app"] if n < 5 else []), at=T0 + n)
    house.now = T0 + 91 * DAY * MS
    janitor = house.janitor(Retention(), batch=3, budget=0.0)
    sweeps = 0
    while not await janitor.sweep():
        sweeps += 1
        assert janitor.behind
    assert sweeps > 20
    assert len(await kept_events(house.store, limit=100)) == 5


async def test_an_orphan_goes_when_it_is_old_and_what_an_event_links_to_stays(house: House) -> None:
    wanted = await house.recorded()
    await house.put(f"deepgram/2026/11/21/{ORPHAN}", at=T0)
    janitor = house.janitor(Retention())
    assert await janitor.step(T0 + ORPHAN_SECONDS * MS) == {}
    assert await janitor.step(T0 + ORPHAN_SECONDS * MS + 1) == {"orphans": 1}
    assert house.blobs.deleted == [f"deepgram/2026/11/21/{ORPHAN}"]
    assert house.there(wanted)


async def test_an_outline_stays_with_its_audio_and_goes_without_it(house: House) -> None:
    wanted = await house.recorded()
    await house.put(outline_of(wanted.event.blob_key or ""), at=T0)
    await house.put(f"deepgram/2026/11/21/{ORPHAN}peaks", at=T0)
    janitor = house.janitor(Retention())
    assert await janitor.step(T0 + ORPHAN_SECONDS * MS + 1) == {"orphans": 1}
    assert house.blobs.deleted == [f"deepgram/2026/11/21/{ORPHAN}peaks"]


async def test_what_others_keep_beside_ours_is_left_alone(house: House) -> None:
    """Whatever its age: only names of receiver's own form are its to remove."""
    theirs = (
        "report.pdf",
        "deepgram/2026/11/21/speech.mp3",
        "backup/ABCDEF.tar.gz",
        ".hidden",
        "0" * 32,
        ".a.b.12345678",
    )
    for name in theirs:
        await house.put(name, at=T0)
    assert await house.janitor(Retention()).step(T0 + 1000 * DAY * MS) == {}
    assert all((house.folder / "blobs" / name).exists() for name in theirs)


async def test_orphans_are_looked_for_page_by_page_over_many_sweeps(house: House) -> None:
    await house.store.record(recording())
    for n in range(9):
        await house.put(f"{n:032x}.mp3", at=T0)
    janitor = house.janitor(Retention(), page=2, pages=2)
    later = T0 + 3 * DAY * MS
    assert [(await janitor.step(later)).get("orphans", 0) for _ in range(4)] == [4, 4, 1, 0]


async def test_temporary_files_of_a_crash_go(house: House) -> None:
    await house.put(f".{ORPHAN}.1a2b3c4d", at=T0)
    assert await house.janitor(Retention()).step(T0 + 3 * DAY * MS) == {"uploads": 1}


async def test_a_crash_between_commit_and_deletion_leaves_an_orphan_that_a_later_sweep_removes(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = await house.recorded()
    later = T0 + 91 * DAY * MS
    await house.recorded(at=later)

    class Killed(BaseException):
        pass

    async def killed(_: Sequence[str]) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(house.blobs, "delete", killed)
        with pytest.raises(Killed):
            await house.janitor(Retention()).step(later)
    assert (await house.store.event(wanted.event.id)).blob_key is None
    assert house.there(wanted)
    assert (await house.janitor(Retention()).step(later))["orphans"] == 1
    assert not house.there(wanted)


async def test_a_blob_store_that_is_out_is_noted_once_and_holds_nothing_else_up(house: House) -> None:
    wanted = await house.recorded()
    house.now = T0 + 91 * DAY * MS
    await house.recorded(at=house.now)
    house.blobs.out = True
    janitor = house.janitor(Retention())
    for _ in range(3):
        assert await janitor.sweep()
    assert len(await kept_events(house.store)) == 1
    named = [name for _, name, _ in house.seen.notes]
    assert named.count("janitor.blobs_unavailable") == 1
    house.blobs.out = False
    await janitor.sweep()
    assert not house.there(wanted)


async def test_a_store_that_is_out_is_noted_once_and_waited_for(house: House) -> None:
    await house.recorded()
    house.now = T0 + 91 * DAY * MS
    house.store.out = 2
    janitor = house.janitor(Retention())
    for _ in range(3):
        await janitor.sweep()
    named = [(level, name) for level, name, _ in house.seen.notes]
    assert named == [
        ("warning", "janitor.store_unavailable"),
        ("info", "janitor.store_recovered"),
        ("info", "janitor.swept"),
    ]
    assert house.seen.notes[-1][2] == {
        "finished": True,
        "bodies": 1,
        "audio": 1,
        "events": 1,
        "blobs": 1,
    }


async def test_a_sweep_that_removed_nothing_says_nothing(house: House) -> None:
    await house.recorded()
    await house.janitor(Retention()).sweep()
    assert house.seen.notes == []


async def test_a_bug_is_noted_and_does_not_end_the_sweeping(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def bug(_: Prune) -> Pruned:
        raise RuntimeError("somebody's data")

    monkeypatch.setattr(house.store, "prune", bug)
    assert await house.janitor(Retention()).sweep()
    assert house.seen.notes == [("error", "janitor.failed", {"error": "RuntimeError"})]


async def test_it_sweeps_by_itself_until_it_is_stopped(house: House) -> None:
    await house.recorded()
    house.now = T0 + 91 * DAY * MS
    janitor = house.janitor(Retention(sweep_seconds=0.01))
    janitor.start()
    await house.seen.until(lambda: any(name == "janitor.swept" for _, name, _ in house.seen.notes))
    await janitor.stop()
    before = len(house.store.batches)
    await asyncio.sleep(0)
    assert len(house.store.batches) == before
    await janitor.stop()


async def test_two_at_once_do_no_harm(house: House) -> None:
    wanted = [await house.recorded("app", at=T0 - n) for n in range(20)]
    await house.deliver(DeliveryState.DELIVERED)
    kept = await house.recorded(at=T0 + 91 * DAY * MS)
    shared = replace(recording(), event=replace(recording().event, blob_key=kept.event.blob_key))
    await house.store.record(shared)
    janitors = [house.janitor(Retention(), batch=3) for _ in range(3)]
    done = await asyncio.gather(*(one.step(T0 + 91 * DAY * MS) for one in janitors))
    assert sum(one.get("events", 0) for one in done) == 11  # a claim takes ten; the others are still pending
    assert sum(house.there(one) for one in wanted) == 10
    assert house.there(kept)
