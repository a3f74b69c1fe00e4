"""Actions of a person on a destination: show its health, pause it, resume it, enable it after a 410."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from receiver.core.destinations import ACTIONS, DestinationState
from receiver.core.errors import NotFound
from receiver.storage.store.store import Store


async def destination_states(store: Store, names: Iterable[str], *, now: int) -> list[DestinationState]:
    """Return the states of the destinations of these names, in their order. Raises `StoreUnavailable`."""
    known = await store.destinations(now)
    return [known.get(name) or DestinationState(name=name) for name in names]


async def act_on_destination(
    store: Store, names: Collection[str], name: str, action: str, *, now: int
) -> DestinationState:
    """Do one of `ACTIONS` to one of the configured destinations; return its state. No event announces it.

    Doing it again changes nothing. Raises `NotFound` when no destination is so named, `StoreUnavailable`.
    """
    if name not in names:
        raise NotFound(f"no destination is named {name}; there is: {', '.join(sorted(names)) or 'none'}")
    done = await store.change_destination(
        name, lambda state: ACTIONS[action].change(state, now), now=now, tell=lambda *_: None
    )
    return done.after
