"""Destinations: how they are, and what a person makes of them."""

from __future__ import annotations

from receiver.engine.destinations import act_on_destination, standings
from receiver.web.api.call import Call
from receiver.web.views import DestinationHealth, DestinationShown, Page, shown, time_of


async def listed(call: Call[None, None]) -> Page[DestinationShown]:
    """List the destinations of the settings."""
    settings = call.receiver.settings.destinations
    items = [
        DestinationShown(
            name=one.name,
            kind=settings[one.name].kind,
            sources=list(settings[one.name].sources),
            events=list(settings[one.name].events),
            due=one.due,
            oldest_due_at=None if one.oldest_due_at is None else time_of(one.oldest_due_at),
            dead=one.dead,
            health=shown(one.state, DestinationHealth),
        )
        for one in await standings(call.receiver.store, settings, now=call.receiver.clock())
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
