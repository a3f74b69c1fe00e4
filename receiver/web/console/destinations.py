"""Destinations, what is sent to them again, and operations on many rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from starlette.responses import Response

from receiver.app.wiring import build_router
from receiver.core.errors import NotFound, UsageError
from receiver.core.own_events import destination_test
from receiver.core.webhook import new_webhook_secret
from receiver.core.work import BulkKind
from receiver.engine.bulk import plan as planned
from receiver.web.api import deliveries, operations, overview
from receiver.web.api.problems import answer
from receiver.web.console.guard import inside
from receiver.web.console.visit import Visit

_OVERLAP_SECONDS = 24 * 3600
_LATEST = 20


async def show(visit: Visit, *, made: tuple[str, str, datetime] | None = None) -> Response:
    """Show one destination: what it takes, how it is doing, its latest deliveries and answers.

    `made` is a fresh secret, the setting that has it, and when the present ones end.
    """
    name, store, settings = visit.path["name"], visit.store, visit.settings.destinations
    standing = {one.name: one for one in (await visit.do(overview.destinations)).items}
    if name not in standing:
        raise NotFound(f"there is no destination {name[:100]}; there is: {', '.join(standing) or 'none'}")
    wanted = deliveries.DeliveryQuery(destination=name, limit=_LATEST)
    latest = (await visit.do(deliveries.listed, query=wanted)).items
    lines = [(one, await store.attempts(one.id) if one.attempts else []) for one in latest]
    given = {"name": name, "standing": standing[name], "settings": settings[name], "lines": lines}
    return await visit.page("destination.html", **given, made=made)


async def test(visit: Visit) -> Response:
    """Send a test event to a destination, and show how it fares."""
    name = visit.path["name"]
    if name not in visit.settings.destinations:
        raise NotFound(f"there is no destination {name[:100]}")
    made = destination_test(name, by=visit.session.name, now=visit.now)
    recorded = await visit.store.record(made)
    visit.receiver.relay.wake([name])
    return visit.lead(f"/events/{recorded.event_id}?done=sent")


async def rotate(visit: Visit) -> Response:
    """Show a fresh secret, this once, and the setting that has it beside the present ones."""
    settings = visit.settings.destinations.get(visit.path["name"])
    present = settings.options.get("secrets", ()) if settings else ()
    if not present:
        raise UsageError("it signs nothing: it has no secrets")
    fresh = new_webhook_secret()
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=_OVERLAP_SECONDS)
    old = f'  {{secret = "…", until = {until:%Y-%m-%dT%H:%M:%SZ}}},\n' * len(present)
    return await show(visit, made=(fresh, f'secrets = [\n{old}  "{fresh}",\n]', until))


# ---------------------------------------------------------------- replays and operations


async def delivery(visit: Visit) -> Response:
    """Lead to the event, whose page shows every attempt."""
    found = await visit.store.delivery(visit.path["delivery_id"])
    return visit.lead(f"/events/{found.event_id}")


async def replay_picked(visit: Visit) -> Response:
    """Begin another round for the deliveries that were picked on a page."""
    ids, back = visit.form.get("id", []), inside(visit.given("back"), "/deliveries")
    if not ids:
        raise UsageError("no delivery was picked: nothing was replayed")
    done = await visit.do(operations.make_replay, body=operations.NewReplay(ids=ids))
    told = f"replayed.{done.replayed}" if done.replayed else "nothing"
    return visit.lead(f"{back}{'&' if '?' in back else '?'}done={told}")


async def plan(visit: Visit) -> Response:
    """Count what fits the filters of a list of deliveries or of parked callbacks; nothing is done yet."""
    kind = visit.given("kind") or BulkKind.REPLAY
    if kind not in (*BulkKind,):
        raise UsageError("the form names an operation that there is not: load its page again")
    _, chosen = operations.selected(visit.sent(operations.NewReplay))
    router, by = build_router(visit.settings), visit.session.name
    counted = await planned(visit.store, router, BulkKind(kind), chosen, by=by, now=visit.now)
    return await visit.page("operation.html", found=counted.operation, planned=counted)


async def progress(visit: Visit) -> Response:
    """Answer how far an operation has come, for the page that follows it."""
    return answer(await visit.do(operations.one))
