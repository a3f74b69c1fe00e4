"""The local folder keeps the blob contract, and says so when the folder is in trouble."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import resource
import stat
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from receiver.core.callback import Body, MemoryBody
from receiver.core.errors import BlobsUnavailable
from receiver.core.event import StoredBlob
from receiver.storage.blobs import Blobs, file_group, local
from receiver.storage.blobs.local import LocalBlobs
from receiver.system import files
from receiver.system.body_buffer import MEMORY_LIMIT, FileBody
from tests.contract.blob_suite import BlobSuite, MakeBody


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[Blobs]:
    store = LocalBlobs(str(tmp_path / "blobs"))
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def body(tmp_path: Path) -> MakeBody:
    def make(data: bytes) -> Body:
        if len(data) <= MEMORY_LIMIT:
            return MemoryBody(data)
        path = tmp_path / "spooled"
        path.write_bytes(data)
        return FileBody.read(str(path))

    return make


class TestLocalBlobs(BlobSuite):
    """The shared behaviour over a folder."""


async def test_a_file_is_private_and_served_by_path(blobs: Blobs, body: MakeBody) -> None:
    await blobs.put("s/a.mp3", body(b"sound"), content_type="audio/mpeg")
    found = blobs.local("s/a.mp3")
    assert found is not None
    assert stat.S_IMODE(os.stat(found.path).st_mode) == 0o600
    assert blobs.presign("s/a.mp3", content_type="audio/mpeg", expires_at=1) is None


async def test_a_folder_that_vanished_is_an_outage_and_not_made_again(
    blobs: Blobs, body: MakeBody, tmp_path: Path
) -> None:
    """An unmounted disk must not be replaced by an empty folder on another one."""
    os.rename(tmp_path / "blobs", tmp_path / "away")
    with pytest.raises(BlobsUnavailable):
        await blobs.put("s/a.mp3", body(b"sound"), content_type="audio/mpeg")
    with pytest.raises(BlobsUnavailable):
        await blobs.ping()
    assert not (tmp_path / "blobs").exists()
    os.rename(tmp_path / "away", tmp_path / "blobs")
    await blobs.put("s/a.mp3", body(b"sound"), content_type="audio/mpeg")
    assert await blobs.get("s/a.mp3") == b"sound"


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM])
async def test_where_the_file_system_cannot_link_it_copies(
    blobs: Blobs, body: MakeBody, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    data = b"x" * (MEMORY_LIMIT + 1)
    await blobs.put("s/copied.wav", body(data), content_type="audio/wav")
    assert await blobs.get("s/copied.wav") == data


async def test_a_failed_sync_is_unavailable_and_leaves_no_temporary_file(
    blobs: Blobs, body: MakeBody, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(BlobsUnavailable):
            await blobs.put("a.mp3", body(b"sound"), content_type="audio/mpeg")
    assert list((tmp_path / "blobs").iterdir()) == []


async def test_file_and_folder_are_synced_before_put_returns(
    blobs: Blobs, body: MakeBody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's bytes, its new folders and its name: each is synced, the name last."""
    synced: list[str] = []
    real = os.fsync

    def record(fd: int) -> None:
        synced.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        real(fd)

    monkeypatch.setattr(os, "fsync", record)
    await blobs.put("s/2026/a.mp3", body(b"sound"), content_type="audio/mpeg")
    assert synced == ["folder", "folder", "file", "folder"]


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
async def test_a_machine_without_threads_or_memory_is_an_outage(
    blobs: Blobs, body: MakeBody, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise error

    with monkeypatch.context() as patch:
        # the pool's next thread
        patch.setattr(threading.Thread, "start", refuse)
        patch.setattr(blobs, "_threads", ThreadPoolExecutor(1))
        with pytest.raises(BlobsUnavailable, match=str(error) or "MemoryError"):
            await blobs.put("s/a.mp3", body(b"sound"), content_type="audio/mpeg")
        with pytest.raises(BlobsUnavailable, match=str(error) or "MemoryError"):
            await blobs.get("s/a.mp3")
    await blobs.put("s/a.mp3", body(b"sound"), content_type="audio/mpeg")
    assert await blobs.get("s/a.mp3") == b"sound"


async def test_storing_one_spooled_file_twice_leaves_one_name(
    blobs: Blobs, body: MakeBody, tmp_path: Path
) -> None:
    """Renaming one name of a file to another name of it does nothing; the temporary one must still go."""
    spooled = body(b"x" * (MEMORY_LIMIT + 1))
    for _ in range(3):
        await blobs.put("s/a.wav", spooled, content_type="audio/wav")
    assert os.listdir(tmp_path / "blobs" / "s") == ["a.wav"]


async def test_a_folder_that_another_process_made_is_synced_before_it_is_relied_on(
    blobs: Blobs, body: MakeBody, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its maker may not have come to that yet; afterwards it costs nothing, and it may even be removed."""
    (tmp_path / "blobs" / "s").mkdir()
    synced: list[str] = []
    real = files.sync_folder

    def record(folder: Path) -> None:
        synced.append(folder.name)
        real(folder)

    for module in (local, file_group):
        monkeypatch.setattr(module, "sync_folder", record)
    await blobs.put("s/a.mp3", body(b"sound"), content_type="audio/mpeg")
    assert synced == ["blobs", "s"]
    await blobs.put("s/b.mp3", body(b"sound"), content_type="audio/mpeg")
    assert synced == ["blobs", "s", "s"]
    for name in ("a.mp3", "b.mp3"):
        (tmp_path / "blobs" / "s" / name).unlink()
    (tmp_path / "blobs" / "s").rmdir()
    await blobs.put("s/c.mp3", body(b"sound"), content_type="audio/mpeg")
    assert await blobs.get("s/c.mp3") == b"sound"


# ---------------------------------------------------------------- files that come at once


async def _put_all(blobs: Blobs, *keys: str, size: int = 5) -> list[StoredBlob | BaseException]:
    puts = (blobs.put(key, MemoryBody(b"s" * size), content_type="audio/mpeg") for key in keys)
    return await asyncio.gather(*puts, return_exceptions=True)


async def test_files_that_come_at_once_share_the_sync_of_their_folder(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk begins with all of them before one is waited for; each is synced before it gets its name, and the folder after
    the last of them has its own.
    """
    await _put_all(blobs, "s/first.mp3", "t/first.mp3")
    steps: list[str] = []
    sync, rename, advise = os.fsync, os.rename, os.posix_fadvise

    def record(fd: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        sync(fd)

    def record_name(old: str, new: str) -> None:
        steps.append("name")
        rename(old, new)

    monkeypatch.setattr(file_group, "_SLOW_SECONDS", 60.0)

    def record_begin(*arguments: int) -> None:
        steps.append("begin")
        advise(*arguments)

    monkeypatch.setattr(os, "posix_fadvise", record_begin)
    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "rename", record_name)
    stored = await _put_all(blobs, *(f"s/{n}.mp3" for n in range(5)), "t/one.mp3")
    assert not [one for one in stored if isinstance(one, BaseException)]
    assert steps == ["begin"] * 6 + ["file"] * 6 + ["name"] * 6 + ["folder"] * 2


async def test_a_slow_disk_is_waited_for_in_more_than_one_thread(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them but the first, whose sync showed how slow it is."""
    together, real = threading.Barrier(4), os.fsync

    def sync(fd: int) -> None:
        if not stat.S_ISDIR(os.fstat(fd).st_mode) and next(count):
            together.wait(20)
        real(fd)

    count = itertools.count()
    await _put_all(blobs, "s/before.mp3")
    monkeypatch.setattr(file_group, "_SLOW_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", sync)
    stored = await _put_all(blobs, *(f"s/{n}.mp3" for n in range(5)))
    assert not [one for one in stored if isinstance(one, BaseException)]


async def test_a_file_that_the_disk_does_not_take_hinders_no_other(blobs: Blobs, tmp_path: Path) -> None:
    """Its put fails and nothing is left of it; those beside it are stored."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * 1024, limits[1]))
    try:
        (kept,), (failed,), (other,) = await asyncio.gather(
            _put_all(blobs, "s/a.mp3"),
            _put_all(blobs, "s/b.mp3", size=2 * 1024 * 1024),
            _put_all(blobs, "s/c.mp3"),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(failed, BlobsUnavailable)
    assert "File too large" in failed.message
    assert not isinstance(kept, BaseException)
    assert not isinstance(other, BaseException)
    assert sorted(os.listdir(tmp_path / "blobs" / "s")) == ["a.mp3", "c.mp3"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
async def test_a_step_that_fails_for_one_file_fails_its_put_alone(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str
) -> None:
    await _put_all(blobs, "s/before.mp3")
    real, count = getattr(os, call), itertools.count()

    def sometimes(*arguments: object) -> None:
        if next(count) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(*arguments)

    monkeypatch.setattr(file_group, "_SLOW_SECONDS", 60.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, sometimes)
        stored = await _put_all(blobs, "s/a.mp3", "s/b.mp3", "s/c.mp3")
    assert [isinstance(one, BlobsUnavailable) for one in stored] == [False, True, False]
    assert sorted(os.listdir(tmp_path / "blobs" / "s")) == ["a.mp3", "before.mp3", "c.mp3"]


async def test_a_folder_that_cannot_be_synced_fails_all_puts_into_it_and_no_others(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _put_all(blobs, "s/before.mp3", "t/before.mp3")
    real = files.sync_folder

    def sync(folder: Path) -> None:
        if folder.name == "s":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(folder)

    monkeypatch.setattr(file_group, "sync_folder", sync)
    stored = await _put_all(blobs, "s/a.mp3", "t/b.mp3", "s/c.mp3")
    assert [isinstance(one, BlobsUnavailable) for one in stored] == [True, False, True]


async def test_what_nobody_waits_for_any_more_is_not_written(blobs: Blobs, tmp_path: Path) -> None:
    """As when a callback's time is over: its journal has it then."""
    putting = [
        asyncio.create_task(blobs.put(f"s/{n}.mp3", MemoryBody(b"s"), content_type="audio/mpeg"))
        for n in range(3)
    ]
    await asyncio.sleep(0)
    putting[1].cancel()
    await asyncio.wait(putting)
    assert sorted(os.listdir(tmp_path / "blobs" / "s")) == ["0.mp3", "2.mp3"]


async def test_more_than_one_group_is_stored_in_turn(blobs: Blobs, tmp_path: Path) -> None:
    keys = [f"s/{n}.mp3" for n in range(local._GROUP * 2 + 1)]
    stored = await _put_all(blobs, *keys)
    assert not [one for one in stored if isinstance(one, BaseException)]
    assert len(os.listdir(tmp_path / "blobs" / "s")) == len(keys)


async def test_a_slow_disk_without_a_thread_more_is_waited_for_in_one(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a limit of processes: the one thread does it all."""
    await _put_all(blobs, "s/before.mp3")
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if threading.current_thread() is not threading.main_thread():  # the group's own asks for another
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(file_group, "_SLOW_SECONDS", 0.0)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    stored = await _put_all(blobs, *(f"s/{n}.mp3" for n in range(5)))
    assert not [one for one in stored if isinstance(one, BaseException)]
