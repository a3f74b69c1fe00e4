"""Tallies: every ten seconds, this process adds its counts to the store, and reports that it is alive.

Counting a callback costs an addition in memory. During an outage of the store, the counts wait in this process.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from receiver.core.errors import StoreUnavailable
from receiver.core.observe import (
    ACK,
    CALLBACKS,
    DELIVERIES,
    HOUR,
    MINUTE,
    AttemptReport,
    CallbackReport,
    PickupReport,
    Process,
    SubmissionReport,
    Tally,
    TallyBatch,
    bound_of,
)
from receiver.storage.store.store import Store
from receiver.system.background import Background

EVERY_SECONDS = 10.0
KEPT_MS = 48 * HOUR
"""How long counts per minute, and processes that no longer report, are kept."""
HOURS_KEPT_MS = 90 * 24 * HOUR
"""How long counts per hour are kept."""
_MOST = 10_000
"""The most counts that wait during an outage; further ones are dropped."""
_LAST_SECONDS = 0.5
"""Time limit of the last report at a stop."""


class Tallies:
    """An observer that counts. One for each process."""

    def __init__(self, store: Store, process: Process, clock: Callable[[], int]) -> None:
        self._store, self._process, self._clock = store, process, clock
        self._counts: Counter[tuple[int, str, str, str]] = Counter()
        self._background = Background()

    def start(self, role: str) -> None:
        """Report from now on, in a task of the running loop. A second call only changes the role."""
        self._process = replace(self._process, role=role)
        if not self._background.running:
            self._background.start(self._run())

    async def stop(self) -> None:
        """Report the last counts."""
        if not self._background.running:
            return
        await self._background.stop()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.tell(), _LAST_SECONDS)

    async def _run(self) -> None:
        await asyncio.sleep(EVERY_SECONDS * random.uniform(0.1, 1))  # processes that start together part
        while True:
            await asyncio.shield(self.tell())  # a stop does not take back what is on its way into the store
            await asyncio.sleep(EVERY_SECONDS)

    async def tell(self) -> None:
        """Report the counts since the last report."""
        now = self._clock()
        counts, self._counts = self._counts, Counter()
        tallies = tuple(
            Tally(minute=minute, kind=kind, name=name, outcome=outcome, count=count)
            for (minute, kind, name, outcome), count in sorted(counts.items())
        )
        process = replace(self._process, seen_at=now)
        try:
            await self._store.add_tallies(TallyBatch(process, tallies, now - KEPT_MS, now - HOURS_KEPT_MS))
        except StoreUnavailable:  # others tell that
            self._counts.update(counts)

    def _add(self, *counted: tuple[str, str, str], count: int = 1) -> None:
        minute = self._clock() // MINUTE * MINUTE
        if len(self._counts) < _MOST:
            for one in counted:
                self._counts[minute, *one] += count

    # ------------------------------------------------------------ what is reported

    def callback(self, report: CallbackReport) -> None:
        """Count a callback by its answer; a recorded one also by its duration."""
        taken = (CALLBACKS, report.source, report.answer)
        if report.status == 200:
            self._add(taken, (ACK, report.source, bound_of(report.seconds)))
        else:
            self._add(taken, count=report.count)

    def attempt(self, report: AttemptReport) -> None:
        """Count an attempt by its outcome."""
        self._add((DELIVERIES, report.destination, report.outcome.kind.value))

    def pickup(self, report: PickupReport) -> None:
        """Leave it to the metrics."""

    def submission(self, report: SubmissionReport) -> None:
        """Leave it to the metrics."""

    def journal(self, depth: int, oldest_age_seconds: float) -> None:
        """Leave it to the metrics."""

    def note(self, level: str, event: str, **fields: Any) -> None:
        """Leave it to the log."""
