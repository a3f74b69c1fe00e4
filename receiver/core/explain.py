"""Explains a job's state: one cause from a closed list, one sentence, and a timeline. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import chain

import msgspec
from msgspec import Struct

from receiver.core.clock import iso
from receiver.core.destinations import DestinationState, DestinationStatus
from receiver.core.event import ASKED, Callback, Event, Rejection, Stage
from receiver.core.submission import Submission
from receiver.core.work import (
    Attempt,
    Delivery,
    DeliveryState,
    HeldBy,
    Pickup,
    PickupAttempt,
    PickupKind,
    PickupState,
)

PARKED = "callback.parked"
OVERDUE = "callback.overdue"


class Cause(StrEnum):
    """Why a job is in its state. Members are in order of precedence: the first that applies is the cause."""

    ERASED = "erased"
    REJECTED = "rejected"
    JOURNALED = "journaled"
    SUBMITTED = "submitted"
    UNKNOWN = "unknown"
    PARKED = "parked"
    PICKUP_WAITING = "pickup_waiting"
    PICKUP_GONE = "pickup_gone"
    EXPECTED = "expected"
    OVERDUE = "overdue"
    NO_ROUTE = "no_route"
    PAUSED = "paused"
    HELD = "held"
    RETRYING = "retrying"
    SENDING = "sending"
    DEAD = "dead"
    DELIVERED = "delivered"
    REMOVED = "removed"


class Job(Struct, frozen=True, kw_only=True):
    """All that is known of one job."""

    name: str
    """The name in the request: a ref, a job id or an event id."""
    now: int
    events: tuple[Event, ...] = ()
    callbacks: tuple[Callback, ...] = ()
    pickups: tuple[Pickup, ...] = ()
    submissions: tuple[Submission, ...] = ()
    pickup_attempts: tuple[PickupAttempt, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    journaled: int = 0
    """Callbacks of the job in the journal of the machine that answers the request."""
    erased_at: int | None = None
    allowed: Mapping[str, int] = {}
    """Attempts that each destination's retry policy allows."""
    destinations: Mapping[str, DestinationState] = {}
    """What is known of destinations, by name."""

    @property
    def finals(self) -> list[Event]:
        """The events that say how the job ended."""
        return [e for e in self.events if e.stage is Stage.FINAL and e.type not in (PARKED, OVERDUE)]


class Step(Struct, frozen=True, kw_only=True):
    """One thing that happened to a job."""

    at: int
    what: str
    """`issued`, `submitted`, `callback`, `recorded`, `rejected`, `pickup`, `fetched`, `sent`, or `next` for what is still to come."""
    detail: str
    to: str = ""
    """The destination of an attempt, past or due; with the event's type if the job has several events."""
    outcome: str = ""
    """The attempt's outcome."""
    answer: str = ""
    """What a destination answered, as text."""


class Explanation(Struct, frozen=True, kw_only=True):
    """The cause, in a word and in a sentence, and the steps that led to it, oldest first."""

    cause: Cause
    sentence: str
    steps: tuple[Step, ...]


def explain(job: Job) -> Explanation:
    """Return the explanation of a job. Its cause is the first that applies."""
    cause, sentence = next(chain(_before_an_event(job), _of_its_result(job), _of_its_deliveries(job)))
    done = {d.destination for d in job.deliveries if d.state is DeliveryState.DELIVERED}
    if cause in _UNDELIVERED and done:
        sentence = f"Delivered to {_names(done)}. {sentence}"
    return Explanation(cause=cause, sentence=sentence, steps=tuple(sorted(_steps(job), key=lambda s: s.at)))


_UNDELIVERED = (Cause.PAUSED, Cause.HELD, Cause.RETRYING, Cause.SENDING, Cause.DEAD)


# ---------------------------------------------------------------- the causes that apply, those of precedence first


def _before_an_event(job: Job) -> Iterator[tuple[Cause, str]]:
    awaited = any(p.kind is PickupKind.RESULT or p.state is PickupState.COLLECTED for p in job.pickups)
    nothing = not job.events and not job.pickups
    if job.erased_at is not None and nothing and not job.journaled:
        yield Cause.ERASED, f"Erased at {iso(job.erased_at)} by request."
    if job.rejections and not (job.events or awaited or job.journaled):
        last = max(job.rejections, key=lambda one: one.at)
        refused = _times(len(job.rejections), "callback was", "callbacks were")
        yield Cause.REJECTED, f"No event yet: {refused} refused, the last at {iso(last.at)}: {last.reason}"
    if job.journaled:
        where = "in the journal of this machine"
        yield (
            Cause.JOURNALED,
            f"Proved and safe {where}: it is recorded as soon as store and blobs are back.",
        )
    if job.submissions and nothing:
        made = _submission(job.submissions[-1])
        yield Cause.SUBMITTED, f"Submitted, and no callback is here: {made}."
    if nothing:
        unknown = f"Nothing is known here of {job.name}: no ref, job id or event has this name"
        yield (
            Cause.UNKNOWN,
            f"{unknown}. A callback may wait in a journal: ask `receiver journal list` on each machine.",
        )


