"""Pickups in the store: created, rescheduled by callbacks, and settled together with their events."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import compress, islice
from typing import Any

import msgspec
from msgspec.structs import astuple, replace

from receiver.core.event import (
    CallbackRow,
    Event,
    EventDraft,
    Recorded,
    Recording,
    RecordStatus,
    id_beside,
    moment,
)
from receiver.core.page import Page
from receiver.core.work import (
    ClaimedPickup,
    Deferral,
    Pickup,
    PickupAttempt,
    PickupFilter,
    PickupSettled,
    PickupSettlement,
    PickupState,
)
from receiver.storage.store.events import (
    callback_ids,
    first_event,
    record,
    resolve,
    unless_gone,
    write_callbacks,
    write_events,
)
from receiver.storage.store.listing import is_pattern, named, newest_first, one, page
from receiver.storage.store.queue import ClaimRequest, Queue, partition
from receiver.storage.store.statements import Row, Session, Value, clean, value_of

# ---------------------------------------------------------------- made by callbacks and requests


def add(session: Session, pickups: Sequence[Pickup]) -> list[tuple[Pickup, bool]]:
    """Write pickups, unless one with its (source, key) exists and is not `gone`.

    Returns the new or the existing one, and whether it is new.
    """
    results: dict[int, tuple[Pickup, bool]] = {}
    for batch in partition(pickups, _identity):
        new = _write(session, batch.values())
        for number, pickup in batch.items():
            is_new = pickup.id in new
            results[number] = (pickup if is_new else _existing(session, pickup), is_new)
    return [results[number] for number in range(len(pickups))]


def _write(session: Session, pickups: Collection[Pickup]) -> set[str]:
    """Write pickups; return the ids of those whose key no other pickup has, except one that ended without a result."""
    rows = [_row(pickup) for pickup in pickups]
    return {row[0] for row in session.run_rows("insert_pickups", rows)}


def _existing(session: Session, pickup: Pickup) -> Pickup:
    conditions = "source = :source AND key = :key AND state <> 'gone'"
    params: dict[str, Value] = {"source": pickup.source, "key": pickup.key, "limit": 1}
    return _pickup_of(session.run("list_pickups", params, conditions)[0])


def _identity(pickup: Pickup) -> tuple[str, str]:
    return pickup.source, clean(pickup.key)


def defer(session: Session, deferrals: Sequence[Deferral]) -> list[Recorded]:
    """Write callbacks whose results are still at the provider, and the pickups for these results, all or none.

    A known callback is a `DUPLICATE` and writes nothing. If a pickup with this key exists and is not `gone`, no other is
    created: the callback gets that pickup's event. Unless it is `collected`, the pickup takes over the callback's target
    and draft, a missing job id and a later deadline, and becomes `pending`, due at once; the claim of a running attempt
    ends, since that attempt knows none of these.

    `answered`, and a draft that replaces an event, work as in `record`.
    """
    drafts = [one.pickup.draft for one in deferrals]
    return unless_gone(session, [draft.replaces if draft else None for draft in drafts], deferrals, _deferred)


def _deferred(session: Session, deferrals: Sequence[Deferral]) -> list[Recorded]:
    by_number: dict[int, Recorded] = {}
    for batch in partition(deferrals, lambda deferral: _identity(deferral.pickup)):
        by_number |= _defer(session, batch)
    results = [by_number[number] for number in range(len(deferrals))]
    answers = [
        (deferral.callback.source, deferral.answered, result.event_id, deferral.pickup.created_at)
        for deferral, result in zip(deferrals, results, strict=True)
        if deferral.answered
    ]
    resolve(session, answers)
    return results


def _defer(session: Session, batch: Mapping[int, Deferral]) -> dict[int, Recorded]:
    """Write deferrals of which no two have one pickup's key.

    Pickups come first, because only the database knows whether one exists; those of duplicates are taken back.
    """
    new = _write(session, [deferral.pickup for deferral in batch.values()])
    leads = _leads(session, batch, new)
    callbacks = {number: led_to(deferral.callback, leads[number][1]) for number, deferral in batch.items()}
    unknown = write_callbacks(session, [(callbacks[number], leads[number][1], b"") for number in batch])
    results: dict[int, Recorded] = {}
    unwanted: list[tuple[Value]] = []
    for number, deferral in batch.items():
        pickup_id, event_id = leads[number]
        if callbacks[number].id in unknown:
            if pickup_id not in new:
                _reschedule(session, pickup_id, deferral.pickup)
            results[number] = Recorded(status=RecordStatus.RECORDED, event_id=event_id, pickup_id=pickup_id)
            continue
        if pickup_id in new:
            unwanted.append((pickup_id,))
        first = first_event(session, deferral.callback)
        existing = pickup_id if pickup_id not in new and first == event_id else None
        results[number] = Recorded(status=RecordStatus.DUPLICATE, event_id=first, pickup_id=existing)
    session.run_rows("drop_pickups", unwanted)
    return results


def _leads(session: Session, batch: Mapping[int, Deferral], new: set[str]) -> dict[int, tuple[str, str]]:
    """Return for each deferral its pickup, new or existing, and that one's event."""
    keys = [_identity(deferral.pickup) for deferral in batch.values() if deferral.pickup.id not in new]
    existing = {(row[0], row[1]): (row[2], row[3]) for row in session.run_rows("existing_pickups", keys)}
    pickups = {number: deferral.pickup for number, deferral in batch.items()}
    return {
        number: (pickup.id, pickup.event_id) if pickup.id in new else existing[_identity(pickup)]
        for number, pickup in pickups.items()
    }


