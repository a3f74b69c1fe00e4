"""Follows the event log: yields new events of all processes, page by page. Sees ports only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from msgspec.structs import replace

from receiver.core.event import EventSearch, Place, PlacedEvent
from receiver.core.page import Page
from receiver.storage.store.store import Store


async def newest_place(store: Store) -> Place:
    """Return the end of the event log: later events come after it. Raises `StoreUnavailable`."""
    found = await store.search(EventSearch(newest_first=True, limit=1))
    return found[0].place if found else Place(0, "evt_0")


async def followed(store: Store, search: EventSearch, *, seconds: float) -> AsyncIterator[Page[PlacedEvent]]:
    """Yield pages of events after the search's place, for ever. At the end of the log, poll again after `seconds`. Raises
    `StoreUnavailable`.
    """
    while True:
        page = await store.search(search)
        yield page
        if page.after is not None:
            search = replace(search, after=Place(*page.after))
            continue
        if page:
            search = replace(search, after=page[-1].place)
        await asyncio.sleep(seconds)
