"""Deliveries and their attempts."""

from __future__ import annotations

from receiver.core.work import Attempt, Delivery, DeliveryFilter, DeliveryState
from receiver.engine import holds
from receiver.settings.model import ApiScope
from receiver.web.api.lists import Moment, Paged, filter_of, page
from receiver.web.api.operation import Call, operation
from receiver.web.views import Page, whole


class DeliveryQuery(Paged, frozen=True):
    """Which deliveries to list, newest first."""

    destination: str | None = None
    state: DeliveryState | None = None
    event_id: str | None = None
    source: str | None = None
    type: str | None = None
    """Of the event; `*` stands for anything."""
    since: Moment | None = None
    """Made at or after this time."""
    until: Moment | None = None
    """Made before this time."""


class DeliveryWhole(Delivery, frozen=True, kw_only=True):
    """A delivery with its attempts."""

    attempts_made: list[Attempt]


@operation("GET /deliveries", ApiScope.READ)
async def listed(call: Call[DeliveryQuery, None]) -> Page[Delivery]:
    """List deliveries, newest first."""
    wanted = filter_of(call.query, DeliveryFilter)
    return page(await holds.deliveries(call.store, call.settings.destinations, wanted, now=call.now))


@operation("GET /deliveries/{delivery_id}", ApiScope.READ)
async def one(call: Call[None, None]) -> DeliveryWhole:
    """Show a delivery with its attempts."""
    owed = [await call.store.delivery(call.path["delivery_id"])]
    (found,) = await holds.with_holds(call.store, call.settings.destinations, owed, now=call.now)
    return whole(DeliveryWhole, found, attempts_made=await call.store.attempts(found.id))


@operation("GET /deliveries/{delivery_id}/attempts", ApiScope.READ)
async def attempts(call: Call[None, None]) -> Page[Attempt]:
    """List its attempts, first to last."""
    found = await call.store.delivery(call.path["delivery_id"])
    return Page(items=await call.store.attempts(found.id), next=None)
