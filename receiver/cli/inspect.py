"""`events`, `deliveries` and `rejections`: what the store holds."""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import replace as changed

from receiver.cli.options import (
    AsJson,
    Chosen,
    Limit,
    OfJob,
    OfRef,
    OfSource,
    OfType,
    Since,
    Wide,
    ask_each,
    load_to_look,
    opened_blobs,
    opened_store,
    option,
    since,
)
from receiver.cli.output import Listing, clean, of_all, print_attempts, print_fields, print_json, print_list
from receiver.core.clock import wall_clock
from receiver.core.errors import NotFound, UsageError
from receiver.core.event import EVENT_TYPES, TIME_CHARS, Event, EventSearch
from receiver.core.observe import harmless
from receiver.core.page import filled
from receiver.core.routing import fitting_types
from receiver.core.work import Delivery, DeliveryState
from receiver.web.views import view

if TYPE_CHECKING:
    from receiver.core.work import Pickup
    from receiver.settings.model import Settings
    from receiver.storage.store.store import Store


Body = Annotated[bool, option("--body", help="Write the kept body of this event's callback, as it is.")]
Follow = Annotated[
    bool, option("--follow", help="Go on with what is recorded from now on, one line each; Ctrl-C ends.")
]
_EVENTS = Listing(
    short=("id", "recorded", "type", "source", "ref"),
    wide=("id", "recorded", "type", "source", "ref", "job"),
    fields={"recorded": "recorded_at", "job": "job_id"},
    empty="no event fits",
)
_DELIVERIES = Listing(
    short=("id", "state", "attempts", "destination", "ref", "outcome"),
    wide=("id", "state", "attempts", "destination", "event", "type", "ref", "job", "due", "outcome"),
    fields={
        "event": "event_id",
        "type": "event_type",
        "job": "job_id",
        "due": "due_at",
        "outcome": "last_outcome",
    },
    empty="no delivery fits",
)
_REJECTIONS = Listing(
    short=("at", "source", "status", "kind", "reason"),
    wide=("at", "id", "source", "status", "kind", "reason", "method", "from", "user agent", "headers"),
    fields={"from": "peer", "user agent": "user_agent"},
    empty="no rejection is kept",
)


_FOLLOW_SECONDS = 1.0


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(events)
    app.command()(deliveries)
    app.command()(rejections)


def events(
    ctx: typer.Context,
    event_id: Annotated[str | None, typer.Argument(help="Show this one event whole.")] = None,
    source: OfSource = None,
    type_: OfType = None,
    ref: OfRef = None,
    job: OfJob = None,
    since_: Since = None,
    limit: Limit = 50,
    wide: Wide = False,
    body: Body = False,
    follow: Follow = False,
    as_json: AsJson = False,
) -> None:
    """List events, or show one."""
    from receiver.core.event import EventFilter

    settings = load_to_look(ctx)
    if body:
        if event_id is None:
            raise UsageError("--body goes with the id of one event")
        sys.stdout.buffer.write(asyncio.run(_kept_body(settings, event_id)))
        return
    if event_id is not None:
        asyncio.run(_show_event(settings, event_id, wide=wide, as_json=as_json))
        return
    if follow:
        asyncio.run(_follow(settings, source, type_, ref, job, as_json=as_json))
        return
    filters = EventFilter(ref=ref, job_id=job, since=since(since_), limit=limit)
    found = ask_each(
        settings,
        lambda store, source, type_: filled(store.events, changed(filters, source=source, type=type_), limit),
        Chosen("source", source, settings.sources),
        Chosen("event type", type_, EVENT_TYPES),
        order="recorded_at",
        limit=limit,
    )
    print_list(_EVENTS, found, wide=wide, as_json=as_json)


async def _follow(
    settings: Settings,
    source: str | None,
    type_: str | None,
    ref: str | None,
    job: str | None,
    *,
    as_json: bool,
) -> None:
    """Print what is recorded from now on, for ever."""
    from receiver.engine.following import followed, newest_place

    async with opened_store(settings) as store:
        search = EventSearch(
            source=source,
            types=None if type_ is None else fitting_types(type_),
            ref=ref,
            job_id=job,
            after=await newest_place(store),
        )
        async for found in followed(store, search, seconds=_FOLLOW_SECONDS):
            for one in found:
                fields, event = view(one.event), one.event
                line = (fields["recorded_at"], event.type, event.source, event.ref or "-", event.id)
                text = harmless(json.dumps(fields, ensure_ascii=False)) if as_json else clean("  ".join(line))
                sys.stdout.write(text + "\n")
            sys.stdout.flush()


async def _kept_body(settings: Settings, event_id: str) -> bytes:
    async with opened_store(settings) as store:
        event, kept = await store.event(event_id), await store.body(event_id)
    if kept is not None or event.blob_key is None:
        return kept or b""
    async with opened_blobs(settings) as blobs:
        return await blobs.get(event.blob_key)


