"""When the janitor removes nothing: a clock that cannot be believed, a store that knows too little, objects of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from receiver.core.callback import MemoryBody
from receiver.core.clock import DAY, wall_clock
from receiver.core.errors import BlobsUnavailable, ReceiverError
from receiver.core.retention import ORPHAN_SECONDS, Retention
from receiver.engine.janitor import uptime
from receiver.storage.blobs import BlobEntry
from receiver.storage.blobs.keys import KeyTemplate
from receiver.storage.blobs.local import LocalBlobs
from receiver.storage.store.postgres import PostgresStore
from tests.contract.store_suite import T0, recording
from tests.support import postgres
from tests.support.kept_events import kept_events
from tests.unit import test_janitor as usual
from tests.unit.test_janitor import MS, ORPHAN, Blobs, House, Store

house = usual.house
MINUTES = 600_000


def _warned(house: House) -> list[str]:
    return [name for level, name, _ in house.seen.notes if level == "warning"]


async def _events(house: House) -> int:
    return len(await kept_events(house.store))


# ---------------------------------------------------------------- the time


class SharedStore(Store):
    """Its database's clock is right; what it knows of ours it learns by a transaction."""

    skew_ms: int | None = 0

    def __init__(self, house: House) -> None:
        super().__init__()
        self._house = house
        self.right = T0

    async def ping(self) -> None:
        await super().ping()
        self.skew_ms = self.right - self._house.now


@pytest.fixture
async def shared(house: House) -> SharedStore:
    store = SharedStore(house)
    house.store = store
    await store.open()
    return store


async def test_a_clock_that_leaps_away_from_the_databases_sweeps_nothing(
    house: House, shared: SharedStore
) -> None:
    """It would be everything, of the whole fleet."""
    wanted = await house.recorded()
    janitor = house.janitor(Retention())
    await janitor.sweep()
    house.now += 100 * DAY * MS
    for _ in range(3):
        assert await janitor.sweep()
    with pytest.raises(ReceiverError, match="8640000 s ahead of the database's"):
        await house.janitor(Retention()).step(house.now)
    assert house.there(wanted)
    assert await _events(house) == 1
    assert _warned(house) == ["janitor.clock_astray"], "once"
    house.up += DAY
    house.now += DAY * MS
    shared.right += DAY * MS
    await janitor.sweep()
    assert len(_warned(house)) == 2, "and again a day later"
    house.now = shared.right = T0 + 91 * DAY * MS
    house.up += 90 * DAY
    await janitor.sweep()
    assert await _events(house) == 0, "it goes on when the clock is right"


async def test_what_is_old_is_reckoned_by_the_databases_clock(house: House, shared: SharedStore) -> None:
    await house.recorded()
    shared.right = T0 + 90 * DAY * MS
    house.now = shared.right + MINUTES - 1
    assert "events" not in await house.janitor(Retention()).step(house.now)
    assert await house.janitor(Retention()).sweep()
    assert (await _events(house), _warned(house)) == (1, [])
    house.now = shared.right = T0 + 90 * DAY * MS + 1
    assert (await house.janitor(Retention()).step(house.now))["events"] == 1


async def test_postgres_tells_of_a_leap_before_anything_is_swept(house: House) -> None:
    house.now = wall_clock()
    with postgres.database() as url:
        store = PostgresStore(url, clock=lambda: house.now)
        house.store = cast("Any", store)
        await store.open()
        await store.record(recording(at=house.now))
        janitor = house.janitor(Retention())
        house.now += 100 * DAY * MS
        await janitor.sweep()
        assert (await _events(house), _warned(house)) == (1, ["janitor.clock_astray"])
        with pytest.raises(ReceiverError, match=r"86\d{5} s ahead of the database's; set it"):
            await janitor.step(house.now)
        await store.close()


async def test_a_leap_that_the_store_has_not_measured_holds_until_a_restart(
    house: House, shared: SharedStore
) -> None:
    """Both clocks leapt, as on one machine: the database's is then no second opinion."""
    await house.recorded()
    janitor = house.janitor(Retention())
    await janitor.sweep()
    house.now = shared.right = T0 + 91 * DAY * MS
    for _ in range(3):
        await janitor.sweep()
    assert (await _events(house), _warned(house)) == (1, ["janitor.clock_astray"])
    assert "restart receiver" in house.seen.notes[0][2]["error"]
    await house.janitor(Retention()).sweep()
    assert await _events(house) == 0