def _of_its_result(job: Job) -> Iterator[tuple[Cause, str]]:
    parked = [e for e in job.events if e.type == PARKED]
    if parked and not job.finals:
        yield Cause.PARKED, _parked(parked[-1])
    fetched = [p for p in job.pickups if p.kind is PickupKind.RESULT]
    if waiting := [p for p in fetched if p.due_at is not None]:
        yield Cause.PICKUP_WAITING, _fetching(waiting[-1])
    gone = [p for p in fetched if p.state is PickupState.GONE]
    if gone and not any(e.type.endswith(".completed") for e in job.finals):
        why = gone[-1].last_detail or gone[-1].last_outcome or "there is none"
        yield Cause.PICKUP_GONE, f"The result could not be fetched: {why}."
    if job.finals:
        return
    expected = [p for p in job.pickups if p.kind is PickupKind.EXPECTED]
    if waiting := [p for p in expected if p.due_at is not None]:
        one = waiting[-1]
        due = f"which is overdue after {iso(one.deadline_at)}"
        yield Cause.EXPECTED, f"Waiting for the callback of {one.source}, {due}."
    if any(p.state is PickupState.GONE for p in expected) or any(e.type == OVERDUE for e in job.events):
        yield (
            Cause.OVERDUE,
            "Nothing arrived in the time in which the callback was expected, not even a refused one.",
        )


def _parked(event: Event) -> str:
    reason = msgspec.json.decode(event.data)["error"]["message"]
    return (
        f"Arrived and was proved, but not understood: {reason}. `receiver events {event.id} --body` shows it, "
        f"and `receiver renormalize {event.id}` reads it again by today's code and settings."
    )


def _fetching(one: Pickup) -> str:
    said = f" The last: {one.last_detail or one.last_outcome}." if one.last_outcome else ""
    return (
        f"The result is being fetched from {one.source}: {_times(one.attempts, 'attempt', 'attempts')} so far.{said} "
        f"The next is due at {iso(one.due_at or 0)}, and it is given up at {iso(one.deadline_at)}."
    )


def _of_its_deliveries(job: Job) -> Iterator[tuple[Cause, str]]:
    sent = {d.event_id for d in job.deliveries}
    if unsent := [e for e in job.finals if e.id not in sent] or ([] if sent else list(job.events)):
        event = unsent[-1]
        untaken = f"no destination took {event.type} of {event.source} ({event.id})"
        yield (
            Cause.NO_ROUTE,
            f"Recorded, but not sent: {untaken}. `receiver route {event.id}` says why.",
        )
    waiting = [d for d in job.deliveries if d.due_at is not None]
    names = {d.destination for d in waiting}
    states = [job.destinations[name] for name in sorted(names & set(job.destinations))]
    if stopped := [one for one in states if one.stopped]:
        yield Cause.PAUSED, _stopped(stopped[0])
    if failing := [one for one in states if one.status is DestinationStatus.FAILING]:
        yield Cause.HELD, _failing(job, failing[0])
    if trying := [d for d in waiting if d.attempts > d.round_start]:
        yield Cause.RETRYING, _retrying(job, max(trying, key=lambda d: d.attempts))
    if waiting:
        yield Cause.SENDING, _sending(waiting)
    if dead := [d for d in job.deliveries if d.state is DeliveryState.DEAD]:
        yield Cause.DEAD, _dead(job, dead[-1])
    if job.deliveries:
        yield Cause.DELIVERED, f"Delivered to {_names(d.destination for d in job.deliveries)}."
    yield Cause.REMOVED, "Its result was recorded, and retention has removed the event since."


def _stopped(one: DestinationState) -> str:
    since, end = one.paused_at or one.disabled_at or 0, "resumes" if one.paused_at else "enables"
    return f"{one.name} is {one.status} since {iso(since)}: its deliveries wait until a person {end} it."


def _failing(job: Job, one: DestinationState) -> str:
    last = _last_answer(job, {d.id for d in job.deliveries if d.destination == one.name})
    said = f" The last attempt: {last}." if last else ""
    since, probe = iso(one.failing_since or 0), iso(one.held_until)
    return f"{one.name} has been failing since {since}: its deliveries are held, and the next probe is due at {probe}.{said}"


def _last_answer(job: Job, deliveries: set[str]) -> str:
    """Return what the last attempt of these deliveries came to; empty where none was made."""
    last = next((a for a in reversed(job.attempts) if a.delivery_id in deliveries), None)
    return "" if last is None else last.detail or f"{last.outcome} {last.status or ''}".rstrip()


def _retrying(job: Job, one: Delivery) -> str:
    number = one.attempts - one.round_start + 1
    of = f" of {job.allowed[one.destination]}" if one.destination in job.allowed else ""
    said = _last_answer(job, {one.id}) or one.last_outcome
    return (
        f"{one.destination} did not take it ({said}): attempt {number}{of} is due at {iso(one.due_at or 0)}."
    )


