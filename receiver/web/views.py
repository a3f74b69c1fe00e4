"""What the API, the command line and whoever shows things have in common: each thing as it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar, cast
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Raw, Struct

from receiver.core.bulk import BulkKind, BulkOperation, BulkState
from receiver.core.callback import Arrival
from receiver.core.destination import DestinationState, DestinationStatus
from receiver.core.event import Callback, Event, Rejection
from receiver.core.event_json import iso
from receiver.core.explain import Cause, Job, Step, explain
from receiver.core.routing import Decision
from receiver.core.submission import Submission, SubmissionState
from receiver.core.work import (
    Attempt,
    Delivery,
    DeliveryState,
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
    attempts: int
    """Attempts made, over all rounds."""
    round_start: int
    """Attempts made before the last replay."""
    due_at: Time | None
    created_at: Time
    updated_at: Time
    last_outcome: str | None


class AttemptShown(Struct, frozen=True, kw_only=True):
    """One try of a delivery."""

    number: int
    started_at: Time
    duration_ms: int
    outcome: OutcomeKind
    status: int | None
    detail: str
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


class ProofJudged(Struct, frozen=True, kw_only=True):
    """What one proof says of a request."""

    proof: str
    holds: bool
    reason: str
    """Why it does not hold; empty where it does."""
    signed: str | None
    """The beginning of the message that was signed, secrets removed; null where the proof signs none."""


class RejectionJudged(Struct, frozen=True, kw_only=True):
    """What today's settings say of a request that was refused, as of the time when it came. Nothing was recorded."""

    verdict: str
    """`accepted`, `parked`, `ignored`, `handshake` or `refused`."""
    reason: str
    proofs: list[ProofJudged]
    """Of sources without code, each proof; of others none, as the reason says it."""


class RejectionAccepted(Struct, frozen=True, kw_only=True):
    """A callback that an operator accepted."""

    status: str
    """`recorded`, `late`, or `duplicate` of what was recorded before."""
    event_id: str
    """The event; that of the first where it is a duplicate."""
    pickup_id: str | None
    """The pickup that brings the event's result home; null where nothing is fetched."""


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


class PickupAttemptShown(Struct, frozen=True, kw_only=True):
    """One try of a pickup."""

    number: int
    started_at: Time
    duration_ms: int
    outcome: OutcomeKind
    status: int | None
    detail: str


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


class DecisionShown(Struct, frozen=True, kw_only=True):
    """Whether an event goes to a destination, as it was decided when the event was recorded."""

    destination: str
    sent: bool
    rule: str
    """The rule that said so."""


class EventWhole(EventShown, frozen=True, kw_only=True):
    """An event with all that belongs to it."""

    callback: CallbackShown | None
    """Null once retention has removed it."""
    pickup: PickupShown | None
    """The pickup that it ended, if there was one."""
    deliveries: list[DeliveryWhole]
    routing: list[DecisionShown]
    """Empty for progress that came after its job's end, and for events about sources and destinations."""


class AudioLink(Struct, frozen=True, kw_only=True):
    """A fresh link to what an event has stored."""

    url: str
    url_expires_at: Time
    content_type: str


class SourceShown(Struct, frozen=True, kw_only=True):
    """A source of the settings."""

    name: str
    provider: str
    calls_back: bool
    polled: bool
    pickups_due: int
    oldest_pickup_due_at: Time | None


class DestinationShown(Struct, frozen=True, kw_only=True):
    """A destination of the settings."""

    name: str
    kind: str
    sources: list[str]
    events: list[str]
    due: int
    """Deliveries that are due."""
    oldest_due_at: Time | None
    dead: int
    health: DestinationHealth


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


class Replayed(Struct, frozen=True, kw_only=True):
    """What a replay did, would do, or began to do."""

    found: int
    """Deliveries that fit and have ended, and those that are to be made."""
    replayed: int = 0
    """Done by now; an operation tells itself how far it has come."""
    added: int = 0
    left_alone: int
    """Deliveries that fit and are under way."""
    dry_run: bool
    operation: OperationShown | None = None
    """What replays by filter; null for ids, and where nothing fits."""


class Renormalized(Struct, frozen=True, kw_only=True):
    """What came of reading a callback again."""

    replaces: str
    """The event that was made of it before; it stays."""
    event_id: str | None
    """The event that says what was read now, or will once its result is fetched; null where it is the same, or still not understood."""


class ErasureShown(Struct, frozen=True, kw_only=True):
    """What an erasure removed, or would remove."""

    events: int
    callbacks: int
    deliveries: int
    pickups: int
    blobs: int
    journal_entries: int
    """Of the machine that answered; the others drop theirs by themselves instead of recording them."""
    unreadable: list[str]
    """A sentence for each entry of that journal that may be the subject's, and cannot be read."""
    dry_run: bool


