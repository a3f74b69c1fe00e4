"""A disk that loses power: mounts `tests.support.forgetful` for a test, where this machine can."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Self


class Mounted:
    """The file system at `mount` while the `with` lasts; `lose_power` ends it and fills `after`."""

    def __init__(self, mount: Path, after: Path) -> None:
        self._mount, self._after = mount, after
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._mount.mkdir()
        arguments = (sys.executable, "-m", "tests.support.forgetful", str(self._mount), str(self._after))
        self._child = subprocess.Popen(
            arguments, cwd=Path(__file__).resolve().parents[2], stdout=subprocess.PIPE
        )
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == b"mounted\n"
        return self

    def lose_power(self) -> None:
        """Unmount, and wait until what is kept lies in `after`."""
        assert self._child is not None
        subprocess.run(["fusermount3", "-u", str(self._mount)], check=True, timeout=20)
        assert self._child.wait(20) == 0

    def __exit__(self, *_: object) -> None:
        assert self._child is not None
        if self._child.poll() is None:
            subprocess.run(["fusermount3", "-u", "-z", str(self._mount)], check=False, timeout=20)
            self._child.kill()
            self._child.wait(20)
        assert self._child.stdout is not None
        self._child.stdout.close()


def missing() -> str:
    """Return what this machine lacks for it, "" when nothing."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened"
    try:
        subprocess.run(["fusermount3", "--version"], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "fusermount3 is not installed (Debian package fuse3)"
    try:
        importlib.import_module("mfusepy")
    except (ImportError, OSError) as error:  # the package, or libfuse below it
        return f"mfusepy cannot be used: {error}"
    return ""
