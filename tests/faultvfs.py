"""A file system for SQLite that fails on demand: syncs that report an error, a disk that is full."""

from __future__ import annotations

import uuid
from typing import Any

import apsw


class FaultVFS(apsw.VFS):
    """Give its `name` to `SqliteStore(vfs=…)`; the switches may be turned at any time, from any thread.

    Keep a reference for as long as the store is open.
    """

    def __init__(self) -> None:
        self.name = f"fault-{uuid.uuid4().hex}"
        super().__init__(self.name, "")
        self.fail_sync: tuple[str, ...] = ()
        """Syncs of files whose names end so fail: `-wal`, `.db`."""
        self.full = False
        """Writes to any file but the shared index fail as on a full disk."""
        self.read_only = False
        """Writes to any file but the shared index are refused, as on a file system that was remounted read-only."""
        self.syncs = 0
        """Syncs that succeeded."""
        self.failures = 0
        """Operations that were made to fail."""

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite names it
        """Open a file whose syncs and writes ask the switches first."""
        return FaultFile(self, name, flags)


class FaultFile(apsw.VFSFile):
    """One open file of a `FaultVFS`."""

    def __init__(self, vfs: FaultVFS, name: Any, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._vfs = vfs
        self._name = name.filename() if isinstance(name, apsw.URIFilename) else name or ""

    def xSync(self, flags: int) -> None:  # noqa: N802
        """Sync, or fail like a disk that lost what it was given."""
        if self._vfs.fail_sync and self._name.endswith(self._vfs.fail_sync):
            self._vfs.failures += 1
            raise apsw.IOError("sync failed")
        super().xSync(flags)
        self._vfs.syncs += 1

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        """Write, or fail like a full disk."""
        if self._vfs.full:
            self._vfs.failures += 1
            raise apsw.FullError("disk full")
        if self._vfs.read_only:
            self._vfs.failures += 1
            raise apsw.ReadOnlyError("read-only file system")
        super().xWrite(data, offset)
