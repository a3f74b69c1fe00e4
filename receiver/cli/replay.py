"""`replay`, `renormalize` and `operations`: events that are sent again, callbacks that today's code reads again, and how far that is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import replace as changed

from receiver.cli.opening import (
    acting,
    ask,
    called,
    listed,
    load,
    load_to_look,
    opened_receiver,
    opened_store,
)
from receiver.cli.options import AsJson, Limit, Wide, Yes, confirm, given, moment, option
from receiver.cli.output import Listing, counted, print_json, print_list, warn
from receiver.core.clock import wall_clock
from receiver.core.errors import UsageError
from receiver.core.work import BulkOperation, BulkState
from receiver.web.views import view

if TYPE_CHECKING:
    from receiver.engine.bulk import BulkWorker
    from receiver.settings.model import Settings
    from receiver.storage.store.store import Store
    from receiver.web.api.operations import NewRenormalization, NewReplay, Replayed


WATCH_SECONDS = 0.2
"""How often an operation is looked at while another process carries it on, or its rate makes it wait."""

operations = typer.Typer(
    help="List replays of many deliveries; stop or resume one.", no_args_is_help=True, rich_markup_mode=None
)
OperationId = Annotated[
    str, typer.Argument(help="Id of the operation, as `receiver operations list --wide` shows it.")
]
NewRate = Annotated[int | None, option("--rate", help="From now on at most so many in a second.", min=1)]
_OPERATIONS = Listing(
    short=("id", "kind", "state", "total", "done", "changed"),
    wide=("id", "kind", "state", "total", "done", "changed", "rate", "by", "created", "updated"),
    fields={"by": "requested_by", "created": "created_at", "updated": "updated_at"},
    empty="no operation was ever planned",
)


@operations.command("list")
def list_(ctx: typer.Context, limit: Limit = 50, wide: Wide = False, as_json: AsJson = False) -> None:
    """List operations with their state, and how far each has come."""
    from receiver.web.api import operations as api

    print_list(_OPERATIONS, listed(load_to_look(ctx), api.listed, limit), wide=wide, as_json=as_json)


@operations.command()
def resume(ctx: typer.Context, operation: OperationId, rate: NewRate = None, as_json: AsJson = False) -> None:
    """Run an operation that was planned or stopped. Running processes take it up within a second."""
    _act(ctx, operation, running=True, rate=rate, as_json=as_json)


@operations.command()
def stop(ctx: typer.Context, operation: OperationId, as_json: AsJson = False) -> None:
    """Stop an operation. What it has done stays done, and `resume` goes on from there."""
    _act(ctx, operation, running=False, rate=None, as_json=as_json)


def _act(ctx: typer.Context, operation: str, *, running: bool, rate: int | None, as_json: bool) -> None:
    async def change(store: Store) -> BulkOperation:
        async with acting(store, f"operations {'resume' if running else 'stop'}", operation, rate=rate):
            return await store.change_operation(operation, running=running, rate=rate, now=wall_clock())

    now = ask(load_to_look(ctx), change)
    if as_json:
        print_json(view(now))
    else:
        typer.echo(f"{now.id} is {now.state}, {now.done} of {now.total} done")


async def carried_on(
    store: Store,
    worker: BulkWorker,
    planned: BulkOperation,
    command: str,
    would: str,
    *,
    doing: str,
    yes: bool,
) -> BulkOperation:
    """Run an operation here, beside whatever process else takes it up, until it is done or somebody stops it.

    A person is asked first: `would` says what it would do. Raises `UsageError`, `typer.Exit`, `StoreUnavailable`.
    """
    from rich.console import Console
    from rich.progress import Progress

    if not yes:
        confirm(f"{would}. Go on?", would, instead=" (or look first with --dry-run)" * (command == "replay"))
    out = Console(stderr=True)
    async with acting(store, command, planned.id, **view(planned.selection)):
        with Progress(console=out, transient=True, disable=not out.is_terminal) as progress:
            bar = progress.add_task(doing, total=planned.total)
            now = await store.change_operation(planned.id, running=True, now=wall_clock())
            while now.state is BulkState.RUNNING:
                if not await worker.step(only=now.id):
                    await asyncio.sleep(WATCH_SECONDS)
                now = await store.operation(now.id)
                progress.update(bar, completed=now.done)
    return now


# ---------------------------------------------------------------- replay

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
    _tell(
        asyncio.run(_named(settings, wanted) if ids else _fitting(settings, wanted, yes=yes)), as_json=as_json
    )


async def _named(settings: Settings, wanted: NewReplay) -> Replayed:
    from receiver.app.wiring import build_router
    from receiver.engine.bulk import find_named
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
    from receiver.web.api.operations import make_replay

    async with opened_store(settings) as store:
        done: Replayed = await called(store, settings, make_replay, body=changed(wanted, dry_run=True))
        operation, does = done.operation, "added" if wanted.to else "replayed"
        if operation is None:
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


# ---------------------------------------------------------------- renormalize


def renormalize(
    ctx: typer.Context,
    event_id: Annotated[str | None, typer.Argument(help="The event (evt_…).")] = None,
    parked: Annotated[bool, given("--parked", help="All callbacks that were not understood.")] = False,
    source: Annotated[str | None, given("--source", help="With --parked: only of this source.")] = None,
    since_: Annotated[
        str | None, given("--since", help="With --parked: only since then, 2h (ago) or 2026-11-21T10:00Z.")
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Read kept callbacks again by today's code. What differs becomes a new event, which names the old one."""
    from receiver.web.api.operations import NewRenormalization

    if parked is (event_id is not None):
        raise UsageError("name one event, or give --parked")
    if event_id is not None and (source or since_):
        raise UsageError("--source and --since go with --parked")
    settings = load(ctx)
    if event_id is not None:
        _one(settings, event_id, as_json=as_json)
    else:
        wanted = NewRenormalization(source=source, since=moment(since_), dry_run=True)
        asyncio.run(_all(settings, wanted, yes=yes, as_json=as_json))


def _one(settings: Settings, event_id: str, *, as_json: bool) -> None:
    async def read() -> str | None:
        async with opened_receiver(settings) as receiver, acting(receiver.store, "renormalize", event_id):
            made = await receiver.renormalizer.again(await receiver.store.event(event_id))
            return made.event_id if made else None

    new = asyncio.run(read())
    if as_json:
        print_json({"replaces": event_id, "event_id": new})
    elif new:
        typer.echo(f"{new} says what the callback of {event_id} is read as now")
    else:
        warn(f"nothing was made: today's code makes no more of the callback of {event_id}")
    if new is None:
        raise typer.Exit(1)


async def _all(settings: Settings, wanted: NewRenormalization, *, yes: bool, as_json: bool) -> None:
    from receiver.web.api import operations as api

    async with opened_receiver(settings) as receiver:
        planned = await called(receiver.store, settings, api.renormalize, body=wanted)
        callbacks = counted(planned.found, "parked callback", "parked callbacks")
        done = planned.operation
        if done:
            would = f"{callbacks} would be read again"
            done = await carried_on(
                receiver.store, receiver.bulk, done, "renormalize", would, doing="Reading", yes=yes
            )
    if as_json:
        print_json(view(done or planned))
    else:
        made = counted(done.changed if done else 0, "event", "events")
        typer.echo(f"{callbacks} read again, {made} made")
    if done and done.state is BulkState.STOPPED:
        warn(f"{done.id} was stopped after {done.done} of {done.total}")
