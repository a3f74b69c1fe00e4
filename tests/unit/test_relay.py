"""The road out: lanes claim, attempt and settle, each by itself, and hand back what they leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from receiver import attempts as attempts_module
from receiver import relay as relay_module
from receiver.attempts import Lane
from receiver.config import DestinationSettings
from receiver.destinations.base import Destination
from receiver.destinations.http import HttpDestination
from receiver.errors import ConfigError
from receiver.model import Delivery, DeliveryState, Event, Outcome, OutcomeKind
from receiver.relay import Relay
from receiver.retry import RetryPolicy, fixed, policy
from receiver.store.base import DeliveryFilter, Store
from receiver.store.sqlite import SqliteStore
from tests.contract.store_suite import T0, recording
from tests.support.relaying import FaultyStore, Heard, Now
from tests.support.sink import Answer, Sink

PENDING, DELIVERED, DEAD = DeliveryState.PENDING, DeliveryState.DELIVERED, DeliveryState.DEAD


def render(event: Event) -> bytes:
    return b'{"type":"%b","data":%b}' % (event.type.encode(), event.data)


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as running:
        yield running


@pytest.fixture
async def store() -> AsyncIterator[FaultyStore]:
    made = FaultyStore()
    await made.open()
    yield made
    await made.close()


@pytest.fixture(params=["memory", "sqlite"])
async def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store = FaultyStore() if request.param == "memory" else SqliteStore(str(tmp_path / "r.db"))
    await made.open()
    await made.migrate()
    yield made
    await made.close()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def now() -> Now:
    return Now(T0)


class Scripted:
    """A destination without a network, for what no far side can bring about."""

    def __init__(self, send: Callable[[], Outcome], name: str = "app") -> None:
        self.name = name
        self._send = send

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        return self._send()


class Gated(Scripted):
    """A destination that delivers one event for each permit."""

    def __init__(self) -> None:
        super().__init__(lambda: Outcome(kind=OutcomeKind.DELIVERED))
        self.permits = asyncio.Semaphore(0)

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        await self.permits.acquire()
        return self._send()


@asynccontextmanager
async def http_lane(
    sink: Sink,
    *,
    path: str = "/hooks",
    retry: RetryPolicy | None = None,
    concurrency: int = 4,
    timeout_seconds: float = 5.0,
) -> AsyncIterator[Lane]:
    settings: dict[str, Any] = {
        "name": "app",
        "url": f"http://127.0.0.1:{sink.port}{path}",
        "allow": ["127.0.0.0/8"],
        "timeout_seconds": timeout_seconds,
    }
    destination = HttpDestination(DestinationSettings.model_validate(settings))
    await destination.open()
    try:
        yield Lane(destination, retry or policy("deepgram"), concurrency, timeout_seconds)
    finally:
        await destination.close()


@asynccontextmanager
async def running(relay: Relay) -> AsyncIterator[None]:
    relay.start()
    try:
        yield
    finally:
        await relay.stop(5)


async def record(store: Store, *destinations: str, count: int = 1, at: int = T0) -> list[str]:
    """Record events; return their ids."""
    recorded = [await store.record(recording(*(destinations or ("app",)), at=at)) for _ in range(count)]
    return [one.event_id for one in recorded]


async def deliveries(store: Store, destination: str = "app") -> list[Delivery]:
    return await store.deliveries(DeliveryFilter(destination=destination, limit=1000))


async def only(store: Store, destination: str = "app") -> Delivery:
    (found,) = await deliveries(store, destination)
    return found


# ---------------------------------------------------------------- by steps, time as a parameter


async def test_an_event_is_rendered_sent_and_settled(
    any_store: Store, sink: Sink, heard: Heard, now: Now
) -> None:
    (event_id,) = await record(any_store)
    async with http_lane(sink) as lane:
        relay = Relay(any_store, {"app": lane}, heard, render, now, "w")
        assert await relay.step(T0 + 250) == 1
        assert await relay.step(T0 + 250) == 0
    came = sink.received[0]
    assert came.body == render(await any_store.event(event_id))
    assert came.headers["webhook-id"] == event_id
    assert came.headers["webhook-timestamp"] == str(T0 // 1000)
    delivery = await only(any_store)
    assert (delivery.state, delivery.attempts, delivery.due_at) == (DELIVERED, 1, None)
    (attempt,) = await any_store.attempts(delivery.id)
    assert (attempt.number, attempt.started_at, attempt.status) == (1, T0 + 250, 200)
    (report,) = heard.attempts
    assert (report.state, report.number, report.due_at) == ("delivered", 1, None)
    assert report.waited_seconds == 0.25


async def test_the_deepgram_policy_makes_eleven_attempts_over_300_seconds(
    any_store: Store, sink: Sink, heard: Heard, now: Now
) -> None:
    await record(any_store)
    sink.default = Answer(status=500)
    async with http_lane(sink) as lane:
        relay = Relay(any_store, {"app": lane}, heard, render, now, "w")
        for number in range(11):
            due_at = T0 + number * 30_000
            assert await relay.step(due_at - 1) == 0
            assert await relay.step(due_at) == 1
        assert (await only(any_store)).state is DEAD
        assert await relay.step(T0 + 10 * 86_400_000) == 0
    assert len(sink.received) == 11
    assert [report.state for report in heard.attempts] == ["pending"] * 10 + ["dead"]
    assert [report.number for report in heard.attempts] == list(range(1, 12))


async def test_a_replay_is_a_whole_round_and_numbers_go_on(
    any_store: Store, sink: Sink, heard: Heard, now: Now
) -> None:
    await record(any_store)
    sink.default = Answer(status=500)
    async with http_lane(sink, retry=fixed("two", 1, 30)) as lane:
        relay = Relay(any_store, {"app": lane}, heard, render, now, "w")
        await relay.step(T0)
        await relay.step(T0 + 30_000)
        delivery = await only(any_store)
        assert delivery.state is DEAD
        await any_store.replay([delivery.id], now=T0 + 60_000)
        await relay.step(T0 + 60_000)
        assert (await only(any_store)).state is PENDING
        await relay.step(T0 + 90_000)
        assert (await only(any_store)).state is DEAD
    assert [report.number for report in heard.attempts] == [1, 2, 3, 4]


async def test_410_ends_a_delivery_at_once(store: FaultyStore, sink: Sink, heard: Heard, now: Now) -> None:
    await record(store)
    sink.default = Answer(status=410)
    async with http_lane(sink) as lane:
        await Relay(store, {"app": lane}, heard, render, now, "w").step(T0)
    assert ((await only(store)).state, heard.attempts[0].outcome.kind) == (DEAD, OutcomeKind.GONE)


@pytest.mark.parametrize(("asked", "waited"), [("7", 30), ("300", 300), ("999999999", 86_400)])
async def test_retry_after_is_a_floor_and_at_most_a_day(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now, asked: str, waited: int
) -> None:
    await record(store)
    sink.default = Answer(status=503, headers={"Retry-After": asked})
    async with http_lane(sink) as lane:
        await Relay(store, {"app": lane}, heard, render, now, "w").step(T0)
    assert (await only(store)).due_at == T0 + waited * 1000


async def test_each_attempt_has_a_fresh_body_and_timestamp_under_the_same_id(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now
) -> None:
    (event_id,) = await record(store)
    sink.default = Answer(status=500)
    links = iter((b"first link", b"second link"))
    async with http_lane(sink) as lane:
        relay = Relay(store, {"app": lane}, heard, lambda _: next(links), now, "w")
        await relay.step(T0)
        await relay.step(T0 + 30_000)
    assert [came.body for came in sink.received] == [b"first link", b"second link"]
    assert [came.headers["webhook-id"] for came in sink.received] == [event_id] * 2
    stamps = [int(came.headers["webhook-timestamp"]) for came in sink.received]
    assert stamps == [T0 // 1000, T0 // 1000 + 30]


@pytest.mark.parametrize(
    ("answer", "kind", "kept"),
    [
        (Answer(manner="hang"), OutcomeKind.TIMEOUT, b""),
        (Answer(manner="trickle"), OutcomeKind.TIMEOUT, b""),
        (Answer(manner="drop"), OutcomeKind.UNREACHABLE, b""),
        (Answer(status=302, body=b"", headers={"Location": "/else"}), OutcomeKind.REFUSED, b""),
        (Answer(status=500, body=b"x" * 50_000), OutcomeKind.REFUSED, b"x" * 16_384),
    ],
)
async def test_a_bad_answer_is_recorded_and_tried_again(
    any_store: Store, sink: Sink, heard: Heard, now: Now, answer: Answer, kind: OutcomeKind, kept: bytes
) -> None:
    await record(any_store)
    sink.default = answer
    async with http_lane(sink, timeout_seconds=0.2) as lane:
        await Relay(any_store, {"app": lane}, heard, render, now, "w").step(T0)
    delivery = await only(any_store)
    assert (delivery.state, delivery.due_at) == (PENDING, T0 + 30_000)
    (attempt,) = await any_store.attempts(delivery.id)
    assert (attempt.outcome, attempt.response) == (kind, kept)
    assert len(sink.received) == 1


@pytest.mark.parametrize("culprit", ["destination", "render"])
async def test_a_bug_in_one_attempt_counts_as_unreachable_and_is_noted_without_its_text(
    store: FaultyStore, heard: Heard, now: Now, culprit: str
) -> None:
    await record(store)

    def fail(*_: object) -> Any:
        raise ValueError("whsec_hidden")

    def fine() -> Outcome:
        return Outcome(kind=OutcomeKind.DELIVERED)

    destination = Scripted(fail if culprit == "destination" else fine)
    lane = Lane(destination, policy("deepgram"), 1, 5)
    relay = Relay(store, {"app": lane}, heard, fail if culprit == "render" else render, now, "w")
    assert await relay.step(T0) == 1
    delivery = await only(store)
    assert delivery.state is PENDING
    (attempt,) = await store.attempts(delivery.id)
    assert (attempt.outcome, attempt.detail) == (OutcomeKind.UNREACHABLE, "internal error")
    ((level, event, fields),) = heard.notes
    assert (level, event, fields["error"]) == ("error", "relay.internal_error", "ValueError")
    assert "test_relay.py" in fields["at"]
    assert "whsec_hidden" not in repr(heard.notes)


async def test_a_destination_that_ignores_its_timeout_is_stopped(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_module, "OVERRUN_SECONDS", 0.0)
    await record(store)
    sink.default = Answer(manner="hang")
    async with http_lane(sink, timeout_seconds=60) as patient:
        lane = Lane(patient.destination, patient.policy, 1, 0.1)
        await Relay(store, {"app": lane}, heard, render, now, "w").step(T0)
    assert heard.attempts[0].outcome.kind is OutcomeKind.TIMEOUT


def test_a_lease_that_does_not_cover_an_attempt_is_refused_at_the_start() -> None:
    destination: Destination = Scripted(lambda: Outcome(kind=OutcomeKind.DELIVERED))
    with pytest.raises(ConfigError, match=r"destinations\.app: a lease of 30 s does not cover the timeout"):
        Lane(destination, policy("deepgram"), 1, 15, lease_seconds=30)
    assert Lane(destination, policy("deepgram"), 1, 15).lease == 60
    assert Lane(destination, policy("deepgram"), 1, 120).lease == 270


# ---------------------------------------------------------------- running


async def test_a_woken_lane_sends_at_once(
    any_store: Store, sink: Sink, heard: Heard, now: Now, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "POLL_SECONDS", 3600.0)
    async with http_lane(sink) as lane:
        relay = Relay(any_store, {"app": lane}, heard, render, now, "w")
        async with running(relay):
            for number in range(1, 4):
                await record(any_store)
                relay.wake(["app", "unknown"])
                await heard.until(attempts=number)
    assert {delivery.state for delivery in await deliveries(any_store)} == {DELIVERED}


async def test_what_another_process_recorded_is_found_by_looking(
    any_store: Store, sink: Sink, heard: Heard, now: Now, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "POLL_SECONDS", 0.01)
    async with http_lane(sink) as lane, running(Relay(any_store, {"app": lane}, heard, render, now, "w")):
        await record(any_store)
        await heard.until(attempts=1)
    assert len(sink.received) == 1


async def test_a_retry_happens_when_it_is_due_without_being_woken(
    any_store: Store, sink: Sink, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "POLL_SECONDS", 3600.0)
    sink.script.extend([Answer(status=500), Answer(status=500)])

    def clock() -> int:
        return time.time_ns() // 1_000_000

    await record(any_store, at=clock())
    async with (
        http_lane(sink, retry=fixed("quick", 5, 0.05)) as lane,
        running(Relay(any_store, {"app": lane}, heard, render, clock, "w")),
    ):
        await heard.until(attempts=3)
    first, second, third = (await any_store.attempts((await only(any_store)).id))[:3]
    assert second.started_at - first.started_at >= 50
    assert third.started_at - second.started_at >= 50


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
    relay = Relay(store, {"app": Lane(destination, policy("deepgram"), 8, 5)}, heard, render, now, "w")
    async with running(relay):
        for number in range(1, 5):
            destination.permits.release()
            await heard.until(attempts=number)
        while len(store.claims) < 3:
            await asyncio.sleep(0)
        assert store.claims == [8, 8, 4]
        for _ in range(36):
            destination.permits.release()
        await heard.until(attempts=40)


async def test_what_wakes_a_lane_that_is_full_is_claimed_when_there_is_room(
    store: FaultyStore, heard: Heard, now: Now
) -> None:
    await record(store, count=7)
    destination = Gated()
    relay = Relay(store, {"app": Lane(destination, policy("deepgram"), 4, 5)}, heard, render, now, "w")
    async with running(relay):
        while store.claims != [4, 3]:
            await asyncio.sleep(0)
        await record(store)
        relay.wake(["app"])
        await asyncio.sleep(0)
        for _ in range(8):
            destination.permits.release()
        await heard.until(attempts=8)


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
        running(Relay(store, {"app": lane}, heard, render, now, "w")),
    ):
        await sink.until(1)
        while len(store.claims) < 2:  # the second delivery is claimed ahead
            await asyncio.sleep(0)
        now.value += round((lane.lease - lane.needed) * 1000) + 1
        sink.released.set()
        await heard.until(attempts=2)
    assert len(store.released) == 1
    assert [report.number for report in heard.attempts] == [1, 1]
    assert {one.state for one in await deliveries(store)} == {DELIVERED}


# ---------------------------------------------------------------- when the store is out


async def test_an_outage_at_claiming_is_noted_once_and_waited_out(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_module, "FIRST_PAUSE", 0.001)
    await record(store)
    store.out["claim"] = 4
    async with http_lane(sink) as lane, running(Relay(store, {"app": lane}, heard, render, now, "w")):
        await heard.until(attempts=1)
    assert heard.events() == [("warning", "relay.store_unavailable"), ("info", "relay.store_recovered")]
    assert (await only(store)).state is DELIVERED


async def test_an_outage_at_settling_is_waited_out_without_sending_again(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_module, "FIRST_PAUSE", 0.001)
    await record(store)
    store.out["settle"] = 4
    async with http_lane(sink) as lane, running(Relay(store, {"app": lane}, heard, render, now, "w")):
        await heard.until(attempts=1)
    assert heard.attempts[0].state == "delivered"
    assert len(sink.received) == 1
    assert (await only(store)).attempts == 1


async def test_settling_is_given_up_when_the_lease_has_ended(
    store: FaultyStore, heard: Heard, now: Now
) -> None:
    await record(store)
    store.out["settle"] = 1

    def slow() -> Outcome:
        now.value += 3_600_000
        return Outcome(kind=OutcomeKind.DELIVERED)

    lane = Lane(Scripted(slow), policy("deepgram"), 1, 5)
    relay = Relay(store, {"app": lane}, heard, render, now, "w")
    async with running(relay):
        await heard.until(attempts=1)
        assert heard.attempts[0].state == "lost"
        assert ("error", "relay.settle_given_up") in heard.events()


@pytest.mark.parametrize("method", ["claim", "settle"])
async def test_a_bug_in_the_store_does_not_end_the_lane(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(relay_module, "POLL_SECONDS", 0.01)
    await record(store, count=2)
    store.bug[method] = 1
    async with (
        http_lane(sink, concurrency=1) as lane,
        running(Relay(store, {"app": lane}, heard, render, now, "w")),
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


async def test_a_relay_that_never_started_stops() -> None:
    destination: Destination = Scripted(lambda: Outcome(kind=OutcomeKind.DELIVERED))
    lane = Lane(destination, policy("deepgram"), 1, 5)
    await Relay(FaultyStore(), {"app": lane}, Heard(), render, Now(T0), "w").stop(0)
