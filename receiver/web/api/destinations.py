"""Destinations: how they are, and what a person makes of them."""

from __future__ import annotations

from msgspec import Struct

from receiver.engine.destination_actions import act_on_destination, standings
from receiver.settings.model import ApiScope
from receiver.web.api.operation import Call, operation
from receiver.web.views import DestinationHealth, Page, Time, shown


class DestinationShown(Struct, frozen=True, kw_only=True):
    """A destination of the settings."""

    name: str
    kind: str
    sources: list[str]
    events: list[str]
    due: int
    """Deliveries that are due."""
    oldest_due_at: Time | None
    dead: int
    health: DestinationHealth


@operation("GET /destinations", ApiScope.READ)
async def listed(call: Call[None, None]) -> Page[DestinationShown]:
    """List the destinations."""
    settings = call.receiver.settings.destinations
    items = [
        shown(
            one,
            DestinationShown,
            kind=settings[one.name].kind,
            sources=list(settings[one.name].sources),
            events=list(settings[one.name].events),
            health=shown(one.state, DestinationHealth),
        )
        for one in await standings(call.receiver.store, settings, now=call.receiver.clock())
    ]
    return Page(items=items, next=None)


@operation("POST /destinations/{name}/pause", ApiScope.OPERATE)
async def pause(call: Call[None, None]) -> DestinationHealth:
    """Hold its deliveries; they spend no attempts."""
    return await _act(call, "pause")


@operation("POST /destinations/{name}/resume", ApiScope.OPERATE)
async def resume(call: Call[None, None]) -> DestinationHealth:
    """Send a paused destination's deliveries again."""
    return await _act(call, "resume")


@operation("POST /destinations/{name}/enable", ApiScope.OPERATE)
async def enable(call: Call[None, None]) -> DestinationHealth:
    """Send again to one that answered 410 or fails: its failures are forgotten."""
    return await _act(call, "enable")


async def _act(call: Call[None, None], action: str) -> DestinationHealth:
    """Every process obeys within a second."""
    receiver = call.receiver
    names, now = receiver.settings.destinations, receiver.clock()
    state = await act_on_destination(receiver.store, names, call.path["name"], action, now=now)
    return shown(state, DestinationHealth)
