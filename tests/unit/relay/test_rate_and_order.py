"""A destination's rate holds over all processes, and the events of one job are sent one after the other."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import partial

import pytest

from receiver.core.destinations import Rate, SendingRules, Walk, rate
from receiver.core.retry import fixed
from receiver.core.work import DeliveryState, Outcome, OutcomeKind
from receiver.engine.relay import DeliveryTerms, Relay
from receiver.engine.worker import LaneTiming
from receiver.storage.store.store import Store
from tests.contract.store_suite import T0, recording
from tests.support.relaying import Heard, Now, Scripted, deliveries, record, render, running
from tests.support.stepping import step

DELIVERED = Outcome(kind=OutcomeKind.DELIVERED, status=200)


class Recorded(Scripted):
    """A destination that notes what it gets; it refuses events by their id."""

    def __init__(self) -> None:
        super().__init__(lambda: DELIVERED)
        self.got: list[str] = []
        self.refused: set[str] = set()

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Note an event."""
        self.got.append(event_id)
        return Outcome(kind=OutcomeKind.REFUSED, status=422) if event_id in self.refused else DELIVERED


def relay(store: Store, place: Recorded, now: Now, rules: SendingRules, name: str = "w") -> Relay:
    terms = DeliveryTerms(place, fixed("x", 1, 30), 8, 5, rules=rules)
    return Relay(store, {"app": terms}, Heard(), render, now, name)


@pytest.mark.parametrize(
    ("text", "apart_us", "burst"),
    [("10/s", 100_000, 1), ("1000/s", 1000, 80), ("600/min", 100_000, 1), ("1/min", 60_000_000, 1)],
)
def test_a_rate_fills_evenly_and_bursts_by_less_than_a_tenth_of_a_second(
    text: str, apart_us: int, burst: int
) -> None:
    assert rate(text) == Rate(apart_us, burst)


@pytest.mark.parametrize("text", ["", "10", "0/s", "10/h", "1.5/s", "-1/s", "10/s "])
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="10/s"):
        rate(text)


async def test_two_processes_together_keep_to_the_rate_in_every_second(any_store: Store) -> None:
    place, now, rules = Recorded(), Now(T0), SendingRules(rate=rate("50/s"))
    both = [relay(any_store, place, now, rules, name) for name in ("one", "two")]
    await record(any_store, count=200)
    sent: Counter[int] = Counter()
    for tick in range(60):
        now.value = T0 + tick * 50
        for one in both:
            sent[tick] += await step(one, now.value)
    whole = [sum(sent[tick] for tick in range(start, start + 20)) for start in range(40)]
    assert max(whole) <= 55, "no second has more than a tenth too many"
    assert min(whole) >= 45, "and none is wasted"


async def test_a_running_relay_claims_no_more_than_the_rate_allows(any_store: Store) -> None:
    place, now = Recorded(), Now(T0)
    await record(any_store, count=5)
    heard = Heard()
    terms = DeliveryTerms(place, fixed("x", 1, 30), 8, 5, rules=SendingRules(rate=rate("10/s")))
    async with running(Relay(any_store, {"app": terms}, heard, render, now, "w")):
        await heard.until(attempts=1)
        now.value += 100
        await heard.until(attempts=2)
    states = Counter(one.state for one in await deliveries(any_store))
    assert states == {DeliveryState.DELIVERED: 2, DeliveryState.PENDING: 3}


async def _jobs(store: Store) -> dict[str, list[str]]:
    """Record three events of each of two jobs, and two of none; return their ids by job."""
    found: dict[str, list[str]] = {"a": [], "b": [], "": []}
    ticks = itertools.count()
    for job in ("a", "b", "a", "", "b", "a", "b", ""):
        made = recording("app", at=T0 + next(ticks), job_id=job or None, ref=job or None)
        found[job].append((await store.record(made)).event_id)
    return found


@pytest.mark.parametrize("order", ["job", "ref"])
async def test_events_of_one_job_are_sent_in_order_and_jobs_beside_each_other(
    any_store: Store, order: str
) -> None:
    place, now = Recorded(), Now(T0 + 100)
    jobs = await _jobs(any_store)
    ordered = relay(any_store, place, now, SendingRules(order="job" if order == "job" else "ref"))
    place.refused = {jobs["a"][0]}
    await step(ordered, now())
    assert [one for one in place.got if one in jobs["a"]] == jobs["a"][:1], "the next waits for the first"
    assert [one for one in place.got if one in jobs["b"]] == jobs["b"][:1]
    assert set(jobs[""]) <= set(place.got), "events without a job wait for none"
    place.refused = set()
    for seconds in (1, 2, 30, 31, 32):
        now.value = T0 + 100 + seconds * 1000
        await step(ordered, now())
    assert [one for one in place.got if one in jobs["b"]] == jobs["b"]
    assert [one for one in place.got if one in jobs["a"]] == [jobs["a"][0], *jobs["a"]]


