"""Bodies as they arrive: counted, capped, hashed; small ones in memory, others in a temporary file.

Memory stays flat: whatever the body's size, at most two pieces of a megabyte wait for the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import io
import os
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

from receiver.core.callback import Body
from receiver.core.errors import BodyCutOff, BodyTooLarge, BodyTooSlow, JournalUnavailable

MEMORY_LIMIT = 64 * 1024
"""Bytes up to which a body never touches the disk on its way in."""
PREFIX_BYTES = 4096
_PIECE = 1024 * 1024
_STALE_SECONDS = 24 * 3600
SHORTAGE = (OSError, MemoryError)
"""What is raised while this machine lacks something: descriptors, memory, a disk that answers. No fault of a body's, nor a bug."""
TROUBLE = (*SHORTAGE, RuntimeError)
"""The same around work for a thread: Python raises the last when none can be started."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
"""ASGI's `receive`."""


class MemoryBody:
    """A body held in memory."""

    path: str | None = None

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self.sha256 = hashlib.sha256(data).hexdigest()

    @property
    def prefix(self) -> bytes:
        """The first bytes."""
        return self._data[:PREFIX_BYTES]

    def load(self) -> bytes:
        """Return all bytes."""
        return self._data

    def discard(self) -> None:
        """Nothing lies on disk."""


class FileBody:
    """A body held in a file."""

    def __init__(self, path: str, size: int, sha256: str, prefix: bytes) -> None:
        self.path: str | None = path
        self._path = path
        self.size = size
        self.sha256 = sha256
        self.prefix = prefix
        self._syncing = threading.Lock()
        self._in_doubt = False
        """A sync failed."""

    @classmethod
    def read(cls, path: str) -> FileBody:
        """Open a file as a body, counting and hashing it. Raises `OSError`."""
        with open(path, "rb") as file:
            prefix = file.read(PREFIX_BYTES)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(path, os.fstat(file.fileno()).st_size, digest, prefix)

    def load(self) -> bytes:
        """Return all bytes."""
        return Path(self._path).read_bytes()

    def sync(self) -> bool:
        """Make the file's bytes durable, after another sync that goes on. Raises `OSError`.

        False, and nothing is known of them, after one that failed: a kernel reports once that it could not write, and a
        sync after that succeeds whatever is on the disk.
        """
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self._syncing:
                if self._in_doubt:
                    return False
                self._in_doubt = True
                os.fsync(fd)
                self._in_doubt = False
            return True
        finally:
            os.close(fd)

    def discard(self) -> None:
        """Remove the temporary file; what was linked elsewhere stays."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)


Spooled = MemoryBody | FileBody


class Spool:
    """Takes bodies in; `folder` holds the temporary files and is emptied of a dead process's leftovers."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._count = 0

    def open(self) -> None:
        """Make the folder and remove what a crashed process left. Raises `JournalUnavailable`."""
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            for entry in os.scandir(self._folder):
                if _is_stale(entry):
                    os.unlink(entry.path)
        except OSError as error:
            raise JournalUnavailable(f"the spool folder cannot be used: {error.strerror}") from None

    async def take(self, receive: Receive, *, limit: int, total: float, idle: float) -> Spooled:
        """Read a body to its end.

        `limit` in bytes; `total` and `idle` (between two pieces) in seconds. Raises `BodyTooLarge`, `BodyTooSlow`,
        `BodyCutOff`; `JournalUnavailable` when the disk cannot take it.
        """
        deadline = time.monotonic() + total
        first, more = await _next(receive, deadline, idle)
        if not more and len(first) <= MEMORY_LIMIT:
            if len(first) > limit:
                raise BodyTooLarge(f"the body is over this source's limit of {limit} bytes")
            return MemoryBody(first)
        pieces = [first]
        size = len(first)
        writer: _Writer | None = None
        try:
            while True:
                if size > limit:
                    raise BodyTooLarge(f"the body is over this source's limit of {limit} bytes")
                if writer is None and size > MEMORY_LIMIT:
                    writer = await _Writer.create(self._name())
                if not more:
                    break
                if writer is not None and sum(map(len, pieces)) >= _PIECE:
                    await writer.write(pieces)
                    pieces = []
                piece, more = await _next(receive, deadline, idle)
                pieces.append(piece)
                size += len(piece)
            if writer is None:
                return MemoryBody(b"".join(pieces))
            await writer.write(pieces)
            return await writer.finish()
        except BaseException:
            if writer is not None:
                await writer.abandon()
            raise

    async def rewrite(self, body: Body, change: Callable[[bytes], bytes], *, overlap: int) -> FileBody:
        """Return a new temporary body: `change` applied to the whole, piece by piece in flat memory.

        `change` may replace any run of bytes shorter than `overlap`. Raises `JournalUnavailable`.
        """
        target = _Target.made(self._name())
        try:
            return await asyncio.to_thread(_rewrite, body, target, change, overlap)
        except TROUBLE as error:
            target.abandon()
            raise _unwritable(error) from None
        except BaseException:  # cancelled, above all: the thread goes on
            target.abandon()
            raise

    def _name(self) -> str:
        self._count += 1
        return os.path.join(self._folder, f"{os.getpid()}-{self._count}-{os.urandom(4).hex()}")


