"""Retry policies as tables: attempts made in, seconds out."""

from __future__ import annotations

from typing import Any

import pytest

from receiver.core.retry import RETRY_AFTER_LIMIT, STANDARD_SCHEDULE, RetryPolicy, fixed, policy, scheduled
from receiver.core.work import Outcome, OutcomeKind

REFUSED = Outcome(kind=OutcomeKind.REFUSED, status=500)
ENDS = {OutcomeKind.DELIVERED, OutcomeKind.GONE, OutcomeKind.TOO_LARGE}
RETRIED = [kind for kind in OutcomeKind if kind not in ENDS]


def _delays(retry: RetryPolicy, outcome: Outcome = REFUSED) -> list[float]:
    """Return the waits of a round that never succeeds."""
    found: list[float] = []
    while (delay := retry.next_delay(len(found) + 1, outcome)) is not None:
        found.append(delay)
        assert len(found) < 2000
    return found


def test_deepgram_is_ten_retries_thirty_seconds_apart() -> None:
    retry = policy("deepgram")
    assert _delays(retry) == [30.0] * 10
    assert retry.attempts == 11


def test_standard_follows_its_schedule_with_up_to_a_tenth_more() -> None:
    for _ in range(20):
        delays = _delays(policy("standard"))
        assert len(delays) == len(STANDARD_SCHEDULE)
        for delay, planned in zip(delays, STANDARD_SCHEDULE, strict=True):
            assert planned <= delay <= planned * 1.1


def test_the_jitter_differs_between_attempts_of_many_deliveries() -> None:
    """Deliveries that failed together must not come back together."""
    assert len({policy("standard").next_delay(5, REFUSED) for _ in range(20)}) > 1


def test_standard_lasts_about_three_days() -> None:
    assert sum(STANDARD_SCHEDULE) / 3600 == pytest.approx(75.6, abs=0.1)


@pytest.mark.parametrize(
    ("setting", "delays"),
    [
        ({"retries": 0, "wait": 30}, []),
        ({"retries": 2, "wait": 0}, [0.0, 0.0]),
        ({"retries": 1, "wait": 0.5}, [0.5]),
        ({"schedule": []}, []),
        ({"schedule": [5]}, [5.0]),
        ({"schedule": [1, 2.5, 604800]}, [1.0, 2.5, 604800.0]),
    ],
)
def test_custom_policies(setting: dict[str, Any], delays: list[float]) -> None:
    assert _delays(policy(setting)) == delays
    assert policy(setting).attempts == len(delays) + 1


@pytest.mark.parametrize("kind", RETRIED)
def test_everything_that_may_pass_is_retried(kind: OutcomeKind) -> None:
    assert fixed("x", 1, 7).next_delay(1, Outcome(kind=kind)) == 7


@pytest.mark.parametrize(
    ("asked", "delay"),
    [
        (None, 30.0),
        (0.0, 30.0),
        (-5.0, 30.0),
        (1.0, 30.0),
        (31.0, 31.0),
        (7200.0, 7200.0),
        (1e9, RETRY_AFTER_LIMIT),
    ],
)
def test_retry_after_is_a_floor_and_at_most_a_day(asked: float | None, delay: float) -> None:
    outcome = Outcome(kind=OutcomeKind.REFUSED, status=429, retry_after=asked)
    assert policy("deepgram").next_delay(3, outcome) == delay


def test_retry_after_does_not_add_attempts() -> None:
    assert (
        policy("deepgram").next_delay(11, Outcome(kind=OutcomeKind.REFUSED, status=503, retry_after=60.0))
        is None
    )


@pytest.mark.parametrize("attempts", [11, 12, 1000])
def test_past_the_last_attempt_it_stays_dead(attempts: int) -> None:
    """A policy may be made shorter while deliveries are under way."""
    assert policy("deepgram").next_delay(attempts, REFUSED) is None
    assert scheduled("x", [1, 2]).next_delay(attempts, REFUSED) is None


@pytest.mark.parametrize(
    "setting",
    [
        "exponential",
        "",
        5,
        None,
        [],
        {},
        {"retries": 1},
        {"wait": 1},
        {"retries": -1, "wait": 1},
        {"retries": 1001, "wait": 1},
        {"retries": 1, "wait": -1},
        {"retries": 1, "wait": 604801},
        {"retries": 1.5, "wait": 1},
        {"retries": 1, "wait": 1, "more": 1},
        {"schedule": 5},
        {"schedule": ["5"]},
        {"schedule": [True]},
        {"schedule": [-1]},
        {"schedule": [604801]},
        {"schedule": [1] * 1001},
        {"schedule": [1], "retries": 1},
    ],
)
def test_another_setting_is_refused_with_what_to_write(setting: Any) -> None:
    with pytest.raises(ValueError, match=r'retry is "deepgram", "standard", \{retries'):
        policy(setting)
