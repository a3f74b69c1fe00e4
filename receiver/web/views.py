"""What is shown of the core's structs: one table, which the API's answers, their schemas and the commands' JSON are made by.

Whatever holds such a struct (a page, an event with its deliveries) is shown the same way. A whole number whose name says that
it is a time is shown as ISO 8601 in UTC.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, reduce
from operator import attrgetter, or_
from types import UnionType
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta, Raw, Struct
from msgspec.structs import asdict, fields

from receiver.core.audit import Act
from receiver.core.callback import Arrival, TokenClaims
from receiver.core.clock import iso
from receiver.core.destinations import DestinationState, DestinationStatus
from receiver.core.event import Callback, Event, Rejection
from receiver.core.event_json import Time
from receiver.core.explain import Step
from receiver.core.submission import Submission
from receiver.core.work import Attempt, BulkOperation, Delivery, Pickup, PickupAttempt, Selection

T = TypeVar("T")
S = TypeVar("S", bound=Struct)
Data = Annotated[Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/EventData"})]
"""An event's `data`, as docs/events.md describes it."""
Made = tuple[Any, Callable[[Any], Any]]
"""The type of a field that no attribute holds, and what makes it of the whole."""


class View(NamedTuple):
    """How structs of one kind are shown."""

    name: str
    """Of the schema."""
    does: str
    """Its description."""
    fields: str
    """What is shown, in this order."""
    made: Mapping[str, Made] = {}


SHOWN_HEADERS = frozenset(
    (
        *("accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type"),
        *("date", "expect", "host", "traceparent", "transfer-encoding", "user-agent", "x-request-id"),
    )
)
"""Headers whose values are shown: no provider puts a secret there."""


_NO_CLAIMS = TokenClaims(source="", token_id="")


def _came(callback: Callback) -> Arrival:
    return callback.arrival or Arrival()


def _claims(callback: Callback) -> TokenClaims:
    return _came(callback).claims or _NO_CLAIMS


def _headers(callback: Callback) -> dict[str, str | None]:
    return {name: value if name in SHOWN_HEADERS else None for name, value in _came(callback).headers}


_ATTEMPT = "number started_at duration_ms outcome status detail"
_VIEWS: Mapping[type[Struct], View] = {
    Event: View(
        "EventShown",
        "One event. Links in its data are made at each attempt, so here they are null.",
        "id type source provider job_id ref occurred_at recorded_at data",
        {"data": (Data, lambda event: Raw(event.data))},
    ),
    Callback: View(
        "CallbackShown",
        "The proved callback that an event came from; for a result that was fetched, how it was.",
        "id received_at method content_type body_size body_sha256 proofs peer secret headers token_id issued_at body_ms "
        "proved_ms stored_ms",
        {
            "peer": (str | None, lambda callback: _came(callback).peer),
            "secret": (int | None, lambda callback: _came(callback).secret or None),
            "headers": (dict[str, str | None], _headers),
            "token_id": (str | None, lambda callback: _claims(callback).token_id or None),
            "issued_at": (Time | None, lambda callback: time_of(_claims(callback).issued_at)),
            "body_ms": (int | None, lambda callback: _came(callback).body_ms),
            "proved_ms": (int | None, lambda callback: _came(callback).proved_ms),
            "stored_ms": (int | None, lambda callback: _came(callback).stored_ms),
        },
    ),
    Delivery: View(
        "DeliveryShown",
        "One event owed to one destination.",
        "id state destination event_id event_type job_id ref held_by attempts round_start due_at created_at updated_at "
        "last_outcome",
    ),
    PickupAttempt: View("PickupAttemptShown", "One try of a pickup.", _ATTEMPT),
    Attempt: View(
        "AttemptShown",
        "One try of a delivery.",
        f"{_ATTEMPT} answer",
        {"answer": (str, lambda attempt: attempt.response.decode("utf-8", "replace"))},
    ),
    DestinationState: View(
        "DestinationHealth",
        "What becomes of one destination's deliveries.",
        "name status paused_at disabled_at failures failing_since probes held_until",
        {
            "status": (DestinationStatus, lambda state: state.status),
            "held_until": (Time | None, lambda state: time_of(state.held_until or None)),
        },
    ),
    Rejection: View(
        "RejectionShown",
        "A callback that was not proved.",
        "id at source status kind reason method peer content_type user_agent token_id ref setting headers request_kept",
    ),
    Pickup: View(
        "PickupShown",
        "A result that is being fetched, or was; or a callback that is expected.",
        "id state source kind job_id ref event_id host format attempts failures due_at deadline_at created_at updated_at "
        "last_outcome last_detail",
        {"host": (str | None, lambda pickup: pickup.host)},
    ),
    Submission: View(
        "SubmissionShown",
        "A job that an application submitted through receiver.",
        "id state application source request status job_id ref created_at updated_at",
    ),
    Selection: View(
        "SelectionShown", "What an operation is about.", "destination state source type since until"
    ),
    BulkOperation: View(
        "OperationShown",
        "Something that is done to many rows, by whichever process works, and goes on after a restart.",
        "id kind state selection rate total done changed requested_by created_at updated_at",
    ),
    Step: View("StepShown", "One thing that happened to a job.", "at what detail"),
    Act: View(
        "ActShown", "One request that changed something.", "id at token action subject detail peer status"
    ),
}


