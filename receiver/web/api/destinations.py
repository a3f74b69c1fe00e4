"""Destinations: how they are, and what a person makes of them."""

from __future__ import annotations

from msgspec import Struct

from receiver.core.destination_health import ACTIONS
from receiver.engine.destination_actions import act_on_destination, standings
from receiver.settings.model import ApiScope
from receiver.web.api.operation import Call, Operation, operation
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
    settings = call.settings.destinations
    items = [
        shown(
            one,
            DestinationShown,
            kind=settings[one.name].kind,
            sources=list(settings[one.name].sources),
            events=list(settings[one.name].events),
            health=shown(one.state, DestinationHealth),
        )
        for one in await standings(call.store, settings, now=call.now)
    ]
    return Page(items=items, next=None)


def _act(action: str) -> Operation:
    async def act(call: Call[None, None]) -> DestinationHealth:
        names = call.settings.destinations
        state = await act_on_destination(call.store, names, call.path["name"], action, now=call.now)
        return shown(state, DestinationHealth)

    act.__doc__ = ACTIONS[action].does
    return operation(f"POST /destinations/{{name}}/{action}", ApiScope.OPERATE)(act)


pause, resume, enable = map(_act, ACTIONS)
