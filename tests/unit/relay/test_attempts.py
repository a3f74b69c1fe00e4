"""One attempt and its consequence, time as a parameter."""

from __future__ import annotations

from typing import Any

import pytest

from receiver.core.errors import BlobsUnavailable
from receiver.core.event import Event
from receiver.core.retry import fixed, policy
from receiver.core.work import DeliveryState, Outcome, OutcomeKind
from receiver.engine.relay import DeliveryTerms, Relay
from receiver.engine.worker import LaneTiming
from receiver.storage.store.store import Store
from tests.contract.store_suite import T0
from tests.support.relaying import (
    FaultyStore,
    Heard,
    Now,
    Scripted,
    http_lane,
    only,
    record,
    render,
)
from tests.support.sink import Answer, Sink
from tests.support.stepping import step

PENDING, DELIVERED, DEAD = DeliveryState.PENDING, DeliveryState.DELIVERED, DeliveryState.DEAD


async def test_an_event_is_rendered_sent_and_settled(
    any_store: Store, sink: Sink, heard: Heard, now: Now
) -> None:
    (event_id,) = await record(any_store)
    async with http_lane(sink) as lane:
        relay = Relay(any_store, {"app": lane}, heard, render, now, "w")
        assert await step(relay, T0 + 250) == 1
        assert await step(relay, T0 + 250) == 0
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
            assert await step(relay, due_at - 1) == 0
            assert await step(relay, due_at) == 1
        assert (await only(any_store)).state is DEAD
        assert await step(relay, T0 + 10 * 86_400_000) == 0
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
        await step(relay, T0)
        await step(relay, T0 + 30_000)
        delivery = await only(any_store)
        assert delivery.state is DEAD
        await any_store.replay([delivery.id], now=T0 + 60_000)
        await step(relay, T0 + 60_000)
        assert (await only(any_store)).state is PENDING
        await step(relay, T0 + 90_000)
        assert (await only(any_store)).state is DEAD
    assert [report.number for report in heard.attempts] == [1, 2, 3, 4]


@pytest.mark.parametrize(("asked", "waited"), [("7", 30), ("300", 300), ("999999999", 86_400)])
async def test_retry_after_is_a_floor_and_at_most_a_day(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now, asked: str, waited: int
) -> None:
    await record(store)
    sink.default = Answer(status=503, headers={"Retry-After": asked})
    async with http_lane(sink) as lane:
        await step(Relay(store, {"app": lane}, heard, render, now, "w"), T0)
    assert (await only(store)).due_at == T0 + waited * 1000


async def test_each_attempt_has_a_fresh_body_and_timestamp_under_the_same_id(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now
) -> None:
    (event_id,) = await record(store)
    sink.default = Answer(status=500)
    links = iter((b"first link", b"second link"))
    async with http_lane(sink) as lane:
        relay = Relay(store, {"app": lane}, heard, lambda _: next(links), now, "w")
        await step(relay, T0)
        await step(relay, T0 + 30_000)
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
        await step(Relay(any_store, {"app": lane}, heard, render, now, "w"), T0)
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
    lane = DeliveryTerms(destination, policy("deepgram"), 1, 5)
    relay = Relay(store, {"app": lane}, heard, fail if culprit == "render" else render, now, "w")
    assert await step(relay, T0) == 1
    delivery = await only(store)
    assert delivery.state is PENDING
    (attempt,) = await store.attempts(delivery.id)
    assert (attempt.outcome, attempt.detail) == (OutcomeKind.UNREACHABLE, "internal error")
    ((level, event, fields),) = heard.notes
    assert (level, event, fields["error"]) == ("error", "relay.internal_error", "ValueError")
    assert "test_attempts.py" in fields["at_line"]
    assert "at" not in fields, "which is the time of the line in the log"
    assert "whsec_hidden" not in repr(heard.notes)


async def test_a_link_that_cannot_be_made_uses_up_no_attempt(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now
) -> None:
    """The blobs are out: nothing is sent, nothing counted; the delivery is due again when its lease ends."""

    def unlinked(event: Event) -> bytes:
        raise BlobsUnavailable("no link can be signed now")

    await record(store)
    async with http_lane(sink) as lane:
        relay = Relay(store, {"app": lane}, heard, unlinked, now, "w")
        relay.start()
        relay.wake(["app"])
        await heard.until(notes=1)
        await relay.stop(0)
    ((level, event, fields),) = heard.notes
    assert (level, event, fields["error"]) == ("warning", "relay.put_off", "no link can be signed now")
    delivery = await only(store)
    assert (delivery.attempts, await store.attempts(delivery.id)) == (0, [])
    assert delivery.due_at is not None
    assert sink.received == []


async def test_a_destination_that_ignores_its_timeout_is_stopped(
    store: FaultyStore, sink: Sink, heard: Heard, now: Now
) -> None:
    await record(store)
    sink.default = Answer(manner="hang")
    async with http_lane(sink, timeout_seconds=60) as patient:
        lane = DeliveryTerms(patient.destination, patient.policy, 1, 0.1)
        await step(Relay(store, {"app": lane}, heard, render, now, "w", LaneTiming(overrun=0.0)), T0)
    assert heard.attempts[0].outcome.kind is OutcomeKind.TIMEOUT
