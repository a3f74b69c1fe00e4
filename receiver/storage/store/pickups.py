"""What the store does with pickups, over any database that runs the named statements.

As in sql.py, nothing here waits or commits, and the functions take many callers' requests at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from receiver.core.event import TIME_CHARS, CallbackRow, Event, EventDraft, Recorded, Recording, RecordStatus
from receiver.core.work import ClaimedPickup, Pickup, PickupKind, PickupSettled, PickupSettlement, PickupState
from receiver.storage.store.base import Deferral
from receiver.storage.store.sql import (
    Answer,
    NewRecording,
    Row,
    Session,
    Value,
    answer,
    callback_row,
    clean,
    delivery_rows,
    event_row,
    first_event,
    record,
)

_One = TypeVar("_One")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimPickups:
    """A request for due pickups; `token` names this one claim."""

    source: str
    token: str
    limit: int
    now: int
    lease_until: int


@dataclass(frozen=True, slots=True)
class ReleasePickups:
    """Claims handed back."""

    claims: tuple[ClaimedPickup, ...]
    now: int


@dataclass(frozen=True, slots=True)
class NewSettlement:
    """A settlement, the ids of its recording's deliveries, and what it tells, with theirs."""

    settlement: PickupSettlement
    delivery_ids: tuple[str, ...]
    told: tuple[NewRecording, ...]


# ---------------------------------------------------------------- in


def add(session: Session, wanted: Sequence[Pickup]) -> list[tuple[Pickup, bool]]:
    """Write pickups; where one of the same key stands already, that one is the answer."""
    answers: dict[int, tuple[Pickup, bool]] = {}
    for batch in _apart(wanted, lambda one: (one.source, one.key)):
        rows = [pickup_row(one) for one in batch.values()]
        fresh = {row[0] for row in session.run_rows("insert_pickups", rows)}
        for number, one in batch.items():
            answers[number] = (one, True) if one.id in fresh else (_standing(session, one), False)
    return [answers[number] for number in range(len(wanted))]


def _standing(session: Session, one: Pickup) -> Pickup:
    params: dict[str, Value] = {"source": one.source, "key": clean(one.key), "limit": 1}
    conditions = "source = :source AND key = :key AND state <> 'gone'"
    return pickup_of(session.run("list_pickups", params, conditions)[0])


def defer(session: Session, wanted: Sequence[Deferral]) -> list[Recorded]:
    """Write callbacks that wait for their results, and the pickups that bring these home."""
    answers: dict[int, Recorded] = {}
    for batch in _apart(wanted, lambda one: (one.pickup.source, one.pickup.key)):
        answers |= _defer(session, batch)
    found = [answers[number] for number in range(len(wanted))]
    told = [
        Answer(one.callback.source, one.answered, done.event_id, one.pickup.created_at)
        for one, done in zip(wanted, found, strict=True)
        if one.answered
    ]
    answer(session, told)
    return found


def _defer(session: Session, batch: Mapping[int, Deferral]) -> dict[int, Recorded]:
    """Write deferrals of which no two have one pickup's key.

    Pickups come first, because only the database can tell whether one stands; those of duplicates are taken back.
    """
    rows = [pickup_row(one.pickup) for one in batch.values()]
    new = {row[0] for row in session.run_rows("insert_pickups", rows)}
    leads = _leads(session, batch, new)
    callbacks = {number: led_to(one.callback, leads[number][1]) for number, one in batch.items()}
    written = [callback_row(callbacks[number], leads[number][1]) for number in batch]
    fresh = {row[0] for row in session.run_rows("insert_callbacks", written)}
    answers: dict[int, Recorded] = {}
    unwanted: list[tuple[Value]] = []
    for number, one in batch.items():
        pickup_id, event_id = leads[number]
        if callbacks[number].id in fresh:
            if pickup_id not in new:
                _hasten(session, pickup_id, one.pickup)
            answers[number] = Recorded(status=RecordStatus.RECORDED, event_id=event_id, pickup_id=pickup_id)
            continue
        if pickup_id in new:
            unwanted.append((pickup_id,))
        first = first_event(session, one.callback)
        standing = pickup_id if pickup_id not in new and first == event_id else None
        answers[number] = Recorded(status=RecordStatus.DUPLICATE, event_id=first, pickup_id=standing)
    if unwanted:
        session.run_rows("drop_pickups", unwanted)
    return answers


def _leads(session: Session, batch: Mapping[int, Deferral], new: set[str]) -> dict[int, tuple[str, str]]:
    """Return for each deferral its pickup, new or standing, and that one's event."""
    standing: dict[tuple[str, str], tuple[str, str]] = {}
    asked = [_identity(one.pickup) for one in batch.values() if one.pickup.id not in new]
    if asked:
        rows = session.run_rows("standing_pickups", asked)
        standing = {(row[0], row[1]): (row[2], row[3]) for row in rows}
    return {
        number: (one.pickup.id, one.pickup.event_id)
        if one.pickup.id in new
        else standing[_identity(one.pickup)]
        for number, one in batch.items()
    }