async def test_beside_a_database_a_clock_that_was_wrong_at_the_start_is_no_measure(
    house: House, shared: SharedStore
) -> None:
    await house.recorded()
    shared.right = T0 + 91 * DAY * MS
    janitor = house.janitor(Retention())
    await janitor.sweep()
    assert (await _events(house), _warned(house)) == (1, ["janitor.clock_astray"])
    house.now = shared.right
    await janitor.sweep()
    assert await _events(house) == 0


async def test_without_another_clock_a_leap_ahead_of_uptime_is_not_believed(house: House) -> None:
    await house.recorded()
    janitor = house.janitor(Retention())
    house.up += 60.0
    house.now += 60_000 + MINUTES - 1
    await janitor.sweep()
    house.now += 100 * DAY * MS
    for _ in range(3):
        assert await janitor.sweep()
    assert (await _events(house), _warned(house)) == (1, ["janitor.clock_astray"])
    house.now -= 100 * DAY * MS
    house.up += 91 * DAY
    house.now += 91 * DAY * MS
    await janitor.sweep()
    assert await _events(house) == 0, "time that really passed is believed"


async def test_a_clock_that_was_set_back_and_right_again_is_believed(house: House) -> None:
    janitor = house.janitor(Retention())
    for change in (-DAY * MS, DAY * MS):
        house.now += change
        await janitor.sweep()
    assert house.seen.notes == []


def test_uptime_goes_on() -> None:
    assert 0 < uptime() <= uptime()


# ---------------------------------------------------------------- whose objects they are


DATED = KeyTemplate("{source}/{year}/{month}/{day}/{name}")


class Dated(Blobs):
    def is_ours(self, key: str) -> bool:
        return DATED.is_ours(key)


@pytest.mark.parametrize(
    "theirs",
    [
        f"backups/{ORPHAN}",
        f"deepgram/2026/11/21/user-{ORPHAN}",
        f"nested/deepgram/2026/11/21/{ORPHAN}",
        f"deepgram/2026/11/{ORPHAN}",
        f"Deep gram/2026/11/21/{ORPHAN}",
        f"deepgram/2026/11/21/x/{ORPHAN}",
        f"deepgram/2026/11/21/{'0f' * 32}.wav",
        f"deepgram/2026/11/21/{ORPHAN}.bak",
        ORPHAN,
    ],
)
async def test_only_keys_of_the_whole_template_are_removed(house: House, theirs: str) -> None:
    """Also those of another receiver under a prefix within ours, and those of an earlier template."""
    house.blobs = Dated(str(house.folder / "blobs"))
    await house.store.record(recording())
    ours = f"deepgram/2026/11/21/{ORPHAN}"
    left = f"deepgram/2026/11/21/.{ORPHAN}.1a2b3c4d"
    folder, _, name = theirs.rpartition("/")
    for key in (ours, theirs, left, f"{folder}/.{name}.1a2b3c4d".lstrip("/")):
        await house.put(key, at=T0)
    done = await house.janitor(Retention()).step(T0 + 3 * DAY * MS)
    assert done == {"orphans": 1, "uploads": 1}
    assert house.blobs.local(theirs) is not None


async def test_a_folder_goes_by_the_template_that_it_is_given(tmp_path: Path) -> None:
    assert LocalBlobs(str(tmp_path)).is_ours(f"any/{ORPHAN}")
    assert not LocalBlobs(str(tmp_path), DATED).is_ours(f"any/{ORPHAN}")


# ---------------------------------------------------------------- a store that knows too little


async def _fill(house: House, count: int) -> None:
    for n in range(count):
        await house.put(f"{n:032x}.wav", at=T0)


async def test_a_store_without_any_event_makes_nothing_an_orphan(house: House) -> None:
    """A new database over a bucket that was in use: it would be all audio older than two days."""
    await _fill(house, 3)
    later = T0 + 3 * DAY * MS
    house.now = later
    janitor = house.janitor(Retention())
    for _ in range(2):
        await janitor.sweep()
    assert house.blobs.deleted == []
    assert [(level, name) for level, name, _ in house.seen.notes] == [("warning", "janitor.orphans_left")]
    assert house.seen.notes[0][2] == {"count": 3, "first": f"{0:032x}.wav", "last": f"{2:032x}.wav"}
    await house.store.record(recording())
    assert await janitor.step(later) == {"orphans": 3}