class ActShown(Struct, frozen=True, kw_only=True):
    """One request that changed something."""

    id: str
    at: Time
    token: str
    """The name of the token that it was asked with."""
    action: str
    subject: str
    """The path as it was called."""
    detail: str
    """JSON: what was asked for, without what may be secret or somebody's."""
    peer: str | None
    status: int | None
    """How it was answered; null while it is under way, or where the process ended meanwhile."""


class Stats(Struct, frozen=True, kw_only=True):
    """How much waits. The journal is that of the process that answers."""

    due_deliveries: dict[str, int]
    """By destination."""
    dead_deliveries: dict[str, int]
    due_pickups: dict[str, int]
    """By source."""
    journal: int
    oldest_journaled_seconds: float


class TallyShown(Struct, frozen=True, kw_only=True):
    """How often something came out so, over all processes."""

    at: Time
    """When the time that is counted began."""
    kind: str
    """`callbacks` of a source by their answer; `deliveries`, each attempt to a destination by its outcome."""
    name: str
    outcome: str
    count: int


class AckShown(Struct, frozen=True, kw_only=True):
    """How long callbacks of a source waited for a 200, over all processes."""

    at: Time
    source: str
    count: int
    p50_ms: int | None
    """Half of them waited so many milliseconds at most: the upper bound of a range."""
    p99_ms: int | None


class TalliesShown(Struct, frozen=True, kw_only=True):
    """What was counted."""

    items: list[TallyShown]
    ack: list[AckShown]


class ProcessShown(Struct, frozen=True, kw_only=True):
    """A process that takes callbacks or works."""

    id: str
    host: str
    version: str
    role: str
    """`serve`, `intake` or `work`."""
    started_at: Time
    seen_at: Time
    alive: bool
    """Whether it was seen in the last 30 seconds."""


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


class EventPage(Struct, frozen=True, kw_only=True):
    """Some events, in the order of recording."""

    items: list[EventShown]
    next: str | None
    """What to ask the next page with as `after`; null at the end."""
    cursor: str | None
    """Where to go on later, at the end too: `after` for what is recorded from now on."""


_SHOWN: Mapping[type[Struct], type[Struct]] = {
    Event: EventShown,
    Delivery: DeliveryShown,
    Decision: DecisionShown,
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
    claims = came.claims
    return CallbackShown(
        id=callback.id,
        received_at=iso(callback.received_at),
        method=callback.method,
        content_type=callback.content_type,
        body_size=callback.body_size,
        body_sha256=callback.body_sha256,
        proofs=callback.proofs,
        peer=came.peer,
        secret=came.secret or None,
        headers={name: value if name in SHOWN_HEADERS else None for name, value in came.headers},
        token_id=claims.token_id if claims else None,
        issued_at=time_of(claims.issued_at) if claims else None,
        body_ms=came.body_ms,
        proved_ms=came.proved_ms,
        stored_ms=came.stored_ms,
    )


def shown(thing: Struct, kind: type[S], **more: Sequence[Struct]) -> S:
    """Return one thing as it is shown, `more` with it: times as ISO 8601 in UTC."""
    own = {name: _field(thing, name) for name in kind.__struct_fields__ if name not in more}
    return kind(**own, **{name: each(things) for name, things in more.items()})


def each(things: Sequence[Struct]) -> list[Any]:
    """Return things as they are shown."""
    return [shown(thing, _SHOWN[type(thing)]) for thing in things]


def view(thing: Struct) -> dict[str, Any]:
    """Return one thing as the JSON document that shows it."""
    # By way of JSON: only that writes an event's `data`, which is JSON already.
    return cast("dict[str, Any]", msgspec.json.decode(msgspec.json.encode(shown(thing, _SHOWN[type(thing)]))))


def page(items: Sequence[Any], next: str | None = None) -> dict[str, Any]:
    """Return a list as the JSON document that shows it."""
    return {"items": items, "next": next}


def issued_url(made: IssuedUrl) -> CallbackUrl:
    """Return a callback URL as it is shown."""
    expected = made.expectation
    return CallbackUrl(
        url=made.url,
        source=made.source,
        token=made.token,
        ref=made.ref,
        webhook_secret=made.webhook_secret,
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
    return time_of(value) if name == "at" or name.endswith(("_at", "_since")) else value


def _selection(operation: BulkOperation) -> SelectionShown:
    chosen = operation.selection
    return SelectionShown(
        destination=chosen.destination,
        state=chosen.state,
        source=chosen.source,
        type=chosen.type,
        since=time_of(chosen.since),
        until=time_of(chosen.until),
    )


def _host(url: str | None) -> str | None:
    try:
        return urlsplit(url).hostname if url else None
    except ValueError:
        return None


_MADE: Mapping[str, Callable[[Any], Any]] = {
    "data": lambda event: Raw(event.data),
    "answer": lambda attempt: attempt.response.decode("utf-8", "replace"),
    "host": lambda pickup: _host(pickup.target),
    "selection": _selection,
    "held_until": lambda state: time_of(state.held_until or None),
}
"""The fields that no attribute holds."""
