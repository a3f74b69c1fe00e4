"""The simulated month loses nothing and does its sums: bench/month.py sizes a fleet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.month import DAY, Costs, Plan, Weighted, needed, poisson, rates, simulate, slower

COSTS = Costs(intake_ms=0.4, deliver_ms=0.5, store_in_ms=0.1, store_out_ms=0.15)
ONE_DAY = Plan(
    costs=COSTS,
    per_day=20_000,
    times=10,
    days=1,
    slot=60,
    bursts=2,
    outage=(0.4 * DAY, 2 * 3600.0),
    deploy=(0.6 * DAY, 600.0),
)


@pytest.mark.parametrize("retry", ["standard", "deepgram"])
@pytest.mark.parametrize("times", [0.01, 10, 4_000])
def test_all_that_arrived_is_delivered_dead_or_waiting(retry: str, times: float) -> None:
    """Also where the fleet is far too small."""
    found = simulate(replace(ONE_DAY, retry=retry, times=times))
    assert found.arrived > 0
    assert found.arrived == found.delivered + found.dead + found.waiting


def test_an_outage_of_hours_kills_what_is_retried_for_minutes_only() -> None:
    short, long = (simulate(replace(ONE_DAY, retry=retry)) for retry in ("deepgram", "standard"))
    assert short.dead > 0
    assert long.dead == 0
    assert long.delivered == long.arrived - long.waiting
    assert long.delays.at(1) > 3600 > long.delays.at(0.9)


def test_twice_the_service_time_is_twice_the_use() -> None:
    calm = replace(ONE_DAY, outage=(0.0, 0.0))
    once, twice = simulate(calm), simulate(replace(calm, costs=slower(COSTS, 2)))
    assert once.waiting == twice.waiting == 0
    assert twice.process_seconds == pytest.approx(2 * once.process_seconds)
    assert twice.store_seconds == pytest.approx(2 * once.store_seconds)
    assert once.process_seconds == pytest.approx(once.arrived * (COSTS.intake_ms + COSTS.deliver_ms) / 1000)


def test_a_fleet_too_small_falls_behind_and_one_as_large_as_needed_does_not() -> None:
    busy = replace(ONE_DAY, times=1_000, outage=(0.0, 0.0), store_cores=64)
    enough = needed(busy)
    assert simulate(replace(busy, processes=enough)).delays.at(1) == 0
    assert simulate(replace(busy, processes=enough // 4)).delays.at(0.99) > 600


def test_destinations_that_take_their_time_want_more_workers() -> None:
    assert needed(replace(ONE_DAY, times=1_000, answer_seconds=2.0)) == pytest.approx(
        10 * needed(replace(ONE_DAY, times=1_000, answer_seconds=0.2)), abs=10
    )


def test_a_store_too_small_holds_the_fleet_up_whatever_the_processes() -> None:
    small = replace(ONE_DAY, times=1_000, processes=100, store_cores=0.03)
    found = simulate(small)
    assert found.store_use.at(0.5) >= 990
    assert found.waiting > 0


def test_a_month_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    same, again, other = (simulate(replace(ONE_DAY, seed=seed)) for seed in (1, 1, 2))
    assert same == again
    assert other.arrived != same.arrived


def test_the_shape_of_days_and_weeks_keeps_the_volume() -> None:
    month = replace(ONE_DAY, days=28, bursts=0)
    assert sum(rates(month)) == pytest.approx(28 * month.per_day * month.times)


@pytest.mark.parametrize("mean", [0.0, 3.0, 400.0])
def test_arrivals_vary_around_their_mean(mean: float) -> None:
    import random

    dice = random.Random(1)
    drawn = [poisson(dice, mean) for _ in range(4_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(mean, rel=0.05)


def test_percentiles_weigh_how_many_have_a_value() -> None:
    seen = Weighted()
    seen.add(0.0, 98)
    seen.add(5.0, 1)
    seen.add(9.0, 1)
    assert [seen.at(share) for share in (0.5, 0.98, 0.99, 1)] == [0, 0, 5, 9]
