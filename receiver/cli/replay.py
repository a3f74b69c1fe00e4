"""`replay`: another round for deliveries that have ended, and the deliveries that today's settings would have made."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

from receiver.cli.options import AsJson, Chosen, Yes, confirm, given, load, opened_store, since
from receiver.cli.output import counted, print_json, warn
from receiver.core.clock import wall_clock
from receiver.core.errors import UsageError
from receiver.core.event import EVENT_TYPES, EventFilter
from receiver.core.work import DeliveryFilter, DeliveryState

if TYPE_CHECKING:
    from receiver.engine.replays import Replayable
    from receiver.settings.model import Settings

Filters = list[EventFilter] | list[DeliveryFilter]
PAGE = 500
"""Rows of a page."""


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
    dry_run: Annotated[bool, given("--dry-run", help="Count, and replay nothing.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send events again. Also for the first time, to destinations that they have no delivery to."""
    wanted = _Wanted(ids or [], to, dead, destination, source, type_, since(since_), since(until))
    wanted.refuse_contradictions()
    settings = load(ctx)
    found = wanted.find(settings)
    if found and not dry_run and not ids and not yes:
        confirm(f"{_would(found)}. Go on?", _would(found), instead=" (or look first with --dry-run)")
    _finish(settings, found, dry_run=dry_run, as_json=as_json)


@dataclass(frozen=True)
class _Wanted:
    """What is to be sent again: ids, or filters."""

    ids: Sequence[str]
    to: str | None
    dead: bool
    destination: str | None
    source: str | None
    event_type: str | None
    since: int | None
    until: int | None

    def refuse_contradictions(self) -> None:
        """Raise `UsageError` for what cannot be meant together, or is not enough."""
        of_deliveries = self.dead or self.destination is not None
        others = (self.source, self.event_type, self.since, self.until)
        filtered = of_deliveries or any(one is not None for one in others)
        if self.ids and filtered:
            raise UsageError("name ids, or filter with --dead, --destination, --since and the like; not both")
        if self.to is not None and of_deliveries:
            raise UsageError("--to makes deliveries; --dead and --destination choose among those there are")
        if not self.ids and not filtered and self.to is None:
            raise UsageError(
                "name deliveries or events, or filter with --to, --dead, --destination or --since"
            )

    def find(self, settings: Settings) -> Replayable:
        """Return what there is of it. Raises `UsageError` when a filter names what there is not."""
        Chosen("destination", self.to, settings.destinations).refuse_unknown()
        chosen = (
            Chosen("source", self.source, settings.sources),
            Chosen("event type", self.event_type, EVENT_TYPES),
            Chosen("destination", self.destination, settings.destinations),
        )
        names = list(product(*(one.names() for one in chosen)))
        filters: Filters
        if self.to is not None and not self.ids:
            filters = [self._events(source, event_type) for source, event_type, _ in names]
        else:
            filters = [self._deliveries(*one) for one in names]
        found = asyncio.run(_find(settings, self.ids, self.to, filters))
        if not found and not found.busy:
            for one in chosen:
                one.refuse_unknown()
        return found

    def _events(self, source: str | None, event_type: str | None) -> EventFilter:
        return EventFilter(source=source, type=event_type, since=self.since, until=self.until, limit=PAGE)

    def _deliveries(
        self, source: str | None, event_type: str | None, destination: str | None
    ) -> DeliveryFilter:
        return DeliveryFilter(
            source=source,
            event_types=None if event_type is None else (event_type,),
            destination=destination,
            state=DeliveryState.DEAD if self.dead else None,
            since=self.since,
            until=self.until,
            limit=PAGE,
        )


async def _find(settings: Settings, ids: Sequence[str], to: str | None, filters: Filters) -> Replayable:
    from receiver.app.wiring import build_router
    from receiver.engine.replays import find_fitting, find_named, find_never_sent, routed_to

    routed = routed_to(build_router(settings), to)
    async with opened_store(settings) as store:
        if ids:
            return await find_named(store, ids, to, routed)
        if isinstance(filters[0], EventFilter):
            return await find_never_sent(store, filters, routed)
        return await find_fitting(store, filters)


def _finish(settings: Settings, found: Replayable, *, dry_run: bool, as_json: bool) -> None:
    """Replay what was found unless nothing is to be changed, and tell. Status 1 when there was nothing to do."""
    replayed = added = 0
    if found and not dry_run:
        replayed, added = asyncio.run(_replay(settings, found))
    busy = found.busy + (len(found.ended) - replayed if found.ended and not dry_run else 0)
    if as_json:
        counts = {"found": len(found), "replayed": replayed, "added": added}
        print_json(counts | {"left_alone": busy, "dry_run": dry_run})
    elif dry_run:
        typer.echo(_would(found))
    elif replayed or added:
        typer.echo(f"{_told(replayed, added)}; a running relay takes them up within a second")
    else:
        warn("nothing was replayed: no delivery that has ended fits, and today's settings make none")
    if busy and not as_json:
        warn(f"{_count(busy)} still under way, left alone")
    if not dry_run and not (replayed or added):
        raise typer.Exit(1)


async def _replay(settings: Settings, found: Replayable) -> tuple[int, int]:
    from rich.console import Console
    from rich.progress import Progress

    from receiver.engine import replays

    out = Console(stderr=True)
    async with opened_store(settings) as store:
        with Progress(console=out, transient=True, disable=not out.is_terminal) as progress:
            bar = progress.add_task("Replaying", total=len(found))
            return await replays.replay(
                store, found, now=wall_clock(), done=lambda count: progress.advance(bar, count)
            )


def _would(found: Replayable) -> str:
    return _told(len(found.ended), len(found.missing), "would be ")


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
