"""The oracle: what providers were promised and what the destination was given, kept outside receiver."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

WINDOW = 3.0
"""Seconds over which a rate counts as recovered."""
ENOUGH = 0.95


@dataclass
class Oracle:
    """Two lists by the job's name, one from each side of receiver; times are those of one monotonic clock."""

    promised: dict[str, set[str]] = field(default_factory=dict)
    """Answered 2xx: the event ids that the answers named (none where the answer said `journaled`)."""
    delivered: dict[str, set[str]] = field(default_factory=dict)
    """The event ids under which the destination got it."""
    times: list[float] = field(default_factory=list)
    """When each event was delivered first, in order."""
    arrived: dict[str, float] = field(default_factory=dict)
    """The same by job."""
    repeats: int = 0
    """Deliveries of an event that had been delivered: at least once is the promise, under one id."""

    def acknowledge(self, job: str, event_id: str | None) -> None:
        """Note that a provider was answered 2xx."""
        self.promised.setdefault(job, set()).update({event_id} if event_id else ())

    def deliver(self, job: str, event_id: str, at: float) -> None:
        """Note that the destination took an event."""
        ids = self.delivered.setdefault(job, set())
        if event_id in ids:
            self.repeats += 1
            return
        ids.add(event_id)
        self.times.append(at)
        self.arrived.setdefault(job, at)

    def lost(self) -> set[str]:
        """Return the jobs that were acknowledged and not delivered (so far)."""
        return self.promised.keys() - self.delivered.keys()

    def doubled(self) -> set[str]:
        """Return the jobs that came under two ids, or under another than the provider was told."""
        known = {job: ids | self.promised.get(job, set()) for job, ids in self.delivered.items()}
        return {job for job, ids in known.items() if len(ids) > 1}

    def rate(self, since: float, until: float) -> float:
        """Return the deliveries a second in a stretch of time."""
        count = bisect_left(self.times, until) - bisect_left(self.times, since)
        return count / (until - since)

    def recovered(self, end: float, now: float, before: float) -> float | None:
        """Return the seconds after `end` at which the first window begins that has 95 % of the rate `before`."""
        at = end
        while at + WINDOW <= now:
            if self.rate(at, at + WINDOW) >= ENOUGH * before:
                return at - end
            at += 0.1
        return None
