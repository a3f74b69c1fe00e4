"""`replay`: another round for deliveries that have ended, and the deliveries that today's settings would have made."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import replace as changed

from receiver.cli.asking import called
from receiver.cli.opening import acting, load, opened_store
from receiver.cli.operations import carried_on
from receiver.cli.options import AsJson, Yes, given, moment
from receiver.cli.output import counted, print_json, warn
from receiver.core.bulk import BulkState
from receiver.core.clock import wall_clock

if TYPE_CHECKING:
    from receiver.settings.model import Settings
    from receiver.web.api.operations import NewReplay, Replayed

Ids = Annotated[
    list[str] | None, typer.Argument(help="Deliveries (dlv_…) or events (evt_…: to all their destinations).")
]
To = Annotated[
    str | None, given("--to", help="To this destination; without ids: the events that it never got.")
]
Dead = Annotated[bool, given("--dead", help="Dead letters only.")]
Destination = Annotated[str | None, given("--destination", help="Only deliveries to this destination.")]
Source = Annotated[str | None, given("--source", help="Only events of this source.")]
Type = Annotated[str | None, given("--type", help="Only events of this type, as speech.completed.")]
From = Annotated[str | None, given("--since", help="Only since then: 2h (ago), or 2026-11-21T10:00Z.")]
Until = Annotated[str | None, given("--until", help="Only before then: 2h (ago), or 2026-11-21T10:00Z.")]
Rate = Annotated[int | None, given("--rate", help="With filters: at most so many in a second.", min=1)]
DryRun = Annotated[bool, given("--dry-run", help="Count, and replay nothing.")]


def replay(
    ctx: typer.Context,
    ids: Ids = None,
    to: To = None,
    dead: Dead = False,
    destination: Destination = None,
    source: Source = None,
    type: Type = None,
    since: From = None,
    until: Until = None,
    rate: Rate = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send events again. Also for the first time, to destinations that they have no delivery to."""
    from receiver.web.api.lists import refuse_unknown
    from receiver.web.api.operations import NewReplay, refuse_contradictions

    wanted = NewReplay(
        ids=ids or None,
        to=to,
        destination=destination,
        state="dead" if dead else None,
        source=source,
        type=type,
        since=moment(since),
        until=moment(until),
        rate=rate,
        dry_run=dry_run,
    )
    refuse_contradictions(wanted, words="--to, --dead, --destination, --source, --type, --since and --until")
    settings = load(ctx)
    refuse_unknown(settings, "destination", wanted.to)
    _tell(
        asyncio.run(_named(settings, wanted) if ids else _fitting(settings, wanted, yes=yes)), as_json=as_json
    )


async def _named(settings: Settings, wanted: NewReplay) -> Replayed:
    from receiver.app.wiring import build_router
    from receiver.engine.replays import find_named
    from receiver.web.api.operations import make_replay

    async with opened_store(settings) as store:
        found = await find_named(store, build_router(settings), wanted.ids or (), wanted.to)
        told: Replayed = await called(store, settings, make_replay, body=changed(wanted, dry_run=True))
        if wanted.dry_run:
            return changed(told, replayed=len(found.ended), added=len(found.missing))
        async with acting(store, "replay", to=wanted.to, deliveries=str(told.found)):
            sent: Replayed = await called(store, settings, make_replay, body=wanted)
            return sent


async def _fitting(settings: Settings, wanted: NewReplay, *, yes: bool) -> Replayed:
    """Plan what fits as an operation, and carry it on here; `replayed` and `added` tell what it did, or would do."""
    from receiver.app.wiring import build_router
    from receiver.core.observe import Observers
    from receiver.engine.bulk import BulkWorker
    from receiver.web.api.lists import refuse_unknown
    from receiver.web.api.operations import make_replay

    async with opened_store(settings) as store:
        done: Replayed = await called(store, settings, make_replay, body=changed(wanted, dry_run=True))
        operation, does = done.operation, "added" if wanted.to else "replayed"
        if operation is None:
            for name in ("source", "destination", "type"):
                if not done.left_alone:
                    refuse_unknown(settings, name, getattr(wanted, name))
            return changed(done, dry_run=wanted.dry_run)
        would = changed(done, **{does: operation.total})
        if wanted.dry_run:
            return would
        router, observer = build_router(settings), Observers([])
        worker = BulkWorker(store, router, wake=frozenset, observer=observer, clock=wall_clock)
        operation = await carried_on(
            store, worker, operation, "replay", _told(would, "would be "), doing="Replaying", yes=yes
        )
        return changed(done, dry_run=False, operation=operation, **{does: operation.changed})


def _tell(done: Replayed, *, as_json: bool) -> None:
    """Tell what was done. Status 1 when there was nothing to do."""
    operation, changed_ = done.operation, 0 if done.dry_run else done.replayed + done.added
    if as_json:
        counts = (
            {"replayed": 0, "added": 0} if done.dry_run else {"replayed": done.replayed, "added": done.added}
        )
        last = {"left_alone": done.left_alone, "dry_run": done.dry_run}
        print_json({"found": done.found, **counts, **last, "operations": [operation.id] if operation else []})
    elif done.dry_run:
        typer.echo(_told(done, "would be "))
        if operation:
            typer.echo(f"exactly these: receiver operations resume {operation.id}")
    elif changed_:
        typer.echo(f"{_told(done)}; a running relay takes them up within a second")
    else:
        warn(
            "nothing was replayed: no delivery that has ended fits, and today's settings make none "
            "(`receiver route EVENT` tells where an event goes)"
        )
    if done.left_alone and not as_json:
        warn(f"{_count(done.left_alone)} still under way, left alone")
    if operation and operation.state is BulkState.STOPPED:
        warn(f"{operation.id} was stopped after {operation.done} of {operation.total}")
    if not done.dry_run and not changed_:
        raise typer.Exit(1)


def _told(done: Replayed, mood: str = "") -> str:
    parts = [f"{_count(done.replayed)} {mood}replayed"] if done.replayed or not done.added else []
    if done.added:
        parts.append(f"{_count(done.added)} {mood}made")
    return ", ".join(parts)


def _count(number: int) -> str:
    return counted(number, "delivery", "deliveries")
