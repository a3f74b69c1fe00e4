"""Bulk operations in the store: one row each, claimed by one process at a time. One transaction holds a batch and the new
position.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import astuple, replace

from receiver.core.bulk import Batch, BulkOperation, BulkState
from receiver.core.page import Page
from receiver.storage.store import queue
from receiver.storage.store.listing import newest_first, one, page
from receiver.storage.store.statements import Each, Row, Session, Value, value_of


@Each
def begin(session: Session, wanted: BulkOperation) -> None:
    """Write an operation."""
    row = astuple(replace(wanted, selection=msgspec.json.encode(wanted.selection).decode()))
    session.run_rows("insert_operations", [row])


@Each
def claim(session: Session, *, now: int, lease_until: int, only: str | None = None) -> BulkOperation | None:
    """Claim the operation that has been due longest, or the given one, until `lease_until`."""
    params: dict[str, Value] = {"now": now, "at": now, "wait": lease_until - now}
    chosen = "TRUE"
    if only is not None:
        params["only"], chosen = only, "d.id = :only"
    rows = session.run("claim_operation", params, chosen)
    return _operation(rows[0]) if rows else None


@Each
def advance(session: Session, claimed: BulkOperation, batch: Batch, *, now: int) -> int | None:
    """Do a batch; return how many rows it changed.

    None, and nothing is done, when the operation was stopped or another process did this batch: no row is gone through
    twice, and none is left out.
    """
    came: dict[str, Value] = {
        "id": claimed.id,
        "before": claimed.place,
        "place": batch.place,
        "rows": batch.rows,
        "state": BulkState.DONE if batch.finished else BulkState.RUNNING,
        "wait": None if batch.finished else batch.wait,
        "now": now,
        "at": now,
    }
    if not session.run("advance_operation", came):
        return None
    changed = batch.changed + len(queue.replay.one(session, batch.replays, now=now))
    changed += len(queue.add.one(session, batch.additions, now=now))
    session.run("count_operation", {"id": claimed.id, "changed": changed})
    return changed


@Each
def change(session: Session, operation_id: str, *, running: bool, rate: int | None, now: int) -> None:
    """Run or stop an operation, at a new rate if one is given. An operation that is done stays done."""
    params: dict[str, Value] = {
        "id": operation_id,
        "state": BulkState.RUNNING if running else BulkState.STOPPED,
        "wait": 0 if running else None,
        "rate": rate,
        "now": now,
        "at": now,
    }
    session.run("change_operation", params)


def is_due(session: Session, now: int) -> bool:
    """Tell whether an operation may be taken."""
    return bool(session.run("due_operations", {"now": now}))


def operation(session: Session, operation_id: str) -> BulkOperation:
    """Return one operation. Raises `NotFound`."""
    return _operation(one(session, "operation", "list_operations", operation_id))


def operations(session: Session, after: str | None, limit: int) -> Page[BulkOperation]:
    """List operations, newest first."""
    return page(session, newest_first("operations"), {}, {}, after=after, limit=limit, item=_operation)


def _operation(row: Row) -> BulkOperation:
    place = BulkOperation.__struct_fields__.index("selection")
    values: Sequence[object] = [*row[:place], msgspec.json.decode(row[place]), *row[place + 1 :]]
    return value_of(BulkOperation, values)
