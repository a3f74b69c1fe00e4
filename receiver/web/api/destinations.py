"""Destinations: how they are, and what a person makes of them."""

from __future__ import annotations

from receiver.engine.destinations import act_on_destination, destination_states
from receiver.web.api.call import Call
from receiver.web.views import DestinationHealth, DestinationShown, Page, shown, time_of


async def listed(call: Call[None, None]) -> Page[DestinationShown]:
    """List the destinations of the settings."""
    receiver, now = call.receiver, call.receiver.clock()
    stats = await receiver.store.stats(now)
    due = {one.name: one for one in stats.due}
    items = [
        DestinationShown(
            name=state.name,
            kind=receiver.settings.destinations[state.name].kind,
            sources=list(receiver.settings.destinations[state.name].sources),
            events=list(receiver.settings.destinations[state.name].events),
            due=due[state.name].depth if state.name in due else 0,
            oldest_due_at=time_of(due[state.name].oldest_due_at) if state.name in due else None,
            dead=stats.dead.get(state.name, 0),
            health=shown(state, DestinationHealth),
        )
        for state in await destination_states(receiver.store, receiver.settings.destinations, now=now)
    ]
    return Page(items=items, next=None)


async def act(call: Call[None, None]) -> DestinationHealth:
    """Pause, resume or enable a destination, as the path says; every process obeys within a second."""
    receiver = call.receiver
    state = await act_on_destination(
        receiver.store,
        receiver.settings.destinations,
        call.path["name"],
        call.request.url.path.rpartition("/")[2],
        now=receiver.clock(),
    )
    return shown(state, DestinationHealth)
