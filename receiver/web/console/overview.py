"""The overview: is anything wrong, what came in lately, and where does a job stand."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from msgspec import Struct
from starlette.responses import RedirectResponse, Response

from receiver.core.destination import DestinationStatus
from receiver.core.errors import NotFound, UsageError
from receiver.core.event import EventFilter
from receiver.core.explain import Cause, explain
from receiver.core.work import PickupFilter, PickupState
from receiver.engine.destinations import standings
from receiver.settings.load import local_folders
from receiver.system.space import free_bytes
from receiver.web.api.jobs import job_named
from receiver.web.console.events import rows_of
from receiver.web.console.guard import HOME, Visit
from receiver.web.console.outgoing import condition
from receiver.web.console.rendering import length

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver
    from receiver.core.destination import DestinationState
    from receiver.core.event import Event, Rejection
    from receiver.core.work import StoreStats
    from receiver.settings.model import Settings

_DAY_MS = 86_400_000
_LATEST = 10
_LOOKED_AT = 200
"""The newest events and rejections, of which the overview tells."""
_PART = 50


_CAUSES = {
    "stopped": (95, "held", "held", "Open it"),
    "journal": (90, "wait", "late", "See events"),
    "refused": (85, "bad", "lock", "See the failing check"),
    "due": (80, "wait", "wait", "See them"),
    "parked": (70, "wait", "late", "See them"),
    "overdue": (65, "wait", "late", "See them"),
    "gone": (64, "bad", "dead", "See pickups"),
    "dead": (60, "bad", "dead", "Look and replay"),
    "paused": (30, "held", "held", "Open it"),
    "noise": (20, "wait", "lock", "See the failing check"),
}
"""What may need a person: how bad it is, its meaning, its icon, and the words of its one button."""


class Concern(Struct, frozen=True):
    """One thing that needs a person."""

    cause: str
    """One of `_CAUSES`."""
    title: str
    why: str
    address: str
    since: int | None = None

    @property
    def looks(self) -> tuple[int, str, str, str]:
        """How bad it is, its meaning, its icon, the words of its button."""
        return _CAUSES[self.cause]


class SourceLine(Struct, frozen=True, kw_only=True):
    """One source, as the overview shows it."""

    name: str
    provider: str
    last: int | None
    """Of the newest events; None where it has none among them: to look further costs what there is."""
    delay: float | None
    """Seconds from the making of its URL to the last callback."""
    rejected: int


class Overview:
    """The first page, and the field that finds things."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def show(self, visit: Visit) -> Response:
        """Show the page."""
        receiver, now = self._receiver, self._receiver.clock()
        stats = await receiver.store.stats(now)
        rejections = await self._rejections(now)
        latest = await receiver.store.events(EventFilter(limit=_LOOKED_AT))
        newest = {event.source: event for event in reversed(latest)}
        sources = [
            await self._source(name, newest.get(name), rejections) for name in receiver.settings.sources
        ]
        destinations = await standings(receiver.store, receiver.settings.destinations, now=now)
        concerns = [*self._of_work(stats, now), *_of_rejections(rejections), *await self._of_events(now)]
        concerns += _of_destinations([one.state for one in destinations], now)
        return await visit.page(
            "overview.html",
            concerns=sorted(concerns, key=lambda one: -one.looks[0]),
            sources=sources,
            destinations=destinations,
            settings=receiver.settings.destinations,
            rows=await rows_of(receiver.store, latest[:_LATEST]),
            hour=await asyncio.to_thread(receiver.lasting.figures.hour),
            due=sum(one.depth for one in stats.due),
            oldest=min((one.oldest_due_at for one in stats.due), default=None),
            dead=sum(stats.dead.values()),
            journal=receiver.journal.depth,
            free=await asyncio.to_thread(_free, receiver.settings),
            rejected_kinds=Counter(one.kind for one in rejections).most_common(),
            first_run=not latest,
        )

    async def _rejections(self, now: int) -> list[Rejection]:
        found = await self._receiver.store.rejections(None, limit=_LOOKED_AT)
        return [one for one in found if one.at > now - _DAY_MS]

    async def _source(self, name: str, newest: Event | None, rejections: list[Rejection]) -> SourceLine:
        callback = await self._receiver.store.callback(newest.id) if newest else None
        claims = callback and callback.arrival and callback.arrival.claims
        made = claims.issued_at if claims else None
        return SourceLine(
            name=name,
            provider=self._receiver.settings.sources[name].provider,
            last=newest.recorded_at if newest else None,
            delay=(callback.received_at - made) / 1000 if callback and made else None,
            rejected=sum(one.source == name for one in rejections),
        )

    # ------------------------------------------------------------ what needs a person

    def _of_work(self, stats: StoreStats, now: int) -> Iterator[Concern]:
        settings, depth = self._receiver.settings, self._receiver.journal.depth
        if depth:
            why = "The store was out. They are recorded as soon as it answers; nothing is lost."
            yield Concern("journal", f"{depth} callbacks wait in this machine’s journal", why, "/events")
        for name, count in stats.dead.items():
            gone = "" if name in settings.destinations else " (not in the settings any more)"
            title = f"{count} dead letter{'s' if count != 1 else ''} of {name}{gone}"
            why = (
                f"They were given up. Retention removes each {settings.retention.dead_letters} after it died."
            )
            yield Concern("dead", title, why, f"/deliveries?state=dead&destination={name}")
        limit = settings.server.ready_due_age_seconds * 1000
        late = [(one, f"/deliveries?destination={one.name}") for one in stats.due]
        late += [(one, f"/pickups?source={one.name}&state=pending") for one in stats.pickups]
        for one, address in late:
            if now - one.oldest_due_at > limit:
                title = f"{one.depth} due for {one.name}, the oldest for {length((now - one.oldest_due_at) / 1000)}"
                why = "Nothing takes them up: is a worker running, and is the name in its settings?"
                yield Concern("due", title, why, address, one.oldest_due_at)

    async def _of_events(self, now: int) -> list[Concern]:
        """Return what the events of the last day say: parked, overdue, gone."""
        found = []
        for cause, address, why in (
            ("parked", "/parked", "They were verified, but not understood; the bodies are kept."),
            ("overdue", "/events?type=callback.overdue", "A callback was expected and did not come in time."),
        ):
            wanted = EventFilter(type=f"callback.{cause}", since=now - _DAY_MS, limit=_PART)
            events = await self._receiver.store.events(wanted)
            if events:
                title = f"{len(events)}{'+' if len(events) == _PART else ''} {cause} in 24 hours"
                found.append(Concern(cause, title, why, address, events[-1].recorded_at))
        filters = PickupFilter(state=PickupState.GONE, limit=_PART)
        gone = [one for one in await self._receiver.store.pickups(filters) if one.updated_at > now - _DAY_MS]
        if gone:
            title = f"{len(gone)} results could not be fetched in 24 hours"
            why = gone[0].last_detail or "The provider does not have them."
            since = min(one.updated_at for one in gone)
            found.append(Concern("gone", title, why, "/pickups?state=gone", since))
        return found

    # ------------------------------------------------------------ find

    async def find(self, visit: Visit) -> Response:
        """Lead to what a text names: an event, a delivery, a pickup, a ref, a job, or the job of a callback URL."""
        wanted = visit.given("q")[:2000]
        if not wanted:
            raise UsageError(
                "write a ref, the provider’s job id, an event, delivery or pickup id, or a callback URL"
            )
        store = self._receiver.store
        try:
            if wanted.startswith("evt_"):
                return RedirectResponse(f"{HOME}/events/{(await store.event(wanted)).id}", 303)
            if wanted.startswith("dlv_"):
                return RedirectResponse(f"{HOME}/events/{(await store.delivery(wanted)).event_id}", 303)
            if wanted.startswith("pku_"):
                return RedirectResponse(f"{HOME}/pickups?id={(await store.pickup(wanted)).id}", 303)
        except NotFound:
            return await visit.page("find.html", wanted=wanted, status=404)
        if "/callbacks/" in wanted:
            claims = self._receiver.tokens.read(wanted.rstrip("/").rpartition("/")[2])
            wanted = claims.ref if claims and claims.ref else wanted
        job = await job_named(self._receiver, wanted, None)
        if explain(job).cause is Cause.UNKNOWN:
            return await visit.page("find.html", wanted=wanted, status=404)
        return RedirectResponse(f"{HOME}/jobs?ref={quote(wanted, safe='')}", 303)


def _of_destinations(states: Sequence[DestinationState], now: int) -> Iterator[Concern]:
    """Yield the destinations to which nothing is sent."""
    for state in states:
        if state.status is not DestinationStatus.ACTIVE:
            cause = "paused" if state.status is DestinationStatus.PAUSED else "stopped"
            since = state.disabled_at or state.paused_at or state.opened_at
            title, address = f"{state.name} is {state.status.value}", f"/destinations/{state.name}"
            yield Concern(cause, title, condition(state, now), address, since)


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


def _free(settings: Settings) -> int | None:
    """Return the bytes that are free on the fullest disk of this machine that holds anything of ours."""
    found = []
    for folder in local_folders(settings).values():
        with contextlib.suppress(OSError):
            found.append(free_bytes(folder))
    return min(found, default=None)
