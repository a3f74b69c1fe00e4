"""The events of a store, for tests that look at what was recorded."""

from __future__ import annotations

from typing import Any

from receiver.core.event import Event, EventSearch
from receiver.storage.store.store import Store


async def kept_events(store: Store, **wanted: Any) -> list[Event]:
    """Return those that fit, recorded last first."""
    found = await store.search(EventSearch(newest_first=True, **({"limit": 1000} | wanted)))
    return [one.event for one in found]
