"""Operations on many rows: planned by filters, looked at, run, slowed down, stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, RedirectResponse, Response

from receiver.app.wiring import build_router
from receiver.core.bulk import BulkKind, Selection
from receiver.core.errors import NotFound, UsageError
from receiver.core.work import DeliveryState
from receiver.engine.bulk import plan
from receiver.web.api.operations import run
from receiver.web.console.events import PAGE, fields_of
from receiver.web.console.guard import HOME, Visit

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver
    from receiver.core.bulk import BulkOperation

_RATE = 100_000


class Operations:
    """The pages and their forms."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def list(self, visit: Visit) -> Response:
        """Show operations, newest first."""
        fields = fields_of(visit, ("after",))
        found = await self._receiver.store.operations(fields["after"] or None, PAGE)
        return await visit.page("operations.html", fields=fields, operations=found, after=found.after)

    async def one(self, visit: Visit) -> Response:
        """Show one operation, and how far it has come."""
        return await visit.page("operation.html", one=await self._named(visit), planned=None)

    async def progress(self, visit: Visit) -> Response:
        """Answer how far an operation has come, for the page that follows it."""
        one = await self._named(visit)
        return JSONResponse({"done": one.done, "changed": one.changed, "state": one.state})

    async def plan(self, visit: Visit) -> Response:
        """Count what fits the filters of a list of deliveries or of parked callbacks; nothing is done yet."""
        receiver, given = self._receiver, visit.given
        if given("state") not in ("", *DeliveryState) or given("kind") not in ("", *BulkKind):
            raise UsageError("the form names a state or an operation that there is not: load its page again")
        chosen = Selection(
            destination=given("destination") or None,
            state=DeliveryState(given("state")) if given("state") else None,
            source=given("source") or None,
            type=given("type") or None,
        )
        router, now = build_router(receiver.settings), receiver.clock()
        kind = BulkKind(given("kind") or BulkKind.REPLAY)
        planned = await plan(receiver.store, router, kind, chosen, by=visit.session.name, now=now)
        return await visit.page("operation.html", one=planned.operation, planned=planned)

    async def change(self, visit: Visit) -> Response:
        """Run an operation, at another rate where one is given, or stop it."""
        receiver, rate = self._receiver, visit.given("rate").strip()
        if rate and not (rate.isdecimal() and len(rate) <= 6 and 0 < int(rate) <= _RATE):
            raise UsageError(f"the rate is a number from 1 to {_RATE}, or nothing for as many as go")
        operation_id = visit.path("operation_id")
        if visit.path("action") == "run":
            await run(receiver, operation_id, rate=int(rate) if rate else None)
        elif visit.path("action") == "stop":
            await receiver.store.change_operation(operation_id, running=False, now=receiver.clock())
        else:
            raise NotFound("an operation can be run and stopped, and nothing else")
        return RedirectResponse(f"{HOME}/operations/{operation_id}", 303)

    async def _named(self, visit: Visit) -> BulkOperation:
        return await self._receiver.store.operation(visit.path("operation_id"))