class Page(Struct, Generic[T], frozen=True, kw_only=True):
    """Some of a list."""

    items: Sequence[T]
    next: str | None
    """What to ask the next page with as `after`; null at the end."""


def whole(kind: type[S], part: Struct, **more: Any) -> S:
    """Return a struct that has the fields of `part`, whose kind it extends, and `more`."""
    return kind(**asdict(part), **more)


# ---------------------------------------------------------------- what is made of the table


@cache
def shown_as(kind: Any) -> Any:
    """Return the type that shows values of `kind`: schemas are made of it."""
    origin, args = get_origin(kind), get_args(kind)
    if args and origin not in (Annotated, Literal):
        shown = tuple(map(shown_as, args))
        return reduce(or_, shown) if origin in (Union, UnionType) else origin[shown]
    return _read(kind)[0] if isinstance(kind, type) and issubclass(kind, Struct) else kind


@cache
def _read(kind: type[Struct]) -> tuple[Any, Mapping[str, Callable[[Any], Any]]]:
    """Return the struct that shows a struct, and what reads each of its fields."""
    of: Any = next((base for base in kind.__mro__ if base in _VIEWS), None)
    view = _VIEWS[of] if of else View(kind.__name__, kind.__doc__ or "", "")
    own = {field.name: field for field in fields(kind)}
    names = [*view.fields.split(), *(name for name in own if not of or name not in of.__struct_fields__)]
    types: list[Any] = []
    reads: dict[str, Callable[[Any], Any]] = {}
    for name in names:
        made, reads[name] = view.made.get(name) or _as_it_is(name, own[name].type)
        default = NODEFAULT if of else own[name].default
        types.append((name, made) if default is NODEFAULT else (name, made, default))
    if not of and all(one[1] is own[one[0]].type for one in types):
        return kind, {}
    head = (view.name, view.does) if kind is of else (kind.__name__, kind.__doc__)
    return msgspec.defstruct(head[0], types, namespace={"__doc__": head[1]}, frozen=True, kw_only=True), reads


_TIME = re.compile(r"(.+_)?(at|since|until)")


def _as_it_is(name: str, kind: Any) -> Made:
    if kind in (int, int | None) and _TIME.fullmatch(name):
        return Time if kind is int else Time | None, lambda thing: time_of(getattr(thing, name))
    if (as_shown := shown_as(kind)) == kind:
        return kind, attrgetter(name)
    return as_shown, lambda thing: shown(getattr(thing, name))


def shown(value: Any) -> Any:
    """Return a value as it is shown."""
    if isinstance(value, Page):
        return Page(items=shown(value.items), next=value.next)
    if isinstance(value, list | tuple):
        return [shown(one) for one in value]
    if not isinstance(value, Struct):
        return value
    kind, reads = _read(type(value))
    return kind(**{name: read(value) for name, read in reads.items()}) if reads else value


def view(thing: Struct) -> dict[str, Any]:
    """Return one thing as the JSON document that shows it."""
    # By way of JSON: only that writes an event's `data`, which is JSON already.
    return cast("dict[str, Any]", msgspec.json.decode(msgspec.json.encode(shown(thing))))


def page(items: Sequence[Any], next: str | None = None) -> dict[str, Any]:
    """Return a list as the JSON document that shows it."""
    return {"items": items, "next": next}


def time_of(millis: int | None) -> str | None:
    """Return epoch milliseconds as ISO 8601 in UTC."""
    return None if millis is None else iso(millis)
