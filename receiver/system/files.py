"""Private files and folders of this machine, written durably; whether the process that left one still runs; and the room on disks."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Make a folder and what is missing above it, private, each name durable. Raises `OSError`."""
    if not folder.parent.is_dir():
        make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    # A parent that this user may pass through but not read belongs to somebody else.
    with contextlib.suppress(PermissionError):
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
    fd = create(path)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def create(path: Path | str) -> int:
    """Make a new private file; return its descriptor. Raises `OSError`, `FileExistsError` when the name is taken."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def open_file(path: Path | str) -> BufferedReader:
    """Open a file of ours for reading. Raises `OSError`, also for a link, and for a pipe, which would be waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "It is no regular file", str(path))
    return open(fd, "rb")


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, in as many pieces as the system takes it. Raises `OSError`."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def is_running(pid: str) -> bool:
    """Whether another process has this id; False for what is no id."""
    if not pid.isdigit() or int(pid) in (0, os.getpid()):
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


_MIB = 1024 * 1024
_LEAST = 256 * _MIB
_MOST = 10 * 1024 * _MIB
"""A disk is nearly full with less than a twentieth of it free: but with less than this at least, and never with more."""


def nearest(folder: str) -> Path:
    """Return the folder itself, or its nearest parent that is there."""
    here = Path(folder).absolute()
    while not os.path.lexists(here) and here != here.parent:
        here = here.parent
    return here


def free_bytes(folder: str) -> int:
    """Return what may still be written where a folder lies, or will. Raises `OSError`."""
    found = os.statvfs(nearest(folder))
    return found.f_bavail * found.f_frsize


def scarce(folders: Mapping[str, str]) -> dict[str, str]:
    """Return, by the folders' names, a sentence for each disk that is nearly full; a disk that several are on is told once.

    With no room left, engine/intake.py answers callbacks 503, which providers repeat.
    """
    troubles: dict[int, tuple[str, str]] = {}
    for name, folder in folders.items():
        try:
            found, disk = os.statvfs(nearest(folder)), os.stat(nearest(folder)).st_dev
        except OSError:
            continue  # that it cannot be used is told where it is used
        free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        if size and free < max(_LEAST, min(size // 20, _MOST)):
            troubles.setdefault(
                disk, (name, f"only {free // _MIB} MiB are free where {nearest(folder)} lies")
            )
    return dict(troubles.values())
