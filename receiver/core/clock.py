"""The wall clock. Everything that needs the time is given it; this is what gives it outside tests."""

from __future__ import annotations

import time


def wall_clock() -> int:
    """Return epoch milliseconds."""
    return time.time_ns() // 1_000_000