async def _event(store: Store, event_id: str) -> Event:
    """Return an event. Raises `NotFound`, with the pickup's id where the event is still to come."""
    try:
        return await store.event(event_id)
    except NotFound:
        awaited = await _awaited(store, event_id)
        if awaited is None:
            raise
        raise NotFound(
            f"{event_id} is still to come: `receiver pickups {awaited.id}` tells how far its pickup is"
        ) from None


async def _awaited(store: Store, event_id: str) -> Pickup | None:
    """Return the pickup that an event is to come from: its id was made in the same millisecond as the event's."""
    from receiver.core.work import PickupFilter

    moment = event_id.removeprefix("evt_")[:TIME_CHARS]
    found = await store.pickups(PickupFilter(after=f"pku_{moment}{'z' * 17}", limit=200))
    return next((pickup for pickup in found if pickup.event_id == event_id), None)


async def _show_event(settings: Settings, event_id: str, *, wide: bool, as_json: bool) -> None:
    from receiver.core.work import DeliveryFilter
    from receiver.engine import holds

    async with opened_store(settings) as store:
        event = await _event(store, event_id)
        wanted = DeliveryFilter(event_id=event_id, limit=1000)
        owed = await holds.deliveries(store, settings.destinations, wanted, now=wall_clock())
    if as_json:
        print_json(view(event) | {"deliveries": [view(d) for d in owed]})
        return
    fields = view(event)
    data = fields.pop("data")
    print_fields(fields.items())
    print_json(data)
    _print_deliveries(settings, owed, wide=wide)


def deliveries(
    ctx: typer.Context,
    delivery_id: Annotated[
        str | None, typer.Argument(help="Show this one delivery with its attempts.")
    ] = None,
    destination: Annotated[str | None, option("--destination", help="Only to this destination.")] = None,
    state: Annotated[DeliveryState | None, option("--state", help="Only in this state.")] = None,
    event: Annotated[str | None, option("--event", help="Only of this event.")] = None,
    since_: Since = None,
    limit: Limit = 50,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """List deliveries, or show one. One delivery comes with its attempts."""
    from receiver.core.work import DeliveryFilter
    from receiver.engine import holds

    settings = load_to_look(ctx)
    if delivery_id is not None:
        asyncio.run(_show_delivery(settings, delivery_id, wide=wide, as_json=as_json))
        return
    filters = DeliveryFilter(state=state, event_id=event, since=since(since_), limit=limit)
    found = ask_each(
        settings,
        lambda store, name: filled(
            partial(holds.deliveries, store, settings.destinations, now=wall_clock()),
            changed(filters, destination=name),
            limit,
        ),
        Chosen("destination", destination, settings.destinations),
        order="id",
        limit=limit,
    )
    _print_deliveries(settings, found, wide=wide, as_json=as_json)


async def _show_delivery(settings: Settings, delivery_id: str, *, wide: bool, as_json: bool) -> None:
    from receiver.engine import holds

    async with opened_store(settings) as store:
        owed = [await store.delivery(delivery_id)]
        (delivery,) = await holds.with_holds(store, settings.destinations, owed, now=wall_clock())
        attempts = await store.attempts(delivery_id)
    fields = view(delivery)
    if as_json:
        print_json(fields | {"attempts_made": [view(attempt) for attempt in attempts]})
        return
    allowed = _allowed(settings, delivery)
    print_fields((fields | {"attempts": of_all(delivery.attempts, allowed)}).items())
    print_attempts(attempts, allowed, wide=wide)


def _print_deliveries(
    settings: Settings, found: list[Delivery], *, wide: bool, as_json: bool = False
) -> None:
    def attempts(one: Delivery) -> str:
        return of_all(one.attempts, _allowed(settings, one))

    print_list(_DELIVERIES, found, wide=wide, as_json=as_json, more={"attempts": attempts, "state": _state})


def _state(delivery: Delivery) -> str:
    """Return a delivery's state, with what holds it back."""
    return delivery.state + (f" ({delivery.held_by})" if delivery.held_by else "")


def _allowed(settings: Settings, delivery: Delivery) -> int | None:
    """Return how many attempts there may be, those before the last replay counted; None when the destination is gone."""
    destination = settings.destinations.get(delivery.destination)
    return None if destination is None else delivery.round_start + destination.policy.attempts


def rejections(
    ctx: typer.Context,
    source: Annotated[str | None, typer.Argument(help="Only of this source.")] = None,
    limit: Limit = 50,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """List callbacks that were refused. The last 100 of each source and kind are kept; bodies are not shown."""
    settings = load_to_look(ctx)
    found = ask_each(
        settings,
        lambda store, name: store.rejections(name, limit=limit),
        Chosen("source", source, settings.sources),
        order="at",
        limit=limit,
    )
    names = {"headers": lambda one: ", ".join(one.headers)}
    print_list(_REJECTIONS, found, wide=wide, as_json=as_json, more=names)
