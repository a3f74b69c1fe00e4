"""Syncs a group of new files together: each file once, then each folder once for all of them.

A file by itself needs two syncs and a thread. In a group it needs one sync, and the disk is at work on all files before the
first of them is waited for: the file system's journal then takes many of them together.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path

from receiver.system.files import create, sync_folder, write_all

_SLOW_SECONDS = 0.001
"""A sync that takes longer leaves the processor idle: then the group's other files are synced in more than one thread."""
_BESIDE = 4


class NewFile:
    """A new file: it gets its name once its bytes are durable."""

    def __init__(self, folder: Path, name: str, data: bytes) -> None:
        self.folder = folder
        self.error: Exception | None = None
        """Why the file is not durable."""
        self._path, self._data = f"{folder}/{name}", data
        # Not of os.urandom: for that call the event loop would give the interpreter's lock away, and wait for it again.
        self._temporary = f"{folder}/.{name}.{random.getrandbits(32):08x}"
        self._fd = -1

    def write(self) -> None:
        """Write the bytes, under a temporary name, and have the system begin to bring them to the disk."""
        self._fd = create(self._temporary)
        write_all(self._fd, self._data)
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # of a file system that does not know it: the sync does it all
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Make the bytes durable."""
        os.fsync(self._fd)

    def rename(self) -> None:
        """Give the file its name."""
        fd, self._fd = self._fd, -1
        os.close(fd)
        os.rename(self._temporary, self._path)

    def give_up(self, error: Exception) -> None:
        """Keep the error, and remove the temporary file."""
        self.error = error
        with contextlib.suppress(OSError):
            if self._fd >= 0:
                os.close(self._fd)
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)


def make_durable(files: Sequence[NewFile], make_folder: Callable[[Path], None], threads: Executor) -> None:
    """Make the files durable. A file that fails gets an `error`, and does not stop the others. Blocks.

    `make_folder` makes a folder durable; `threads` help if the disk is slow.
    """
    _each_folder(files, make_folder)
    _each(NewFile.write, files)
    began = time.perf_counter()
    _each(NewFile.sync, files[:1])
    slow = time.perf_counter() - began > _SLOW_SECONDS
    _sync_all(files[1:], threads, _BESIDE - 1 if slow else 0)
    _each(NewFile.rename, files)
    _each_folder(files, sync_folder)


def _sync_all(files: Sequence[NewFile], threads: Executor, helpers: int) -> None:
    """Sync the files in this thread and `threads` others; each takes the next file."""
    waiting = deque(files)

    def work() -> None:
        with contextlib.suppress(IndexError):
            while True:
                _each(NewFile.sync, [waiting.popleft()])

    helping: list[Future[None]] = []
    with contextlib.suppress(RuntimeError):  # no thread can be started, or none any more: it goes without
        helping.extend(threads.submit(work) for _ in range(min(helpers, len(files) - 1)))
    work()
    for helper in helping:
        if not helper.cancel():
            helper.result()


def _each(step: Callable[[NewFile], None], files: Sequence[NewFile]) -> None:
    for file in files:
        if file.error is None:
            try:
                step(file)
            except Exception as error:  # of this file alone
                file.give_up(error)


def _each_folder(files: Sequence[NewFile], step: Callable[[Path], None]) -> None:
    for folder in {file.folder for file in files if file.error is None}:
        try:
            step(folder)
        except Exception as error:  # of the files in this folder
            for file in files:
                if file.folder == folder and file.error is None:
                    file.give_up(error)
