"""`replay`: another round for deliveries that have ended, and the deliveries that today's settings would have made."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct, to_builtins

from receiver.cli.acting import acting
from receiver.cli.options import AsJson, Chosen, Yes, confirm, given, load, opened_store, since
from receiver.cli.output import counted, print_json, warn
from receiver.core.act import COMMAND_LINE
from receiver.core.bulk import BulkKind, BulkOperation, BulkState, Selection
from receiver.core.clock import wall_clock
from receiver.core.errors import UsageError
from receiver.core.event import EVENT_TYPES
from receiver.core.work import DeliveryState

if TYPE_CHECKING:
    from receiver.engine.bulk import BulkWorker, Plan
    from receiver.engine.replays import Replayable
    from receiver.settings.model import Settings
    from receiver.storage.store.store import Store

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
    wanted = _Wanted(ids or [], to, dead, destination, source, type_, since(since_), since(until), rate)
    wanted.refuse_contradictions()
    settings = load(ctx)
    Chosen("destination", wanted.to, settings.destinations).refuse_unknown()
    done = _named(settings, wanted, dry_run) if ids else _fitting(settings, wanted, dry_run, yes=yes)
    _tell(done, dry_run=dry_run, as_json=as_json)


class _Wanted(Struct, frozen=True):
    """What is to be sent again: ids, or filters."""

    ids: Sequence[str]
    to: str | None
    dead: bool
    destination: str | None
    source: str | None
    event_type: str | None
    since: int | None
    until: int | None
    rate: int | None

    def refuse_contradictions(self) -> None:
        """Raise `UsageError` for what cannot be meant together, or is not enough."""
        of_deliveries = self.dead or self.destination is not None
        others = (self.source, self.event_type, self.since, self.until)
        filtered = of_deliveries or any(one is not None for one in others)
        if self.ids and (filtered or self.rate is not None):
            raise UsageError("name ids, or filter with --dead, --destination, --since and the like; not both")
        if self.to is not None and of_deliveries:
            raise UsageError("--to makes deliveries; --dead and --destination choose among those there are")
        if not self.ids and not filtered and self.to is None:
            raise UsageError(
                "name deliveries or events, or filter with --to, --dead, --destination or --since"
            )

    def chosen(self, settings: Settings) -> tuple[Chosen, Chosen, Chosen]:
        """Return the filters by name."""
        return (
            Chosen("source", self.source, settings.sources),
            Chosen("destination", self.to or self.destination, settings.destinations),
            Chosen("event type", self.event_type, EVENT_TYPES),
        )

    def selections(self, settings: Settings) -> list[Selection]:
        """Return what fits, a selection for each source and destination that a pattern names."""
        sources, destinations, types = self.chosen(settings)
        types.names()  # refuses a pattern that fits none
        return [
            Selection(
                destination=destination,
                state=DeliveryState.DEAD if self.dead else None,
                source=source,
                type=self.event_type,
                since=self.since,
                until=self.until,
            )
            for source, destination in product(sources.names(), destinations.names())
        ]


class _Done(Struct, frozen=True, kw_only=True):
    """What was found and done, or would be."""

    found: int
    replayed: int
    added: int
    left_alone: int
    operations: Sequence[BulkOperation] = ()


# ---------------------------------------------------------------- by name


def _named(settings: Settings, wanted: _Wanted, dry_run: bool) -> _Done:
    found, replayed, added = asyncio.run(_replay_named(settings, wanted, dry_run))
    if dry_run:
        replayed, added = len(found.ended), len(found.missing)
    busy = found.busy + len(found.ended) - (replayed if found.ended else 0)
    return _Done(found=len(found), replayed=replayed, added=added, left_alone=busy)


async def _replay_named(settings: Settings, wanted: _Wanted, dry_run: bool) -> tuple[Replayable, int, int]:
    from receiver.app.wiring import build_router
    from receiver.engine.replays import find_named, replay

    async with opened_store(settings) as store:
        found = await find_named(store, build_router(settings), wanted.ids, wanted.to)
        if dry_run:
            return found, 0, 0
        async with acting(store, "replay", to=wanted.to, deliveries=str(len(found))):
            return found, *await replay(store, found, now=wall_clock())


# ---------------------------------------------------------------- all that fits


def _fitting(settings: Settings, wanted: _Wanted, dry_run: bool, *, yes: bool) -> _Done:
    plans = asyncio.run(_plan(settings, wanted))
    operations = [one.operation for one in plans if one.operation.total]
    busy = sum(one.left_alone for one in plans)
    if not operations and not busy:
        for one in wanted.chosen(settings):
            one.refuse_unknown()
    found = sum(one.total for one in operations)
    replays = _of_kind(operations, BulkKind.REPLAY, "total")
    if operations and not dry_run:
        would = _told(replays, found - replays, "would be ")
        if not yes:
            confirm(f"{would}. Go on?", would, instead=" (or look first with --dry-run)")
        operations = asyncio.run(_replay_all(settings, operations))
    counts = "total" if dry_run else "changed"
    return _Done(
        found=found,
        replayed=_of_kind(operations, BulkKind.REPLAY, counts),
        added=_of_kind(operations, BulkKind.BACKFILL, counts),
        left_alone=busy,
        operations=operations,
    )


def _of_kind(operations: Sequence[BulkOperation], kind: BulkKind, counts: str) -> int:
    return sum(getattr(one, counts) for one in operations if one.kind is kind)


async def _plan(settings: Settings, wanted: _Wanted) -> list[Plan]:
    from receiver.app.wiring import build_router
    from receiver.engine.bulk import plan

    kind = BulkKind.REPLAY if wanted.to is None else BulkKind.BACKFILL
    router, by, now = build_router(settings), COMMAND_LINE, wall_clock()
    async with opened_store(settings) as store:
        return [
            await plan(store, router, kind, selection, rate=wanted.rate, by=by, now=now)
            for selection in wanted.selections(settings)
        ]


async def _replay_all(settings: Settings, operations: Sequence[BulkOperation]) -> list[BulkOperation]:
    from receiver.app.wiring import build_router
    from receiver.core.observe import Observers
    from receiver.engine.bulk import BulkWorker

    async with opened_store(settings) as store:
        router, observer = build_router(settings), Observers([])
        worker = BulkWorker(store, router, wake=frozenset, observer=observer, clock=wall_clock)
        done = []
        for one in operations:
            async with acting(store, "replay", one.id, **to_builtins(one.selection)):
                done.append(await carried_on(store, worker, one, "Replaying"))
        return done


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
    ids = [one.id for one in done.operations]
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
    for stopped in (one for one in done.operations if one.state is BulkState.STOPPED):
        warn(f"{stopped.id} was stopped after {stopped.done} of {stopped.total}")
    if not dry_run and not changed:
        raise typer.Exit(1)


def _told(replayed: int, added: int, mood: str = "") -> str:
    parts = [f"{_count(replayed)} {mood}replayed"] if replayed or not added else []
    if added:
        parts.append(f"{_count(added)} {mood}made")
    return ", ".join(parts)


def _count(number: int) -> str:
    return counted(number, "delivery", "deliveries")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(replay)
