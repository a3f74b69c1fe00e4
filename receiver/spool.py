"""Bodies as they arrive (floor 3): counted, capped, hashed; small ones in memory, others in a temporary file.

Memory stays flat: whatever the body's size, at most two pieces of a megabyte wait for the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import time
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

from receiver.callback import Body
from receiver.errors import BodyCutOff, BodyTooLarge, BodyTooSlow, JournalUnavailable

MEMORY_LIMIT = 64 * 1024
"""Bytes up to which a body never touches the disk on its way in."""
PREFIX_BYTES = 4096
_PIECE = 1024 * 1024
_STALE_SECONDS = 24 * 3600

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
        try:
            return await asyncio.to_thread(_rewrite, body, self._name(), change, overlap)
        except OSError as error:
            raise JournalUnavailable(f"the spool folder cannot be written: {error.strerror}") from None

    def _name(self) -> str:
        self._count += 1
        return os.path.join(self._folder, f"{os.getpid()}-{self._count}-{os.urandom(4).hex()}")


def _rewrite(body: Body, target: str, change: Callable[[bytes], bytes], overlap: int) -> FileBody:
    source = io.BytesIO(body.load()) if body.path is None else open(body.path, "rb")  # noqa: SIM115 - closed below
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with source, os.fdopen(fd, "wb") as file:
        carry = b""
        while piece := source.read(_PIECE):
            # A run that is cut by the end of this piece is still whole in the carry.
            carry = change(carry + piece)
            file.write(carry[:-overlap])
            carry = carry[-overlap:]
        file.write(carry)
    return FileBody.read(target)


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

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._size = 0
        self._prefix = b""
        self._digest = hashlib.sha256()
        self._pending: asyncio.Future[None] | None = None

    @classmethod
    async def create(cls, path: str) -> _Writer:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalUnavailable(f"the spool folder cannot be written: {error.strerror}") from None
        return cls(path, fd)

    async def write(self, pieces: list[bytes]) -> None:
        await self._settle()
        loop = asyncio.get_running_loop()
        self._pending = loop.run_in_executor(None, self._write, pieces)

    def _write(self, pieces: list[bytes]) -> None:
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if len(self._prefix) < PREFIX_BYTES:
            self._prefix = (self._prefix + data[:PREFIX_BYTES])[:PREFIX_BYTES]
        self._digest.update(data)
        self._size += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    async def _settle(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            try:
                await pending
            except OSError as error:
                raise JournalUnavailable(f"the spool folder cannot be written: {error.strerror}") from None

    async def finish(self) -> FileBody:
        await self._settle()
        os.close(self._fd)
        return FileBody(self._path, self._size, self._digest.hexdigest(), self._prefix)

    async def abandon(self) -> None:
        with contextlib.suppress(JournalUnavailable):
            await asyncio.shield(self._settle())
        with contextlib.suppress(OSError):
            os.close(self._fd)
        with contextlib.suppress(OSError):
            os.unlink(self._path)
