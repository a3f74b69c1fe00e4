"""Views of events, deliveries and other records, as the API, the command line and the console show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar, cast
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Raw, Struct

from receiver.core.bulk import BulkKind, BulkOperation, BulkState
from receiver.core.callback import Arrival
from receiver.core.clock import iso
from receiver.core.destination_health import DestinationState, DestinationStatus
from receiver.core.event import Callback, Event, Rejection
from receiver.core.explain import Cause, Job, Step, explain
from receiver.core.submission import Submission, SubmissionState
from receiver.core.work import (
    Attempt,
    Delivery,
    DeliveryState,
    HeldBy,
    OutcomeKind,
    Pickup,
    PickupAttempt,
    PickupKind,
    PickupState,
)

if TYPE_CHECKING:
    from receiver.engine.requests import IssuedUrl

T = TypeVar("T")
S = TypeVar("S", bound=Struct)
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""ISO 8601 in UTC."""
Data = Annotated[Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/EventData"})]
"""An event's `data`, as docs/events.md describes it."""


class EventShown(Struct, frozen=True, kw_only=True):
    """One event. Links in its data are made at each attempt, so here they are null."""

    id: str
    type: str
    source: str
    provider: str
    job_id: str | None
    ref: str | None
    occurred_at: Time
    recorded_at: Time
    data: Data


class DeliveryShown(Struct, frozen=True, kw_only=True):
    """One event owed to one destination."""

    id: str
    state: DeliveryState
    destination: str
    event_id: str
    event_type: str
    job_id: str | None
    ref: str | None
    held_by: HeldBy | None
    """What keeps a pending delivery back; null where it is about to be sent, or waits for its own next attempt."""
    attempts: int
    """Attempts made, over all rounds."""
    round_start: int
    """Attempts made before the last replay."""
    due_at: Time | None
    created_at: Time
    updated_at: Time
    last_outcome: str | None


class PickupAttemptShown(Struct, frozen=True, kw_only=True):
    """One try of a pickup."""

    number: int
    started_at: Time
    duration_ms: int
    outcome: OutcomeKind
    status: int | None
    detail: str


class AttemptShown(PickupAttemptShown, frozen=True, kw_only=True):
    """One try of a delivery."""

    answer: str
    """The first 16 KiB of what the destination answered, as text."""


class DeliveryWhole(DeliveryShown, frozen=True, kw_only=True):
    """A delivery with its attempts."""

    attempts_made: list[AttemptShown]


class CallbackShown(Struct, frozen=True, kw_only=True):
    """The proved callback that an event came from; for a result that was fetched, how it was."""

    id: str
    received_at: Time
    method: str
    content_type: str
    body_size: int
    body_sha256: str
    proofs: str
    """Names of the proofs that held, with commas; `asked` for what receiver fetched itself."""
    peer: str | None
    secret: int | None
    """The place of the source's secret that proved it, counted from 1 in its setting; null where none of these did."""
    headers: dict[str, str | None]
    """Values of well-known headers; null where a value is not shown."""
    token_id: str | None
    """Of the URL that receiver issued."""
    issued_at: Time | None
    """When that URL was made."""
    body_ms: int | None
    """Milliseconds from the head to the end of the body; null where it came by way of the journal, or was fetched."""
    proved_ms: int | None
    """The same to the proof."""
    stored_ms: int | None
    """The same until all that belongs to the event was stored; what follows is the commit alone."""


class DestinationHealth(Struct, frozen=True, kw_only=True):
    """What becomes of one destination's deliveries."""

    name: str
    status: DestinationStatus
    paused_at: Time | None
    disabled_at: Time | None
    failures: int
    """Failed attempts in a row, over all processes."""
    failing_since: Time | None
    probes: int
    """Probes that failed since the breaker opened."""
    held_until: Time | None
    """Nothing is sent before: the next probe, or what `Retry-After` asked for."""


class RejectionShown(Struct, frozen=True, kw_only=True):
    """A callback that was not proved."""

    id: str
    at: Time
    source: str
    status: int
    kind: str
    reason: str
    method: str
    peer: str | None
    content_type: str
    user_agent: str
    token_id: str | None
    """Of the URL that receiver issued; null for what may be anybody's."""
    ref: str | None
    setting: str
    """The setting that the failing check went by."""
    headers: list[str]
    """Names of the request's headers, in lower case, at most 64; names that may be a token are left out."""
    request_kept: bool
    """Its request is kept for a day, so that it can be verified again, or accepted once."""


class PickupShown(Struct, frozen=True, kw_only=True):
    """A result that is being fetched, or was; or a callback that is expected."""

    id: str
    state: PickupState
    source: str
    kind: PickupKind
    job_id: str | None
    ref: str | None
    event_id: str
    """The event that ends it, known from the first moment."""
    host: str | None
    """Of the URL that it begins with, the host only: the rest may be signed."""
    format: dict[str, Any]
    attempts: int
    failures: int
    due_at: Time | None
    deadline_at: Time
    created_at: Time
    updated_at: Time
    last_outcome: str | None
    last_detail: str | None


class SubmissionShown(Struct, frozen=True, kw_only=True):
    """A job that an application submitted through receiver."""

    id: str
    state: SubmissionState
    application: str
    source: str
    request: str
    """Method and path, as receiver knows the provider's API."""
    status: int | None
    """The provider's answer; 424 where it is not known."""
    job_id: str | None
    ref: str | None
    created_at: Time
    updated_at: Time


class PickupWhole(PickupShown, frozen=True, kw_only=True):
    """A pickup with its attempts."""

    attempts_made: list[PickupAttemptShown]


class SelectionShown(Struct, frozen=True, kw_only=True):
    """What an operation is about."""

    destination: str | None
    state: DeliveryState | None
    source: str | None
    type: str | None
    since: Time | None
    until: Time | None


class OperationShown(Struct, frozen=True, kw_only=True):
    """Something that is done to many rows, by whichever process works, and goes on after a restart."""

    id: str
    kind: BulkKind
    state: BulkState
    selection: SelectionShown
    rate: int | None
    """Rows in a second, at most."""
    total: int
    """Rows that fitted when they were counted; 100,000 stands for that many or more."""
    done: int
    """Rows that were gone through."""
    changed: int
    """Rows of these that were changed; the others had changed meanwhile by themselves."""
    requested_by: str
    """The name of the token that it was asked with, or `command line`."""
    created_at: Time
    """When it was counted: what came, or ended, later is not touched."""
    updated_at: Time


class StepShown(Struct, frozen=True, kw_only=True):
    """One thing that happened to a job."""

    at: Time
    what: str
    detail: str


class JobShown(Struct, frozen=True, kw_only=True):
    """What became of a job."""

    name: str
    cause: Cause
    sentence: str
    steps: list[StepShown]
    """Oldest first; what is still to come at the end."""
    events: list[str]
    """The ids of its events, oldest first."""
    pickups: list[str]


class CallbackUrl(Struct, frozen=True, kw_only=True):
    """A callback URL and what goes with it. It holds secrets: only who asked for it may see it."""

    url: str
    source: str
    token: str | None
    ref: str | None
    webhook_secret: str | None
    expect_by: Time | None
    pickup_id: str | None


class Page(Struct, Generic[T], frozen=True, kw_only=True):
    """Some of a list."""

    items: list[T]
    next: str | None
    """What to ask the next page with as `after`; null at the end."""


_SHOWN: Mapping[type[Struct], type[Struct]] = {
    Event: EventShown,
    Delivery: DeliveryShown,
    Attempt: AttemptShown,
    DestinationState: DestinationHealth,
    Rejection: RejectionShown,
    Step: StepShown,
    BulkOperation: OperationShown,
    Pickup: PickupShown,
    Submission: SubmissionShown,
    PickupAttempt: PickupAttemptShown,
}


SHOWN_HEADERS = frozenset(
    (
        *("accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type"),
        *("date", "expect", "host", "traceparent", "transfer-encoding", "user-agent", "x-request-id"),
    )
)
"""Headers whose values are shown: no provider puts a secret there."""


def callback_shown(callback: Callback) -> CallbackShown:
    """Return a callback as it is shown."""
    came = callback.arrival or Arrival()
    return shown(
        callback,
        CallbackShown,
        peer=came.peer,
        secret=came.secret or None,
        headers={name: value if name in SHOWN_HEADERS else None for name, value in came.headers},
        token_id=came.claims.token_id if came.claims else None,
        issued_at=time_of(came.claims.issued_at) if came.claims else None,
        body_ms=came.body_ms,
        proved_ms=came.proved_ms,
        stored_ms=came.stored_ms,
    )


def shown(thing: Any, kind: type[S], /, **more: Any) -> S:
    """Return one thing as it is shown, `more` with it: times as ISO 8601 in UTC."""
    return kind(**{name: _field(thing, name) for name in kind.__struct_fields__ if name not in more}, **more)


def each(things: Sequence[Struct]) -> list[Any]:
    """Return things as they are shown."""
    return [shown(thing, _SHOWN[type(thing)]) for thing in things]


def view(thing: Struct) -> dict[str, Any]:
    """Return one thing, or what shows it, as the JSON document that shows it."""
    kind = _SHOWN.get(type(thing))
    # By way of JSON: only that writes an event's `data`, which is JSON already.
    document = msgspec.json.encode(shown(thing, kind) if kind else thing)
    return cast("dict[str, Any]", msgspec.json.decode(document))


def page(items: Sequence[Any], next: str | None = None) -> dict[str, Any]:
    """Return a list as the JSON document that shows it."""
    return {"items": items, "next": next}


def issued_url(made: IssuedUrl) -> CallbackUrl:
    """Return a callback URL as it is shown."""
    expected = made.expectation
    return shown(
        made,
        CallbackUrl,
        expect_by=time_of(expected.due_at) if expected else None,
        pickup_id=expected.id if expected else None,
    )


def job_shown(job: Job) -> JobShown:
    """Return what became of a job as it is shown."""
    explained = explain(job)
    return JobShown(
        name=job.name,
        cause=explained.cause,
        sentence=explained.sentence,
        steps=each(explained.steps),
        events=[event.id for event in job.events],
        pickups=[pickup.id for pickup in job.pickups],
    )


def time_of(millis: int | None) -> str | None:
    """Return epoch milliseconds as ISO 8601 in UTC."""
    return None if millis is None else iso(millis)


def _field(thing: Any, name: str) -> Any:
    if name in _MADE:
        return _MADE[name](thing)
    value = getattr(thing, name)
    return time_of(value) if name in _TIMES or name.endswith(("_at", "_since")) else value


def _host(url: str | None) -> str | None:
    try:
        return urlsplit(url).hostname if url else None
    except ValueError:
        return None


_TIMES = ("at", "since", "until")
_MADE: Mapping[str, Callable[[Any], Any]] = {
    "data": lambda event: Raw(event.data),
    "answer": lambda attempt: attempt.response.decode("utf-8", "replace"),
    "host": lambda pickup: _host(pickup.target),
    "selection": lambda operation: shown(operation.selection, SelectionShown),
    "held_until": lambda state: time_of(state.held_until or None),
}
"""The fields that no attribute holds."""
