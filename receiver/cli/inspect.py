"""`events`, `deliveries`, `rejections`, `route`, `trace` and `audio`: what the store holds, what became of a job, and what audio is."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec.structs import replace as changed

from receiver.cli.opening import ask, asked, listed, load, load_to_look, opened_blobs, opened_store, read_file
from receiver.cli.options import (
    AsJson,
    Limit,
    OfJob,
    OfRef,
    OfSource,
    OfType,
    Since,
    Wide,
    job_format,
    option,
    since,
)
from receiver.cli.output import (
    Listing,
    clean,
    of_all,
    print_attempts,
    print_fields,
    print_json,
    print_list,
    print_table,
)
from receiver.core.callback import MemoryBody, split_media_type
from receiver.core.clock import iso, wall_clock
from receiver.core.errors import NotFound, UsageError
from receiver.core.event import Event
from receiver.core.explain import Cause, Step
from receiver.core.observe import harmless
from receiver.core.work import Delivery, DeliveryFilter, DeliveryState, PickupFilter
from receiver.web.views import shown_as, view

if TYPE_CHECKING:
    from receiver.core.event import EventSearch
    from receiver.core.routing import Decision
    from receiver.core.work import Delivery, Pickup
    from receiver.settings.model import Settings
    from receiver.storage.store.store import Store
    from receiver.web.api.deliveries import DeliveryWhole


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
    short=("id", "state", "attempts", "destination", "ref"),
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
    from receiver.web.api import events as api
    from receiver.web.api.lists import refuse_unconfigured

    settings = load_to_look(ctx)
    wanted: dict[str, Any] = {"source": source, "type": type_, "ref": ref, "job_id": job}
    if body:
        if event_id is None:
            raise UsageError("--body goes with the id of one event")
        sys.stdout.buffer.write(asyncio.run(_kept_body(settings, event_id)))
    elif event_id is not None:
        _show_event(settings, event_id, wide=wide, as_json=as_json)
    elif follow:
        query = api.EventQuery(**wanted)
        refuse_unconfigured(settings, query)
        asyncio.run(_follow(settings, api.search_of(query), as_json=as_json))
    else:
        found = listed(settings, api.listed, limit, since=since(since_), **wanted)
        print_list(_EVENTS, found, wide=wide, as_json=as_json)


async def _follow(settings: Settings, wanted: EventSearch, *, as_json: bool) -> None:
    """Print what is recorded from now on, for ever."""
    from receiver.engine.following import followed, newest_place

    async with opened_store(settings) as store:
        search = changed(wanted, newest_first=False, after=await newest_place(store))
        async for found in followed(store, search, seconds=_FOLLOW_SECONDS):
            for one in found:
                fields, event = view(one.event), one.event
                line = (fields["recorded_at"], event.type, event.source, event.ref or "-", event.id)
                text = harmless(json.dumps(fields, ensure_ascii=False)) if as_json else clean("  ".join(line))
                sys.stdout.write(text + "\n")
            sys.stdout.flush()


async def _kept_body(settings: Settings, event_id: str) -> bytes:
    from receiver.engine.renormalizer import kept_body

    async with opened_store(settings) as store, opened_blobs(settings) as blobs:
        return await kept_body(store, blobs, await store.event(event_id))


def _show_event(settings: Settings, event_id: str, *, wide: bool, as_json: bool) -> None:
    from receiver.web.api import events as api

    try:
        found = asked(settings, api.one, event_id=event_id)
    except NotFound:
        awaited = ask(settings, lambda store: _awaited(store, event_id))
        if awaited is None:
            raise
        raise NotFound(
            f"{event_id} is still to come: `receiver pickups {awaited.id}` tells how far its pickup is"
        ) from None
    fields = view(found)
    if as_json:
        print_json(fields)
        return
    data = fields["data"]
    print_fields((name, fields[name]) for name in shown_as(Event).__struct_fields__ if name != "data")
    print_json(data)
    _print_deliveries(settings, found.deliveries, wide=wide)


async def _awaited(store: Store, event_id: str) -> Pickup | None:
    """Return the pickup that an event is to come from."""
    return next(iter(await store.pickups(PickupFilter(event_id=event_id, limit=1))), None)


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
    from receiver.web.api import deliveries as api

    settings = load_to_look(ctx)
    if delivery_id is not None:
        _show_delivery(
            settings, asked(settings, api.one, delivery_id=delivery_id), wide=wide, as_json=as_json
        )
        return
    wanted = {"destination": destination, "state": state, "event_id": event, "since": since(since_)}
    found = listed(settings, api.listed, limit, **wanted)
    _print_deliveries(settings, found, wide=wide, as_json=as_json)


def _show_delivery(settings: Settings, found: DeliveryWhole, *, wide: bool, as_json: bool) -> None:
    fields = view(found)
    if as_json:
        print_json(fields)
        return
    allowed = _allowed(settings, found)
    del fields["attempts_made"]
    print_fields((fields | {"attempts": of_all(found.attempts, allowed)}).items())
    print_attempts(found.attempts_made, allowed, wide=wide)


def _print_deliveries(
    settings: Settings, found: Sequence[Delivery], *, wide: bool, as_json: bool = False
) -> None:
    def attempts(one: Delivery) -> str:
        return of_all(one.attempts, _allowed(settings, one))

    def state(one: Delivery) -> str:
        both = f"{one.state} ({one.held_by})"
        return (both if wide else one.held_by) if one.held_by else one.state

    print_list(_DELIVERIES, found, wide=wide, as_json=as_json, more={"attempts": attempts, "state": state})


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
    from receiver.web.api import rejections as api

    found = listed(load_to_look(ctx), api.listed, limit, source=source)
    names = {"headers": lambda one: ", ".join(one.headers)}
    print_list(_REJECTIONS, found, wide=wide, as_json=as_json, more=names)


# ---------------------------------------------------------------- route and trace


def route(
    ctx: typer.Context,
    event_id: Annotated[str, typer.Argument(help="The event (evt_…).")],
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Show where an event goes, by which rule, and with which of its data. Also what was decided when it was recorded."""
    from receiver.app.wiring import build_router
    from receiver.web.views import page, view

    settings = load_to_look(ctx)

    async def look(store: Store) -> tuple[Event, list[Delivery], list[Decision]]:
        event = await store.event(event_id)
        deliveries = await store.deliveries(DeliveryFilter(event_id=event_id, limit=1000))
        return event, deliveries, await store.routing(event_id)

    event, deliveries, recorded = ask(settings, look)
    before = {one.destination: one for one in recorded}
    states = {one.destination: one.state.value for one in deliveries}
    decisions = build_router(settings).decisions(event.source, event.type, event.data)
    rows = [
        {
            "destination": one.destination,
            "sent": one.sent,
            "rule": one.rule,
            "data": settings.destinations[one.destination].data,
            "delivery": states.get(one.destination),
            "recorded": view(before[one.destination]) if one.destination in before else None,
        }
        for one in decisions
    ]
    if as_json:
        print_json(page(rows))
    else:
        names = ("destination", "sent", "when recorded", "delivery", "data", "rule")
        print_table(names, map(_cells, rows), empty="no destination is configured", wide=wide)


