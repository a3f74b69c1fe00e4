"""The store out, and the process told to stop: nothing is lost, nothing is counted that was not made."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from receiver.core.retry import policy
from receiver.core.work import DeliveryState, Outcome, OutcomeKind, Settlement
from receiver.engine.relay import DeliveryTerms, Relay
from receiver.engine.worker import LaneTiming
from receiver.outbound.destinations import Destination
from receiver.storage.store.store import Store
from tests.contract.store_suite import T0
from tests.support.relaying import (
    FaultyStore,
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


# ---------------------------------------------------------------- when the store is out


async def test_an_outage_at_claiming_is_noted_once_and_waited_out(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now
) -> None:
    await record(store)
    store.out["claim"] = 4
    async with (
        http_lane(sink) as lane,
        running(Relay(store, {"app": lane}, heard, render, now, "w", LaneTiming(first_pause=0.001))),
    ):
        await heard.until(attempts=1)
    assert heard.events() == [("warning", "relay.store_unavailable"), ("info", "relay.store_recovered")]
    assert (await only(store)).state is DELIVERED


async def test_the_pauses_of_an_outage_begin_anew_with_the_next_one(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now
) -> None:
    class Growing(LaneTiming, frozen=True):
        def pauses(self) -> Iterator[float]:
            yield from (0.0, 0.0, 3600.0)

    await record(store)
    store.out["claim"] = 2
    async with (
        http_lane(sink) as lane,
        running(Relay(store, {"app": lane}, heard, render, now, "w", Growing(poll=0.01))),
        asyncio.timeout(5),
    ):
        await heard.until(attempts=1)
        store.out["claim"] = 2
        await record(store)
        await heard.until(attempts=2)


async def test_an_outage_at_settling_is_waited_out_without_sending_again(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now
) -> None:
    await record(store)
    store.out["settle"] = 4
    async with (
        http_lane(sink) as lane,
        running(Relay(store, {"app": lane}, heard, render, now, "w", LaneTiming(first_pause=0.001))),
    ):
        await heard.until(attempts=1)
    assert heard.attempts[0].state == "delivered"
    assert len(sink.received) == 1
    assert (await only(store)).attempts == 1


@pytest.mark.parametrize(("left_ms", "again"), [(-1, False), (100, True)])
async def test_settling_is_given_up_when_the_lease_has_ended(
    store: FaultyStore, heard: Heard, now: Now, left_ms: int, again: bool
) -> None:
    """Until then it is tried again."""
    await record(store)
    store.out["settle"] = 1000

    def slow() -> Outcome:
        now.value += round(lane.lease * 1000) - left_ms
        return Outcome(kind=OutcomeKind.DELIVERED)

    lane = DeliveryTerms(Scripted(slow), policy("deepgram"), 1, 5)
    relay = Relay(store, {"app": lane}, heard, render, now, "w", LaneTiming(first_pause=0.02))
    async with running(relay), asyncio.timeout(5):
        await heard.until(attempts=1)
        assert (store.out["settle"] < 999) is again
        assert heard.attempts[0].state == "lost"
        assert ("error", "relay.settle_given_up") in heard.events()


@pytest.mark.parametrize("method", ["claim", "settle"])
async def test_a_bug_in_the_store_does_not_end_the_lane(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now, method: str
) -> None:
    await record(store, count=2)
    store.bug[method] = 1
    async with (
        http_lane(sink, concurrency=1) as lane,
        running(Relay(store, {"app": lane}, heard, render, now, "w", LaneTiming(poll=0.01))),
    ):
        await heard.until(attempts=2 if method == "claim" else 1, notes=1)
    assert heard.notes[0][:2] == (
        "error",
        "relay.claim_failed" if method == "claim" else "relay.worker_failed",
    )


# ---------------------------------------------------------------- stopping


async def test_a_stop_without_grace_hands_everything_back_uncounted(
    any_store: Store, sink: Sink, heard: Heard, now: Now
) -> None:
    await record(any_store, count=6)
    sink.default = Answer(manner="hang")
    async with http_lane(sink, concurrency=2) as lane:
        relay = Relay(any_store, {"app": lane}, heard, render, now, "w")
        relay.start()
        await sink.until(2)
        await relay.stop(0)
    for one in await deliveries(any_store):
        assert (one.state, one.attempts, one.claimed_by, one.due_at) == (PENDING, 0, None, T0)
        assert await any_store.attempts(one.id) == []
    assert heard.attempts == []


async def test_a_graceful_stop_lets_attempts_under_way_end_and_begins_no_others(
    any_store: Store, sink: Sink, heard: Heard, now: Now
) -> None:
    await record(any_store, count=6)
    sink.default = Answer(manner="hang")
    async with http_lane(sink, concurrency=2) as lane:
        relay = Relay(any_store, {"app": lane}, heard, render, now, "w")
        relay.start()
        await sink.until(2)
        stopping = asyncio.create_task(relay.stop(30))
        for _ in range(50):
            await asyncio.sleep(0)
        sink.released.set()
        await stopping
    states = sorted((one.state.value, one.attempts, one.claimed_by) for one in await deliveries(any_store))
    assert states == [("delivered", 1, None)] * 2 + [("pending", 0, None)] * 4
    assert len(sink.received) == 2


async def test_a_claim_under_way_at_the_stop_is_handed_back(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now
) -> None:
    await record(store, count=3)
    store.gate.clear()
    async with http_lane(sink) as lane:
        relay = Relay(store, {"app": lane}, heard, render, now, "w")
        relay.start()
        await store.claimed.wait()
        stopping = asyncio.create_task(relay.stop(30))
        await asyncio.sleep(0)
        store.gate.set()
        await stopping
    assert len(store.released) == 3
    assert sink.received == []


async def test_a_stop_while_the_store_is_out_ends_and_leaves_the_rest_to_the_lease(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now
) -> None:
    await record(store, count=2)
    sink.default = Answer(manner="hang")
    async with http_lane(sink) as lane:
        relay = Relay(store, {"app": lane}, heard, render, now, "w")
        relay.start()
        await sink.until(2)
        store.out["release"] = 1
        await relay.stop(0)
    assert {one.state for one in await deliveries(store)} == {DeliveryState.DELIVERING}
    assert heard.events() == [("warning", "relay.store_unavailable")]


async def test_a_stop_does_not_wait_for_a_store_that_says_nothing(
    store: FaultyStore, heard: Heard, now: Now, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the settlements nor the claims handed back are answered."""
    asked: list[str] = []

    def silent(name: str) -> None:
        async def never(*_: object, **__: object) -> object:
            asked.append(name)
            return await asyncio.get_running_loop().create_future()

        monkeypatch.setattr(store, name, never)

    silent("settle")
    silent("release")
    await record(store, count=4)
    destination = Scripted(lambda: Outcome(kind=OutcomeKind.DELIVERED))
    relay = Relay(
        store,
        {"app": DeliveryTerms(destination, policy("deepgram"), 2, 5)},
        heard,
        render,
        now,
        "w",
        LaneTiming(settle=0.05, release=0.2),
    )
    relay.start()
    while asked.count("settle") < 2 or sum(store.claims) < 4:
        await asyncio.sleep(0)
    async with asyncio.timeout(2):
        await relay.stop(0)
    assert "release" in asked
    assert {one.state for one in await deliveries(store)} == {DeliveryState.DELIVERING}