def _identity(pickup: Pickup) -> tuple[str, str]:
    return pickup.source, clean(pickup.key) or ""


def led_to(callback: CallbackRow, event_id: str) -> CallbackRow:
    """Return the callback with an id of the event's millisecond, so that the one leads to the other."""
    if callback.id[3 : 3 + TIME_CHARS] == event_id[4 : 4 + TIME_CHARS]:
        return callback
    return replace(callback, id=f"cb_{event_id[4 : 4 + TIME_CHARS]}{callback.id[3 + TIME_CHARS :]}")


def _hasten(session: Session, pickup_id: str, news: Pickup) -> None:
    """Give a pickup that stands what a callback brought; one that was collected needs nothing. Raises `LookupError` to go round once more."""
    params: dict[str, Value] = {
        "id": pickup_id,
        "target": clean(news.target),
        "draft": packed(news.draft),
        "job_id": clean(news.job_id),
        "ref": clean(news.ref),
        "format": packed_format(news.format),
        "deadline_at": news.deadline_at,
        "now": news.created_at,
    }
    if session.run("hasten_pickup", params):
        return
    standing = session.run_rows("standing_pickups", [_identity(news)])
    if not any(row[2] == pickup_id for row in standing):
        # Another process ended it without a result a moment ago, and knows nothing of this one: done again, it is a new one.
        raise LookupError(pickup_id)


# ---------------------------------------------------------------- attempts


def claim(session: Session, wanted: Sequence[ClaimPickups]) -> list[list[ClaimedPickup]]:
    """Take due pickups for each request."""
    answers: list[list[ClaimedPickup]] = []
    for asked in wanted:
        params: dict[str, Value] = {"source": asked.source, "now": asked.now, "limit": asked.limit}
        taken = [pickup_of(row) for row in session.run("due_pickups", params)]
        # Marked before the next request looks, so that no two of one batch get the same rows.
        if taken:
            rows = [(one.id, asked.token, asked.lease_until, asked.now) for one in taken]
            session.run_rows("claim_pickups", rows)
        answers.append(
            [
                ClaimedPickup(pickup=one, claimed_by=asked.token, lease_until=asked.lease_until)
                for one in taken
            ]
        )
    return answers


def settle(session: Session, wanted: Sequence[NewSettlement]) -> list[PickupSettled]:
    """Write attempts, their consequences and their events, each only while its claim is held."""
    held: set[int] = set()
    for batch in _apart(wanted, lambda new: new.settlement.claim.pickup.id):
        rows = [settled_row(new.settlement) for new in batch.values()]
        kept = {row[0] for row in session.run_rows("settle_pickups", rows)}
        held |= {number for number, new in batch.items() if new.settlement.claim.pickup.id in kept}
    attempts = [attempt_row(wanted[number].settlement) for number in sorted(held)]
    if attempts:
        session.run_rows("insert_pickup_attempts", attempts)
    told = [one for number in sorted(held) for one in wanted[number].told]
    results = (wanted[number].settlement.recording for number in held)
    coming = {one.event.id for one in results if one is not None and not one.event.type.endswith(".failed")}
    found = iter(record(session, told) if told else ())
    return [
        PickupSettled(
            held=True, told=tuple(islice(found, len(new.told))), recorded=_end(session, new, coming)
        )
        if number in held
        else PickupSettled(held=False)
        for number, new in enumerate(wanted)
    ]


def _end(session: Session, new: NewSettlement, coming: Collection[str]) -> Recorded | None:
    """Write the recording of a settlement that was applied, unless another event tells of the same.

    `coming` are the events of results that this transaction writes.
    """
    recording, pickup = new.settlement.recording, new.settlement.claim.pickup
    if recording is None:
        return None
    event_id = recording.event.id
    failed = recording.event.type.endswith(".failed")
    other = _result_known(session, pickup, event_id, coming) if failed else None
    other = other or _lead(session, pickup.id, recording, coming)
    if other:
        first, state = other
        session.run("yield_pickup", {"id": pickup.id, "event_id": first, "state": state.value})
        return Recorded(status=RecordStatus.DUPLICATE, event_id=first)
    session.run_rows("insert_events", [event_row(recording.event)])
    if recording.destinations:
        rows = delivery_rows(NewRecording(recording, new.delivery_ids))
        session.run_rows("insert_deliveries", list(rows))
    return Recorded(status=RecordStatus.RECORDED, event_id=event_id)


def _result_known(
    session: Session, pickup: Pickup, event_id: str, coming: Collection[str]
) -> tuple[str, PickupState] | None:
    """Return another's event that tells of a pickup's result. A failure has a key of its own and would not meet it."""
    key = clean(pickup.key)
    keys = {"source": pickup.source, "idempotency_key": key, "second_key": key}
    found = session.run("first_event", keys)
    if not found or not _tells_more(session, found[0][0], event_id, coming):
        return None
    return found[0][0], PickupState.COLLECTED