@pytest.mark.parametrize(("known", "removed"), [(0, False), (3, False), (4, True)])
async def test_many_orphans_among_few_objects_that_are_known_stay(
    house: House, known: int, removed: bool
) -> None:
    await house.store.record(recording())
    await _fill(house, 4)
    for _ in range(known):
        await house.recorded()
    done = await house.janitor(Retention(), many=3).step(T0 + 3 * DAY * MS)
    assert done == ({"orphans": 4} if removed else {})


# ---------------------------------------------------------------- a blob store that refuses one thing


class Refusing(Blobs):
    """Shows no files that a crash left, and has one object that may not be deleted."""

    kept = f"{0:032x}.wav"

    async def abort_abandoned(self, *, before: int) -> int:
        raise BlobsUnavailable("access denied")

    async def delete(self, keys: Sequence[str]) -> None:
        await super().delete([key for key in keys if key != self.kept])
        if self.kept in keys:
            raise BlobsUnavailable("locked")


async def test_one_refusal_does_not_stop_the_sweep_of_orphans(
    house: House,
) -> None:
    house.blobs = Refusing(str(house.folder / "blobs"))
    await house.store.record(recording())
    await _fill(house, 5)
    house.now = T0 + ORPHAN_SECONDS * MS + 1
    janitor = house.janitor(Retention(), page=2)
    for _ in range(3):
        await janitor.sweep()
    assert [entry.key for entry in await house.blobs.entries()] == [Refusing.kept]
    assert [
        fields["error"] for _, name, fields in house.seen.notes if name == "janitor.blobs_unavailable"
    ] == [
        "access denied",
        "locked",
    ]
    house.up += DAY
    house.now += DAY * MS
    await janitor.sweep()
    assert _warned(house).count("janitor.blobs_unavailable") == 4, "once a day"


async def test_a_file_that_may_not_be_removed_does_not_keep_those_after_it(tmp_path: Path) -> None:
    blobs = LocalBlobs(str(tmp_path))
    await blobs.open()
    await blobs.put("b", MemoryBody(b"x"), content_type="audio/wav")
    (tmp_path / "a").mkdir()
    with pytest.raises(BlobsUnavailable):
        await blobs.delete(["a", "b"])
    assert blobs.local("b") is None
    await blobs.close()


async def test_a_blob_store_that_goes_out_while_it_is_listed_ends_the_step_with_the_reason(
    house: House,
) -> None:
    """A step that says nothing of it leaves `behind` as it was: whoever goes on until all is done would for ever."""

    class Half(Blobs):
        async def entries(
            self, prefix: str = "", *, after: str = "", limit: int = 1000
        ) -> Sequence[BlobEntry]:
            if after:
                raise BlobsUnavailable("out")
            return await super().entries(prefix, after=after, limit=limit)

    house.blobs = Half(str(house.folder / "blobs"))
    await _fill(house, 3)
    janitor = house.janitor(Retention(), page=2)
    with pytest.raises(BlobsUnavailable, match="out"):
        await janitor.step(house.now)
    assert await janitor.sweep()
    assert _warned(house) == ["janitor.blobs_unavailable"]


async def test_when_objects_cannot_be_deleted_no_more_are_made_orphans(house: House) -> None:
    for n in range(9):
        await house.recorded(at=T0 + n)
    house.blobs.out = True
    house.now = T0 + 91 * DAY * MS
    janitor = house.janitor(Retention(), batch=3)

    async def linked() -> int:
        return sum(event.blob_key is not None for event in await kept_events(house.store))

    assert await janitor.sweep(), "until the next one's time"
    assert await linked() == 6
    with pytest.raises(BlobsUnavailable):
        await janitor.step(house.now)
    assert await linked() == 3
    house.blobs.out = False
    await janitor.sweep()
    audio = [key for key in house.blobs.deleted if not key.endswith("peaks")]
    assert (await _events(house), len(audio)) == (0, 3)
    assert _warned(house).count("janitor.blobs_unavailable") == 1