async def test_a_stop_waits_for_an_attempt_that_was_made_to_be_settled(
    store: FaultyStore, heard: Heard, now: Now, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application has the event: a settlement that is cancelled would have it delivered twice."""
    settling, go_on, settle = asyncio.Event(), asyncio.Event(), store.settle

    async def slow(settlement: Settlement) -> bool:
        settling.set()
        await go_on.wait()
        return await settle(settlement)

    monkeypatch.setattr(store, "settle", slow)
    await record(store)
    destination = Scripted(lambda: Outcome(kind=OutcomeKind.DELIVERED))
    relay = Relay(
        store, {"app": DeliveryTerms(destination, policy("deepgram"), 1, 5)}, heard, render, now, "w"
    )
    relay.start()
    await settling.wait()
    stopping = asyncio.create_task(relay.stop(0))
    for _ in range(20):
        await asyncio.sleep(0)
    go_on.set()
    await stopping
    assert (await only(store)).state is DELIVERED


async def test_a_relay_that_never_started_stops() -> None:
    destination: Destination = Scripted(lambda: Outcome(kind=OutcomeKind.DELIVERED))
    lane = DeliveryTerms(destination, policy("deepgram"), 1, 5)
    await Relay(FaultyStore(), {"app": lane}, Heard(), render, Now(T0), "w").stop(0)
