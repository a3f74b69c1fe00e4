"""The local folder keeps the blob contract, and says so when the folder is in trouble."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from receiver.core.callback import Body, MemoryBody
from receiver.core.errors import BlobsUnavailable
from receiver.storage.blobs import Blobs, local
from receiver.storage.blobs.local import LocalBlobs
from receiver.system import files
from receiver.system.files import MEMORY_LIMIT, FileBody
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

    monkeypatch.setattr(local, "sync_folder", record)
    await blobs.put("s/a.mp3", body(b"sound"), content_type="audio/mpeg")
    assert synced == ["blobs", "s"]
    await blobs.put("s/b.mp3", body(b"sound"), content_type="audio/mpeg")
    assert synced == ["blobs", "s", "s"]
    for name in ("a.mp3", "b.mp3"):
        (tmp_path / "blobs" / "s" / name).unlink()
    (tmp_path / "blobs" / "s").rmdir()
    await blobs.put("s/c.mp3", body(b"sound"), content_type="audio/mpeg")
    assert await blobs.get("s/c.mp3") == b"sound"
