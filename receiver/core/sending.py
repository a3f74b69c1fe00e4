"""In which order and how fast a destination gets its deliveries: the rules that a claim follows, in all processes."""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct

_PERIODS = {"s": 1, "min": 60}
_REST_US = 80_000
"""How long a rest fills the bucket: with what is sent late, no second has more than a tenth too many."""
_RATE = re.compile(r"([1-9][0-9]{0,6})/(s|min)")


class Rate(Struct, frozen=True):
    """At most so many attempts in a time, over all processes: a bucket that fills evenly and holds little."""

    apart_us: int
    """Microseconds from one attempt to the next."""
    burst: int
    """Attempts that may be made at once after a rest."""

    def allowed(self, ahead_us: int) -> int:
        """Return how many attempts may be made now, when the bucket is used up until so long from now."""
        return max(0, (self.burst * self.apart_us - max(0, ahead_us)) // self.apart_us)


class SendingRules(Struct, frozen=True, kw_only=True):
    """What a claim of deliveries has to keep to."""

    rate: Rate | None = None
    order: Literal["job", "ref"] | None = None
    """Events of one job, or with one ref, are sent one after the other in the order of recording."""
    dead_block: bool = False
    """A dead letter keeps later events of its job back until it is replayed."""
    probing: bool = False
    """The destination is known to fail: take one delivery if it is time to probe it, and else none."""


PLAIN = SendingRules()


def rate(text: str) -> Rate:
    """Return the rate that `10/s` or `600/min` names. Raises `ValueError` with what to write instead."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError('write a rate as "10/s" or "600/min"')
    count, seconds = int(match[1]), _PERIODS[match[2]]
    apart_us = max(1, seconds * 1_000_000 // count)
    return Rate(apart_us, max(1, _REST_US // apart_us))