def _sending(waiting: Sequence[Delivery]) -> str:
    held = [d for d in waiting if d.held_by in _WAITS]
    if len(held) < len(waiting):
        return f"Recorded, and about to be sent to {_names(d.destination for d in waiting)}."
    return f"Recorded. {_WAITS[held[0].held_by].format(name=held[0].destination)}"


_WAITS: Mapping[HeldBy | None, str] = {
    HeldBy.RETRY_AFTER: "{name} asked receiver to wait; then it is sent.",
    HeldBy.ORDER: "{name} gets events in order: this one waits until an earlier one of its job, or with its ref, has ended.",
    HeldBy.RATE: "It waits until the rate of {name} lets it go.",
}


def _dead(job: Job, one: Delivery) -> str:
    said = _last_answer(job, {one.id}) or one.last_outcome
    return (
        f"{one.destination} was given up after {_times(one.attempts, 'attempt', 'attempts')}; the last: {said}. "
        f"`receiver replay {one.id}` sends it again."
    )


def _times(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


# ---------------------------------------------------------------- what happened when


def _steps(job: Job) -> Iterator[Step]:
    for made in job.submissions:
        yield Step(at=made.created_at, what="submitted", detail=_submission(made))
    for one in job.rejections:
        yield Step(at=one.at, what="rejected", detail=f"{one.status}, {one.kind}: {one.reason}")
    for callback in job.callbacks:
        if callback.proofs in ("", ASKED):
            continue  # an event about a destination, or the end of a pickup: nobody called
        yield from _arrived(callback, submitted=bool(job.submissions))
    for event in job.events:
        yield Step(at=event.recorded_at, what="recorded", detail=f"{event.type} as {event.id}")
    for pickup in job.pickups:
        yield Step(
            at=pickup.created_at, what="pickup", detail=f"{pickup.kind} of {pickup.source}: {pickup.id}"
        )
        if pickup.due_at is not None:
            yield Step(at=pickup.due_at, what="next", detail=f"{pickup.id} is due")
    for fetched in job.pickup_attempts:
        yield Step(
            at=fetched.started_at, what="fetched", detail=_attempt(fetched), outcome=fetched.outcome.value
        )
    yield from _sent(job)


def _submission(made: Submission) -> str:
    said = f", answered {made.status}" if made.status is not None else ""
    return f"{made.source}: {made.request} by {made.application}, {made.state}{said}: {made.id}"


def _sent(job: Job) -> Iterator[Step]:
    """Yield the attempts of deliveries, and the next of each."""
    several = len({delivery.event_id for delivery in job.deliveries}) > 1
    to = {d.id: f"{d.destination}, {d.event_type}" if several else d.destination for d in job.deliveries}
    name = {delivery.id: delivery.destination for delivery in job.deliveries}
    for attempt in job.attempts:
        yield Step(
            at=attempt.started_at,
            what="sent",
            detail=f"to {name[attempt.delivery_id]}: {_attempt(attempt)}",
            to=to[attempt.delivery_id],
            outcome=attempt.outcome.value,
            answer=attempt.response.decode("utf-8", "replace"),
        )
    for delivery in job.deliveries:
        if (
            delivery.due_at is not None and delivery.held_by is None
        ):  # else the sentence says what it waits for
            detail = f"attempt {delivery.attempts + 1} to {delivery.destination}"
            yield Step(at=delivery.due_at, what="next", detail=detail, to=to[delivery.id])


def _arrived(callback: Callback, *, submitted: bool) -> Iterator[Step]:
    """Yield a step for the issue of the callback's URL (not for a submission), and one for its arrival."""
    came, proofs = callback.arrival, callback.proofs.replace(",", ", ")
    if came is None:
        detail = f"{callback.method}, {callback.body_size} bytes, proved by {proofs}"
        yield Step(at=callback.received_at, what="callback", detail=f"{callback.source}: {detail}")
        return
    if not submitted and came.claims is not None and came.claims.issued_at is not None:
        yield Step(at=came.claims.issued_at, what="issued", detail=f"the callback URL of {callback.source}")
    proved = f"proved by {proofs}" + (f", secret {came.secret} of its setting" if came.secret else "")
    times = ((came.body_ms, "body"), (came.proved_ms, "proof"), (came.stored_ms, "storing"))
    took = "".join(f", {name} after {ms} ms" for ms, name in times if ms is not None)
    detail = f"{callback.source}: {callback.method}, {callback.body_size} bytes, {proved}{took}"
    yield Step(at=callback.received_at, what="callback", detail=detail)


def _attempt(one: Attempt | PickupAttempt) -> str:
    status = f" {one.status}" if one.status is not None else ""
    detail = f", {one.detail}" if one.detail else ""
    return f"attempt {one.number}: {one.outcome}{status} in {one.duration_ms} ms{detail}"
