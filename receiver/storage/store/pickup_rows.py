"""Pickups as rows of the database, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from receiver.core.event import EventDraft
from receiver.core.pickup import Pickup, PickupKind, PickupSettlement, PickupState
from receiver.storage.store.sql import Row, Value, clean

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
