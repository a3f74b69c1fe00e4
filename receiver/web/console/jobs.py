"""The page of one job with all its records, and the search field that finds a job by any of its names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from msgspec import Struct
from starlette.responses import RedirectResponse, Response

from receiver.core.errors import NotFound, UsageError
from receiver.core.explain import PARKED, Cause, explain
from receiver.core.work import PickupFilter
from receiver.web.api.jobs import job_named
from receiver.web.api.pickups import one as pickup
from receiver.web.console.events import latest, rows_of
from receiver.web.console.lists import filters
from receiver.web.console.visit import HOME, Visit

if TYPE_CHECKING:
    from receiver.core.event import Event
    from receiver.core.explain import Job as Everything
    from receiver.core.work import Pickup

_LATEST = 200
_SHOWN = 50
_REMEDIES = {
    Cause.REJECTED: ("See the failing check", "rejections"),
    Cause.PARKED: ("See why, and read it again", "events"),
    Cause.NO_ROUTE: ("See by which rules, and send it", "events"),
    Cause.DEAD: ("See its answers, and replay", "events"),
    Cause.PICKUP_WAITING: ("See its pickup", "pickups"),
    Cause.PICKUP_GONE: ("See its pickup", "pickups"),
    Cause.EXPECTED: ("See what is expected", "pickups"),
    Cause.OVERDUE: ("See what was expected", "pickups"),
    Cause.PAUSED: ("See the destination", "destinations"),
    Cause.HELD: ("See the destination", "destinations"),
    Cause.RETRYING: ("See the destination", "destinations"),
}
"""The words of a job's button, and the page that it leads to, by why the job stands where it stands."""


class JobQuery(Struct, frozen=True):
    """Which jobs to list, or which one to show."""

    source: str | None = None
    ref: str | None = None
    job: str | None = None


class Line(Struct):
    """What is known of one job, or of all jobs with one ref."""

    name: str
    field: str
    source: str
    last: int
    state: str
    events: int = 0


async def jobs(visit: Visit) -> Response:
    """Show jobs, newest first; or one job, or all with one ref, across its events and pickups."""
    store, query = visit.receiver.store, visit.query(JobQuery)
    if query.ref or query.job:
        return await _one(visit, query.ref or query.job or "", query.source)
    events = await latest(store, _LATEST, query.source)
    pickups = await store.pickups(PickupFilter(source=query.source, limit=_SHOWN))
    return await visit.page("jobs.html", jobs=_lines(events, pickups), **filters(visit, JobQuery))


def _lines(events: list[Event], pickups: list[Pickup]) -> list[Line]:
    """Return one line for each job; what has neither job nor ref is left out."""
    things: list[tuple[int, str, Event | Pickup]] = [(one.recorded_at, one.type, one) for one in events]
    things += [
        (one.updated_at, f"pickup {one.state.value}", one) for one in pickups if one.due_at is not None
    ]
    lines: dict[tuple[str, str], Line] = {}
    for at, state, one in sorted(things, key=lambda thing: -thing[0]):
        name, kind = (one.ref, "ref") if one.ref else (one.job_id, "job")
        if name is not None:
            line = lines.setdefault((kind, name), Line(name, kind, one.source, at, state))
            line.events += not state.startswith("pickup ")
    return list(lines.values())[:_SHOWN]


async def _one(visit: Visit, name: str, source: str | None) -> Response:
    job = await job_named(visit.receiver, name, source)
    explained = explain(job)
    return await visit.page(
        "job.html",
        name=name,
        explained=explained,
        remedy=_remedy(explained.cause, job),
        rows=(await rows_of(visit.receiver.store, job.events))[::-1],
        pickups=job.pickups[::-1],
    )


def _remedy(cause: Cause, job: Everything) -> tuple[str, str] | None:
    """Return the words and the address of the button that leads from a job to what can be done about it."""
    words, kind = _REMEDIES.get(cause, ("", ""))
    found = {
        "rejections": [f"?ref={quote(one.ref or '', safe='')}" for one in job.rejections],
        "events": [f"/{one.id}" for one in job.events if cause is not Cause.PARKED or one.type == PARKED],
        "pickups": [f"/{one.id}" for one in job.pickups],
        "destinations": [f"/{one.destination}" for one in job.deliveries if one.due_at is not None],
    }.get(kind)
    return (words, f"{HOME}/{kind}{found[-1]}") if found else None


async def find(visit: Visit) -> Response:
    """Lead to what a text names: an event, a delivery, a pickup, a ref, a job, or the job of a callback URL."""
    wanted, store = visit.given("q")[:2000], visit.receiver.store
    if not wanted:
        raise UsageError(
            "write a ref, the provider’s job id, an event, delivery or pickup id, or a callback URL"
        )
    try:
        if wanted.startswith("evt_"):
            return RedirectResponse(f"{HOME}/events/{(await store.event(wanted)).id}", 303)
        if wanted.startswith("dlv_"):
            return RedirectResponse(f"{HOME}/events/{(await store.delivery(wanted)).event_id}", 303)
        if wanted.startswith("pku_"):
            return RedirectResponse(f"{HOME}/pickups/{(await store.pickup(wanted)).id}", 303)
    except NotFound:
        return await visit.page("find.html", wanted=wanted, status=404)
    if "/callbacks/" in wanted:
        claims = visit.receiver.tokens.read(wanted.rstrip("/").rpartition("/")[2])
        wanted = claims.ref if claims and claims.ref else wanted
    if explain(await job_named(visit.receiver, wanted, None)).cause is Cause.UNKNOWN:
        return await visit.page("find.html", wanted=wanted, status=404)
    return RedirectResponse(f"{HOME}/jobs?ref={quote(wanted, safe='')}", 303)


# ---------------------------------------------------------------- pickups


async def tries_of(visit: Visit, pickups: Sequence[Any]) -> Mapping[str, Any]:
    """Return, for the list of pickups, how each of their attempts ended."""
    store = visit.receiver.store
    made = {one.id: await store.pickup_attempts(one.id) if one.attempts else [] for one in pickups}
    return {"tries": {name: [attempt.outcome.value for attempt in tries] for name, tries in made.items()}}


async def one_pickup(visit: Visit) -> Response:
    """Show one pickup, as the list of pickups does."""
    found = await pickup.handle(visit.call())
    more = await tries_of(visit, [found])
    return await visit.page("pickups.html", items=[found], after=None, fields={}, choices={}, **more)
