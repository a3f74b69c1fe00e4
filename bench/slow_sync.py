"""`receiver …`, with a number of milliseconds added to each sync of the store's files, as on a disk that is not virtual.

python -m bench.slow_sync MILLISECONDS serve …
"""

from __future__ import annotations

import sys
import time
from typing import Any

import apsw


class SlowVFS(apsw.VFS):
    """SQLite's own file system, with slow syncs."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__("slow", "unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite names it
        return SlowFile(self.seconds, name, flags)


class SlowFile(apsw.VFSFile):
    """One file of it."""

    def __init__(self, seconds: float, name: Any, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self._seconds = seconds

    def xSync(self, flags: int) -> None:  # noqa: N802
        time.sleep(self._seconds)
        super().xSync(flags)


if __name__ == "__main__":
    slow = SlowVFS(float(sys.argv.pop(1)) / 1000)
    from receiver.cli.app import main

    main()
