"""Counts per minute over all processes, and the list of live processes. Pure data, no I/O."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

from msgspec import Struct

CALLBACKS, DELIVERIES, ACK = "callbacks", "deliveries", "ack"
"""What is counted: callbacks of a source by their answer; attempts to a destination by outcome; callbacks of a source by how long
they took, the outcome being the milliseconds that it took at most.
"""
MINUTE = 60_000
HOUR = 60 * MINUTE
BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000)
"""Milliseconds that acknowledging may take at most, by which it is counted."""
_NAMES = tuple(map(str, BOUNDS))


class Tally(Struct, frozen=True, kw_only=True):
    """One count: how often one outcome occurred in one minute."""

    minute: int
    """When the minute began, in epoch milliseconds."""
    kind: str
    name: str
    """The source's or the destination's."""
    outcome: str
    count: int


class Process(Struct, frozen=True, kw_only=True):
    """A process that takes callbacks or works, as it last told."""

    id: str
    host: str
    version: str
    role: str
    """`serve`, `intake` or `work`."""
    started_at: int
    seen_at: int


class TallyBatch(NamedTuple):
    """What a process adds at once."""

    process: Process
    tallies: tuple[Tally, ...]
    before: int
    """Minutes that are older are added to their hours; processes that were not seen since are forgotten."""
    hours_before: int = 0
    """Hours that are older are forgotten."""


def bound_of(seconds: float) -> str:
    """Return the bound that an acknowledgement is counted by."""
    return _NAMES[bisect_left(BOUNDS, seconds * 1000, hi=len(BOUNDS) - 1)]


def within(tallies: Iterable[Tally], share: float) -> int | None:
    """Return the milliseconds within which a share of callbacks were answered; None without any."""
    counts = [(int(one.outcome), one.count) for one in tallies]
    whole, reached = sum(count for _, count in counts), 0
    for bound, count in sorted(counts):
        reached += count
        if reached >= share * whole:
            return bound
    return None