def led_to(callback: CallbackRow, event_id: str) -> CallbackRow:
    """Return the callback with an id of the event's millisecond, so that each can be found from the other."""
    if moment(callback.id) == moment(event_id):
        return callback
    return replace(callback, id=id_beside("cb", event_id))


def _reschedule(session: Session, pickup_id: str, update: Pickup) -> None:
    """Update an existing pickup with a callback's data, and make it due at once; a collected one stays as it is. Raises
    `LookupError` to have the transaction repeated.
    """
    params: dict[str, Value] = {
        "id": pickup_id,
        "target": update.target,
        "draft": _packed(update.draft),
        "job_id": update.job_id,
        "ref": update.ref,
        "format": _packed_format(update.format),
        "deadline_at": update.deadline_at,
        "now": update.created_at,
    }
    if session.run("reschedule_pickup", params):
        return
    existing = session.run_rows("existing_pickups", [_identity(update)])
    if not any(row[2] == pickup_id for row in existing):
        # Another process gave the pickup up a moment ago, without this callback: done again, the callback gets a new one.
        raise LookupError(pickup_id)


# ---------------------------------------------------------------- claimed and settled


class Pickups(Queue[ClaimedPickup, PickupSettlement]):
    """Pickups of results at sources."""

    table = "pickups"

    def claimed(self, row: Row, request: ClaimRequest) -> ClaimedPickup:
        """Return a pickup as it was."""
        return ClaimedPickup(
            pickup=_pickup_of(row), claimed_by=request.token, lease_until=request.lease_until
        )

    def also(self, settlement: PickupSettlement) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        """The row itself keeps failures in a row, and what was last said."""
        return (settlement.failures, settlement.outcome.detail), ()


PICKUPS = Pickups()


def settle(session: Session, settlements: Sequence[PickupSettlement]) -> list[PickupSettled]:
    """Write attempts, their consequences, their progress events and their recordings, each only while its claim is held.

    Progress is written as by `record`, and before the recording: a known callback is a `DUPLICATE`, progress after its
    job's end is `LATE`.

    The recording's event has the pickup's `event_id`. It is a `DUPLICATE`, and the pickup ends `collected` with the first
    event's id, when another event was recorded (or is awaited) under the callback's keys and is no `….failed` one; a
    failed one is no duplicate of a result. For a recording that is itself a `….failed` one, the pickup's key counts as
    well, and a failure recorded since the pickup was made is a duplicate: then the pickup ends `gone` with that one's id.
    The callback row is written unless one leads to this event.
    """
    held = PICKUPS.settle(session, settlements)
    applied = list(compress(settlements, held))
    progress = [recording for settlement in applied for recording in settlement.progress]
    recorded = iter(record(session, progress))
    results = (settlement.recording for settlement in applied)
    coming = {result.event.id for result in results if result is not None and not _is_failure(result.event)}
    return [
        PickupSettled(
            held=True,
            progress=tuple(islice(recorded, len(settlement.progress))),
            recorded=_end(session, settlement, coming),
        )
        if is_held
        else PickupSettled(held=False)
        for settlement, is_held in zip(settlements, held, strict=True)
    ]


def _end(session: Session, settlement: PickupSettlement, coming: Collection[str]) -> Recorded | None:
    """Write the recording of a settlement that was applied, unless another event says the same.

    `coming` are the events of results that this transaction writes.
    """
    recording, pickup = settlement.recording, settlement.claim.pickup
    if recording is None:
        return None
    event_id = recording.event.id
    other = _result_known(session, pickup, event_id, coming) if _is_failure(recording.event) else None
    other = other or _lead(session, pickup.id, recording, coming)
    if other:
        first, state = other
        session.run("supersede_pickup", {"id": pickup.id, "event_id": first, "state": state})
        return Recorded(status=RecordStatus.DUPLICATE, event_id=first)
    write_events(session, [recording])
    return Recorded(status=RecordStatus.RECORDED, event_id=event_id)


def _is_failure(event: Event) -> bool:
    return event.type.endswith(".failed")


