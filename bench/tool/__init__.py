"""The compiled load generator and sink (main.go): built where `go` is, else those in Python do it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
_BUILT = _FOLDER / "built"


@cache
def compiled() -> str | None:
    """Return the path of the tool, built when its source is newer; None where `go` is not, or cannot build it."""
    if _BUILT.exists() and _BUILT.stat().st_mtime >= (_FOLDER / "main.go").stat().st_mtime:
        return str(_BUILT)
    if shutil.which("go") is None:
        return None
    build = ["go", "build", "-o", str(_BUILT), "."]
    done = subprocess.run(build, cwd=_FOLDER, env=os.environ | {"GOTOOLCHAIN": "local"}, check=False)
    return str(_BUILT) if done.returncode == 0 else None


def command(name: str) -> list[str]:
    """Return the words that run `load` or `sink`."""
    tool = compiled()
    return [tool, name] if tool else [sys.executable, "-m", f"bench.{name}"]


def about() -> str:
    """Tell which it is, for the table of the machine."""
    if compiled():
        return "compiled (bench/tool/main.go)"
    return "Python (no `go` here): it takes a good part of the cores that it measures"