class _Target:
    """A file that a worker thread writes to, and that may be given up meanwhile by who waits for it.

    Given up, it is removed, and closed by the thread: its number may belong to another file from then on. A job may
    also begin after that: an executor that could not start a thread for it has it in its queue all the same.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._lock = threading.Lock()
        self._busy = self._closed = False

    @classmethod
    def made(cls, path: str) -> _Target:
        """Make the file. Raises `JournalUnavailable`."""
        try:
            return cls(path)
        except OSError as error:
            raise _unwritable(error) from None

    @contextlib.contextmanager
    def busy(self) -> Iterator[int]:
        """Hold the descriptor open. Raises `OSError` when it is closed already."""
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "given up")
            self._busy = True
        try:
            yield self._fd
        finally:
            with self._lock:
                self._busy = False
                if self._closed:
                    with contextlib.suppress(OSError):
                        os.close(self._fd)

    def close(self) -> None:
        """Close it now, or at the end of the job that is under way. Raises `OSError`."""
        with self._lock:
            first, self._closed = not self._closed, True
            if first and not self._busy:
                os.close(self._fd)

    def abandon(self) -> None:
        """Close and remove it."""
        with contextlib.suppress(OSError):
            self.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)


def _rewrite(body: Body, target: _Target, change: Callable[[bytes], bytes], overlap: int) -> FileBody:
    source = io.BytesIO(body.load()) if body.path is None else open(body.path, "rb")  # noqa: SIM115 - closed below
    with source, target.busy() as fd:
        carry = b""
        while piece := source.read(_PIECE):
            # A run that is cut by the end of this piece is still whole in the carry.
            carry = change(carry + piece)
            _write_all(fd, carry[:-overlap])
            carry = carry[-overlap:]
        _write_all(fd, carry)
    target.close()
    return FileBody.read(target.path)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _unwritable(error: BaseException) -> JournalUnavailable:
    return JournalUnavailable(f"the spool folder cannot be written: {why(error)}")


def why(error: BaseException) -> str:
    """Return what a person is told of `SHORTAGE` and `TROUBLE`: never a path."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error) or type(error).__name__


def _is_stale(entry: os.DirEntry[str]) -> bool:
    pid, _, _ = entry.name.partition("-")
    if not pid.isdigit() or int(pid) == os.getpid():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return entry.stat().st_mtime < time.time() - _STALE_SECONDS


async def _next(receive: Receive, deadline: float, idle: float) -> tuple[bytes, bool]:
    waiting = receive()
    # Most bodies are here with their head: then `receive` has nothing to wait for, and a timer would cost more than it.
    step = waiting.__await__()
    try:
        pending = next(step)
    except StopIteration as done:
        message = done.value
    else:
        wait = min(idle, deadline - time.monotonic())
        try:
            async with asyncio.timeout(wait):
                message = await _Begun(pending, step)
        except TimeoutError:
            raise BodyTooSlow from None
    if message["type"] == "http.disconnect":
        raise BodyCutOff
    return message.get("body", b""), message.get("more_body", False)


class _Begun:
    """Awaits the rest of an awaitable whose first step was taken by hand, as `yield from` would."""

    def __init__(self, pending: Any, step: Generator[Any, Any, MutableMapping[str, Any]]) -> None:
        self._pending, self._step = pending, step

    def __await__(self) -> Generator[Any, Any, MutableMapping[str, Any]]:
        pending = self._pending
        while True:
            try:
                value = yield pending
            except BaseException as error:  # a cancellation, above all, belongs to what is awaited
                take = partial(self._step.throw, error)
            else:
                take = partial(self._step.send, value)
            try:
                pending = take()
            except StopIteration as done:
                message: MutableMapping[str, Any] = done.value
                return message


class _Writer:
    """Writes and hashes in a worker thread, one step behind the network."""

    def __init__(self, target: _Target) -> None:
        self._target = target
        self._size = 0
        self._prefix = b""
        self._digest = hashlib.sha256()
        self._pending: asyncio.Future[None] | None = None

    @classmethod
    async def create(cls, path: str) -> _Writer:
        return cls(_Target.made(path))

    async def write(self, pieces: list[bytes]) -> None:
        await self._settle()
        loop = asyncio.get_running_loop()
        try:
            self._pending = loop.run_in_executor(None, self._write, pieces)
        except RuntimeError as error:
            raise _unwritable(error) from None

    def _write(self, pieces: list[bytes]) -> None:
        with self._target.busy() as fd:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if len(self._prefix) < PREFIX_BYTES:
                self._prefix = (self._prefix + data[:PREFIX_BYTES])[:PREFIX_BYTES]
            self._digest.update(data)
            self._size += len(data)
            _write_all(fd, data)

    async def _settle(self) -> None:
        """Wait for what is being written; while it is, who comes after a cancellation finds it and waits as well."""
        pending = self._pending
        if pending is None:
            return
        try:
            await asyncio.shield(pending)
        except SHORTAGE as error:
            raise _unwritable(error) from None
        finally:
            if pending.done():
                self._pending = None

    async def finish(self) -> FileBody:
        await self._settle()
        try:
            self._target.close()
        except OSError as error:
            raise _unwritable(error) from None
        return FileBody(self._target.path, self._size, self._digest.hexdigest(), self._prefix)

    async def abandon(self) -> None:
        try:
            with contextlib.suppress(JournalUnavailable):
                await asyncio.shield(self._settle())
        finally:
            self._target.abandon()
