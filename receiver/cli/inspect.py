"""`events`, `deliveries` and `rejections`: what the store holds."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from receiver.cli.options import UsageError, load, opened_store, option, since
from receiver.cli.output import print_fields, print_json, print_table
from receiver.core.errors import NotFound
from receiver.core.event import TIME_CHARS, Event, Rejection
from receiver.core.work import Attempt, Delivery, DeliveryState

if TYPE_CHECKING:
    from receiver.core.work import Pickup
    from receiver.settings.model import Settings
    from receiver.storage.store.store import Store

Limit = Annotated[int, option("--limit", help="Show at most this many, newest first.", min=1, max=10_000)]
AsJson = Annotated[bool, option("--json", help="Print JSON instead of a table.")]
Since = Annotated[str | None, option("--since", help="Only since then: 2h (ago), or 2026-11-21T10:00Z.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(events)
    app.command()(deliveries)
    app.command()(rejections)


def events(
    ctx: typer.Context,
    event_id: Annotated[str | None, typer.Argument(help="Show this one event whole.")] = None,
    source: Annotated[str | None, option("--source", help="Only of this source.")] = None,
    type_: Annotated[str | None, option("--type", help="Only of this type, as speech.completed.")] = None,
    ref: Annotated[str | None, option("--ref", help="Only with this ref.")] = None,
    job: Annotated[str | None, option("--job", help="Only of this job of the provider's.")] = None,
    since_: Since = None,
    limit: Limit = 50,
    body: Annotated[
        bool, option("--body", help="Write the kept body of this event's callback, as it is.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List events, or show one."""
    from receiver.core.event import EventFilter

    settings = load(ctx)
    if body:
        if event_id is None:
            raise UsageError("--body goes with the id of one event")
        sys.stdout.buffer.write(asyncio.run(_kept_body(settings, event_id)))
        return
    if event_id is not None:
        asyncio.run(_show_event(settings, event_id, as_json))
        return
    wanted = EventFilter(source=source, type=type_, ref=ref, job_id=job, since=since(since_), limit=limit)
    found = asyncio.run(_list_events(settings, wanted))
    if as_json:
        print_json([event_fields(event) for event in found])
        return
    print_table(
        ("id", "recorded", "type", "source", "ref", "job"),
        ((e.id, _time(e.recorded_at), e.type, e.source, e.ref, e.job_id) for e in found),
        empty="no event fits",
    )


async def _kept_body(settings: Settings, event_id: str) -> bytes:
    from receiver.app.wiring import build_blobs

    async with opened_store(settings) as store:
        event, kept = await store.event(event_id), await store.body(event_id)
    if kept is not None or event.blob_key is None:
        return kept or b""
    blobs = build_blobs(settings)
    await blobs.open()
    try:
        return await blobs.get(event.blob_key)
    finally:
        await blobs.close()


async def _list_events(settings: Settings, wanted: Any) -> list[Event]:
    async with opened_store(settings) as store:
        return await store.events(wanted)


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
    return next((one for one in found if one.event_id == event_id), None)


async def _show_event(settings: Settings, event_id: str, as_json: bool) -> None:
    from receiver.core.work import DeliveryFilter

    async with opened_store(settings) as store:
        event = await _event(store, event_id)
        owed = await store.deliveries(DeliveryFilter(event_id=event_id, limit=1000))
    if as_json:
        print_json(event_fields(event) | {"deliveries": [delivery_fields(d) for d in owed]})
        return
    fields = event_fields(event)
    data = fields.pop("data")
    print_fields(fields.items())
    print_json(data)
    _delivery_table(owed)


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
    as_json: AsJson = False,
) -> None:
    """List deliveries, or show one with its attempts."""
    from receiver.core.work import DeliveryFilter

    settings = load(ctx)
    if delivery_id is not None:
        asyncio.run(_show_delivery(settings, delivery_id, as_json))
        return
    wanted = DeliveryFilter(
        destination=destination, state=state, event_id=event, since=since(since_), limit=limit
    )
    found = asyncio.run(_list_deliveries(settings, wanted))
    if as_json:
        print_json([delivery_fields(delivery) for delivery in found])
    else:
        _delivery_table(found)


