"""Entries of the journal that cannot be used on a disk that has its troubles: each holds up itself alone, and is told of."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from receiver.core.callback import Head, MemoryBody, VerifiedCallback
from receiver.core.errors import BlobsUnavailable, JournalUnavailable
from receiver.core.observe import Observers
from receiver.storage.blobs.local import LocalBlobs
from receiver.storage.journal import Journal, look
from receiver.system.body_buffer import MEMORY_LIMIT, FileBody
from tests.support.running import Seen

LONG = b"sound" * MEMORY_LIMIT


class House:
    """A journal over a folder, with a clock that is set, and what was taken from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen = Seen()
        self.elapsed = 0.0
        self.journal = Journal(
            str(folder),
            max_bytes=10**9,
            observer=Observers([self.seen]),
            clock=lambda: 1_000_005,
            elapsed=lambda: self.elapsed,
        )
        self.taken: list[int] = []

    async def keep(self, *numbers: int) -> None:
        for number in numbers:
            await self.journal.keep(_callback(number), key=f"k{number}", reason="store out")

    async def take(self, callback: VerifiedCallback) -> None:
        self.taken.append(callback.head.received_at)

    async def drain(self) -> list[int]:
        """Drain, and return what was taken."""
        self.taken = []
        await self.journal.drain(self.take, bool)
        return self.taken

    def oldest(self, kind: str) -> Path:
        """Return a file of the oldest entry."""
        return self.folder / f"{look(str(self.folder))[0].stem}.{kind}"

    def told(self) -> list[tuple[str, str]]:
        """Return what was noted of which entry."""
        return [(name, fields["entry"]) for _, name, fields in self.seen.notes]


def _callback(number: int) -> VerifiedCallback:
    head = Head(source="deepgram", method="PUT", headers=(), received_at=number)
    body = MemoryBody(b"body %d" % number)
    return VerifiedCallback(head=head, claims=None, proofs=frozenset({"basic"}), body=body)


@pytest.fixture
async def house(tmp_path: Path) -> House:
    made = House(tmp_path / "j")
    await made.journal.open()
    return made


def _unreadable(path: Path) -> Callable[[], None]:
    """Let reading a file fail, also for root; return what mends it."""
    away = path.with_name(f"{path.name}.away")
    path.rename(away)
    path.symlink_to("/proc/self/mem")

    def mend() -> None:
        path.unlink()
        away.rename(path)

    return mend


@pytest.mark.parametrize("kind", ["body", "json"])
async def test_an_entry_that_cannot_be_read_holds_up_no_other_and_is_taken_once_it_can(
    house: House, kind: str
) -> None:
    await house.keep(0, 1, 2)
    file = house.oldest(kind)
    mend = _unreadable(file)
    assert await house.drain() == [1, 2]
    assert (house.journal.depth, house.told()) == (1, [("journal.entry_refused", file.stem)])
    assert "Too many levels of symbolic links" in house.journal.refused
    mend()
    house.journal._entries[file.stem].not_before = 0
    assert await house.drain() == [0]


async def test_when_it_is_alone_the_drain_names_it(house: House) -> None:
    """And says so once."""
    await house.keep(0)
    file = house.oldest("body")
    _unreadable(file)
    for _ in range(3):
        with pytest.raises(JournalUnavailable, match=file.stem):
            await house.drain()
    assert house.told() == [("journal.drain_stopped", file.stem)]


async def test_each_of_several_is_named_once(house: House) -> None:
    await house.keep(*range(4))
    stems = [entry.stem for entry in look(str(house.folder))[:2]]
    for stem in stems:
        _unreadable(house.folder / f"{stem}.body")
    assert await house.drain() == [2, 3]
    for entry in house.journal._entries.values():
        entry.not_before = 0
    with pytest.raises(JournalUnavailable):
        await house.drain()
    assert sorted(stem for _, stem in house.told()) == sorted(stems)


async def test_three_in_a_row_end_one_drain_and_not_the_next(house: House) -> None:
    """As many may be an outage of the disk; the others go first the next time."""
    await house.keep(*range(5))
    for entry in look(str(house.folder))[:3]:
        _unreadable(house.folder / f"{entry.stem}.body")
    with pytest.raises(JournalUnavailable):
        await house.drain()
    assert house.taken == []
    assert await house.drain() == [3, 4]


async def test_a_damaged_entry_that_cannot_be_set_aside_holds_up_no_other(house: House) -> None:
    await house.keep(0, 1)
    file = house.oldest("body")
    file.write_bytes(b"other bytes")
    (house.folder / "damaged").write_bytes(b"in the way")
    assert await house.drain() == [1]
    assert house.told() == [("journal.entry_refused", file.stem)]
    assert file.exists()


