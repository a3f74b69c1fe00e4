"""Operations on many rows: looked at, run, stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

from receiver.core.bulk import BulkOperation
from receiver.web.api.call import Call
from receiver.web.api.lists import Limit, page
from receiver.web.views import OperationShown, Page, shown

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver

Rate = Annotated[int, Meta(ge=1, le=100_000)]


class OperationQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """Which operations to list, newest first."""

    after: str | None = None
    """`next` of the page before."""
    limit: Limit = 50


class RunQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """How to run an operation."""

    rate: Rate | None = None
    """At most so many rows in a second; without, as it was."""


async def listed(call: Call[OperationQuery, None]) -> Page[OperationShown]:
    """List operations."""
    found = await call.receiver.store.operations(call.query.after, call.query.limit)
    return page(found, OperationShown)


async def one(call: Call[None, None]) -> OperationShown:
    """Show an operation and how far it has come."""
    return shown(await call.receiver.store.operation(call.path["operation_id"]), OperationShown)


async def resume(call: Call[RunQuery, None]) -> OperationShown:
    """Run an operation that was planned or stopped, or one that runs at another rate."""
    made = await run(call.receiver, call.path["operation_id"], rate=call.query.rate)
    return shown(made, OperationShown)


async def stop(call: Call[None, None]) -> OperationShown:
    """Stop an operation: what it has done stays done."""
    receiver = call.receiver
    stopped = await receiver.store.change_operation(
        call.path["operation_id"], running=False, now=receiver.clock()
    )
    return shown(stopped, OperationShown)


async def run(receiver: Receiver, operation_id: str, *, rate: int | None = None) -> BulkOperation:
    """Run an operation, at another rate where one is given. Raises `NotFound`, `StoreUnavailable`."""
    made = await receiver.store.change_operation(operation_id, running=True, rate=rate, now=receiver.clock())
    receiver.bulk.look.set()
    return made
