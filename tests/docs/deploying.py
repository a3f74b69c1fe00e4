"""Reads the files of `deploy/` as data."""

from __future__ import annotations

from tests.docs.reading import ROOT

DEPLOY = ROOT / "deploy"
UNITS = ("receiver.service", "receiver-run.service")


def unit(name: str = UNITS[0]) -> dict[str, list[str]]:
    """Return a unit's settings; a setting may be there more than once."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / name).read_text("utf-8").splitlines():
        name, mark, value = line.partition("=")
        if mark and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def example() -> dict[str, str]:
    """Return the variables of `example.env`."""
    lines = (DEPLOY / "example.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def no_file(path: str) -> str:
    """Stand in for reading a file that is not there."""
    raise FileNotFoundError(path)
