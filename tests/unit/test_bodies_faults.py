"""Bodies on their way to a disk, or through a machine, that lacks something: nothing is left, and nothing goes astray."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
from collections.abc import Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from receiver.core.callback import MemoryBody
from receiver.core.errors import JournalUnavailable
from receiver.system.body_buffer import BodyBuffer, Receive

MIB = 1024 * 1024


@pytest.fixture
def bodies(tmp_path: Path) -> BodyBuffer:
    made = BodyBuffer(str(tmp_path / "spool"))
    made.open()
    return made


@pytest.fixture
def one_thread() -> Iterator[ThreadPoolExecutor]:
    """A pool of one: who waits for its next job has waited for all before."""
    pool = ThreadPoolExecutor(1)
    yield pool
    pool.shutdown()


class Gate:
    """Holds a thread until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self._open.wait(20)

    def open(self) -> None:
        self._open.set()


def _endless(piece: bytes) -> Receive:
    """A body that begins with two pieces and then does not go on."""
    left = [piece, piece]

    async def receive() -> MutableMapping[str, Any]:
        if not left:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": left.pop(), "more_body": True}

    return receive


# ---------------------------------------------------------------- rewriting


async def test_a_disk_too_full_for_a_rewritten_body_has_nothing_left_of_it(
    bodies: BodyBuffer, tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        with pytest.raises(JournalUnavailable, match="File too large"):
            await bodies.rewrite(MemoryBody(b"x" * 3 * MIB), lambda piece: piece, overlap=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path / "spool") == []


async def test_a_bug_while_rewriting_leaves_nothing(bodies: BodyBuffer, tmp_path: Path) -> None:
    def broken(piece: bytes) -> bytes:
        raise KeyError

    with pytest.raises(KeyError):
        await bodies.rewrite(MemoryBody(b"x" * 3 * MIB), broken, overlap=10)
    assert os.listdir(tmp_path / "spool") == []


async def test_a_rewrite_whose_time_is_over_leaves_nothing_when_its_thread_ends(
    bodies: BodyBuffer, tmp_path: Path, one_thread: ThreadPoolExecutor
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(one_thread)
    gate = Gate()

    def slow(piece: bytes) -> bytes:
        gate.wait()
        return piece

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await bodies.rewrite(MemoryBody(b"x" * 3 * MIB), slow, overlap=10)
    gate.open()
    await loop.run_in_executor(None, bool)
    assert os.listdir(tmp_path / "spool") == []


# ---------------------------------------------------------------- descriptors


def _slow_write(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate, real = Gate(), os.write

    def write(fd: int, data: Any) -> int:
        if len(data) >= MIB:
            gate.wait()
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    return gate


@pytest.mark.parametrize("cancelled", [1, 2])
async def test_what_was_being_written_never_lands_in_another_file(
    bodies: BodyBuffer,
    tmp_path: Path,
    one_thread: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    cancelled: int,
) -> None:
    """Its reader is cancelled, once or again while it tidies up, and a file opened just then may get the number."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(one_thread)
    gate = _slow_write(monkeypatch)
    taking = asyncio.create_task(bodies.read(_endless(b"x" * MIB), limit=9 * MIB, total=60, idle=60))
    while not gate.reached.is_set():
        await asyncio.sleep(0)
    for _ in range(cancelled):
        taking.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
    others = [(tmp_path / f"other-{number}").open("wb") for number in range(8)]
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await taking
    await loop.run_in_executor(None, bool)
    assert [os.fstat(other.fileno()).st_size for other in others] == [0] * 8
    for other in others:
        other.close()
    assert os.listdir(tmp_path / "spool") == []


async def test_a_job_for_which_no_thread_could_be_started_finds_its_file_closed(
    bodies: BodyBuffer, tmp_path: Path, one_thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python leaves it in the queue all the same, and the next thread takes it up."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(one_thread)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(JournalUnavailable, match="can't start new thread"):
            await bodies.read(_endless(b"x" * MIB), limit=9 * MIB, total=60, idle=60)
        with pytest.raises(JournalUnavailable, match="can't start new thread"):
            await bodies.rewrite(MemoryBody(b"x" * MIB), lambda piece: piece, overlap=10)
    others = [(tmp_path / f"other-{number}").open("wb") for number in range(8)]
    await loop.run_in_executor(None, bool)
    assert [os.fstat(other.fileno()).st_size for other in others] == [0] * 8
    for other in others:
        other.close()
    assert os.listdir(tmp_path / "spool") == []


async def test_descriptors_are_given_back(bodies: BodyBuffer) -> None:
    """Whether a body was taken, refused in the middle, or rewritten."""

    def held() -> int:
        return len(os.listdir("/proc/self/fd"))

    await bodies.rewrite(MemoryBody(b"x"), lambda piece: piece, overlap=10)  # starts the pool's thread
    before = held()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await bodies.read(_endless(b"x" * MIB), limit=9 * MIB, total=60, idle=60)
        await bodies.rewrite(MemoryBody(b"x" * 2 * MIB), lambda piece: piece, overlap=10)
    assert held() == before
