"""Reads a body as it arrives: counts it, limits its size and time, hashes it; short bodies stay in memory, longer ones go to a file.

Memory stays flat: whatever the body's size, at most two pieces of a megabyte wait for the disk, and all longer bodies in memory
share `SHARED_BYTES`. A full or failing disk raises `JournalUnavailable`; engine/intake.py answers 503 to it.
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
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from receiver.core.callback import PREFIX_BYTES, Body, HeldBody, MemoryBody
from receiver.core.errors import (
    RESOURCE_ERRORS,
    THREAD_ERRORS,
    BodyCutOff,
    BodyTooLarge,
    BodyTooSlow,
    JournalUnavailable,
    SenderError,
    reason_of,
)
from receiver.system.codings import PIECE, CodingBroken, Inflater
from receiver.system.files import create, is_running, open_file, write_all, write_file

MEMORY_LIMIT = 64 * 1024
"""Bytes up to which a body never touches the disk on its way in."""
HELD_LIMIT = 1024 * 1024
"""Bytes up to which a longer body also stays in memory, while there is room in `SHARED_BYTES`."""
SHARED_BYTES = 64 * 1024 * 1024
"""Bytes of longer bodies that one buffer holds in memory at once."""
_STALE_SECONDS = 24 * 3600
_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES}

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
"""ASGI's `receive`."""


class WholeBody:
    """A `Receive` for a body that has arrived whole, without any wait."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def __call__(self) -> MutableMapping[str, Any]:
        """Return all of it."""
        return {"type": "http.request", "body": self.data, "more_body": False}


class LongerBody(MemoryBody):
    """A longer body held in memory, in its share of `SHARED_BYTES` until it is discarded."""

    def __init__(self, data: bytes, share: Share) -> None:
        super().__init__(data)
        self._share = share

    def discard(self) -> None:
        """Give the share back; harmless to repeat."""
        super().discard()
        self._share.give_back()


class Share:
    """What one body has of a buffer's `SHARED_BYTES`."""

    def __init__(self, buffer: BodyBuffer) -> None:
        self._buffer = buffer
        self.size = 0

    def grow(self, size: int) -> bool:
        """Have `size` bytes; return False when there is no room for them."""
        if size - self.size > self._buffer.room:
            return False
        self._buffer.room -= size - self.size
        self.size = size
        return True

    def give_back(self) -> None:
        """Have none any more; harmless to repeat."""
        self.grow(0)