def _lead(
    session: Session, pickup_id: str, recording: Recording, coming: Collection[str]
) -> tuple[str, PickupState] | None:
    """See that a callback row leads to the event, unless another's stands: then return that one, and how the pickup ends.

    One that met its own failure stays gone: collected, it would stand in the way of a later success, and of asking again.
    """
    event_id, callback = recording.event.id, recording.callback
    if session.run_rows("insert_callbacks", [callback_row(callback, event_id)]):
        return None
    first = first_event(session, callback)
    if _tells_more(session, first, event_id, coming):
        return first, PickupState.COLLECTED
    if already_told(first, recording.event):
        return first, PickupState.GONE
    if first != event_id:
        # The keys stay with what was told before, a failure or nothing; this row has its own.
        apart = replace(callback, idempotency_key=f"pickup:{pickup_id}", second_key=None)
        session.run_rows("insert_callbacks", [callback_row(apart, event_id)])
    return None


def already_told(first: str, event: Event) -> bool:
    """Whether the failure `first` says what `event` would: both tell of failure, and it came since this was asked for."""
    return event.type.endswith(".failed") and first > event.id


def _tells_more(session: Session, first: str, event_id: str, coming: Collection[str]) -> bool:
    """Whether `first` is another event, recorded, awaited or erased, and no failure: that is no duplicate of what comes now.

    Nobody awaits the event of a pickup that ended with another's failure.
    """
    if first == event_id:
        return False
    told = session.run("event_type", {"id": first})
    if told:
        return not told[0][0].endswith(".failed")
    moment = first[4 : 4 + TIME_CHARS]
    asked: dict[str, Value] = {"id": first, "first": f"cb_{moment}", "beyond": f"cb_{moment}~"}
    return first in coming or bool(session.run("awaited_or_erased", asked))


def release(session: Session, wanted: Sequence[ReleasePickups]) -> list[int]:
    """Hand claims back, due at once."""
    return [_release(session, asked) for asked in wanted]


def _release(session: Session, asked: ReleasePickups) -> int:
    rows = [(one.pickup.id, one.claimed_by, one.pickup.attempts, asked.now) for one in asked.claims]
    return len(session.run_rows("release_pickups", rows)) if rows else 0


def _apart(wanted: Sequence[_One], key: Callable[[_One], object]) -> list[dict[int, _One]]:
    """Divide requests, by their number, into batches in which no key comes twice: only the statement of the first
    can tell what the second meets.
    """
    batches: list[dict[int, _One]] = []
    seen: dict[object, int] = {}
    for number, one in enumerate(wanted):
        turn = seen.get(key(one), 0)
        seen[key(one)] = turn + 1
        if turn == len(batches):
            batches.append({})
        batches[turn][number] = one
    return batches


_read_draft = msgspec.msgpack.Decoder(EventDraft).decode
_read_format = msgspec.json.Decoder(dict[str, Any]).decode


def pickup_of(row: Row) -> Pickup:
    """Return the pickup that the columns of `list_pickups` hold."""
    return Pickup(
        id=row[0],
        source=row[1],
        kind=PickupKind(row[2]),
        key=row[3],
        job_id=row[4],
        ref=row[5],
        target=row[6],
        event_id=row[7],
        draft=None if row[8] is None else _read_draft(row[8]),
        format=_read_format(row[9]),
        deadline_at=row[10],
        state=PickupState(row[11]),
        attempts=row[12],
        failures=row[13],
        due_at=row[14],
        claimed_by=row[15],
        created_at=row[16],
        updated_at=row[17],
        last_outcome=row[18],
        last_detail=row[19],
    )


def pickup_row(one: Pickup) -> tuple[Value, ...]:
    """Return the parameters of `insert_pickups`."""
    return (
        one.id,
        one.source,
        one.kind.value,
        clean(one.key),
        clean(one.job_id),
        clean(one.ref),
        clean(one.target),
        one.event_id,
        packed(one.draft),
        packed_format(one.format),
        one.deadline_at,
        one.due_at,
        one.created_at,
        one.updated_at,
    )


def settled_row(one: PickupSettlement) -> tuple[Value, ...]:
    """Return the parameters of `settle_pickups`."""
    claim, outcome = one.claim, one.outcome
    return (
        claim.pickup.id,
        claim.claimed_by,
        claim.pickup.attempts,
        one.state.value,
        one.due_at,
        one.failures,
        outcome.kind.value,
        clean(outcome.detail),
        one.started_at + one.duration_ms,
    )


def attempt_row(one: PickupSettlement) -> tuple[Value, ...]:
    """Return the parameters of `insert_pickup_attempts`."""
    return (
        one.claim.pickup.id,
        one.claim.pickup.attempts + 1,
        one.started_at,
        one.duration_ms,
        one.outcome.kind.value,
        one.outcome.status,
        clean(one.outcome.detail),
    )


def packed(draft: EventDraft | None) -> bytes | None:
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


def packed_format(format: Mapping[str, Any]) -> str:
    """Return a format as it is kept in a row; `{}` where nothing is known."""
    return msgspec.json.encode(_plain(format)).decode()
