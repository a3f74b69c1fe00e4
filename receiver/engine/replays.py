"""Replays: another round for deliveries that have ended, and the deliveries that today's settings would have made.

Sees ports only. Looking changes nothing, so that whoever asks can be told before how much would be replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from receiver.core.event import Event, EventFilter
from receiver.core.page import pages
from receiver.core.routing import Router
from receiver.core.work import DeliveryFilter, DeliveryState
from receiver.storage.store.store import Store

T = TypeVar("T")
PAGE = 500
"""Rows that are read, and deliveries that are replayed, at once."""
ENDED = (DeliveryState.DEAD, DeliveryState.DELIVERED)
Routed = Callable[[Event], Sequence[str]]
"""Returns the destinations that today's settings send an event to, of those that were asked for."""


@dataclass
class Replayable:
    """What fits a wish to replay."""

    ended: list[str] = field(default_factory=list)
    """Deliveries that have ended: they get another round."""
    missing: list[tuple[str, str]] = field(default_factory=list)
    """Events and the destinations that they have no delivery to: these are made."""
    busy: int = 0
    """Deliveries under way: they are left alone."""

    def __len__(self) -> int:
        return len(self.ended) + len(self.missing)


def routed_to(router: Router, to: str | None) -> Routed:
    """Return what tells where today's settings send an event: everywhere that it goes, or to one destination if it goes there."""

    def routed(event: Event) -> Sequence[str]:
        wanted = router.destinations(event.source, event.type, event.data)
        return [name for name in wanted if to in (None, name)]

    return routed


async def find_named(store: Store, ids: Sequence[str], to: str | None, routed: Routed) -> Replayable:
    """Return what there is of the deliveries and events named. Raises `NotFound`."""
    found = Replayable()
    states: dict[str, DeliveryState] = {}
    for identifier in ids:
        if identifier.startswith("evt_"):
            await _add_missing(store, [await store.event(identifier)], routed, found)
            of_event = DeliveryFilter(event_id=identifier, destination=to, limit=PAGE)
            states |= await _states(store, of_event)
        else:
            delivery = await store.delivery(identifier)
            states[delivery.id] = delivery.state
    return _sorted(found, states)


async def find_fitting(store: Store, filters: Sequence[DeliveryFilter]) -> Replayable:
    """Return the deliveries that fit one of the filters."""
    states: dict[str, DeliveryState] = {}
    for one in filters:
        states |= await _states(store, one)
    return _sorted(Replayable(), states)


async def find_never_sent(store: Store, filters: Sequence[EventFilter], routed: Routed) -> Replayable:
    """Return the events that fit and have no delivery to a destination that they go to, oldest first."""
    found = Replayable()
    for one in filters:
        async for page in pages(store.events, one):
            await _add_missing(store, page, routed, found)
    found.missing.reverse()
    return found


async def replay(
    store: Store, found: Replayable, *, now: int, done: Callable[[int], object] = int
) -> tuple[int, int]:
    """Replay what was found; return how many deliveries were replayed, and how many made. `done` is told of each page."""
    replayed = added = 0
    for ids in _pages(found.ended):
        replayed += len(await store.replay(ids, now=now))
        done(len(ids))
    for pairs in _pages(found.missing):
        added += len(await store.add_deliveries(pairs, now=now))
        done(len(pairs))
    return replayed, added


def _sorted(found: Replayable, states: dict[str, DeliveryState]) -> Replayable:
    found.ended = sorted(delivery_id for delivery_id, state in states.items() if state in ENDED)
    found.busy = len(states) - len(found.ended)
    return found


async def _add_missing(store: Store, events: Sequence[Event], routed: Routed, found: Replayable) -> None:
    there = await store.deliveries_of([event.id for event in events])
    pairs = [(event.id, name) for event in events for name in routed(event)]
    found.missing += [pair for pair in pairs if pair not in there]


async def _states(store: Store, filters: DeliveryFilter) -> dict[str, DeliveryState]:
    states: dict[str, DeliveryState] = {}
    async for page in pages(store.deliveries, filters):
        states |= {delivery.id: delivery.state for delivery in page}
    return states


def _pages(things: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(things), PAGE):
        yield things[start : start + PAGE]
