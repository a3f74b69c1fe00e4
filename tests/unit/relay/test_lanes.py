"""Lanes at work: when they look, how much they take, and that none waits for another."""

from __future__ import annotations

import asyncio
import time

import pytest

from receiver.core.retry import fixed, policy
from receiver.core.work import Claimed, DeliveryState, Outcome, OutcomeKind
from receiver.engine.relay import DeliveryTerms, Relay
from receiver.engine.worker import LaneTiming
from receiver.storage.store.store import Store
from tests.contract.store_suite import T0
from tests.support.relaying import (
    FaultyStore,
    Gated,
    Heard,
    Now,
    Scripted,
    deliveries,
    http_lane,
    only,
    record,
    render,
    running,
)
from tests.support.sink import Answer, Sink

PENDING, DELIVERED, DEAD = DeliveryState.PENDING, DeliveryState.DELIVERED, DeliveryState.DEAD


async def test_a_woken_lane_sends_at_once(any_store: Store, sink: Sink, heard: Heard, now: Now) -> None:
    async with http_lane(sink) as lane:
        relay = Relay(any_store, {"app": lane}, heard, render, now, "w", LaneTiming(poll=3600.0))
        async with running(relay):
            for number in range(1, 4):
                await record(any_store)
                relay.wake(["app", "unknown"])
                await heard.until(attempts=number)
    assert {delivery.state for delivery in await deliveries(any_store)} == {DELIVERED}


async def test_what_another_process_recorded_is_found_by_looking(
    any_store: Store, sink: Sink, heard: Heard, now: Now
) -> None:
    """Also by a lane whose next row is due in an hour."""
    await record(any_store, at=T0 + 3_600_000)
    async with (
        http_lane(sink) as lane,
        running(Relay(any_store, {"app": lane}, heard, render, now, "w", LaneTiming(poll=0.01))),
    ):
        await record(any_store)
        await heard.until(attempts=1)
    assert len(sink.received) == 1


async def test_a_retry_happens_when_it_is_due_without_being_woken(
    any_store: Store, sink: Sink, heard: Heard
) -> None:
    sink.script.extend([Answer(status=500), Answer(status=500)])

    def clock() -> int:
        return time.time_ns() // 1_000_000

    await record(any_store, at=clock())
    async with (
        http_lane(sink, retry=fixed("quick", 5, 0.05)) as lane,
        running(Relay(any_store, {"app": lane}, heard, render, clock, "w", LaneTiming(poll=3600.0))),
    ):
        await heard.until(attempts=3)
    first, second, third = (await any_store.attempts((await only(any_store)).id))[:3]
    assert second.started_at - first.started_at >= 50
    assert third.started_at - second.started_at >= 50


async def test_a_lane_does_not_ask_without_end_for_what_is_due_and_another_has(
    store: FaultyStore, heard: Heard, now: Now, monkeypatch: pytest.MonkeyPatch
) -> None:
    await record(store)

    async def none(*_: object, **__: object) -> list[Claimed]:
        return []

    monkeypatch.setattr(store, "claim", none)
    terms = DeliveryTerms(Gated(), policy("deepgram"), 1, 5)
    async with running(Relay(store, {"app": terms}, heard, render, now, "w", LaneTiming(shortest_nap=60.0))):
        for _ in range(50):
            await asyncio.sleep(0)
        assert store.asked == 1


async def test_a_retry_is_made_in_time_beside_what_was_recorded_during_the_attempt(
    store: FaultyStore, heard: Heard
) -> None:
    """By itself the lane would look an hour later."""

    def clock() -> int:
        return time.time_ns() // 1_000_000

    class Recording(Scripted):
        async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
            if heard.attempts:
                return Outcome(kind=OutcomeKind.DELIVERED)
            await record(store, at=clock())
            return Outcome(kind=OutcomeKind.REFUSED, status=422)

    await record(store, at=clock())
    terms = DeliveryTerms(
        Recording(lambda: Outcome(kind=OutcomeKind.DELIVERED)), fixed("quick", 5, 0.05), 4, 5
    )
    relay = Relay(store, {"app": terms}, heard, render, clock, "w", LaneTiming(poll=3600.0))
    async with running(relay), asyncio.timeout(5):
        await heard.until(attempts=3)


async def test_a_slow_destination_does_not_delay_another(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now
) -> None:
    sink.scripts["/slow"] = Answer(manner="hang")
    await record(store, "slow", "app", count=20)
    async with http_lane(sink, path="/slow", concurrency=2) as slow, http_lane(sink) as quick:
        relay = Relay(store, {"slow": slow, "app": quick}, heard, render, now, "w")
        async with running(relay):
            await heard.until(attempts=20)
            assert {report.destination for report in heard.attempts} == {"app"}
            sink.released.set()
            await heard.until(attempts=40)
    assert {one.state for one in await deliveries(store, "slow")} == {DELIVERED}


