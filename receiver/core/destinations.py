"""A destination as all processes share it: its circuit breaker, whether it is paused or disabled, and the order and rate of its
deliveries. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Literal, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from receiver.core.work import Outcome, OutcomeKind

HOLD_LIMIT_SECONDS = 300.0
"""The longest that one `Retry-After` holds all deliveries of a destination. For the delivery that received it, the limit is
a day.
"""
FIRST_PROBE_SECONDS = 10.0
LAST_PROBE_SECONDS = 60.0
"""Seconds between probes of a failing destination: doubled from the first value to the last."""

_BUSY = frozenset((429, 502, 503, 504))
"""Statuses with which a destination, or a proxy in front of it, asks for fewer requests."""
_OF_THE_EVENT = frozenset((400, 409, 413, 415, 422))
"""Statuses that reject one event. They show that the destination works, so they do not count towards the breaker."""


class DestinationStatus(StrEnum):
    """What becomes of a destination's deliveries."""

    ACTIVE = "active"
    """They are sent."""
    FAILING = "failing"
    """They are held and spend no attempts: the destination failed too often in a row, and is probed."""
    PAUSED = "paused"
    """They are held until a person resumes the destination."""
    DISABLED = "disabled"
    """They are held until a person enables the destination: it answered 410."""


class DestinationState(Struct, frozen=True, kw_only=True):
    """What all processes know of one destination. Times are epoch milliseconds."""

    name: str
    paused_at: int | None = None
    disabled_at: int | None = None
    failures: int = 0
    """Failed attempts in a row: what opens the breaker."""
    failing_since: int | None = None
    """When the first of these failed attempts was made."""
    opened_at: int | None = None
    """When the breaker opened; None while it is closed."""
    probes: int = 0
    """Probes that failed since then."""
    held_until: int = 0
    """Nothing is sent before this time: that of the next probe, or the one that `Retry-After` asked for."""
    recover_from: int | None = None
    recover_until: int | None = None
    """Dead letters from between `recover_from` and `recover_until` still wait to be replayed; None once all were."""
    recover_at: int = 0
    """The next of these dead letters are not replayed before this time."""
    updated_at: int = 0
    rate_until: int = 0
    """When the destination's rate is free again, where it has one."""

    @property
    def status(self) -> DestinationStatus:
        """What becomes of its deliveries; the strongest word where several are true."""
        if self.disabled_at is not None:
            return DestinationStatus.DISABLED
        if self.paused_at is not None:
            return DestinationStatus.PAUSED
        return DestinationStatus.ACTIVE if self.opened_at is None else DestinationStatus.FAILING

    @property
    def stopped(self) -> bool:
        """Whether nothing is sent until a person says so."""
        return self.disabled_at is not None or self.paused_at is not None


def is_failure(outcome: Outcome) -> bool:
    """Tell whether an outcome is a failure of the destination, and not only a rejection of one event."""
    if outcome.kind in {OutcomeKind.DELIVERED, OutcomeKind.TOO_LARGE}:
        return False
    return outcome.status not in _OF_THE_EVENT


def asks_for_less(outcome: Outcome) -> bool:
    """Tell whether an outcome asks for fewer concurrent attempts."""
    return outcome.status in _BUSY or outcome.kind in {OutcomeKind.TIMEOUT, OutcomeKind.UNREACHABLE}


def probe_wait(probes: int) -> float:
    """Return the seconds until the next probe after `probes` failed ones."""
    return min(FIRST_PROBE_SECONDS * (1 << min(probes, 8)), LAST_PROBE_SECONDS)


# ---------------------------------------------------------------- by a person


def _enabled(state: DestinationState, now: int) -> DestinationState:
    """Enable the destination after a 410, and close its breaker. A pause stays."""
    return DestinationState(
        name=state.name,
        paused_at=state.paused_at,
        recover_from=state.recover_from,
        recover_until=state.recover_until,
    )


class Action(NamedTuple):
    """What a person may do to a destination."""

    change: Callable[[DestinationState, int], DestinationState]
    does: str
    """For those who choose it."""


ACTIONS: Mapping[str, Action] = {
    "pause": Action(
        lambda state, now: replace(state, paused_at=state.paused_at or now),
        "Hold a destination's deliveries; they spend no attempts.",
    ),
    "resume": Action(
        lambda state, _: replace(state, paused_at=None), "Send a paused destination's deliveries again."
    ),
    "enable": Action(
        _enabled, "Send again to a destination that answered 410 or fails; its failures are forgotten."
    ),
}
"""By the name that commands, the API and the console give them. Running processes obey within a second."""


# ---------------------------------------------------------------- by attempts


def reported(
    state: DestinationState, now: int, *, outcome: Outcome, limit: int, probe: bool, recover: bool
) -> DestinationState:
    """Return the state after an attempt. The breaker opens after `limit` failures in a row (0: never); a successful `probe`
    closes it.

    With `recover`, dead letters from the outage are marked for replay when the destination works again.
    """
    if outcome.kind is OutcomeKind.TOO_LARGE:  # it may not even have been sent
        return state
    if not is_failure(outcome):
        return _worked(state, now, recover=recover)
    if outcome.kind is OutcomeKind.GONE:
        return state if state.disabled_at is not None else replace(state, disabled_at=now)
    failures = state.failures + 1
    state = replace(state, failures=failures, failing_since=state.failing_since or now)
    if outcome.status in _BUSY and outcome.retry_after:
        hold = now + round(min(outcome.retry_after, HOLD_LIMIT_SECONDS) * 1000)
        state = replace(state, held_until=max(state.held_until, hold))
    if state.opened_at is None:
        if not limit or failures < limit:
            return state
        state = replace(state, opened_at=now, probes=0)
    elif probe:
        state = replace(state, probes=state.probes + 1)
    else:  # it began before the breaker opened
        return state
    wait = now + round(probe_wait(state.probes) * 1000)
    return replace(state, held_until=wait if probe else max(state.held_until, wait))


def _worked(state: DestinationState, now: int, *, recover: bool) -> DestinationState:
    if not (state.failures or state.opened_at):
        return state
    died = recover and state.opened_at is not None
    return replace(
        state,
        failures=0,
        failing_since=None,
        opened_at=None,
        probes=0,
        held_until=0,
        recover_from=state.recover_from or state.failing_since if died else state.recover_from,
        recover_until=now if died else state.recover_until,
    )


# ---------------------------------------------------------------- order and rate, which the claims of all processes follow

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