async def test_an_entry_whose_callback_cannot_be_read_on_the_way_is_refused_not_failed(house: House) -> None:
    await house.keep(0, 1)

    async def short(callback: VerifiedCallback) -> None:
        if callback.head.received_at == 0:
            raise MemoryError

    assert await house.journal.drain(short, bool) == 1
    [entry] = house.journal._entries.values()
    for _ in range(4):
        entry.not_before = 0
        with pytest.raises(JournalUnavailable, match=f"{entry.stem} cannot be used: MemoryError"):
            await house.journal.drain(short, bool)
    entry.not_before = 0
    assert await house.drain() == [0]


async def test_one_unreadable_commit_does_not_stop_the_start(tmp_path: Path, house: House) -> None:
    """It is told, counted, listed, and taken once it can be read."""
    await house.keep(0, 1)
    file = house.oldest("json")
    mend = _unreadable(file)
    again = House(tmp_path / "j")
    await again.journal.open()
    assert (again.journal.depth, again.told()) == (2, [("journal.entry_refused", file.stem)])
    assert {entry.reason for entry in look(str(house.folder))} == {
        "store out",
        "unreadable: Too many levels of symbolic links",
    }
    assert await again.drain() == [1]
    mend()
    again.journal._entries[file.stem].not_before = 0
    assert await again.drain() == [0]


async def test_a_commit_nested_too_deeply_to_read_is_damaged_and_stops_no_start(
    tmp_path: Path, house: House
) -> None:
    await house.keep(0, 1)
    house.oldest("json").write_bytes(b'{"x":' * 100_000)
    again = House(tmp_path / "j")
    await again.journal.open()
    assert await again.drain() == [1]
    assert len(list((house.folder / "damaged").iterdir())) == 2


async def test_whoever_looks_at_all_is_told_which_could_not_be_looked_at(house: House) -> None:
    """After all others were; with somebody to tell it is no error."""
    await house.keep(0, 1, 2)
    file = house.oldest("body")
    _unreadable(file)
    looked: list[int] = []

    def see(stem: str, callback: VerifiedCallback) -> None:
        looked.append(callback.head.received_at)

    with pytest.raises(
        JournalUnavailable, match=f"{file.stem} cannot be used: Too many levels of symbolic links"
    ):
        await house.journal.read(see)
    assert sorted(looked) == [1, 2]
    told: list[str] = []
    await house.journal.read(see, unreadable=told.append)
    assert [file.stem in sentence for sentence in told] == [True]


async def test_what_cannot_be_removed_is_not_said_to_be(house: House) -> None:
    await house.keep(0)
    commit = house.oldest("json")
    commit.rename(house.folder / "away")
    commit.mkdir()
    with pytest.raises(JournalUnavailable, match=commit.stem):
        await house.journal.remove([commit.stem])
    assert house.journal.depth == 1


async def test_a_poison_entry_waits_longer_each_time(house: House) -> None:
    """By the process's own clock: that of the day stands still here."""
    await house.keep(0)

    async def fail(_: VerifiedCallback) -> None:
        raise KeyError("a bug")

    async def waited() -> int:
        """Return after how many seconds it is tried again."""
        [entry] = house.journal._entries.values()
        began, tries = house.elapsed, entry.tries
        while entry.tries == tries:
            house.elapsed += 10
            assert await house.journal.drain(fail, bool) == 0
        return round(house.elapsed - began)

    assert [await waited() for _ in range(9)] == [10, 10, 20, 40, 80, 160, 320, 600, 600]
    house.elapsed += 601
    assert await house.drain() == [0]


# ---------------------------------------------------------------- a sync that failed once


class Failing:
    """`fsync` that fails once for one file, as Linux tells of a write it could not make."""

    def __init__(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._inode = os.stat(path).st_ino
        self._real = os.fsync
        self.failed = 0
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, fd: int) -> None:
        if not self.failed and os.fstat(fd).st_ino == self._inode:
            self.failed += 1
            raise OSError(5, "Input/output error")
        self._real(fd)


def _spooled(folder: Path) -> VerifiedCallback:
    path = folder / "spooled"
    path.write_bytes(LONG)
    head = Head(source="deepgram", method="PUT", headers=(), received_at=1)
    body = FileBody.read(str(path))
    return VerifiedCallback(head=head, claims=None, proofs=frozenset({"basic"}), body=body)


