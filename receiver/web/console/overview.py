"""The overview: is anything wrong, what came in lately, and what there is."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from msgspec import Struct
from starlette.responses import Response

from receiver.core.event import Event, EventSearch, Rejection
from receiver.core.explain import OVERDUE, PARKED
from receiver.core.tally import ACK, HOUR, MINUTE, Tally, within
from receiver.core.work import PickupFilter, PickupState, StoreStats
from receiver.settings.load import local_folders
from receiver.settings.model import Settings
from receiver.system.space import free_bytes
from receiver.web.api import overview as api
from receiver.web.console.events import latest, rows_of
from receiver.web.console.rendering import length
from receiver.web.console.visit import Visit
from receiver.web.views import DestinationHealth

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
    since: int | str | None = None
    health: DestinationHealth | None = None
    """Of the destination that it is about: it says why."""


class Hour:
    """What was counted in the last hour, over all processes."""

    def __init__(self, tallies: Iterable[Tally], first: int) -> None:
        self._tallies, self._first = list(tallies), first

    def line(self, kind: str, outcome: str | None = None) -> list[int]:
        """Return the counts of each minute, of one outcome or of all."""
        counts = [0] * 60
        for one in self._tallies:
            if one.kind == kind and outcome in (None, one.outcome):
                counts[(one.minute - self._first) // MINUTE] += one.count
        return counts

    def outcomes(self, kind: str) -> dict[str, int]:
        """Return the counts by outcome, the highest first."""
        counts: Counter[str] = Counter()
        for one in self._tallies:
            if one.kind == kind:
                counts[one.outcome] += one.count
        return dict(counts.most_common())

    def acknowledged(self, share: float) -> float | None:
        """Return the seconds within which a share of callbacks were answered: the upper bound of a range."""
        millis = within((one for one in self._tallies if one.kind == ACK), share)
        return None if millis is None else millis / 1000


async def show(visit: Visit) -> Response:
    """Show the page."""
    receiver, store, now = visit.receiver, visit.receiver.store, visit.receiver.clock()
    stats, hour = await store.stats(now), now // MINUTE * MINUTE - HOUR + MINUTE
    found = await store.rejections(None, limit=_LOOKED_AT)
    rejections = [one for one in found if one.at > now - _DAY_MS]
    events = await latest(store, _LOOKED_AT)
    newest = {event.source: event for event in reversed(events)}
    destinations = (await api.destinations.handle(visit.call())).items
    concerns = [*_of_work(visit, stats, now), *_of_rejections(rejections), *_of_destinations(destinations)]
    return await visit.page(
        "overview.html",
        concerns=[*concerns, *await _of_events(visit, now)],
        sources=receiver.settings.sources,
        newest=newest,
        delays={name: await _delay(visit, event) for name, event in newest.items()},
        rejected=Counter(one.source for one in rejections),
        destinations=destinations,
        rows=await rows_of(store, events[:_ROWS]),
        hour=Hour(await store.tallies(hour, now, MINUTE), hour),
        stats=stats,
        journal=receiver.journal.depth,
        free=await asyncio.to_thread(_free, receiver.settings),
        rejected_kinds=Counter(one.kind for one in rejections).most_common(),
    )


async def _delay(visit: Visit, newest: Event) -> float | None:
    """Return the seconds from the making of its URL to the callback of an event; None where they are not known."""
    callback = await visit.receiver.store.callback(newest.id)
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


def _of_work(visit: Visit, stats: StoreStats, now: int) -> Iterator[Concern]:
    """Yield what waits: in the journal, given up, and due for long."""
    settings, depth = visit.receiver.settings, visit.receiver.journal.depth
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
        seconds = (now - one.oldest_due_at) / 1000
        if seconds > settings.server.ready_due_age_seconds:
            title = f"{one.depth} due for {one.name}, the oldest for {length(seconds)}"
            why = "Nothing takes them up: is a worker running, and is the name in its settings?"
            yield Concern("due", title, why, address, one.oldest_due_at)


async def _of_events(visit: Visit, now: int) -> list[Concern]:
    """Return what the events of the last day say: parked, overdue, gone."""
    found, store = [], visit.receiver.store
    for cause, kind, address, why in (
        ("parked", PARKED, "/parked", "They were verified, but not understood; the bodies are kept."),
        ("overdue", OVERDUE, f"/events?type={OVERDUE}", "A callback was expected and did not come in time."),
    ):
        wanted = EventSearch(types=(kind,), since=now - _DAY_MS, newest_first=True, limit=_PART)
        if events := await store.search(wanted):
            title = f"{len(events)}{'+' if len(events) == _PART else ''} {cause} in 24 hours"
            found.append(Concern(cause, title, why, address, events[-1].event.recorded_at))
    pickups = await store.pickups(PickupFilter(state=PickupState.GONE, limit=_PART))
    if gone := [one for one in pickups if one.updated_at > now - _DAY_MS]:
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
        title, address = f"{health.name} is {health.status}", f"/destinations/{health.name}"
        yield Concern(cause, title, "", address, since, health)


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