def _cells(row: Mapping[str, Any]) -> list[str | None]:
    was = row["recorded"]
    sent, then = _yes(row["sent"]), _yes(was["sent"] if was else None)
    return [row["destination"], sent, then, row["delivery"], _fields(row["data"]), row["rule"]]


def _yes(sent: bool | None) -> str | None:
    return None if sent is None else "yes" if sent else "no"


def _fields(data: tuple[str, ...] | None) -> str:
    return "all" if data is None else ", ".join(data) or "ids only"


def trace(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A ref, a job id of the provider's, or an event (evt_…).")],
    source: OfSource = None,
    as_json: AsJson = False,
) -> None:
    """Tell what became of a job. From its callback to each attempt, with the time of every step."""
    from receiver.engine.jobs import gather
    from receiver.web.api.jobs import job_shown

    settings = load_to_look(ctx)
    found = job_shown(ask(settings, lambda store: gather(store, settings, name, source, now=wall_clock())))
    if found.cause is Cause.UNKNOWN:
        raise NotFound(found.sentence)
    if as_json:
        print_json(view(found))
        return
    typer.echo(clean(found.sentence))
    if found.steps:
        print_table(("time", "after", "what", "detail"), _rows(found.steps), empty="", wide=True)


def _rows(steps: Sequence[Step]) -> list[tuple[str, str, str, str]]:
    return [
        (iso(step.at), f"{(step.at - steps[0].at) / 1000:.3f} s", step.what, step.detail) for step in steps
    ]


