"""Durations as people write them: `90s`, `15m`, `2h`, `1d`, `1w`."""

from __future__ import annotations

import re

DAY = 86_400
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": DAY, "w": 7 * DAY}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])")


def duration(text: str) -> float:
    """Return the seconds of a duration. Raises `ValueError` with what to write."""
    found = _DURATION.fullmatch(text.strip())
    if not found:
        raise ValueError("write a number and a unit: 90s, 15m, 2h, 1d or 1w")
    return float(found[1]) * _UNITS[found[2]]
