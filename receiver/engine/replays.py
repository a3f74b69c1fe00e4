"""Replays by id: another round for deliveries that have ended, and new deliveries that today's settings would make. Sees
ports only.

`find_named` changes nothing, so it also serves a dry run. engine/bulk.py replays by filter.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from receiver.core.page import pages
from receiver.core.routing import Router
from receiver.core.work import DeliveryFilter, DeliveryState
from receiver.engine.bulk import missing
from receiver.storage.store.store import Store

_PAGE = 500


class Replayable(Struct):
    """What can be replayed of the named deliveries and events."""

    ended: list[str] = []
    """Deliveries that have ended: they get another round."""
    missing: list[tuple[str, str]] = []
    """Pairs of event and destination without a delivery: `replay` makes one."""
    busy: int = 0
    """Deliveries under way: they are left alone."""

    def __len__(self) -> int:
        return len(self.ended) + len(self.missing)


async def find_named(store: Store, router: Router, ids: Sequence[str], to: str | None) -> Replayable:
    """Return what can be replayed of the named deliveries and events, to all destinations or those that fit `to`. Raises `NotFound`."""
    found = Replayable()
    states: dict[str, DeliveryState] = {}
    for identifier in ids:
        if not identifier.startswith("evt_"):
            delivery = await store.delivery(identifier)
            states[delivery.id] = delivery.state
            continue
        event = await store.event(identifier)
        found.missing += [(event.id, name) for _, name in await missing(store, router, to or "*", [event])]
        of_event = DeliveryFilter(event_id=event.id, destination=to, limit=_PAGE)
        async for page in pages(store.deliveries, of_event):
            states |= {one.id: one.state for one in page}
    ended = (DeliveryState.DEAD, DeliveryState.DELIVERED)
    found.ended = sorted(one for one, state in states.items() if state in ended)
    found.busy = len(states) - len(found.ended)
    return found


async def replay(store: Store, found: Replayable, *, now: int) -> tuple[int, int]:
    """Replay what was found; return how many deliveries were replayed, and how many made."""
    replayed = await store.replay(found.ended, now=now)
    added = await store.add_deliveries(found.missing, now=now)
    return len(replayed), len(added)
