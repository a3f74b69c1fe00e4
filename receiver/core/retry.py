"""Retry policies: the waits between attempts. tenacity computes the waits of a whole round in advance; nothing sleeps in
this file.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from receiver.core.work import Outcome, OutcomeKind

if TYPE_CHECKING:
    from tenacity.wait import wait_base

RETRY_AFTER_LIMIT = 24 * 3600
"""Longest wait in seconds that a destination's `Retry-After` can ask for."""
STANDARD_SCHEDULE = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
"""Seconds between attempts, from the Standard Webhooks specification's example (about 75.6 hours in all)."""


class RetryPolicy(Struct, frozen=True):
    """How many attempts a round has, and the seconds between them."""

    name: str
    waits: tuple[float, ...]
    """Seconds after each failed attempt but the last."""
    jitter: float = 0.0
    """How much longer a wait may be by chance; 0.1 is a tenth."""

    @property
    def attempts(self) -> int:
        """Attempts in a round, the first one included."""
        return len(self.waits) + 1

    def next_delay(self, attempts: int, outcome: Outcome) -> float | None:
        """Return the seconds until the next attempt, None when the delivery is dead.

        `attempts` counts those made in this round, the one with this `outcome` included. `Retry-After` is a floor, never a
        shortcut, and at most a day.
        """
        if attempts > len(self.waits) or outcome.kind is OutcomeKind.TOO_LARGE:
            return None
        wait = self.waits[attempts - 1] * random.uniform(1, 1 + self.jitter)
        return max(wait, min(outcome.retry_after or 0.0, RETRY_AFTER_LIMIT))


def _waits(wait: wait_base, retries: int) -> tuple[float, ...]:
    """Return the waits of a round in which every attempt fails. tenacity runs the round, and a fake sleep records each wait."""
    from tenacity import (  # a command that makes no policy does without
        Retrying,
        retry_always,
        stop_after_attempt,
    )

    waits: list[float] = []
    Retrying(
        wait=wait,
        stop=stop_after_attempt(retries + 1),
        retry=retry_always,
        sleep=lambda seconds: waits.append(float(seconds)),
        retry_error_callback=lambda _: None,
    )(lambda: None)
    return tuple(waits)


@cache
def fixed(name: str, retries: int, wait: float) -> RetryPolicy:
    """Return a policy of `retries` retries, `wait` seconds apart."""
    from tenacity import wait_fixed

    return RetryPolicy(name, _waits(wait_fixed(wait), retries))


def scheduled(name: str, schedule: Sequence[float], jitter: float = 0.0) -> RetryPolicy:
    """Return a policy that waits each of `schedule` (seconds) in turn, each up to `jitter` (0.1: a tenth) longer."""
    from tenacity import wait_chain, wait_fixed

    chain = [wait_fixed(seconds) for seconds in schedule] or [wait_fixed(0)]
    return RetryPolicy(name, _waits(wait_chain(*chain), len(schedule)), jitter)


@cache
def _pickup_waits() -> tuple[float, ...]:
    """Return the pickup waits: 5 s, doubled up to 5 minutes. The last one also applies to every later failure."""
    from tenacity import wait_exponential

    return _waits(wait_exponential(multiplier=5, exp_base=2, max=300), 7)


def pickup_delay(failures: int, retry_after: float | None) -> float:
    """Return the seconds until a pickup is attempted again after its `failures`th failure in a row.

    5 s, doubled each time up to 5 minutes, a quarter more or less by chance; `Retry-After` is a floor, and at most a day.
    There is always a next attempt: what ends a pickup is its deadline.
    """
    waits = _pickup_waits()
    wait = waits[min(failures, len(waits)) - 1] * random.uniform(0.75, 1.25)
    return max(wait, min(retry_after or 0.0, RETRY_AFTER_LIMIT))


def policy(setting: str | dict[str, Any]) -> RetryPolicy:
    """Return the policy that a destination's `retry` setting names. Raises `ValueError` with what to write instead."""
    match setting:
        case "deepgram":
            return fixed("deepgram", 10, 30)
        case "standard":
            return scheduled("standard", STANDARD_SCHEDULE, jitter=0.1)
        case {"retries": int(retries), "wait": int() | float() as wait} if (
            len(setting) == 2 and 0 <= retries <= 1000 and 0 <= wait <= 7 * 86400
        ):
            return fixed("custom", retries, wait)
        case {"schedule": list(schedule)} if len(setting) == 1 and _is_schedule(schedule):
            return scheduled("custom", schedule)
    raise ValueError(
        'retry is "deepgram", "standard", {retries = 10, wait = 30} or {schedule = [5, 300]} (seconds, at most 7 days)'
    )


def _is_schedule(schedule: list[Any]) -> bool:
    return len(schedule) <= 1000 and all(
        isinstance(s, int | float) and not isinstance(s, bool) and 0 <= s <= 7 * 86400 for s in schedule
    )


def retry_after(text: str, now: float) -> int | None:
    """Read `Retry-After` (RFC 9110, 10.2.3), seconds or a date, as whole seconds from `now` (seconds since 1970).

    A day at most; None when it says neither.
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(int(text[:10]), RETRY_AFTER_LIMIT)
    try:
        return min(max(0, math.ceil(parsedate_to_datetime(text).timestamp() - now)), RETRY_AFTER_LIMIT)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
