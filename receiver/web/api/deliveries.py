"""Deliveries and their attempts."""

from __future__ import annotations

from msgspec import Struct

from receiver.core.routing import fitting_types
from receiver.core.work import DeliveryFilter, DeliveryState
from receiver.web.api.call import Call
from receiver.web.api.lists import Limit, Moment, millis, page
from receiver.web.views import AttemptShown, DeliveryShown, DeliveryWhole, Page, shown


class DeliveryQuery(Struct, forbid_unknown_fields=True, frozen=True):
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
    after: str | None = None
    """`next` of the page before."""
    limit: Limit = 50


async def listed(call: Call[DeliveryQuery, None]) -> Page[DeliveryShown]:
    """List deliveries."""
    query = call.query
    found = await call.receiver.store.deliveries(
        DeliveryFilter(
            destination=query.destination,
            state=query.state,
            event_id=query.event_id,
            source=query.source,
            types=None if query.type is None else fitting_types(query.type),
            since=millis(query.since),
            until=millis(query.until),
            after=query.after,
            limit=query.limit,
        )
    )
    return page(found, DeliveryShown)


async def one(call: Call[None, None]) -> DeliveryWhole:
    """Show a delivery with its attempts."""
    store = call.receiver.store
    found = await store.delivery(call.path["delivery_id"])
    return shown(found, DeliveryWhole, attempts_made=await store.attempts(found.id))


async def attempts(call: Call[None, None]) -> Page[AttemptShown]:
    """List the attempts of a delivery, first to last."""
    store = call.receiver.store
    found = await store.delivery(call.path["delivery_id"])
    return Page(items=[shown(one, AttemptShown) for one in await store.attempts(found.id)], next=None)
