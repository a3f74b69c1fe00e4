"""Measures the difference between the database's clock and this machine's."""

from __future__ import annotations

import time
from collections.abc import Callable

from receiver.storage.store.postgres_connection import Connection

EVERY_SECONDS = 60.0
"""Seconds between measurements; a change of this machine's clock triggers one as well."""
BAND_MS = 2_000
"""Clocks that differ by less count as the same: a lease has slack for that, and measuring is not exact."""
_STEP_MS = 500
_EXACT_MS = 1_000
_NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"


class Skew:
    """How far the database's clock is ahead of ours, in milliseconds; shared by the connections of one store."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._measured_at: float | None = None
        self._set_to = 0
        self.shift = 0
        """What to add to our time; 0 while the clocks count as the same."""

    def forget(self) -> None:
        """Measure at the next occasion: another server may have another clock."""
        self._measured_at = None

    def measure(self, connection: Connection) -> None:
        """Measure, when it is time for that."""
        before, at = self._clock(), time.monotonic()
        stepped = abs(before - int(at * 1000) - self._set_to) > _STEP_MS
        if self._measured_at is not None and not stepped and at - self._measured_at < EVERY_SECONDS:
            return
        row = connection.execute(_NOW).fetchone()
        after = self._clock()
        if row is None or after - before > _EXACT_MS:
            return  # too slow to be exact; the next transaction tries again
        ahead = int(row[0]) - (before + after) // 2
        if abs(ahead) < BAND_MS:
            self.shift = 0
        elif abs(ahead - self.shift) > _STEP_MS:
            # A smaller difference is the one that is known: what was written by it must be read by it.
            self.shift = ahead
        self._measured_at, self._set_to = at, before - int(at * 1000)
