"""How much room there is on this machine's disks. With none left, engine/intake.py answers callbacks 503, which providers repeat."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

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
    """Return, by the folders' names, a sentence for each disk that is nearly full; a disk that several are on is told once."""
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
