"""Process locks for a local database: files beside it, locked by flock. A lock ends when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import glob
import os
from collections.abc import Iterable


class LockFiles:
    """One file for each process that claims work. The system unlocks it when its process ends, however that ends."""

    def __init__(self, database: str) -> None:
        self._prefix = f"{database}-lock-"
        self._held: tuple[str, int] | None = None

    def hold(self, name: str) -> None:
        """Hold the lock of this name until `release` or the end of the process. Raises `OSError` when that cannot be done now."""
        if self._held is not None:
            return
        for left in glob.glob(f"{glob.escape(self._prefix)}*"):  # by processes that were killed
            self._removed_if_free(left)
        path = self._prefix + name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.stat(path)  # another process may have removed it before it was locked
        except OSError:
            os.close(descriptor)
            raise
        self._held = path, descriptor

    def free(self, names: Iterable[str]) -> set[str]:
        """Return the locks among `names` that no process holds."""
        return {name for name in names if self._removed_if_free(self._prefix + name)}

    def release(self) -> None:
        """Release the lock."""
        held, self._held = self._held, None
        if held is not None:
            path, descriptor = held
            os.unlink(path)
            os.close(descriptor)

    @staticmethod
    def _removed_if_free(path: str) -> bool:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True