class FileBody:
    """A body held in a file."""

    wire: HeldBody | None = None

    def __init__(self, path: str, size: int, sha256: str, prefix: bytes) -> None:
        self.path: str | None = path
        self._path = path
        self.size = size
        self.sha256 = sha256
        self.prefix = prefix
        self._syncing = threading.Lock()
        self._sync_failed = False

    @classmethod
    def read(cls, path: str) -> FileBody:
        """Open a file as a body, counting and hashing it. Raises `OSError`."""
        with open_file(path) as file:
            prefix = file.read(PREFIX_BYTES)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(path, os.fstat(file.fileno()).st_size, digest, prefix)

    def load(self) -> bytes:
        """Return all bytes."""
        return Path(self._path).read_bytes()

    def sync(self) -> bool:
        """Make the file's bytes durable; return False when an earlier sync failed. Raises `OSError`.

        A kernel reports a failed write once; a later sync succeeds whatever is on the disk, and proves nothing. Two syncs
        of one file run one after the other.
        """
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self._syncing:
                if self._sync_failed:
                    return False
                self._sync_failed = True
                os.fsync(fd)
                self._sync_failed = False
            return True
        finally:
            os.close(fd)

    def discard(self) -> None:
        """Remove the temporary file; its other names (of the journal, of the blob folder) stay."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        if self.wire is not None:
            self.wire.discard()


class BodyBuffer:
    """Reads bodies into memory or into temporary files of `folder`."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._count = 0
        self.room = SHARED_BYTES

    def open(self) -> None:
        """Make the folder and remove what a crashed process left. Raises `JournalUnavailable`."""
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            for entry in os.scandir(self._folder):
                if _is_stale(entry):
                    os.unlink(entry.path)
        except OSError as error:
            raise JournalUnavailable(
                f"the folder for temporary files cannot be used: {error.strerror}"
            ) from None

    async def read(
        self,
        receive: Receive,
        *,
        limit: int,
        total: float,
        idle: float,
        piece: int = HELD_LIMIT,
        coding: str = "",
    ) -> MemoryBody | FileBody:
        """Read a body to its end, and decompress it (`coding` is `gzip`, `deflate`, or "" for none).

        `limit` is in bytes, after decompression; `total` and `idle` (between two pieces) in seconds. Up to `piece` bytes
        stay in memory before they are written to a file, while there is room in `SHARED_BYTES`. Raises `BodyTooLarge`,
        `BodyTooSlow`, `BodyCutOff`, `SenderError` if decompression fails, and `JournalUnavailable` if the disk cannot take
        it.
        """
        if not coding:
            if isinstance(receive, WholeBody) and len(receive.data) <= min(limit, MEMORY_LIMIT):
                return MemoryBody(receive.data)
            return await self._read(receive, limit, total, idle, piece)
        wire = await self._read(receive, wire_limit(limit), total, idle, piece)
        try:
            body = await self._read(_decoded(wire, coding), limit, total, idle, piece)
        except BaseException as error:
            wire.discard()
            if isinstance(error, CodingBroken):
                raise SenderError(f"the body is not what its Content-Encoding says: {error}") from None
            raise
        body.wire = wire
        return body

    async def _read(
        self, receive: Receive, limit: int, total: float, idle: float, piece: int
    ) -> MemoryBody | FileBody:
        deadline = time.monotonic() + total
        pieces: list[bytes] = []
        size, written, more, share = 0, 0, True, Share(self)
        writer: _Writer | None = None
        try:
            while more:
                # Without a share there is little that may wait in memory: so all bodies together have one budget.
                if writer is not None and size - written >= max(share.size, MEMORY_LIMIT):
                    await writer.write(pieces)
                    pieces, written = [], size
                data, more = await next_piece(receive, deadline, idle)
                pieces.append(data)
                size += len(data)
                if size > limit:
                    raise too_large(limit)
                if writer is None and size > MEMORY_LIMIT and not (size <= piece and share.grow(size)):
                    share.grow(piece)
                    writer = _Writer(self._new_file())
            if writer is None:
                whole = b"".join(pieces)
                body = LongerBody(whole, share) if share.size else MemoryBody(whole)
                share = Share(self)  # the other one is the body's from now on
                return body
            await writer.write(pieces)
            return await writer.finish()
        except BaseException:
            if writer is not None:
                await writer.abandon()
            raise
        finally:
            share.give_back()

    async def rewrite(self, body: Body, change: Callable[[bytes], bytes], *, overlap: int) -> FileBody:
        """Return a new temporary body: `change` applied to the whole, piece by piece in flat memory.

        `change` may replace any run of bytes shorter than `overlap`. Raises `JournalUnavailable`.
        """
        path = self._new_file()
        try:
            return await asyncio.to_thread(_rewrite, body, path, change, overlap)
        except BaseException as error:  # after a cancellation the thread may still be at it, or begin later
            _abandon(path)
            if isinstance(error, THREAD_ERRORS):
                raise _unwritable(error) from None
            raise

    def _new_file(self) -> str:
        """Make a temporary file and return its path. Raises `JournalUnavailable`."""
        self._count += 1
        path = os.path.join(self._folder, f"{os.getpid()}-{self._count}-{os.urandom(4).hex()}")
        try:
            os.close(create(path))
        except OSError as error:
            raise _unwritable(error) from None
        return path


def wire_limit(limit: int) -> int:
    """Return the limit for a compressed body: compression makes incompressible bytes longer."""
    return limit + limit // 1000 + 1024


def _decoded(wire: Body, coding: str) -> Receive:
    """Return a `Receive` for the decompressed body, a piece at a time. Raises `CodingBroken`, `OSError`,
    `JournalUnavailable`.

    The body may be unproved: a longer one is decompressed in a thread, so that it does not block other callbacks.
    """
    pieces, short = _inflated(wire, coding), wire.size <= MEMORY_LIMIT

    async def receive() -> MutableMapping[str, Any]:
        try:
            data = next(pieces, b"") if short else await asyncio.to_thread(next, pieces, b"")
        except RuntimeError as error:
            raise _unwritable(error) from None
        return {"type": "http.request", "body": data, "more_body": bool(data)}

    return receive


def _inflated(wire: Body, coding: str) -> Iterator[bytes]:
    inflater = Inflater(coding)
    with io.BytesIO(wire.load()) if wire.path is None else open(wire.path, "rb") as source:
        while data := source.read(PIECE):
            yield from inflater.feed(data)
    if wire.size:
        inflater.finish()