# ---------------------------------------------------------------- audio


def audio(
    ctx: typer.Context,
    file_or_event: Annotated[str, typer.Argument(help="A file, or the id of an event with audio.")],
    content_type: Annotated[
        str | None, option("--content-type", help="What the sender said of a file: audio/l16;rate=24000.")
    ] = None,
    format_: Annotated[
        str | None, option("--format", help="What the job asked for: encoding=linear16,sample_rate=24000.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what audio is, and how each fact was had."""
    said: dict[str, Any] = {}
    if file_or_event.startswith("evt_") and not Path(file_or_event).exists():
        data, said = asyncio.run(_of_event(load(ctx), file_or_event))
        content_type = content_type or said["content_type"]
    else:
        data = read_file(file_or_event, "; give a file, or the id of an event")
    found = _examined(data, content_type or "", job_format(format_))
    if said:
        found |= {"event_says": {name: said[name] for name in found if name in said}}
    if as_json:
        print_json(found)
        return
    hows = found.pop("how")
    rows = [(name, f"{value}  ({hows[name]})" if name in hows else value) for name, value in found.items()]
    print_fields((name, "unknown" if value is None else value) for name, value in rows)


async def _of_event(settings: Settings, event_id: str) -> tuple[bytes, dict[str, Any]]:
    import msgspec

    async with opened_store(settings) as store:
        event = await store.event(event_id)
    said: dict[str, Any] | None = msgspec.json.decode(event.data).get("audio")
    if said is None or event.blob_key is None:
        raise NotFound(f"{event_id} has no audio, or it was removed")
    async with opened_blobs(settings) as blobs:
        return await blobs.get(event.blob_key), said


def _examined(data: bytes, content_type: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the facts by the names that events have, and under `how` where each came from."""
    from receiver.providers.toolkit import asked_encoding, audio_draft, magic
    from receiver.system.audio.formats import MEDIA_TYPES, beginning
    from receiver.system.audio.formats import facts as audio_facts

    media_type, parameters = split_media_type(content_type)
    start = beginning(MemoryBody(data))
    draft = audio_draft(media_type, parameters, start, asked)
    facts = audio_facts(data, draft)
    by = "by nothing: no format shows"
    if magic(media_type, start, asked):
        by = "by the first bytes"
    elif media_type in MEDIA_TYPES:
        by = "by the content type"
    elif asked_encoding(asked):
        by = "by the job's request"
    inside = by if draft.bytes_per_frame else "by the bytes"
    hows = {
        "content_type": by,
        "extension": by,
        "codec": inside,
        "sample_rate_hz": inside,
        "channels": inside,
    }
    found: dict[str, Any] = {
        "content_type": draft.content_type,
        "extension": draft.extension,
        "codec": facts.codec,
        "sample_rate_hz": facts.sample_rate_hz,
        "channels": facts.channels,
        "duration_seconds": facts.duration_seconds,
        "duration_estimated": facts.duration_estimated,
        "bytes": len(data),
    }
    hows["duration_seconds"] = facts.how or "nothing tells it"
    return found | {"how": {name: how for name, how in hows.items() if found[name] is not None}}
