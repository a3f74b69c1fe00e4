"""What is configured and how it is: sources, destinations, how much waits; counts over all processes, and which live."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import groupby
from typing import Literal

from msgspec import Struct

from receiver.core.clock import iso
from receiver.core.destinations import ACTIONS, DestinationState
from receiver.core.event_json import Time
from receiver.core.observe import ACK, HOUR, MINUTE, Process, Tally, within
from receiver.engine.holds import act_on_destination, destination_states
from receiver.engine.tallies import EVERY_SECONDS, HOURS_KEPT_MS
from receiver.settings.model import ApiScope
from receiver.web.api.lists import Moment, millis
from receiver.web.api.operation import Call, Operation, Served, operation
from receiver.web.api.problems import Refused
from receiver.web.views import Page, whole

_STEPS = {"minute": MINUTE, "hour": HOUR, "all": 1 << 62}
_MOST_STEPS = 180
"""In one answer: three hours by the minute, a week by the hour."""


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


# ---------------------------------------------------------------- counts over all processes


class TallyQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """Which time, and how finely."""

    since: Moment | None = None
    """An hour ago, where it is not given."""
    until: Moment | None = None
    by: Literal["minute", "hour", "all"] = "minute"
    """What one count covers; what is older than two days is counted by the hour."""


class TallyShown(Struct, frozen=True, kw_only=True):
    """How often something came out so, over all processes."""

    at: Time
    """When the time that is counted began."""
    kind: str
    """`callbacks` of a source by their answer; `deliveries`, each attempt to a destination by its outcome."""
    name: str
    outcome: str
    count: int


class AckShown(Struct, frozen=True, kw_only=True):
    """How long callbacks of a source waited for a 200, over all processes."""

    at: Time
    source: str
    count: int
    p50_ms: int | None
    """Half of them waited so many milliseconds at most: the upper bound of a range."""
    p99_ms: int | None


class TalliesShown(Struct, frozen=True, kw_only=True):
    """What was counted."""

    items: list[TallyShown]
    ack: list[AckShown]


class ProcessShown(Process, frozen=True, kw_only=True):
    """A process that takes callbacks or works."""

    alive: bool
    """Whether it was seen in the last 30 seconds."""


@operation("GET /tallies", ApiScope.READ)
async def tallies(call: Call[TallyQuery, None]) -> TalliesShown:
    """Tell what came out how often, by the minute or hour, over all processes."""
    now, by = call.now, call.query.by
    until = millis(call.query.until) or now
    since = millis(call.query.since)
    since = max(until - HOUR if since is None else since, now - HOURS_KEPT_MS)
    if (until - since) // _STEPS[by] > _MOST_STEPS:
        raise Refused(
            400, f"since: there are {_MOST_STEPS} steps at once; ask with by=hour, by=all, or until"
        )
    found = await call.store.tallies(since // MINUTE * MINUTE, until, _STEPS[by])
    # They may be tens of thousands: callbacks are not to wait for them.
    return await asyncio.to_thread(_shown, found, since)


def _shown(found: Sequence[Tally], since: int) -> TalliesShown:
    def at(one: Tally) -> Time:
        return iso(one.minute or since)  # one count of all has no beginning of its own

    items = [
        TallyShown(at=at(one), kind=one.kind, name=one.name, outcome=one.outcome, count=one.count)
        for one in found
        if one.kind != ACK
    ]
    waits = groupby((one for one in found if one.kind == ACK), lambda one: (at(one), one.name))
    return TalliesShown(items=items, ack=[_ack(*of, list(group)) for of, group in waits])


def _ack(at: Time, source: str, group: Sequence[Tally]) -> AckShown:
    count = sum(one.count for one in group)
    return AckShown(at=at, source=source, count=count, p50_ms=within(group, 0.5), p99_ms=within(group, 0.99))


@operation("GET /processes", ApiScope.READ)
async def processes(call: Call[None, None]) -> Page[ProcessShown]:
    """List the processes of the last 48 hours, those that began last first."""
    now = call.now
    items = [
        whole(ProcessShown, one, alive=now - one.seen_at < 3 * EVERY_SECONDS * 1000)
        for one in await call.store.processes()
    ]
    return Page(items=items, next=None)
