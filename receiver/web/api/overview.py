"""What is configured and how it is: sources, destinations, and how much waits."""

from __future__ import annotations

from msgspec import Struct

from receiver.core.destinations import ACTIONS, DestinationState
from receiver.engine.destination_actions import act_on_destination, destination_states
from receiver.settings.model import ApiScope
from receiver.web.api.operation import Call, Operation, Served, operation
from receiver.web.views import Page


class SourceShown(Struct, frozen=True, kw_only=True):
    """A source of the settings."""

    name: str
    provider: str
    calls_back: bool
    polled: bool
    pickups_due: int
    oldest_pickup_due_at: int | None


class Stats(Struct, frozen=True, kw_only=True):
    """How much waits. The journal is that of the process that answers."""

    due_deliveries: dict[str, int]
    """By destination."""
    dead_deliveries: dict[str, int]
    due_pickups: dict[str, int]
    """By source."""
    journal: int
    oldest_journaled_seconds: float


@operation("GET /sources", ApiScope.READ)
async def sources(call: Served[None, None]) -> Page[SourceShown]:
    """List the sources."""
    receiver = call.receiver
    due = {one.name: one for one in (await receiver.store.stats(receiver.clock())).pickups}
    items = [
        SourceShown(
            name=name,
            provider=source.provider,
            calls_back=name in receiver.ports.providers,
            polled=name in receiver.ports.pulls,
            pickups_due=due[name].depth if name in due else 0,
            oldest_pickup_due_at=due[name].oldest_due_at if name in due else None,
        )
        for name, source in receiver.settings.sources.items()
    ]
    return Page(items=items, next=None)


@operation("GET /stats", ApiScope.READ)
async def stats(call: Served[None, None]) -> Stats:
    """Tell how much waits."""
    receiver = call.receiver
    found = await receiver.store.stats(receiver.clock())
    return Stats(
        due_deliveries={one.name: one.depth for one in found.due},
        dead_deliveries=dict(found.dead),
        due_pickups={one.name: one.depth for one in found.pickups},
        journal=receiver.journal.depth,
        oldest_journaled_seconds=receiver.journal.oldest_age_seconds,
    )


class DestinationShown(Struct, frozen=True, kw_only=True):
    """A destination of the settings."""

    name: str
    kind: str
    sources: list[str]
    events: list[str]
    due: int
    """Deliveries that are due."""
    oldest_due_at: int | None
    dead: int
    health: DestinationState


@operation("GET /destinations", ApiScope.READ)
async def destinations(call: Call[None, None]) -> Page[DestinationShown]:
    """List the destinations."""
    settings, stats = call.settings.destinations, await call.store.stats(call.now)
    due = {one.name: one for one in stats.due}
    items = [
        DestinationShown(
            name=state.name,
            kind=settings[state.name].kind,
            sources=list(settings[state.name].sources),
            events=list(settings[state.name].events),
            due=due[state.name].depth if state.name in due else 0,
            oldest_due_at=due[state.name].oldest_due_at if state.name in due else None,
            dead=stats.dead.get(state.name, 0),
            health=state,
        )
        for state in await destination_states(call.store, settings, now=call.now)
    ]
    return Page(items=items, next=None)


def _act(action: str) -> Operation:
    async def act(call: Call[None, None]) -> DestinationState:
        names = call.settings.destinations
        return await act_on_destination(call.store, names, call.path["name"], action, now=call.now)

    act.__doc__ = ACTIONS[action].does
    return operation(f"POST /destinations/{{name}}/{action}", ApiScope.OPERATE)(act)


pause, resume, enable = map(_act, ACTIONS)
