"""`replay`: another round for deliveries that have ended, and the deliveries that today's settings would have made."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct, to_builtins

from receiver.cli.acting import acting
from receiver.cli.asking import refuse_unknown
from receiver.cli.options import AsJson, Yes, confirm, given, load, moment, opened_store
from receiver.cli.output import counted, print_json, warn
from receiver.core.act import COMMAND_LINE
from receiver.core.bulk import BulkOperation, BulkState
from receiver.core.clock import wall_clock

if TYPE_CHECKING:
    from receiver.core.bulk import BulkKind, Selection
    from receiver.engine.bulk import BulkWorker, Plan
    from receiver.engine.replays import Replayable
    from receiver.settings.model import Settings
    from receiver.storage.store.store import Store
    from receiver.web.api.operations import NewReplay

WATCH_SECONDS = 0.2
"""How often an operation is looked at while another process carries it on, or its rate makes it wait."""


def replay(
    ctx: typer.Context,
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="Deliveries (dlv_…) or events (evt_…: to all their destinations)."),
    ] = None,
    to: Annotated[
        str | None, given("--to", help="To this destination; without ids: the events that it never got.")
    ] = None,
    dead: Annotated[bool, given("--dead", help="Dead letters only.")] = False,
    destination: Annotated[
        str | None, given("--destination", help="Only deliveries to this destination.")
    ] = None,
    source: Annotated[str | None, given("--source", help="Only events of this source.")] = None,
    type_: Annotated[
        str | None, given("--type", help="Only events of this type, as speech.completed.")
    ] = None,
    since_: Annotated[
        str | None, given("--since", help="Only since then: 2h (ago), or 2026-11-21T10:00Z.")
    ] = None,
    until: Annotated[
        str | None, given("--until", help="Only before then: 2h (ago), or 2026-11-21T10:00Z.")
    ] = None,
    rate: Annotated[
        int | None, given("--rate", help="With filters: at most so many in a second.", min=1)
    ] = None,
    dry_run: Annotated[bool, given("--dry-run", help="Count, and replay nothing.")] = False,
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
        type=type_,
        since=moment(since_),
        until=moment(until),
        rate=rate,
        dry_run=dry_run,
    )
    flags = "--to, --dead, --destination, --source, --type, --since and --until"
    refuse_contradictions(wanted, words=flags)
    settings = load(ctx)
    refuse_unknown(settings, "destination", wanted.to)
    done = _named(settings, wanted) if ids else _fitting(settings, wanted, yes=yes)
    _tell(done, dry_run=dry_run, as_json=as_json)


class _Done(Struct, frozen=True, kw_only=True):
    """What was found and done, or would be."""

    found: int
    replayed: int
    added: int
    left_alone: int
    operation: BulkOperation | None = None


# ---------------------------------------------------------------- by name


def _named(settings: Settings, wanted: NewReplay) -> _Done:
    found, replayed, added = asyncio.run(_replay_named(settings, wanted))
    if wanted.dry_run:
        replayed, added = len(found.ended), len(found.missing)
    busy = found.busy + len(found.ended) - (replayed if found.ended else 0)
    return _Done(found=len(found), replayed=replayed, added=added, left_alone=busy)


async def _replay_named(settings: Settings, wanted: NewReplay) -> tuple[Replayable, int, int]:
    from receiver.app.wiring import build_router
    from receiver.engine.replays import find_named, replay

    async with opened_store(settings) as store:
        found = await find_named(store, build_router(settings), wanted.ids or (), wanted.to)
        if wanted.dry_run:
            return found, 0, 0
        async with acting(store, "replay", to=wanted.to, deliveries=str(len(found))):
            return found, *await replay(store, found, now=wall_clock())


# ---------------------------------------------------------------- all that fits


def _fitting(settings: Settings, wanted: NewReplay, *, yes: bool) -> _Done:
    from receiver.web.api.operations import selected

    planned = asyncio.run(planned_for(settings, *selected(wanted), rate=wanted.rate))
    operation, adds = planned.operation, wanted.to is not None
    if not operation.total and not planned.left_alone:
        for name in ("source", "destination", "type"):
            refuse_unknown(settings, name, getattr(wanted, name))
    if operation.total and not wanted.dry_run:
        would = _told(0 if adds else operation.total, operation.total if adds else 0, "would be ")
        if not yes:
            confirm(f"{would}. Go on?", would, instead=" (or look first with --dry-run)")
        operation = asyncio.run(_replay_all(settings, operation))
    count = operation.total if wanted.dry_run else operation.changed
    return _Done(
        found=operation.total,
        replayed=0 if adds else count,
        added=count if adds else 0,
        left_alone=planned.left_alone,
        operation=operation if operation.total else None,
    )


async def planned_for(
    settings: Settings, kind: BulkKind, chosen: Selection, *, rate: int | None = None
) -> Plan:
    """Count what is chosen, and plan the operation. Raises as `opened_store` does."""
    from receiver.app.wiring import build_router
    from receiver.engine.bulk import plan

    async with opened_store(settings) as store:
        router, by, now = build_router(settings), COMMAND_LINE, wall_clock()
        return await plan(store, router, kind, chosen, rate=rate, by=by, now=now)


async def _replay_all(settings: Settings, planned: BulkOperation) -> BulkOperation:
    from receiver.app.wiring import build_router
    from receiver.core.observe import Observers
    from receiver.engine.bulk import BulkWorker

    async with opened_store(settings) as store:
        router, observer = build_router(settings), Observers([])
        worker = BulkWorker(store, router, wake=frozenset, observer=observer, clock=wall_clock)
        async with acting(store, "replay", planned.id, **to_builtins(planned.selection)):
            return await carried_on(store, worker, planned, "Replaying")


async def carried_on(store: Store, worker: BulkWorker, planned: BulkOperation, doing: str) -> BulkOperation:
    """Run an operation here, beside whatever process else takes it up, until it is done or somebody stops it."""
    from rich.console import Console
    from rich.progress import Progress

    out = Console(stderr=True)
    with Progress(console=out, transient=True, disable=not out.is_terminal) as progress:
        bar = progress.add_task(doing, total=planned.total)
        now = await store.change_operation(planned.id, running=True, now=wall_clock())
        while now.state is BulkState.RUNNING:
            if not await worker.step(only=now.id):
                await asyncio.sleep(WATCH_SECONDS)
            now = await store.operation(now.id)
            progress.update(bar, completed=now.done)
    return now


# ---------------------------------------------------------------- told


def _tell(done: _Done, *, dry_run: bool, as_json: bool) -> None:
    """Tell what was done. Status 1 when there was nothing to do."""
    ids = [done.operation.id] if done.operation else []
    changed = 0 if dry_run else done.replayed + done.added
    if as_json:
        counts = {"replayed": 0, "added": 0} if dry_run else {"replayed": done.replayed, "added": done.added}
        print_json(
            {"found": done.found, **counts, "left_alone": done.left_alone}
            | {"dry_run": dry_run, "operations": ids}
        )
    elif dry_run:
        typer.echo(_told(done.replayed, done.added, "would be "))
        for one in ids:
            typer.echo(f"exactly these: receiver operations resume {one}")
    elif changed:
        typer.echo(f"{_told(done.replayed, done.added)}; a running relay takes them up within a second")
    else:
        warn(
            "nothing was replayed: no delivery that has ended fits, and today's settings make none "
            "(`receiver route EVENT` tells where an event goes)"
        )
    if done.left_alone and not as_json:
        warn(f"{_count(done.left_alone)} still under way, left alone")
    if done.operation and done.operation.state is BulkState.STOPPED:
        warn(f"{done.operation.id} was stopped after {done.operation.done} of {done.operation.total}")
    if not dry_run and not changed:
        raise typer.Exit(1)


def _told(replayed: int, added: int, mood: str = "") -> str:
    parts = [f"{_count(replayed)} {mood}replayed"] if replayed or not added else []
    if added:
        parts.append(f"{_count(added)} {mood}made")
    return ", ".join(parts)


def _count(number: int) -> str:
    return counted(number, "delivery", "deliveries")
