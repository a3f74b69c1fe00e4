"""The sums of the overload benchmark: bench/overload.py."""

from __future__ import annotations

import pytest

from bench.overload import answered, latencies, quantile, recovery

STEADY = [(number / 100, 0.01, 200) for number in range(400)]
"""A hundred a second for four seconds, each answered after 10 ms."""


def test_a_quantile_is_one_of_the_values_and_of_nothing_it_is_nothing() -> None:
    assert quantile(range(100), 0.99) == 99
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([1.0], 0.99) == 1.0
    assert quantile([], 0.99) == 0


def test_goodput_counts_by_the_answer_and_latency_by_the_arrival() -> None:
    late = [(0.5, 2.0, 200), (0.6, 0.1, 503), (1.5, 0.2, 200)]
    assert answered(late, 1, 3, 200) == 1.0
    assert answered(late, 0, 1, 200) == 0
    assert latencies(late, 0, 1, 200) == [2.0]
    assert latencies(late, 0, 1, 503) == [0.1]


def test_a_load_that_was_never_late_needs_no_recovery() -> None:
    assert recovery(STEADY, 1.0, 0.05) == 0
    assert recovery([], 1.0, 0.05) == 0


@pytest.mark.parametrize("how", [(2.0, 200), (0.01, 503), (10.0, 0)])
def test_late_refused_and_given_up_arrivals_put_the_recovery_off(how: tuple[float, int]) -> None:
    records = [(at, *(how if 1.0 <= at < 1.6 else (took, status))) for at, took, status in STEADY]
    assert recovery(records, 1.0, 0.05) == 0.75
    assert recovery(records, 2.0, 0.05) == 0, "what came before the end does not count"
