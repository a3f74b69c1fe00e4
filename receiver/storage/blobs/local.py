"""Audio in a local folder: temporary file, fsync, atomic rename, fsync of the folder. Concurrent puts are synced together."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote_from_bytes

from receiver.core.callback import Body
from receiver.core.errors import THREAD_ERRORS, BlobsUnavailable, NotFound, reason_of
from receiver.core.event import StoredBlob
from receiver.storage.blobs import BlobEntry, LocalObject
from receiver.storage.blobs.file_group import NewFile, make_durable
from receiver.storage.blobs.keys import KeyTemplate, has_our_name
from receiver.system.body_buffer import keep_body
from receiver.system.files import make_folder, sync_folder, write_file

_THREADS = 8
_GROUP = 64
"""The most files in one group; each keeps a descriptor open meanwhile."""
_REMEMBERED = 4096
_NO_PARTS = frozenset(("", ".", ".."))
"""Forbidden parts of a key: with them the path would point elsewhere."""
T = TypeVar("T")


class LocalBlobs:
    """A folder on this machine; one file for each object, named by its key."""

    def __init__(self, folder: str, keys: KeyTemplate | None = None) -> None:
        """Without `keys`, every file with a name of receiver's form counts as ours, in any subfolder."""
        self._root = Path(folder).absolute()
        self._keys = keys
        self._folders: dict[str, tuple[Path, str]] = {}
        """What `_know` found, by its argument."""
        self._synced: set[Path] = set()
        """Folders whose names this process has synced; one made by another process may not be synced yet."""
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="blobs")
        self._waiting: list[tuple[asyncio.Future[None], NewFile]] = []
        self._writing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Make the folder. Later it is never made again: a folder that vanished is an outage, not a fresh start."""
        await self._run(make_folder, self._root)

    async def close(self) -> None:
        """Wait for writes under way."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
        await asyncio.to_thread(self._threads.shutdown)

    async def ping(self) -> None:
        """Write, sync and remove a small file. Raises `BlobsUnavailable`."""
        await self._run(self._ping)

    async def put(self, key: str, body: Body, *, content_type: str) -> StoredBlob:
        """Store `body`; returns after file and folder are synced. Raises `BlobsUnavailable`."""
        start = key.rfind("/") + 1
        within, name = key[:start], key[start:]
        folder, uri = self._folders.get(within) or self._know(within)
        if name in _NO_PARTS or "\0" in name:
            raise _not_plain()
        if body.path is None:
            await self._put_in_group(NewFile(folder, name, body.load()))
        else:
            await self._run(self._put, folder / name, body)
        uri = f"{uri}/{quote_from_bytes(os.fsencode(name))}"
        return StoredBlob(key=key, uri=uri, content_type=content_type, size=body.size, sha256=body.sha256)

    async def get(self, key: str) -> bytes:
        """Return an object's bytes. Raises `NotFound`, `BlobsUnavailable`."""
        path = self._path(key)
        try:
            return await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            raise NotFound(f"no object has the key {key}") from None
        except THREAD_ERRORS as error:
            raise _unavailable(error) from None

    def presign(self, key: str, *, content_type: str, expires_at: int) -> str | None:
        """Return None: receiver serves these itself."""
        return None

    def local(self, key: str) -> LocalObject | None:
        """Return the file of `key`, None when there is none or the key points outside the folder."""
        try:
            path = self._path(key)
            status = path.stat()
        except (BlobsUnavailable, OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return LocalObject(path=str(path), size=status.st_size, modified_at=status.st_mtime_ns // 1_000_000)

    async def entries(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> Sequence[BlobEntry]:
        """Return a page of objects by key; an empty one is the end. Raises `BlobsUnavailable`."""
        page = itertools.islice(self._entries(prefix, after), min(max(limit, 1), 1000))
        return await self._run(list, page)

    def is_ours(self, key: str) -> bool:
        """Tell whether receiver makes such keys here."""
        return has_our_name(key) if self._keys is None else self._keys.is_ours(key)

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove files; folders stay, another process may rely on them. Raises `BlobsUnavailable`."""
        paths = [self._path(key) for key in keys]

        def remove() -> None:
            failed: OSError | None = None
            for path in paths:
                try:
                    path.unlink(missing_ok=True)
                except NotADirectoryError:
                    continue
                except OSError as error:
                    failed = error
            if failed is not None:
                raise failed

        await self._run(remove)

    async def abort_abandoned(self, *, before: int) -> int:
        """Remove temporary files that a crash left, last written before `before` (epoch ms). Raises `BlobsUnavailable`."""
        return await self._run(self._abort_abandoned, before)

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not key or "\0" in key or not _NO_PARTS.isdisjoint(parts):
            raise _not_plain()
        return self._root.joinpath(*parts)

    def _know(self, within: str) -> tuple[Path, str]:
        """Return the folder of keys whose part up to the last slash is `within`, and its URI. Raises `BlobsUnavailable`."""
        folder = self._path(within[:-1]) if within else self._root
        if len(self._folders) >= _REMEMBERED:
            self._folders.clear()
        known = self._folders[within] = folder, folder.as_uri()
        return known

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
        except THREAD_ERRORS as error:
            raise _unavailable(error) from None

    def _ping(self) -> None:
        path = self._root / f".ping-{os.getpid()}-{os.urandom(4).hex()}"
        try:
            write_file(path, b"ping")
        finally:
            path.unlink(missing_ok=True)

    async def _put_in_group(self, file: NewFile) -> None:
        """Make a file durable together with those that come while others are written."""
        made: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((made, file))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_groups())
        await made

    async def _write_groups(self) -> None:
        try:
            while self._waiting:
                group = self._waiting[:_GROUP]
                del self._waiting[:_GROUP]
                # For what is done already nobody waits any more.
                files = [file for made, file in group if not made.done()]
                failed: Exception | None = None
                try:
                    await self._run(make_durable, files, self._make_folders, self._threads)
                except Exception as error:
                    failed = error
                for made, file in group:
                    why = failed or file.error
                    if made.done():
                        continue
                    if why is None:
                        made.set_result(None)
                    else:
                        made.set_exception(_unavailable(why))
        finally:
            self._writing = None

    def _put(self, path: Path, body: Body) -> None:
        self._make_folders(path.parent)
        temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        try:
            keep_body(body, temporary)
            os.utime(temporary)  # its age is that of the object: a link has that of the temporary file
            os.rename(temporary, path)
        finally:
            # Still there after a success when the same temporary file was stored before: renaming one name of a file
            # to another name of it does nothing.
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)

    def _entries(self, prefix: str, after: str) -> Iterator[BlobEntry]:
        for key, path in _files(self._root, "", prefix, after):
            with contextlib.suppress(FileNotFoundError):  # removed since it was seen
                status = path.stat()
                yield BlobEntry(key=key, size=status.st_size, modified_at=status.st_mtime_ns // 1_000_000)

    def _abort_abandoned(self, before: int) -> int:
        count = 0
        for folder, _, names in os.walk(self._root):
            base = "" if Path(folder) == self._root else f"{Path(folder).relative_to(self._root).as_posix()}/"
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    # `.NAME.` and eight digits: what `_put` writes, and nothing that others keep here
                    ours = name.startswith(".") and self.is_ours(base + name[1:].rpartition(".")[0])
                    if ours and path.stat().st_mtime_ns < before * 1_000_000:
                        path.unlink()
                        count += 1
        return count

    def _make_folders(self, folder: Path) -> None:
        """Make `folder` below the root, each name synced; the root itself must be there."""
        if folder == self._root or (folder in self._synced and folder.is_dir()):
            return
        self._make_folders(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        sync_folder(folder.parent)
        if len(self._synced) >= _REMEMBERED:
            self._synced.clear()
        self._synced.add(folder)


def _files(folder: Path, base: str, prefix: str, after: str) -> Iterator[tuple[str, Path]]:
    """Walk `folder`, whose keys begin with `base`, in the order of the keys; folders without such keys are not entered."""
    with os.scandir(folder) as entries:
        names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries]
    for name in sorted(names, key=os.fsencode):
        key, path = base + name, folder / name
        if name.startswith("."):
            continue  # a put under way
        passed = os.fsencode(key) <= os.fsencode(after)
        if name.endswith("/"):
            holds = key.startswith(prefix) or prefix.startswith(key)
            if holds and (not passed or after.startswith(key)):
                yield from _files(path, key, prefix, after)
        elif key.startswith(prefix) and not passed:
            yield key, path


def _not_plain() -> BlobsUnavailable:
    return BlobsUnavailable("an object key has plain parts between its slashes")


def _unavailable(error: BaseException) -> BlobsUnavailable:
    if isinstance(error, BlobsUnavailable):
        return error
    return BlobsUnavailable(f"the blob folder cannot be used: {reason_of(error)}")
