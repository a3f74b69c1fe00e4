"""Pickups in the store: made, told of callbacks, and settled with the events that they bring."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
from msgspec.structs import replace

from receiver.core.event import TIME_CHARS, CallbackRow, Event, EventDraft, Recorded, Recording, RecordStatus
from receiver.core.work import (
    ClaimedPickup,
    Deferral,
    Pickup,
    PickupSettled,
    PickupSettlement,
    PickupState,
)
from receiver.storage.store.database import Row, Session, Value, clean, value_of
from receiver.storage.store.events import (
    NewRecording,
    Resolution,
    callback_row,
    delivery_rows,
    event_row,
    first_event,
    record,
    resolve,
)
from receiver.storage.store.queue import ClaimRequest, Queue, partition


@dataclass(frozen=True, slots=True)
class NewSettlement:
    """A settlement, its recording and its progress events with the ids of their deliveries."""

    settlement: PickupSettlement
    recording: NewRecording | None
    progress: tuple[NewRecording, ...]

    @classmethod
    def of(cls, settlement: PickupSettlement) -> NewSettlement:
        """Make the ids of all deliveries."""
        recording = settlement.recording
        progress = tuple(map(NewRecording.of, settlement.progress))
        return cls(settlement, NewRecording.of(recording) if recording else None, progress)


# ---------------------------------------------------------------- made by callbacks and requests


def add(session: Session, pickups: Sequence[Pickup]) -> list[tuple[Pickup, bool]]:
    """Write pickups; where one of the same key exists already, that one is the result."""
    results: dict[int, tuple[Pickup, bool]] = {}
    for batch in partition(pickups, lambda pickup: (pickup.source, pickup.key)):
        rows = [pickup_row(pickup) for pickup in batch.values()]
        fresh = {row[0] for row in session.run_rows("insert_pickups", rows)}
        for number, pickup in batch.items():
            results[number] = (pickup, True) if pickup.id in fresh else (_existing(session, pickup), False)
    return [results[number] for number in range(len(pickups))]


def _existing(session: Session, pickup: Pickup) -> Pickup:
    params: dict[str, Value] = {"source": pickup.source, "key": clean(pickup.key), "limit": 1}
    conditions = "source = :source AND key = :key AND state <> 'gone'"
    return pickup_of(session.run("list_pickups", params, conditions)[0])


def defer(session: Session, deferrals: Sequence[Deferral]) -> list[Recorded]:
    """Write callbacks that wait for their results, and the pickups that bring these home."""
    by_number: dict[int, Recorded] = {}
    for batch in partition(deferrals, lambda deferral: (deferral.pickup.source, deferral.pickup.key)):
        by_number |= _defer(session, batch)
    results = [by_number[number] for number in range(len(deferrals))]
    resolutions = [
        Resolution(deferral.callback.source, deferral.answered, result.event_id, deferral.pickup.created_at)
        for deferral, result in zip(deferrals, results, strict=True)
        if deferral.answered
    ]
    resolve(session, resolutions)
    return results


def _defer(session: Session, batch: Mapping[int, Deferral]) -> dict[int, Recorded]:
    """Write deferrals of which no two have one pickup's key.

    Pickups come first, because only the database can tell whether one exists; those of duplicates are taken back.
    """
    rows = [pickup_row(deferral.pickup) for deferral in batch.values()]
    new = {row[0] for row in session.run_rows("insert_pickups", rows)}
    leads = _leads(session, batch, new)
    callbacks = {number: led_to(deferral.callback, leads[number][1]) for number, deferral in batch.items()}
    written = [callback_row(callbacks[number], leads[number][1]) for number in batch]
    fresh = {row[0] for row in session.run_rows("insert_callbacks", written)}
    results: dict[int, Recorded] = {}
    unwanted: list[tuple[Value]] = []
    for number, deferral in batch.items():
        pickup_id, event_id = leads[number]
        if callbacks[number].id in fresh:
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
    rows = session.run_rows("existing_pickups", keys)
    existing = {(row[0], row[1]): (row[2], row[3]) for row in rows}
    return {
        number: (deferral.pickup.id, deferral.pickup.event_id)
        if deferral.pickup.id in new
        else existing[_identity(deferral.pickup)]
        for number, deferral in batch.items()
    }


def _identity(pickup: Pickup) -> tuple[str, str]:
    return pickup.source, clean(pickup.key) or ""


def led_to(callback: CallbackRow, event_id: str) -> CallbackRow:
    """Return the callback with an id of the event's millisecond, so that the one leads to the other."""
    if callback.id[3 : 3 + TIME_CHARS] == event_id[4 : 4 + TIME_CHARS]:
        return callback
    return replace(callback, id=f"cb_{event_id[4 : 4 + TIME_CHARS]}{callback.id[3 + TIME_CHARS :]}")


