"""Every job has one cause, the first that holds; whatever the store can hold of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from receiver.core.destinations import DestinationState
from receiver.core.event import Event, Rejection, Stage, new_id
from receiver.core.explain import OVERDUE, PARKED, Cause, Job, explain
from receiver.core.submission import Submission, SubmissionState
from receiver.core.work import (
    Attempt,
    Delivery,
    DeliveryState,
    HeldBy,
    OutcomeKind,
    Pickup,
    PickupKind,
    PickupState,
)
from tests.contract.store_suite import T0, recording, rejection
from tests.support.examples import examples


def event(type_: str = "speech.completed", stage: Stage = Stage.FINAL) -> Event:
    return recording(event_type=type_, stage=stage, ref="order-1").event


def delivery(one: Event, state: DeliveryState, attempts: int = 0, to: str = "app") -> Delivery:
    ended = state in (DeliveryState.DELIVERED, DeliveryState.DEAD)
    return Delivery(
        id=new_id("dlv", T0),
        event_id=one.id,
        event_type=one.type,
        destination=to,
        state=state,
        attempts=attempts,
        round_start=0,
        due_at=None if ended else T0,
        claimed_by=None,
        created_at=T0,
        updated_at=T0,
        last_outcome="refused" if attempts else None,
    )


def pickup(kind: PickupKind, state: PickupState) -> Pickup:
    ended = state in (PickupState.COLLECTED, PickupState.GONE)
    return Pickup(
        id=new_id("pku", T0),
        source="deepdub",
        kind=kind,
        key="k",
        ref="order-1",
        event_id=new_id("evt", T0),
        deadline_at=T0 + 9,
        state=state,
        due_at=None if ended else T0,
        created_at=T0,
        updated_at=T0,
    )


def job(**known: Any) -> Job:
    return Job(name="order-1", now=T0, allowed={"app": 11}, **known)


DONE, FAILED, HALF = event(), event("speech.failed"), event("speech.processing", Stage.PROGRESS)
STRANGE = replace(event(PARKED, Stage.OPEN), data=b'{"error":{"code":"parked","message":"no such state"}}')
LATE = event(OVERDUE, Stage.OPEN)
WAITING = delivery(DONE, DeliveryState.PENDING, 1)
REFUSED = Attempt(
    delivery_id=WAITING.id,
    number=1,
    started_at=T0,
    duration_ms=5,
    outcome=OutcomeKind.REFUSED,
    status=500,
    detail="",
    response=b"",
)
SUBMITTED = Submission(
    id="sub_1",
    application="crm",
    source="speech",
    request="POST /v1/jobs",
    state=SubmissionState.REFUSED,
    status=400,
    token_id="00",
    created_at=T0,
    updated_at=T0,
)
RESULT, EXPECTED = PickupKind.RESULT, PickupKind.EXPECTED
CASES: list[tuple[Job, Cause, str]] = [
    (job(erased_at=T0), Cause.ERASED, "Erased at 2027-01-15"),
    (job(rejections=(rejection(), rejection())), Cause.REJECTED, "2 callbacks were refused"),
    (
        job(rejections=(rejection(),), pickups=(pickup(EXPECTED, PickupState.PENDING),)),
        Cause.REJECTED,
        "1 callback was refused",
    ),
    (job(journaled=1), Cause.JOURNALED, "journal"),
    (job(submissions=(SUBMITTED,)), Cause.SUBMITTED, "POST /v1/jobs by crm, refused, answered 400"),
    (job(), Cause.UNKNOWN, "order-1"),
    (
        job(events=(STRANGE,)),
        Cause.PARKED,
        f"but not understood: no such state. `receiver events {STRANGE.id} --body` shows it",
    ),
    (job(pickups=(pickup(RESULT, PickupState.PENDING),)), Cause.PICKUP_WAITING, "deepdub"),
    (job(pickups=(pickup(RESULT, PickupState.GONE),), events=(FAILED,)), Cause.PICKUP_GONE, "not be fetched"),
    (job(pickups=(pickup(EXPECTED, PickupState.PENDING),), events=(HALF,)), Cause.EXPECTED, "overdue after"),
    (job(pickups=(pickup(EXPECTED, PickupState.GONE),), events=(LATE,)), Cause.OVERDUE, "Nothing arrived"),
    (job(events=(DONE,)), Cause.NO_ROUTE, f"`receiver route {DONE.id}` says why"),
    (
        job(events=(DONE,), deliveries=(delivery(DONE, DeliveryState.PENDING, 2),)),
        Cause.RETRYING,
        "attempt 3 of 11",
    ),
    (
        job(events=(DONE,), deliveries=(WAITING,), attempts=(REFUSED,)),
        Cause.RETRYING,
        "app did not take it (refused 500): attempt 2",
    ),
    (job(events=(DONE,), deliveries=(delivery(DONE, DeliveryState.PENDING),)), Cause.SENDING, "app"),
    *(
        (
            job(
                events=(DONE,),
                deliveries=(replace(delivery(DONE, DeliveryState.PENDING), held_by=held_by),),
            ),
            Cause.SENDING,
            words,
        )
        for held_by, words in (
            (HeldBy.ORDER, "app gets events in order"),
            (HeldBy.RATE, "until the rate of app"),
            (HeldBy.RETRY_AFTER, "app asked receiver to wait"),
        )
    ),
    (
        job(
            events=(DONE,),
            deliveries=(replace(delivery(DONE, DeliveryState.PENDING), held_by=HeldBy.PAUSED),),
            destinations={"app": DestinationState(name="app", paused_at=T0)},
        ),
        Cause.PAUSED,
        "until a person resumes it",
    ),
    (
        job(
            events=(DONE,),
            deliveries=(replace(WAITING, held_by=HeldBy.FAILING),),
            attempts=(REFUSED,),
            destinations={"app": DestinationState(name="app", opened_at=T0, failing_since=T0)},
        ),
        Cause.HELD,
        "The last attempt: refused 500.",
    ),
    (
        job(events=(DONE,), deliveries=(delivery(DONE, DeliveryState.DEAD, 11),)),
        Cause.DEAD,
        "after 11 attempts; the last: refused. `receiver replay dlv_",
    ),
    (
        job(
            events=(DONE,),
            deliveries=(delivery(DONE, DeliveryState.DELIVERED, 1),),
            rejections=(rejection(),),
        ),
        Cause.DELIVERED,
        "Delivered to app.",
    ),
    (job(pickups=(pickup(RESULT, PickupState.COLLECTED),)), Cause.REMOVED, "retention"),
]


@pytest.mark.parametrize(("known", "cause", "words"), CASES, ids=range(len(CASES)))
def test_the_first_cause_that_holds_is_told(known: Job, cause: Cause, words: str) -> None:
    told = explain(known)
    assert (told.cause, words in told.sentence) == (cause, True), told.sentence


def test_no_next_attempt_is_told_of_what_a_destination_holds() -> None:
    for known, _, _ in CASES:
        if any(one.held_by for one in known.deliveries):
            assert "next" not in {step.what for step in explain(known).steps}


def test_a_step_says_once_what_a_destination_answered() -> None:
    known = job(events=(DONE,), deliveries=(WAITING,), attempts=(REFUSED,))
    (sent,) = [step.detail for step in explain(known).steps if step.what == "sent"]
    assert sent == "to app: attempt 1: refused 500 in 5 ms"


def test_every_cause_has_its_case() -> None:
    assert {cause for _, cause, _ in CASES} == set(Cause)


_events = st.lists(st.sampled_from((DONE, FAILED, HALF, STRANGE, LATE)), unique=True, max_size=4)
_pickups = st.lists(st.builds(pickup, st.sampled_from(PickupKind), st.sampled_from(PickupState)), max_size=3)
_refused: st.SearchStrategy[list[Rejection]] = st.lists(st.just(rejection()), max_size=2)


_owed = st.lists(
    st.tuples(
        *(st.sampled_from(("app", "crm")), st.sampled_from(DeliveryState), st.integers(0, 3)),
        *(st.sampled_from((None, *HeldBy)), st.integers(0, 1)),
    ),
    max_size=2,
)
_at = st.sampled_from((None, T0))
_states = st.builds(DestinationState, name=st.just("app"), paused_at=_at, disabled_at=_at, opened_at=_at)


@settings(max_examples=examples(40))
@given(st.data())
def test_every_job_that_can_be_has_exactly_one_cause_in_one_line(data: st.DataObject) -> None:
    events = tuple(data.draw(_events))
    deliveries = tuple(
        replace(
            delivery(one, state, attempts, to),
            round_start=min(begun, attempts),
            held_by=held if state is DeliveryState.PENDING else None,
        )
        for one in events
        for to, state, attempts, held, begun in data.draw(_owed)
    )
    known = job(
        events=events,
        deliveries=deliveries,
        pickups=tuple(data.draw(_pickups)),
        rejections=tuple(data.draw(_refused)),
        submissions=tuple(data.draw(st.lists(st.just(SUBMITTED), max_size=1))),
        journaled=data.draw(st.integers(0, 1)),
        erased_at=data.draw(_at),
        destinations={one.name: one for one in data.draw(st.lists(_states, max_size=1))},
    )
    told = explain(known)
    assert told.cause in Cause
    assert told.sentence.endswith((".", "no proof"))
    assert "\n" not in told.sentence
    assert list(told.steps) == sorted(told.steps, key=lambda step: step.at)
    if told.cause is Cause.DELIVERED:
        assert {one.state for one in deliveries} == {DeliveryState.DELIVERED}
    if told.cause in (Cause.PAUSED, Cause.HELD):
        assert known.destinations["app"].status != "active"
    if told.cause is Cause.UNKNOWN:
        assert (events, known.pickups, known.rejections, known.submissions) == ((), (), (), ())