async def test_a_lane_sends_no_more_at_once_than_its_concurrency(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now
) -> None:
    await record(store, count=30)
    sink.default = Answer(manner="hang")
    async with (
        http_lane(sink, concurrency=3) as lane,
        running(Relay(store, {"app": lane}, heard, render, now, "w")),
    ):
        await sink.until(3)
        sink.released.set()
        await heard.until(attempts=30)
    assert sink.most_at_once == 3


async def test_a_lane_claims_again_when_half_of_what_is_ahead_is_used(
    store: FaultyStore, heard: Heard, now: Now
) -> None:
    await record(store, count=40)
    destination = Gated()
    relay = Relay(
        store, {"app": DeliveryTerms(destination, policy("deepgram"), 8, 5)}, heard, render, now, "w"
    )
    async with running(relay):
        for number in range(1, 5):
            destination.permits.release()
            await heard.until(attempts=number)
        while len(store.claims) < 3:
            await asyncio.sleep(0)
        assert store.claims == [8, 8, 4]
        assert store.asked <= 1, "while there is more, nobody asks when the next is due"
        for _ in range(36):
            destination.permits.release()
        await heard.until(attempts=40)


async def test_what_wakes_a_lane_that_is_full_is_claimed_when_there_is_room(
    store: FaultyStore, heard: Heard, now: Now
) -> None:
    await record(store, count=7)
    destination = Gated()
    relay = Relay(
        store, {"app": DeliveryTerms(destination, policy("deepgram"), 4, 5)}, heard, render, now, "w"
    )
    async with running(relay):
        while store.claims != [4, 3]:
            await asyncio.sleep(0)
        await record(store)
        relay.wake(["app"])
        await asyncio.sleep(0)
        for _ in range(8):
            destination.permits.release()
        await heard.until(attempts=8)


async def test_a_lane_that_was_slowed_claims_again_when_an_attempt_ends(
    store: FaultyStore, heard: Heard, now: Now
) -> None:
    """By itself it would look an hour later."""
    await record(store, count=12)
    destination = Gated()
    answers = [Outcome(kind=OutcomeKind.REFUSED, status=503)]
    destination._send = lambda: answers.pop() if answers else Outcome(kind=OutcomeKind.DELIVERED)
    terms = DeliveryTerms(destination, policy("deepgram"), 4, 5)
    relay = Relay(store, {"app": terms}, heard, render, now, "w", LaneTiming(poll=3600.0))
    async with running(relay), asyncio.timeout(5):
        await destination.until(begun=4)
        destination.permits.release()
        while len(store.released) < 4:  # what was claimed ahead waits until there is room
            await asyncio.sleep(0)
        for _ in range(11):
            destination.permits.release()
        await heard.until(attempts=12)


async def test_a_backlog_is_claimed_in_groups(store: FaultyStore, sink: Sink, heard: Heard, now: Now) -> None:
    await record(store, count=200)
    async with (
        http_lane(sink, concurrency=16) as lane,
        running(Relay(store, {"app": lane}, heard, render, now, "w")),
    ):
        await heard.until(attempts=200)
    assert sum(store.claims) == 200
    assert len(store.claims) <= 200 / 8 + 2


async def test_a_settlement_that_comes_too_late_is_reported_as_lost(
    any_store: Store, sink: Sink, heard: Heard, now: Now
) -> None:
    await record(any_store)
    sink.default = Answer(manner="hang")
    async with http_lane(sink) as lane, running(Relay(any_store, {"app": lane}, heard, render, now, "w")):
        await sink.until(1)
        late = T0 + round(lane.lease * 1000)
        (other,) = await any_store.claim("app", worker="x", limit=1, now=late, lease_until=late + 60_000)
        sink.released.set()
        await heard.until(attempts=1)
    assert heard.attempts[0].state == "lost"
    delivery = await only(any_store)
    assert (delivery.state, delivery.attempts) == (DeliveryState.DELIVERING, 0)
    assert delivery.claimed_by == other.claimed_by


async def test_a_claim_whose_lease_is_nearly_used_up_is_handed_back_and_claimed_anew(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now
) -> None:
    await record(store, count=2)
    sink.script.append(Answer(manner="hang"))
    async with (
        http_lane(sink, concurrency=1) as lane,
        running(Relay(store, {"app": lane}, heard, render, now, "w", LaneTiming(poll=3600.0))),
        asyncio.timeout(5),
    ):
        await sink.until(1)
        while len(store.claims) < 2:  # the second delivery is claimed ahead
            await asyncio.sleep(0)
        assert lane.lease - lane.needed >= lane.needed > lane.timeout_seconds, "time to wait, and to settle"
        now.value += round((lane.lease - lane.needed) * 1000) + 1
        sink.released.set()
        await heard.until(attempts=2)
    assert len(store.released) == 1
    assert [report.number for report in heard.attempts] == [1, 1]
    assert {one.state for one in await deliveries(store)} == {DELIVERED}
