"""The page of one job with all its records, and the search field that finds a job by any of its names."""

from __future__ import annotations

from urllib.parse import quote

from msgspec import Struct
from starlette.responses import Response

from receiver.core.errors import UsageError
from receiver.core.event import Event
from receiver.core.explain import Cause, explain
from receiver.core.work import Pickup, PickupFilter
from receiver.web.api.jobs import job_named
from receiver.web.console.events import latest, rows_of
from receiver.web.console.pages import filters
from receiver.web.console.visit import Visit
from receiver.web.views import Page

_LATEST = 200
_SHOWN = 50
_BY_ID = {"evt_": "events", "dlv_": "deliveries", "pku_": "pickups"}


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
    store, query = visit.store, visit.asked(JobQuery)
    if name := query.ref or query.job:
        job = await job_named(visit.receiver, name, query.source)
        rows = (await rows_of(store, job.events))[::-1]
        return await visit.page("job.html", name=name, job=job, explained=explain(job), rows=rows)
    events = await latest(store, _LATEST, query.source)
    pickups = await store.pickups(PickupFilter(source=query.source, limit=_SHOWN))
    lines = _lines(events, [one for one in pickups if one.due_at is not None])
    return await visit.page("jobs.html", found=Page(items=lines, next=None), **filters(visit, JobQuery))


def _lines(events: list[Event], pickups: list[Pickup]) -> list[Line]:
    """Return one line for each job; what has neither job nor ref is left out."""
    things: list[tuple[int, str, Event | Pickup]] = [(one.recorded_at, one.type, one) for one in events]
    things += [(one.updated_at, f"pickup {one.state.value}", one) for one in pickups]
    lines: dict[tuple[str, str], Line] = {}
    for at, state, one in sorted(things, key=lambda thing: -thing[0]):
        name, kind = (one.ref, "ref") if one.ref else (one.job_id, "job")
        if name is not None:
            line = lines.setdefault((kind, name), Line(name, kind, one.source, at, state))
            line.events += isinstance(one, Event)
    return list(lines.values())[:_SHOWN]


async def find(visit: Visit) -> Response:
    """Lead to what a text names: an event, a delivery, a pickup, a ref, a job, or the job of a callback URL."""
    wanted = visit.given("q")[:2000]
    if not wanted:
        raise UsageError("write a ref, a job id, an event, delivery or pickup id, or a callback URL")
    if wanted[:4] in _BY_ID:
        return visit.lead(f"/{_BY_ID[wanted[:4]]}/{quote(wanted, safe='')}")
    if "/callbacks/" in wanted:
        claims = visit.receiver.tokens.read(wanted.rstrip("/").rpartition("/")[2])
        wanted = claims.ref if claims and claims.ref else wanted
    if explain(await job_named(visit.receiver, wanted, None)).cause is Cause.UNKNOWN:
        return await visit.page("find.html", wanted=wanted, status=404)
    return visit.lead(f"/jobs?ref={quote(wanted, safe='')}")
