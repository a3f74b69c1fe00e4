"""What holds pending deliveries back: their destination's state or rate, or an earlier delivery of their job; and the actions of a
person that hold a destination's deliveries or let them go. Sees ports only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec.structs import replace

from receiver.core.destinations import ACTIONS, DestinationState, DestinationStatus
from receiver.core.errors import NotFound
from receiver.core.page import Page
from receiver.core.work import Delivery, DeliveryFilter, DeliveryState, HeldBy
from receiver.settings.model import DestinationSettings
from receiver.storage.store.store import Store

_OF_STATUS = {
    DestinationStatus.DISABLED: HeldBy.DISABLED,
    DestinationStatus.PAUSED: HeldBy.PAUSED,
    DestinationStatus.FAILING: HeldBy.FAILING,
}


async def deliveries(
    store: Store, destinations: Mapping[str, DestinationSettings], filter: DeliveryFilter, *, now: int
) -> Page[Delivery]:
    """Return a page of deliveries, each with what holds it back. Raises `StoreUnavailable`."""
    found = await store.deliveries(filter)
    return Page(await with_holds(store, destinations, found, now=now), found.after)


async def with_holds(
    store: Store, destinations: Mapping[str, DestinationSettings], found: Sequence[Delivery], *, now: int
) -> list[Delivery]:
    """Return deliveries with what holds them back. Raises `StoreUnavailable`."""
    pending = [one for one in found if one.state is DeliveryState.PENDING]
    if not pending:
        return list(found)
    states = await store.destinations(now)
    behind: set[str] = set()
    for name in {one.destination for one in pending} & set(destinations):
        if (rules := destinations[name].rules).order is not None:
            behind |= await store.behind([one.id for one in pending if one.destination == name], rules)
    holds = {one.id: _held_by(one, states.get(one.destination), one.id in behind, now) for one in pending}
    return [replace(one, held_by=holds.get(one.id)) for one in found]


def _held_by(one: Delivery, state: DestinationState | None, behind: bool, now: int) -> HeldBy | None:
    if state is not None and state.status in _OF_STATUS:
        return _OF_STATUS[state.status]
    if state is not None and state.held_until > now:
        return HeldBy.RETRY_AFTER
    if one.due_at is None or one.due_at > now:  # it waits for its own next attempt
        return None
    if behind:
        return HeldBy.ORDER
    return HeldBy.RATE if state is not None and state.rate_until > now else None


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