async def test_a_file_whose_sync_failed_is_copied_and_never_linked(
    tmp_path: Path, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second sync of it succeeds and means nothing: neither journal nor blob stands on that file."""
    callback = _spooled(tmp_path)
    assert callback.body.path is not None
    spooled = os.stat(callback.body.path).st_ino
    blobs = LocalBlobs(str(tmp_path / "blobs"))
    await blobs.open()
    failing = Failing(callback.body.path, monkeypatch)
    with pytest.raises(BlobsUnavailable):
        await blobs.put("s/a.wav", callback.body, content_type="audio/wav")
    await house.journal.keep(callback, key="k", reason="blobs out")
    kept = house.oldest("body")
    assert (failing.failed, kept.read_bytes()) == (1, LONG)
    assert kept.stat().st_ino != spooled

    async def store(restored: VerifiedCallback) -> None:
        await blobs.put("s/a.wav", restored.body, content_type="audio/wav")

    assert await house.journal.drain(store, bool) == 1
    blob = tmp_path / "blobs" / "s" / "a.wav"
    assert blob.read_bytes() == LONG
    assert blob.stat().st_ino != spooled
    await blobs.close()


async def test_it_is_not_kept_when_its_bytes_are_gone_as_well(
    tmp_path: Path, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems give up what they could not write: then nothing here has the callback."""
    callback = _spooled(tmp_path)
    assert callback.body.path is not None
    blobs = LocalBlobs(str(tmp_path / "blobs"))
    await blobs.open()
    Failing(callback.body.path, monkeypatch)
    with pytest.raises(BlobsUnavailable):
        await blobs.put("s/a.wav", callback.body, content_type="audio/wav")
    Path(callback.body.path).write_bytes(b"S" + LONG[1:])
    with pytest.raises(JournalUnavailable, match="not what was received"):
        await house.journal.keep(callback, key="k", reason="blobs out")
    with pytest.raises(BlobsUnavailable, match="not what was received"):
        await blobs.put("s/a.wav", callback.body, content_type="audio/wav")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [Path(callback.body.path)]
    await blobs.close()


async def test_a_file_that_is_synced_costs_no_copy(tmp_path: Path, house: House) -> None:
    callback = _spooled(tmp_path)
    assert callback.body.path is not None
    await house.journal.keep(callback, key="k", reason="blobs out")
    assert house.oldest("body").stat().st_ino == os.stat(callback.body.path).st_ino


@pytest.mark.parametrize("fails", [False, True])
async def test_what_another_sync_comes_to_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """A put that took too long is still at it: linked if it succeeds, not believed if it fails."""
    body = _spooled(tmp_path).body
    assert isinstance(body, FileBody)
    began, go_on, sync = threading.Event(), threading.Event(), os.fsync

    def slow(fd: int) -> None:
        if not began.is_set():
            began.set()
            go_on.wait(10)
            if fails:
                raise OSError(errno.EIO, "I/O error")
        sync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    first = asyncio.create_task(asyncio.to_thread(body.sync))
    await asyncio.to_thread(began.wait, 10)
    second = asyncio.create_task(asyncio.to_thread(body.sync))
    go_on.set()
    assert await second is not fails
    assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], OSError) is fails


async def test_what_could_never_be_taken_goes_behind_what_is_new(house: House) -> None:
    """It is tried again at times, in silence, and nothing new waits until all of it has been read."""
    await house.keep(0, 1)
    given: list[int] = []

    async def handle(callback: VerifiedCallback) -> None:
        given.append(callback.head.received_at)
        if given[-1] < 2:
            raise LookupError

    for _ in range(4):
        house.elapsed += 601
        await house.journal.drain(handle, bool)
    assert [name for name, _ in house.told()] == ["journal.entry_failed"] * 2
    await house.keep(2)
    given.clear()
    house.elapsed += 601
    await house.journal.drain(handle, bool)
    assert given == [2, 0, 1]


async def test_what_takes_more_than_there_is_waits_longer_each_time_though_it_is_alone(house: House) -> None:
    """Every try reads it whole, and takes as much again from the callbacks that come."""
    await house.keep(0)
    tries = 0

    async def handle(_: VerifiedCallback) -> None:
        nonlocal tries
        tries += 1
        raise MemoryError

    for _ in range(200):
        house.elapsed += 5
        with contextlib.suppress(JournalUnavailable):
            await house.journal.drain(handle, bool)
    assert tries < 12


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(JournalUnavailable):
        look(str(tmp_path / "missing"))
    assert look(str(tmp_path)) == []


@pytest.mark.parametrize("kind", ["json", "body"])
async def test_what_is_no_file_is_neither_waited_for_nor_followed(house: House, kind: str) -> None:
    """A pipe would stop the start, and a link would open to all what it leads to."""
    await house.keep(0)
    for stem, make in (("1" * 40, os.mkfifo), ("2" * 40, lambda path: path.symlink_to("/dev/null"))):
        for suffix in {"json", "body"} - {kind}:
            kept = next(house.folder.glob(f"*.{suffix}"))
            (house.folder / f"{stem}.{suffix}").write_bytes(kept.read_bytes())
        make(house.folder / f"{stem}.{kind}")
    again = House(house.folder)
    held = os.open(house.folder / f"{'1' * 40}.{kind}", os.O_RDWR)  # so that a reader is freed in the end
    asyncio.get_running_loop().call_later(5, os.close, held)
    async with asyncio.timeout(4):
        await again.journal.open()
        assert await again.drain() == [0]
    assert again.journal.depth == 2
