"""The wall clock, times as text, and durations as people write them. Code that needs the time takes a clock as a parameter."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from functools import lru_cache

DAY = 86_400
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": DAY, "w": 7 * DAY}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])")


def wall_clock() -> int:
    """Return epoch milliseconds. Outside tests, this is the clock."""
    return time.time_ns() // 1_000_000


def iso(millis: int) -> str:
    """Return epoch milliseconds as ISO 8601 in UTC with milliseconds."""
    seconds, rest = divmod(millis, 1000)
    return f"{_iso_second(seconds)}.{rest:03d}Z"


@lru_cache(maxsize=64)
def _iso_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def duration(text: str) -> float:
    """Return the seconds of `90s`, `15m`, `2h`, `1d` or `1w`. Raises `ValueError` with what to write."""
    found = _DURATION.fullmatch(text.strip())
    if not found:
        raise ValueError("write a number and a unit: 90s, 15m, 2h, 1d or 1w")
    return float(found[1]) * _UNITS[found[2]]
