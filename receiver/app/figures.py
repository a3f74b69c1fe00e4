"""The last hour, minute by minute, for a person who looks: the metrics' counters, read once a minute. No callback pays for it."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from itertools import pairwise

from msgspec import Struct

from receiver.app.observers import MetricsObserver

MINUTES = 60
_SECONDS = 60.0
_READ = {
    "receiver_callbacks_total": ("callbacks", "answer"),
    "receiver_ack_seconds_bucket": ("ack", "le"),
    "receiver_attempts_total": ("attempts", "outcome"),
    "receiver_deliveries_total": ("deliveries", "state"),
    "receiver_pickups_total": ("pickups", "state"),
}
"""Series to what they are called here, and the label by which they are told apart; the others are summed up."""
Counts = Counter[tuple[str, str]]
"""By name and label."""


class Hour(Struct, frozen=True):
    """What was counted, a minute each, the last one not over yet."""

    since: int
    """Epoch milliseconds."""
    minutes: tuple[Counts, ...]

    def line(self, name: str, label: str | None = None) -> list[int]:
        """Return the counts of each minute, of one label or of all."""
        return [
            sum(n for (one, of), n in counts.items() if one == name and label in (None, of))
            for counts in self.minutes
        ]

    def by_label(self, name: str) -> dict[str, int]:
        """Return the counts of the hour that are not 0, by label, the highest first."""
        whole: Counter[str] = Counter()
        for counts in self.minutes:
            for (one, label), n in counts.items():
                whole[label] += n if one == name else 0
        return {label: n for label, n in whole.most_common() if n}

    def acknowledged(self, share: float) -> float | None:
        """Return the seconds within which a share of all callbacks were answered: the upper bound of a bucket."""
        found = {float(bound): n for bound, n in self.by_label("ack").items()}
        whole = max(found.values(), default=0)
        return next((bound for bound in sorted(found) if found[bound] >= share * whole), None)


class Figures:
    """Reads the counters of this process, or of all that share theirs, once a minute."""

    def __init__(self, metrics: MetricsObserver, clock: Callable[[], int]) -> None:
        self._metrics, self._clock = metrics, clock
        self._samples: deque[tuple[int, Counts]] = deque(maxlen=MINUTES)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Read from now on, in a task of the running loop."""
        self._task = asyncio.create_task(self._run(), name="figures")

    async def stop(self) -> None:
        """Read no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._samples.append((self._clock(), self._totals()))
            await asyncio.sleep(_SECONDS)

    def hour(self) -> Hour:
        """Return the last hour, or what there is of it since the start."""
        totals = [counts for _, counts in self._samples] + [self._totals()]
        steps = tuple(after - before for before, after in pairwise(totals))
        return Hour(self._samples[0][0] if self._samples else self._clock(), steps)

    def _totals(self) -> Counts:
        counts: Counts = Counter()
        for family in self._metrics.shown.collect():
            for sample in family.samples:
                if read := _READ.get(sample.name):
                    counts[read[0], sample.labels[read[1]]] += int(sample.value)
        return counts