def _reschedule(session: Session, pickup_id: str, update: Pickup) -> None:
    """Give an existing pickup what a callback brought, and have it due at once; a collected one needs nothing.

    Raises `LookupError` to have the transaction repeated.
    """
    params: dict[str, Value] = {
        "id": pickup_id,
        "target": clean(update.target),
        "draft": _packed(update.draft),
        "job_id": clean(update.job_id),
        "ref": clean(update.ref),
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


# ---------------------------------------------------------------- settled


def settle(session: Session, requests: Sequence[NewSettlement]) -> list[PickupSettled]:
    """Write attempts, their consequences and their events, each only while its claim is held."""
    held = PICKUPS.settle(session, [new.settlement for new in requests])
    applied = [new for new, is_held in zip(requests, held, strict=True) if is_held]
    progress = [recording for new in applied for recording in new.progress]
    recorded = iter(record(session, progress) if progress else ())
    results = (new.settlement.recording for new in applied)
    coming = {result.event.id for result in results if result is not None and not _is_failure(result.event)}
    return [
        PickupSettled(
            held=True,
            progress=tuple(islice(recorded, len(new.progress))),
            recorded=_end(session, new, coming),
        )
        if is_held
        else PickupSettled(held=False)
        for new, is_held in zip(requests, held, strict=True)
    ]


def _end(session: Session, new: NewSettlement, coming: Collection[str]) -> Recorded | None:
    """Write the recording of a settlement that was applied, unless another event tells of the same.

    `coming` are the events of results that this transaction writes.
    """
    recording, pickup = new.settlement.recording, new.settlement.claim.pickup
    if recording is None or new.recording is None:
        return None
    event_id = recording.event.id
    other = _result_known(session, pickup, event_id, coming) if _is_failure(recording.event) else None
    other = other or _lead(session, pickup.id, recording, coming)
    if other:
        first, state = other
        session.run("supersede_pickup", {"id": pickup.id, "event_id": first, "state": state.value})
        return Recorded(status=RecordStatus.DUPLICATE, event_id=first)
    session.run_rows("insert_events", [event_row(recording.event)])
    session.run_rows("insert_deliveries", list(delivery_rows(new.recording)))
    return Recorded(status=RecordStatus.RECORDED, event_id=event_id)


def _is_failure(event: Event) -> bool:
    return event.type.endswith(".failed")


def _result_known(
    session: Session, pickup: Pickup, event_id: str, coming: Collection[str]
) -> tuple[str, PickupState] | None:
    """Return another's event that tells of a pickup's result. A failure has a key of its own and would not meet it."""
    key = clean(pickup.key)
    keys = {"source": pickup.source, "idempotency_key": key, "second_key": key}
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
    if session.run_rows("insert_callbacks", [callback_row(callback, event_id)]):
        return None
    first = first_event(session, callback)
    if _has_result(session, first, event_id, coming):
        return first, PickupState.COLLECTED
    if failed_already(first, recording.event):
        return first, PickupState.GONE
    if first != event_id:
        # The keys stay with what was recorded before, a failure or nothing; this row has its own.
        own_row = replace(callback, idempotency_key=f"pickup:{pickup_id}", second_key=None)
        session.run_rows("insert_callbacks", [callback_row(own_row, event_id)])
    return None


def failed_already(first: str, event: Event) -> bool:
    """Whether the failure `first` says what `event` would: both are failures, and it came since the pickup was made."""
    return _is_failure(event) and first > event.id


def _has_result(session: Session, first: str, event_id: str, coming: Collection[str]) -> bool:
    """Whether `first` is another event than this one and no failure, be it recorded, awaited or erased.

    Nobody awaits the event of a pickup that ended with another's failure.
    """
    if first == event_id:
        return False
    rows = session.run("event_type", {"id": first})
    if rows:
        return not rows[0][0].endswith(".failed")
    moment = first[4 : 4 + TIME_CHARS]
    params: dict[str, Value] = {"id": first, "first": f"cb_{moment}", "beyond": f"cb_{moment}~"}
    return first in coming or bool(session.run("awaited_or_erased", params))


# ---------------------------------------------------------------- rows


_read_draft = msgspec.msgpack.Decoder(EventDraft).decode
_read_format = msgspec.json.Decoder(dict[str, Any]).decode


def pickup_of(row: Row) -> Pickup:
    """Return the pickup that the columns of `list_pickups` hold."""
    draft = None if row[8] is None else _read_draft(row[8])
    return value_of(Pickup, (*row[:8], draft, _read_format(row[9]), *row[10:]))


def pickup_row(pickup: Pickup) -> tuple[Value, ...]:
    """Return the parameters of `insert_pickups`."""
    return (
        pickup.id,
        pickup.source,
        pickup.kind.value,
        clean(pickup.key),
        clean(pickup.job_id),
        clean(pickup.ref),
        clean(pickup.target),
        pickup.event_id,
        _packed(pickup.draft),
        _packed_format(pickup.format),
        pickup.deadline_at,
        pickup.due_at,
        pickup.created_at,
        pickup.updated_at,
    )


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


def _claimed(row: Row, request: ClaimRequest) -> ClaimedPickup:
    return ClaimedPickup(pickup=pickup_of(row), claimed_by=request.token, lease_until=request.lease_until)


PICKUPS: Queue[ClaimedPickup, PickupSettlement] = Queue(
    "pickups",
    _claimed,
    lambda settlement: (settlement.failures, clean(settlement.outcome.detail)),
    lambda _: (),
)
