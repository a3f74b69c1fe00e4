"""The wall clock. Code that needs the time takes a clock as a parameter; outside tests it is this one."""

from __future__ import annotations

import time


def wall_clock() -> int:
    """Return epoch milliseconds."""
    return time.time_ns() // 1_000_000
