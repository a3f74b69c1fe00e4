"""The order and rate of a destination's deliveries. Claims in all processes follow these rules."""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct

_PERIODS = {"s": 1, "min": 60}
_REST_US = 80_000
"""Idle time after which the token bucket is full, in microseconds. It limits the excess in any second to a tenth."""
_RATE = re.compile(r"([1-9][0-9]{0,6})/(s|min)")


class Rate(Struct, frozen=True):
    """A rate limit over all processes: a token bucket that fills evenly and holds little."""

    apart_us: int
    """Microseconds from one attempt to the next."""
    burst: int
    """Attempts that may be made at once after a rest."""


BEFORE_ALL = "."
"""Before the keys of all jobs with something to send, and after those of what died, which begin with `-`."""


class Walk:
    """How far a destination's claims have come that go from job to job, in place of from the oldest delivery that is due.

    They do so while what is due to it mostly waits for earlier events of few jobs: what waits would be looked at by each claim.
    """

    def __init__(self) -> None:
        self.after = BEFORE_ALL
        """The key of the last job that was looked at."""


class SendingRules(Struct, frozen=True, kw_only=True):
    """The rules for a claim of deliveries."""

    rate: Rate | None = None
    order: Literal["job", "ref"] | None = None
    """Events of one job, or with one ref, are sent one after the other in the order of recording."""
    dead_block: bool = False
    """A dead letter keeps later events of its job back until it is replayed."""
    probing: bool = False
    """The destination's breaker is open: the claim takes one delivery if a probe is due, else none."""
    walk: Walk | None = None
    """With `order`: go from job to job."""


PLAIN = SendingRules()


def rate(text: str) -> Rate:
    """Return the rate that `10/s` or `600/min` names. Raises `ValueError` with what to write instead."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError('write a rate as "10/s" or "600/min"')
    count, seconds = int(match[1]), _PERIODS[match[2]]
    apart_us = max(1, seconds * 1_000_000 // count)
    return Rate(apart_us, max(1, _REST_US // apart_us))
