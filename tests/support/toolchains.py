"""What samples and documents in other languages are checked with, where it can be had: a test that lacks it says so and is skipped."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "receiver-tests")


def need(*programs: str) -> None:
    """Skip the test unless these programs are there."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"there is no {', '.join(missing)} here")


def npm_packages(*packages: str) -> Path:
    """Return a folder whose `node_modules` has these packages (`name@version`)."""
    need("node", "npm")
    return _fetched(
        "npm", packages, ["npm", "install", "--prefix", ".", "--no-save", "--ignore-scripts", *packages]
    )


def python_packages(*packages: str) -> Path:
    """Return a Python of its own that has these packages (`name==version`)."""
    make = [sys.executable, "-m", "venv", "."]
    folder = _fetched("python", packages, make, ["bin/pip", "install", "--quiet", *packages])
    return folder / "bin" / "python"


def _fetched(kind: str, packages: tuple[str, ...], *commands: list[str]) -> Path:
    """Return the folder that the commands fill, once for all tests to come."""
    name = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:16]
    folder = CACHE / f"{kind}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for words in () if (folder / "whole").exists() else commands:
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=150)
            if done.returncode:
                pytest.skip(f"{kind} cannot fetch {', '.join(packages)}: {done.stderr[-200:]}")
        (folder / "whole").touch()
    return folder