async def _list_deliveries(settings: Settings, wanted: Any) -> list[Delivery]:
    async with opened_store(settings) as store:
        return await store.deliveries(wanted)


async def _show_delivery(settings: Settings, delivery_id: str, as_json: bool) -> None:
    async with opened_store(settings) as store:
        delivery = await store.delivery(delivery_id)
        attempts = await store.attempts(delivery_id)
    fields = delivery_fields(delivery)
    if as_json:
        print_json(fields | {"attempts": [_attempt_fields(attempt) for attempt in attempts]})
        return
    print_fields(fields.items())
    print_table(
        ("attempt", "started", "took", "outcome", "status", "detail", "answer"),
        (
            (
                a.number,
                _time(a.started_at),
                f"{a.duration_ms} ms",
                a.outcome,
                a.status,
                a.detail,
                _answer(a, 80),
            )
            for a in attempts
        ),
        empty="no attempt has been made yet",
    )


def _delivery_table(found: list[Delivery]) -> None:
    print_table(
        ("id", "state", "attempts", "destination", "event", "type", "due", "last outcome"),
        (
            (
                d.id,
                d.state,
                d.attempts,
                d.destination,
                d.event_id,
                d.event_type,
                _time(d.due_at),
                d.last_outcome,
            )
            for d in found
        ),
        empty="no delivery fits",
    )


def rejections(
    ctx: typer.Context,
    source: Annotated[str | None, typer.Argument(help="Only of this source.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List callbacks that were not proved (the last 100 of each source are kept, without bodies)."""
    settings = load(ctx)
    found = asyncio.run(_list_rejections(settings, source, limit))
    if as_json:
        print_json([_rejection_fields(rejection) for rejection in found])
        return
    print_table(
        ("at", "source", "status", "reason", "method", "from", "user agent"),
        ((_time(r.at), r.source, r.status, r.reason, r.method, r.peer, r.user_agent) for r in found),
        empty="no rejection is kept",
    )


async def _list_rejections(settings: Settings, source: str | None, limit: int) -> list[Rejection]:
    async with opened_store(settings) as store:
        return await store.rejections(source, limit=limit)


# ---------------------------------------------------------------- the same things as JSON


def event_fields(event: Event) -> dict[str, Any]:
    """Return one event as JSON shows it; links in `data` are made at each attempt, so here they are null."""
    return {
        "id": event.id,
        "type": event.type,
        "source": event.source,
        "provider": event.provider,
        "job_id": event.job_id,
        "ref": event.ref,
        "occurred_at": _time(event.occurred_at),
        "recorded_at": _time(event.recorded_at),
        "data": json.loads(event.data),
    }


def delivery_fields(delivery: Delivery) -> dict[str, Any]:
    """Return one delivery as JSON shows it."""
    return {
        "id": delivery.id,
        "state": delivery.state.value,
        "destination": delivery.destination,
        "event_id": delivery.event_id,
        "event_type": delivery.event_type,
        "attempts": delivery.attempts,
        "round_start": delivery.round_start,
        "due_at": _time(delivery.due_at),
        "created_at": _time(delivery.created_at),
        "updated_at": _time(delivery.updated_at),
        "last_outcome": delivery.last_outcome,
    }


def _attempt_fields(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "started_at": _time(attempt.started_at),
        "duration_ms": attempt.duration_ms,
        "outcome": attempt.outcome.value,
        "status": attempt.status,
        "detail": attempt.detail,
        "answer": attempt.response.decode("utf-8", "replace"),
    }


def _rejection_fields(rejection: Rejection) -> dict[str, Any]:
    return {
        "at": _time(rejection.at),
        "source": rejection.source,
        "status": rejection.status,
        "reason": rejection.reason,
        "method": rejection.method,
        "peer": rejection.peer,
        "content_type": rejection.content_type,
        "user_agent": rejection.user_agent,
    }


def _time(millis: int | None) -> str | None:
    from receiver.core.envelope import iso

    return None if millis is None else iso(millis)


def _answer(attempt: Attempt, length: int) -> str:
    return attempt.response.decode("utf-8", "replace")[:length]
