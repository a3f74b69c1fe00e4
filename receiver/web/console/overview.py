"""The overview: is anything wrong, what came in lately, and what there is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct
from starlette.responses import Response

from receiver.core.destinations import DestinationState
from receiver.core.event import Event, EventSearch, Rejection
from receiver.core.explain import OVERDUE, PARKED
from receiver.core.observe import ACK, HOUR, MINUTE, within
from receiver.core.work import PickupFilter, PickupState, StoreStats
from receiver.settings.load import local_folders
from receiver.settings.model import Settings
from receiver.system.files import free_bytes
from receiver.web.api import overview as api
from receiver.web.console.events import latest, rows_of
from receiver.web.console.rendering import length
from receiver.web.console.visit import Visit

_DAY_MS = 24 * HOUR
_ROWS = 10
_LOOKED_AT = 200
"""The newest events and rejections, of which the overview tells."""
_PART = 50


class Concern(Struct, frozen=True):
    """One thing that needs a person."""

    cause: str
    title: str
    why: str
    address: str
    since: int | None = None
    health: DestinationState | None = None
    """Of the destination that it is about: it says why."""


async def show(visit: Visit) -> Response:
    """Show the page."""
    store, now, hour = visit.store, visit.now, visit.now // MINUTE * MINUTE - HOUR + MINUTE
    stats, tallies = await store.stats(now), await store.tallies(hour, now, MINUTE)
    waits = [within([one for one in tallies if one.kind == ACK], share) for share in (0.99, 0.5)]
    found = await store.rejections(None, limit=_LOOKED_AT)
    rejections = [one for one in found if one.at > now - _DAY_MS]
    events = await latest(store, _LOOKED_AT)
    newest = {event.source: event for event in reversed(events)}
    destinations = (await visit.do(api.destinations)).items
    concerns = [*_of_work(visit, stats), *_of_rejections(rejections), *_of_destinations(destinations)]
    return await visit.page(
        "overview.html",
        concerns=[*concerns, *await _of_events(visit)],
        sources=visit.settings.sources,
        newest=newest,
        delays={name: await _delay(visit, event) for name, event in newest.items()},
        rejections=rejections,
        destinations=destinations,
        rows=await rows_of(store, events[:_ROWS]),
        first_minute=hour,
        tallies=tallies,
        answered_within=[None if millis is None else millis / 1000 for millis in waits],
        stats=stats,
        journal=visit.receiver.journal.depth,
        free=await asyncio.to_thread(_free, visit.settings),
    )


async def _delay(visit: Visit, newest: Event) -> float | None:
    """Return the seconds from the making of its URL to the callback of an event; None where they are not known."""
    callback = await visit.store.callback(newest.id)
    made = callback and callback.arrival and callback.arrival.claims and callback.arrival.claims.issued_at
    return (callback.received_at - made) / 1000 if callback and made else None


def _free(settings: Settings) -> int | None:
    """Return the bytes that are free on the fullest disk of this machine that holds anything of ours."""
    found = []
    for folder in local_folders(settings).values():
        with contextlib.suppress(OSError):
            found.append(free_bytes(folder))
    return min(found, default=None)


# ---------------------------------------------------------------- what needs a person


def _of_work(visit: Visit, stats: StoreStats) -> Iterator[Concern]:
    """Yield what waits: in the journal, given up, and due for long."""
    settings, depth = visit.settings, visit.receiver.journal.depth
    if depth:
        why = "The store was out. They are recorded as soon as it answers; nothing is lost."
        yield Concern("journal", f"{depth} callbacks wait in this machine’s journal", why, "/events")
    for name, count in stats.dead.items():
        gone = "" if name in settings.destinations else " (not in the settings any more)"
        title = f"{count} dead letter{'s' if count != 1 else ''} of {name}{gone}"
        why = f"They were given up. Retention removes each {settings.retention.dead_letters} after it died."
        yield Concern("dead", title, why, f"/deliveries?state=dead&destination={name}")
    late = [(one, f"/deliveries?destination={one.name}") for one in stats.due]
    late += [(one, f"/pickups?source={one.name}&state=pending") for one in stats.pickups]
    for one, address in late:
        seconds = (visit.now - one.oldest_due_at) / 1000
        if seconds > settings.server.ready_due_age_seconds:
            title = f"{one.depth} due for {one.name}, the oldest for {length(seconds)}"
            why = "Nothing takes them up: is a worker running, and is the name in its settings?"
            yield Concern("due", title, why, address, one.oldest_due_at)


async def _of_events(visit: Visit) -> list[Concern]:
    """Return what the events of the last day say: parked, overdue, gone."""
    found, store, day = [], visit.store, visit.now - _DAY_MS
    for cause, kind, address, why in (
        ("parked", PARKED, "/parked", "They were verified, but not understood; the bodies are kept."),
        ("overdue", OVERDUE, f"/events?type={OVERDUE}", "A callback was expected and did not come in time."),
    ):
        wanted = EventSearch(types=(kind,), since=day, newest_first=True, limit=_PART)
        if events := await store.search(wanted):
            title = f"{len(events)}{'+' if len(events) == _PART else ''} {cause} in 24 hours"
            found.append(Concern(cause, title, why, address, events[-1].event.recorded_at))
    pickups = await store.pickups(PickupFilter(state=PickupState.GONE, limit=_PART))
    if gone := [one for one in pickups if one.updated_at > day]:
        why = gone[0].last_detail or "The provider does not have them."
        since = min(one.updated_at for one in gone)
        title = f"{len(gone)} results could not be fetched in 24 hours"
        found.append(Concern("gone", title, why, "/pickups?state=gone", since))
    return found


def _of_destinations(destinations: Sequence[Any]) -> Iterator[Concern]:
    """Yield the destinations to which nothing is sent."""
    for health in [one.health for one in destinations if one.health.status != "active"]:
        cause = "paused" if health.status == "paused" else "stopped"
        since = health.disabled_at or health.paused_at or health.failing_since
        title = f"{health.name} is {health.status}"
        yield Concern(cause, title, "", f"/destinations/{health.name}", since, health)


def _of_rejections(rejections: list[Rejection]) -> Iterator[Concern]:
    """Yield what was rejected, a source and a failing check each."""
    groups: dict[tuple[str, str], list[Rejection]] = {}
    for one in rejections:
        groups.setdefault((one.source, one.kind), []).append(one)
    for (source, kind), group in groups.items():
        cause = "refused" if kind in ("wrong", "stale", "token") else "noise"
        of = "no known source" if kind == "unknown_source" else source
        title = f"{len(group)} callback{'s' if len(group) != 1 else ''} of {of} rejected in 24 hours"
        yield Concern(cause, title, group[0].reason, f"/rejections?source={source}", group[-1].at)
