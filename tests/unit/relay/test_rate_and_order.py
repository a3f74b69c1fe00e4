"""A destination's rate holds over all processes, and the events of one job are sent one after the other."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from receiver.core.retry import fixed
from receiver.core.sending import Rate, SendingRules, rate
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
