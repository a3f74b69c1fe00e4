"""Explains a job's state: one cause from a closed list, one sentence, and a timeline. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum

import msgspec
from msgspec import Struct

from receiver.core.clock import iso
from receiver.core.destinations import DestinationState, DestinationStatus
from receiver.core.event import Callback, Event, Rejection, Stage
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
    """Return the explanation of a job. Its cause is the first whose function returns a sentence."""
    sentences = ((cause, sentence(job)) for cause, sentence in _SENTENCES.items())
    cause, sentence = next((cause, text) for cause, text in sentences if text is not None)
    done = {d.destination for d in job.deliveries if d.state is DeliveryState.DELIVERED}
    if cause in _UNDELIVERED and done:
        sentence = f"Delivered to {_names(done)}. {sentence}"
    return Explanation(cause=cause, sentence=sentence, steps=tuple(sorted(_steps(job), key=lambda s: s.at)))


# ---------------------------------------------------------------- the causes


def _is_bare(job: Job) -> bool:
    """Tell whether the job has no event, and no result to fetch."""
    return not job.events and all(
        p.kind is PickupKind.EXPECTED and p.state is not PickupState.COLLECTED for p in job.pickups
    )


def _erased(job: Job) -> str | None:
    if job.erased_at is None or job.events or job.pickups or job.journaled:
        return None
    return f"Erased at {iso(job.erased_at)} by request."


def _rejected(job: Job) -> str | None:
    if not job.rejections or job.finals or not _is_bare(job) or job.journaled:
        return None
    last = max(job.rejections, key=lambda one: one.at)
    return f"No event yet: {_times(len(job.rejections), 'callback was', 'callbacks were')} refused, the last at {iso(last.at)}: {last.reason}"


def _journaled(job: Job) -> str | None:
    if not job.journaled:
        return None
    return (
        "Proved and safe in the journal of this machine: it is recorded as soon as store and blobs are back."
    )


def _submitted(job: Job) -> str | None:
    if not job.submissions or job.events or job.pickups:
        return None
    return f"Submitted, and no callback is here: {_submission(job.submissions[-1])}."


def _unknown(job: Job) -> str | None:
    if job.events or job.pickups:
        return None
    return f"Nothing is known here of {job.name}: no ref, job id or event has this name. A callback may wait in a journal: ask `receiver journal list` on each machine."


def _parked(job: Job) -> str | None:
    parked = [e for e in job.events if e.type == PARKED]
    if not parked or job.finals:
        return None
    one = parked[-1]
    reason = msgspec.json.decode(one.data)["error"]["message"]
    return (
        f"Arrived and was proved, but not understood: {reason}. `receiver events {one.id} --body` shows it, "
        f"and `receiver renormalize {one.id}` reads it again by today's code and settings."
    )


def _pickup_waiting(job: Job) -> str | None:
    waiting = [p for p in job.pickups if p.kind is PickupKind.RESULT and p.due_at is not None]
    if not waiting:
        return None
    one = waiting[-1]
    said = f" The last: {one.last_detail or one.last_outcome}." if one.last_outcome else ""
    return (
        f"The result is being fetched from {one.source}: {_times(one.attempts, 'attempt', 'attempts')} so far.{said} "
        f"The next is due at {iso(one.due_at or 0)}, and it is given up at {iso(one.deadline_at)}."
    )


def _pickup_gone(job: Job) -> str | None:
    gone = [p for p in job.pickups if p.kind is PickupKind.RESULT and p.state is PickupState.GONE]
    if not gone or any(e.type.endswith(".completed") for e in job.finals):
        return None
    return f"The result could not be fetched: {gone[-1].last_detail or gone[-1].last_outcome or 'there is none'}."


def _expected(job: Job) -> str | None:
    waiting = [p for p in job.pickups if p.kind is PickupKind.EXPECTED and p.due_at is not None]
    if not waiting or job.finals:
        return None
    one = waiting[-1]
    return f"Waiting for the callback of {one.source}, which is overdue after {iso(one.deadline_at)}."


def _overdue(job: Job) -> str | None:
    gone = [p for p in job.pickups if p.kind is PickupKind.EXPECTED and p.state is PickupState.GONE]
    if job.finals or not (gone or any(e.type == OVERDUE for e in job.events)):
        return None
    return "Nothing arrived in the time in which the callback was expected, not even a refused one."


def _no_route(job: Job) -> str | None:
    sent = {d.event_id for d in job.deliveries}
    unsent = [e for e in job.finals if e.id not in sent] or ([] if sent else list(job.events))
    if not unsent:
        return None
    one = unsent[-1]
    return f"Recorded, but not sent: no destination took {one.type} of {one.source} ({one.id}). `receiver route {one.id}` says why."


def _paused(job: Job) -> str | None:
    stopped = [one for one in _waited_for(job) if one.stopped]
    if not stopped:
        return None
    one = stopped[0]
    since, end = one.paused_at or one.disabled_at or 0, "resumes" if one.paused_at else "enables"
    return f"{one.name} is {one.status} since {iso(since)}: its deliveries wait until a person {end} it."


def _held(job: Job) -> str | None:
    failing = [one for one in _waited_for(job) if one.status is DestinationStatus.FAILING]
    if not failing:
        return None
    one = failing[0]
    last = _last_answer(job, {d.id for d in job.deliveries if d.destination == one.name})
    said = f" The last attempt: {last}." if last else ""
    return f"{one.name} has been failing since {iso(one.failing_since or 0)}: its deliveries are held, and the next probe is due at {iso(one.held_until)}.{said}"


def _waited_for(job: Job) -> list[DestinationState]:
    """Return the known states of destinations with a pending delivery."""
    names = {d.destination for d in job.deliveries if d.due_at is not None}
    return [job.destinations[name] for name in sorted(names & set(job.destinations))]


def _last_answer(job: Job, deliveries: set[str]) -> str:
    """Return what the last attempt of these deliveries came to; empty where none was made."""
    last = next((a for a in reversed(job.attempts) if a.delivery_id in deliveries), None)
    return "" if last is None else last.detail or f"{last.outcome} {last.status or ''}".rstrip()


def _retrying(job: Job) -> str | None:
    trying = [d for d in job.deliveries if d.due_at is not None and d.attempts > d.round_start]
    if not trying:
        return None
    one = max(trying, key=lambda d: d.attempts)
    made = one.attempts - one.round_start
    of = f" of {job.allowed[one.destination]}" if one.destination in job.allowed else ""
    return f"{one.destination} did not take it ({one.last_outcome}): attempt {made + 1}{of} is due at {iso(one.due_at or 0)}."


def _sending(job: Job) -> str | None:
    waiting = [d for d in job.deliveries if d.due_at is not None]
    if not waiting:
        return None
    held = [d for d in waiting if d.held_by in _WAITS]
    if len(held) < len(waiting):
        return f"Recorded, and about to be sent to {_names(d.destination for d in waiting)}."
    one = held[0]
    return f"Recorded. {_WAITS[one.held_by].format(name=one.destination)}"


_WAITS: Mapping[HeldBy | None, str] = {
    HeldBy.RETRY_AFTER: "{name} asked receiver to wait; then it is sent.",
    HeldBy.ORDER: "{name} gets events in order: this one waits until an earlier one of its job, or with its ref, has ended.",
    HeldBy.RATE: "It waits until the rate of {name} lets it go.",
}


def _dead(job: Job) -> str | None:
    dead = [d for d in job.deliveries if d.state is DeliveryState.DEAD]
    if not dead:
        return None
    one = dead[-1]
    said = _last_answer(job, {one.id}) or one.last_outcome
    return (
        f"{one.destination} was given up after {_times(one.attempts, 'attempt', 'attempts')}; the last: {said}. "
        f"`receiver replay {one.id}` sends it again."
    )


def _delivered(job: Job) -> str | None:
    if not job.deliveries:
        return None
    return f"Delivered to {_names(d.destination for d in job.deliveries)}."


def _removed(job: Job) -> str | None:
    return "Its result was recorded, and retention has removed the event since."


_SENTENCES: Mapping[Cause, Callable[[Job], str | None]] = {
    Cause.ERASED: _erased,
    Cause.REJECTED: _rejected,
    Cause.JOURNALED: _journaled,
    Cause.SUBMITTED: _submitted,
    Cause.UNKNOWN: _unknown,
    Cause.PARKED: _parked,
    Cause.PICKUP_WAITING: _pickup_waiting,
    Cause.PICKUP_GONE: _pickup_gone,
    Cause.EXPECTED: _expected,
    Cause.OVERDUE: _overdue,
    Cause.NO_ROUTE: _no_route,
    Cause.PAUSED: _paused,
    Cause.HELD: _held,
    Cause.RETRYING: _retrying,
    Cause.SENDING: _sending,
    Cause.DEAD: _dead,
    Cause.DELIVERED: _delivered,
    Cause.REMOVED: _removed,
}

_UNDELIVERED = (Cause.PAUSED, Cause.HELD, Cause.RETRYING, Cause.SENDING, Cause.DEAD)


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
        if not callback.proofs:  # of an event about a destination: nothing arrived
            continue
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
