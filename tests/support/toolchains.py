"""What samples and documents in other languages are checked with, where it can be had: a test that lacks it says so and is skipped."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "receiver-tests")


def need(*programs: str) -> None:
    """Skip the test unless these programs are there."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"there is no {', '.join(missing)} here")


def npm_packages(*packages: str) -> Path:
    """Return a folder whose `node_modules` has these packages (`name@version`); they are fetched once and kept."""
    need("node", "npm")
    name = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:16]
    folder = CACHE / f"npm-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "whole").exists():
            words = ["npm", "install", "--prefix", str(folder), "--no-save", "--ignore-scripts", *packages]
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=150)
            if done.returncode:
                pytest.skip(f"npm cannot fetch {', '.join(packages)}: {done.stderr[-200:]}")
            (folder / "whole").touch()
    return folder