@pytest.mark.parametrize("hold", [False, True])
async def test_a_dead_letter_blocks_its_own_job_only_where_that_is_asked_for(
    any_store: Store, hold: bool
) -> None:
    place, now = Recorded(), Now(T0 + 100)
    jobs = await _jobs(any_store)
    place.refused = {jobs["a"][0]}
    ordered = relay(any_store, place, now, SendingRules(order="job", dead_block=hold))
    for seconds in range(0, 120, 30):
        now.value = T0 + 100 + seconds * 1000
        await step(ordered, now())
    later = [one for one in place.got if one in jobs["a"][1:]]
    assert later == ([] if hold else jobs["a"][1:])
    assert [one for one in place.got if one in jobs["b"]] == jobs["b"]
    place.refused = set()
    (dead,) = [one for one in await deliveries(any_store) if one.state is DeliveryState.DEAD]
    await any_store.replay([dead.id], now=now())
    for _ in range(3):
        now.value += 1000
        await step(ordered, now())
    assert {one.state for one in await deliveries(any_store)} == {DeliveryState.DELIVERED}


async def test_many_held_events_of_a_few_jobs_keep_no_other_job_waiting(any_store: Store) -> None:
    """Then claims go from job to job, through all of them in turn; and back to the oldest when the crowd is gone."""
    place, now, rules = Recorded(), Now(T0 + 1000), SendingRules(order="job", dead_block=True)
    ordered = relay(any_store, place, now, rules)
    jobs = [f"held-{number % 2}" for number in range(150)] + [f"job-{number}" for number in range(70)]
    made = [recording("app", at=T0 + number, job_id=job) for number, job in enumerate(jobs)]
    place.refused = {(await any_store.record(made[number])).event_id for number in (0, 1)}
    for seconds in (0, 60):
        now.value = T0 + 1000 + seconds * 1000
        await step(ordered, now())
    for one in made[2:]:
        await any_store.record(one)
    await step(ordered, now())
    walk = ordered._sending["app"].walk
    assert walk is not None
    assert len(set(place.got)) == 72
    assert (
        await any_store.claim("app", worker="w", limit=1, now=now(), lease_until=now() + 1, rules=rules) == []
    )
    place.refused = set()
    dead = [one.id for one in await deliveries(any_store) if one.state is DeliveryState.DEAD]
    await any_store.replay(dead, now=now())
    for _ in range(80):
        now.value += 1000
        await step(ordered, now())
    assert {one.state for one in await deliveries(any_store)} == {DeliveryState.DELIVERED}
    assert ordered._sending["app"].walk is None


async def test_a_walk_through_jobs_comes_to_each_of_them(any_store: Store) -> None:
    rules, got = SendingRules(order="job", walk=Walk()), []
    await any_store.claim("app", worker="w", limit=1, now=T0, lease_until=T0, rules=rules)
    for number in range(70):
        await any_store.record(recording("app", at=T0 + number, job_id=f"{number}"))
    for _ in range(70):
        until = T0 + 60_000
        got += await any_store.claim("app", worker="w", limit=1, now=T0 + 99, lease_until=until, rules=rules)
    assert {one.event.job_id for one in got} == {f"{number}" for number in range(70)}


async def test_deliveries_that_are_there_keep_the_order_that_is_set_later(any_store: Store) -> None:
    made = [
        await any_store.record(recording("app", at=T0 + number, job_id="a", ref="r")) for number in range(2)
    ]
    claim = partial(any_store.claim, "app", worker="w", limit=9, now=T0 + 9, lease_until=T0 + 9)
    for order in ("job", "ref"):
        (first,) = await claim(rules=SendingRules(order="job" if order == "job" else "ref"))
        assert first.event.id == made[0].event_id
    assert len(await claim()) == 2


async def test_a_running_lane_in_order_goes_on_at_once_when_the_event_before_has_been_sent(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself the lane would look an hour later."""
    monkeypatch.setattr("receiver.engine.relay._BLOCKED_MS", 3_600_000)
    place, heard = Recorded(), Heard()
    jobs = await _jobs(any_store)
    terms = DeliveryTerms(place, fixed("x", 1, 30), 8, 5, rules=SendingRules(order="job"))
    timing = LaneTiming(poll=3600.0)
    async with running(Relay(any_store, {"app": terms}, heard, render, Now(T0 + 100), "w", timing)):
        await heard.until(attempts=8)
    for job in ("a", "b"):
        assert [one for one in place.got if one in jobs[job]] == jobs[job]
