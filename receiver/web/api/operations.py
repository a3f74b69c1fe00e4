"""Operations on many rows: looked at, run, stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

from receiver.core.bulk import BulkOperation
from receiver.settings.model import ApiScope
from receiver.web.api.lists import Paged, page
from receiver.web.api.operation import Call, Served, operation
from receiver.web.views import OperationShown, Page, shown

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver

Rate = Annotated[int, Meta(ge=1, le=100_000)]


class RunQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """How to run an operation."""

    rate: Rate | None = None
    """At most so many rows in a second; without, as it was."""


@operation("GET /operations", ApiScope.READ)
async def listed(call: Call[Paged, None]) -> Page[OperationShown]:
    """List operations on many rows and how far each has come, newest first."""
    found = await call.store.operations(call.query.after, call.query.limit)
    return page(found, OperationShown)


@operation("GET /operations/{operation_id}", ApiScope.READ)
async def one(call: Call[None, None]) -> OperationShown:
    """Show one."""
    return shown(await call.store.operation(call.path["operation_id"]), OperationShown)


@operation("POST /operations/{operation_id}/resume", ApiScope.OPERATE)
async def resume(call: Served[RunQuery, None]) -> OperationShown:
    """Run one that was planned or stopped; or at another rate."""
    made = await run(call.receiver, call.path["operation_id"], rate=call.query.rate)
    return shown(made, OperationShown)


@operation("POST /operations/{operation_id}/stop", ApiScope.OPERATE)
async def stop(call: Call[None, None]) -> OperationShown:
    """Stop one; what it has done stays done."""
    stopped = await call.store.change_operation(call.path["operation_id"], running=False, now=call.now)
    return shown(stopped, OperationShown)


async def run(receiver: Receiver, operation_id: str, *, rate: int | None = None) -> BulkOperation:
    """Run an operation, at another rate where one is given. Raises `NotFound`, `StoreUnavailable`."""
    made = await receiver.store.change_operation(operation_id, running=True, rate=rate, now=receiver.clock())
    receiver.bulk.look.set()
    return made