def too_large(limit: int) -> BodyTooLarge:
    """Return the error for a body over `limit` bytes."""
    return BodyTooLarge(f"the body is over this source's limit of {limit} bytes")


def keep_body(body: Body, target: Path) -> None:
    """Make a new private file of a body, synced. Raises `OSError`.

    A temporary file gets a second name where the file system can give one. It is copied where not, and after a failed
    sync as well: no later one tells whether its bytes are on the disk.
    """
    if body.path is None:
        write_file(target, body.load())
        return
    if isinstance(body, FileBody) and body.sync():
        try:
            os.link(body.path, target)
            return
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
    _copy(body.path, target, body.sha256)


def _copy(path: str, target: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    fd = create(target)
    try:
        with open(path, "rb", buffering=0) as source:
            while piece := source.read(HELD_LIMIT):
                digest.update(piece)
                write_all(fd, piece)
        # What could not be written to the first file may be gone from memory as well.
        if digest.hexdigest() != sha256:
            raise OSError(errno.EIO, "the temporary file is not what was received any more")
        os.fsync(fd)
    finally:
        os.close(fd)


async def next_piece(receive: Receive, deadline: float, idle: float) -> tuple[bytes, bool]:
    """Return the next piece of a body, and whether more will come. Raises `BodyTooSlow`, `BodyCutOff`.

    It comes within `idle` seconds, and before the `deadline` of the monotonic clock.
    """
    try:
        async with asyncio.timeout(min(idle, deadline - time.monotonic())):
            message = await receive()
    except TimeoutError:
        raise BodyTooSlow from None
    if message["type"] == "http.disconnect":
        raise BodyCutOff
    return message.get("body", b""), message.get("more_body", False)


@contextlib.contextmanager
def _appending(path: str) -> Iterator[int]:
    """Open a temporary file to write at its end. Raises `OSError`, also when it was abandoned: it has no name then."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _rewrite(body: Body, path: str, change: Callable[[bytes], bytes], overlap: int) -> FileBody:
    with (
        io.BytesIO(body.load()) if body.path is None else open(body.path, "rb") as source,
        _appending(path) as fd,
    ):
        carry = b""
        while piece := source.read(HELD_LIMIT):
            # A run that is cut by the end of this piece is still whole in the carry.
            carry = change(carry + piece)
            write_all(fd, carry[:-overlap])
            carry = carry[-overlap:]
        write_all(fd, carry)
    return FileBody.read(path)


def _unwritable(error: BaseException) -> JournalUnavailable:
    return JournalUnavailable(f"the folder for temporary files cannot be written: {reason_of(error)}")


def _abandon(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _is_stale(entry: os.DirEntry[str]) -> bool:
    return (
        not is_running(entry.name.partition("-")[0]) or entry.stat().st_mtime < time.time() - _STALE_SECONDS
    )


class _Writer:
    """Writes and hashes a temporary file in worker threads, one step behind the network.

    Each write opens the file by its name. So it is abandoned by taking the name away: a write under way ends where nobody
    looks, and one that starts later, from the queue of an executor that could not start a thread, finds no file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._size = 0
        self._prefix = b""
        self._digest = hashlib.sha256()
        self._pending: asyncio.Future[None] | None = None

    async def write(self, pieces: list[bytes]) -> None:
        await self._settle()
        loop = asyncio.get_running_loop()
        try:
            self._pending = loop.run_in_executor(None, self._write, pieces)
        except RuntimeError as error:
            raise _unwritable(error) from None

    def _write(self, pieces: list[bytes]) -> None:
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if len(self._prefix) < PREFIX_BYTES:
            self._prefix = (self._prefix + data[:PREFIX_BYTES])[:PREFIX_BYTES]
        self._digest.update(data)
        self._size += len(data)
        with _appending(self._path) as fd:
            write_all(fd, data)

    async def _settle(self) -> None:
        """Wait for the write under way. It stays pending after a cancellation, so that the next call waits for it as well."""
        pending = self._pending
        if pending is None:
            return
        try:
            await asyncio.shield(pending)
        except RESOURCE_ERRORS as error:
            raise _unwritable(error) from None
        finally:
            if pending.done():
                self._pending = None

    async def finish(self) -> FileBody:
        await self._settle()
        return FileBody(self._path, self._size, self._digest.hexdigest(), self._prefix)

    async def abandon(self) -> None:
        try:
            with contextlib.suppress(JournalUnavailable):
                await asyncio.shield(self._settle())
        finally:
            _abandon(self._path)
