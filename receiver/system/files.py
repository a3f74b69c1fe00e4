"""Durable files: folders, names and bytes that are on the disk when a call returns."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from io import FileIO
from pathlib import Path

from receiver.core.callback import Body
from receiver.system.bodies import FileBody

_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES}


def make_folder(folder: Path) -> None:
    """Make a folder and what is missing above it, private, each name durable. Raises `OSError`."""
    if not folder.parent.is_dir():
        make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    with contextlib.suppress(
        PermissionError
    ):  # a folder above that may be passed and not be read is not ours
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises `OSError`."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> None:
    """Make a new private file of `data`, synced. Raises `OSError`."""
    with _made(path) as file:
        _write(file, data)
        os.fsync(file.fileno())


def keep_body(body: Body, target: Path) -> None:
    """Make a new private file of a body, synced. Raises `OSError`.

    A spooled file gets a second name where the file system can give one; it is copied where not, and also after a sync
    of it that failed: no later one tells whether its bytes are on the disk.
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
    with open(path, "rb", buffering=0) as source, _made(target) as file:
        while piece := source.read(1024 * 1024):
            digest.update(piece)
            _write(file, piece)
        if digest.hexdigest() != sha256:  # what could not be written may be gone from memory as well
            raise OSError(errno.EIO, "the spooled file is not what was received any more")
        os.fsync(file.fileno())


def _made(path: Path) -> FileIO:
    return open(path, "xb", buffering=0, opener=_private)


def _write(file: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