def _result_known(
    session: Session, pickup: Pickup, event_id: str, coming: Collection[str]
) -> tuple[str, PickupState] | None:
    """Return another pickup's or callback's event with the same result. A failure has its own key, so the key alone does
    not find it.
    """
    keys = {"source": pickup.source, "idempotency_key": pickup.key, "second_key": pickup.key}
    rows = session.run("first_event", keys)
    if not rows or not _has_result(session, rows[0][0], event_id, coming):
        return None
    return rows[0][0], PickupState.COLLECTED


def _lead(
    session: Session, pickup_id: str, recording: Recording, coming: Collection[str]
) -> tuple[str, PickupState] | None:
    """Write a callback row that leads to the event, unless it is a duplicate: then return the first event and how the pickup ends.

    A pickup that met its own failure stays gone: a collected one would prevent a later success, and a later request.
    """
    event_id, callback = recording.event.id, recording.callback
    if write_callbacks(session, [(callback, event_id, recording.event.data)]):
        return None
    first = first_event(session, callback)
    if _has_result(session, first, event_id, coming):
        return first, PickupState.COLLECTED
    if _is_failure(recording.event) and first > event_id:  # a failure that came since the pickup was made
        return first, PickupState.GONE
    if first != event_id:
        # The keys stay with what was recorded before, a failure or nothing; this row has its own.
        own_row = replace(callback, idempotency_key=f"pickup:{pickup_id}", second_key=None)
        write_callbacks(session, [(own_row, event_id, recording.event.data)])
    return None


def _has_result(session: Session, first: str, event_id: str, coming: Collection[str]) -> bool:
    """Whether `first` is another event than this one and no failure, be it recorded, awaited or erased.

    Nobody awaits the event of a pickup that ended with another's failure.
    """
    if first == event_id:
        return False
    rows = session.run("event_type", {"id": first})
    if rows:
        return not rows[0][0].endswith(".failed")
    return first in coming or bool(session.run("awaited_or_erased", {**callback_ids(first), "id": first}))


# ---------------------------------------------------------------- read


def pickup(session: Session, pickup_id: str) -> Pickup:
    """Return one pickup. Raises `NotFound`."""
    return _pickup_of(one(session, "pickup", "list_pickups", pickup_id))


_OF_STATE = {
    PickupState.PENDING: "due_at IS NOT NULL AND state = 'pending'",
    PickupState.COLLECTING: "id IN (SELECT id FROM pickups WHERE claimed_by IS NOT NULL)",
}
"""States that few rows have, as the indexes of these have them."""


_LISTING = newest_first("pickups")


def pickups(session: Session, filter: PickupFilter) -> Page[Pickup]:
    """List pickups, newest first, a page at a time."""
    indexed: dict[str, Value] = {
        "job_id = :job_id": filter.job_id,
        "ref = :ref": filter.ref,
        "event_id = :event_id": filter.event_id,
    }
    others: dict[str, Value] = {}
    if filter.state is not None and filter.state in _OF_STATE:
        indexed[_OF_STATE[filter.state]] = filter.state
    else:
        others["state || '' = :state"] = filter.state
    if all(value is None for value in indexed.values()) and not is_pattern(filter.source):
        indexed["source = :source"] = filter.source
    else:
        others |= named("source || ''", filter.source, "source")
    return page(session, _LISTING, indexed, others, after=filter.after, limit=filter.limit, item=_pickup_of)


def attempts(session: Session, pickup_id: str) -> list[PickupAttempt]:
    """Return the attempts of a pickup, first to last."""
    return [value_of(PickupAttempt, row) for row in session.run("attempts_of_pickups", {"id": pickup_id})]


# ---------------------------------------------------------------- rows

_read_draft = msgspec.msgpack.Decoder(EventDraft).decode
_read_format = msgspec.json.Decoder(dict[str, Any]).decode


def _pickup_of(row: Row) -> Pickup:
    """Return the pickup that the columns of `list_pickups` hold."""
    draft = None if row[8] is None else _read_draft(row[8])
    return value_of(Pickup, (*row[:8], draft, _read_format(row[9]), *row[10:]))


def _row(pickup: Pickup) -> tuple[Value, ...]:
    """Return the parameters of `insert_pickups`."""
    row = astuple(pickup)
    return (*row[:8], _packed(pickup.draft), _packed_format(pickup.format), *row[10:])


def _packed(draft: EventDraft | None) -> bytes | None:
    """Return a draft as it is kept in a row."""
    if draft is None:
        return None
    try:
        return msgspec.msgpack.encode(draft)
    except (OverflowError, UnicodeEncodeError):
        # JSON from a provider may hold what msgpack cannot; the draft is kept as near as can be.
        return msgspec.msgpack.encode(_plain(msgspec.to_builtins(draft, builtin_types=(bytes,))))


def _plain(value: Any) -> Any:
    """Return `value` without lone surrogates, and with numbers beyond 64 bits as text."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)
    return value


def _packed_format(format: Mapping[str, Any]) -> str:
    """Return a format as it is kept in a row; `{}` where nothing is known."""
    return msgspec.json.encode(_plain(format)).decode()
