"""`replay`: another round for deliveries that have ended, and the deliveries that today's settings would have made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from msgspec.structs import replace as changed

from receiver.cli.options import AsJson, Chosen, Yes, confirm, given, load, opened_store, since
from receiver.cli.output import counted, print_json, warn
from receiver.core.clock import wall_clock
from receiver.core.errors import UsageError
from receiver.core.event import EVENT_TYPES, EventFilter
from receiver.core.work import DeliveryFilter, DeliveryState

if TYPE_CHECKING:
    from receiver.core.event import Event
    from receiver.settings.model import Settings
    from receiver.storage.store.store import Store

T = TypeVar("T")
_PAGE = 500
_ENDED = (DeliveryState.DEAD, DeliveryState.DELIVERED)
Routed = Callable[["Event"], Sequence[str]]
"""Returns the destinations that today's settings send an event to, of those that were asked for."""


@dataclass
class _Found:
    """What fits."""

    ended: list[str] = field(default_factory=list)
    """Deliveries that have ended: they get another round."""
    missing: list[tuple[str, str]] = field(default_factory=list)
    """Events and the destinations that they have no delivery to: these are made."""
    busy: int = 0
    """Deliveries under way: they are left alone."""

    def __len__(self) -> int:
        return len(self.ended) + len(self.missing)


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
    """Send events again, or for the first time to destinations that they have no delivery to."""
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

    def find(self, settings: Settings) -> _Found:
        """Return what there is of it. Raises `UsageError` when a filter names what there is not."""
        routed = _routed(settings, self.to)
        chosen = (
            Chosen("source", self.source, settings.sources),
            Chosen("event type", self.event_type, EVENT_TYPES),
            Chosen("destination", self.destination, settings.destinations),
        )
        names = list(product(*(one.names() for one in chosen)))
        if self.to is not None and not self.ids:
            events = [self._events(source, event_type) for source, event_type, _ in names]
            found = asyncio.run(_never_sent(settings, events, routed))
        else:
            deliveries = [self._deliveries(*one) for one in names]
            found = asyncio.run(_find(settings, self.ids, deliveries, self.to, routed))
        if not found and not found.busy:
            for one in chosen:
                one.refuse_unknown()
        return found

    def _events(self, source: str | None, event_type: str | None) -> EventFilter:
        return EventFilter(source=source, type=event_type, since=self.since, until=self.until, limit=_PAGE)

    def _deliveries(
        self, source: str | None, event_type: str | None, destination: str | None
    ) -> DeliveryFilter:
        return DeliveryFilter(
            source=source,
            event_type=event_type,
            destination=destination,
            state=DeliveryState.DEAD if self.dead else None,
            since=self.since,
            until=self.until,
            limit=_PAGE,
        )


def _routed(settings: Settings, to: str | None) -> Routed:
    from receiver.app.wiring import build_router

    Chosen("destination", to, settings.destinations).refuse_unknown()
    router = build_router(settings)

    def routed(event: Event) -> Sequence[str]:
        wanted = router.destinations(event.source, event.type)
        return [name for name in wanted if to in (None, name)]

    return routed


async def _find(
    settings: Settings, ids: Sequence[str], filters: Sequence[DeliveryFilter], to: str | None, routed: Routed
) -> _Found:
    """Return what there is of the deliveries and events named, or of the deliveries that fit the filters."""
    found = _Found()
    states: dict[str, DeliveryState] = {}
    async with opened_store(settings) as store:
        for one in filters if not ids else ():
            states |= await _states(store, one)
        for identifier in ids:
            if identifier.startswith("evt_"):
                await _add_missing(store, [await store.event(identifier)], routed, found)
                of_event = DeliveryFilter(event_id=identifier, destination=to, limit=_PAGE)
                states |= await _states(store, of_event)
            else:
                delivery = await store.delivery(identifier)
                states[delivery.id] = delivery.state
    found.ended = sorted(delivery_id for delivery_id, state in states.items() if state in _ENDED)
    found.busy = len(states) - len(found.ended)
    return found


async def _never_sent(settings: Settings, filters: Sequence[EventFilter], routed: Routed) -> _Found:
    """Return the events that fit and have no delivery to a destination that they go to, oldest first."""
    found = _Found()
    async with opened_store(settings) as store:
        for one in filters:
            async for page in _event_pages(store, one):
                await _add_missing(store, page, routed, found)
    found.missing.reverse()
    return found


async def _add_missing(store: Store, events: Sequence[Event], routed: Routed, found: _Found) -> None:
    there = await store.deliveries_of([event.id for event in events])
    pairs = [(event.id, name) for event in events for name in routed(event)]
    found.missing += [pair for pair in pairs if pair not in there]


async def _event_pages(store: Store, filters: EventFilter) -> AsyncIterator[list[Event]]:
    while page := await store.events(filters):
        yield page
        filters = changed(filters, after=(page[-1].recorded_at, page[-1].id))


async def _states(store: Store, filters: DeliveryFilter) -> dict[str, DeliveryState]:
    states: dict[str, DeliveryState] = {}
    while page := await store.deliveries(filters):
        states |= {delivery.id: delivery.state for delivery in page}
        filters = changed(filters, after=page[-1].id)
    return states


def _finish(settings: Settings, found: _Found, *, dry_run: bool, as_json: bool) -> None:
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


async def _replay(settings: Settings, found: _Found) -> tuple[int, int]:
    from rich.console import Console
    from rich.progress import Progress

    replayed = added = 0
    out = Console(stderr=True)
    async with opened_store(settings) as store:
        with Progress(console=out, transient=True, disable=not out.is_terminal) as progress:
            bar = progress.add_task("Replaying", total=len(found))
            for ids in _pages(found.ended):
                replayed += len(await store.replay(ids, now=wall_clock()))
                progress.advance(bar, len(ids))
            for pairs in _pages(found.missing):
                added += len(await store.add_deliveries(pairs, now=wall_clock()))
                progress.advance(bar, len(pairs))
    return replayed, added


def _pages(things: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(things), _PAGE):
        yield things[start : start + _PAGE]


def _would(found: _Found) -> str:
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
