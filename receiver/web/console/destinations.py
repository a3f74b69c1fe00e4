"""Destinations, what is sent to them again, one by one or by filters, and operations on many rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.responses import JSONResponse, RedirectResponse, Response

from receiver.app.wiring import build_router
from receiver.core.bulk import BulkKind, Selection
from receiver.core.destination_events import destination_test
from receiver.core.destination_health import DestinationState, DestinationStatus
from receiver.core.errors import NotFound, UsageError
from receiver.core.webhook import new_webhook_secret
from receiver.core.work import DeliveryFilter, DeliveryState
from receiver.engine import holds
from receiver.engine.bulk import plan as planned
from receiver.engine.destination_actions import act_on_destination, standings
from receiver.web.api import operations, replays
from receiver.web.api.lists import filter_of
from receiver.web.console.guard import is_inside
from receiver.web.console.rendering import length
from receiver.web.console.visit import HOME, Visit

_OVERLAP_SECONDS = 24 * 3600
_LATEST = 20
_TRIES = 12


async def show(visit: Visit, *, made: tuple[str, str, datetime] | None = None) -> Response:
    """Show one destination: what it takes, how it is doing, its latest deliveries and answers.

    `made` is a fresh secret, the setting that has it, and when the present ones end.
    """
    name, receiver, now = _named(visit), visit.receiver, visit.receiver.clock()
    wanted = DeliveryFilter(destination=name, limit=_LATEST)
    latest = await holds.deliveries(receiver.store, receiver.settings.destinations, wanted, now=now)
    tries = {one.id: await receiver.store.attempts(one.id) if one.attempts else [] for one in latest}
    (standing,) = await standings(receiver.store, (name,), now=now)
    return await visit.page(
        "destination.html",
        name=name,
        standing=standing,
        sentence=condition(standing.state, now),
        settings=receiver.settings.destinations[name],
        lines=[(one, tries[one.id][-_TRIES:]) for one in latest],
        made=made,
    )


async def settings_of(visit: Visit, destinations: Sequence[Any]) -> Mapping[str, Any]:
    """Return, for the list of destinations, their states."""
    receiver = visit.receiver
    found = await standings(receiver.store, receiver.settings.destinations, now=receiver.clock())
    return {"destinations": found, "settings": receiver.settings.destinations}


def _named(visit: Visit) -> str:
    name, names = visit.path("name"), visit.receiver.settings.destinations
    if name not in names:
        raise NotFound(f"there is no destination {name[:100]}; there is: {', '.join(names) or 'none'}")
    return name


def condition(state: DestinationState, now: int) -> str:
    """Return how a destination is, in a sentence or two."""
    failures = f"{state.failures} attempts in a row failed." if state.failures else ""
    wait = (
        f" The next probe is in {length((state.held_until - now) / 1000)}." if state.held_until > now else ""
    )
    waits = "Its deliveries wait, and spend no attempts, until"
    return {
        DestinationStatus.DISABLED: f"Disabled: it answered 410. {waits} somebody enables it.",
        DestinationStatus.PAUSED: f"Paused. {waits} somebody resumes it.",
        DestinationStatus.FAILING: f"Held: {failures} {waits} a probe is answered well.{wait}",
        DestinationStatus.ACTIVE: f"Active. {failures}".rstrip(),
    }[state.status]


async def act(visit: Visit) -> Response:
    """Pause, resume or enable a destination, in every process."""
    name, action, receiver = _named(visit), visit.request.url.path.rpartition("/")[2], visit.receiver
    await act_on_destination(
        receiver.store, receiver.settings.destinations, name, action, now=receiver.clock()
    )
    return RedirectResponse(f"{HOME}/destinations/{name}?done={action}d", 303)


async def test(visit: Visit) -> Response:
    """Send a test event to a destination, and show how it fares."""
    receiver, name, now = visit.receiver, _named(visit), visit.receiver.clock()
    recorded = await receiver.store.record(destination_test(name, by=visit.session.name, now=now))
    receiver.relay.wake([name])
    return RedirectResponse(f"{HOME}/events/{recorded.event_id}?done=sent", 303)


async def rotate(visit: Visit) -> Response:
    """Show a fresh secret, this once, and the setting that has it beside the present ones."""
    name, now = _named(visit), datetime.now(UTC).replace(microsecond=0)
    present = visit.receiver.settings.destinations[name].options.get("secrets", ())
    if not present:
        raise UsageError(f"{name} signs nothing: it has no secrets")
    fresh, until = new_webhook_secret(), now + timedelta(seconds=_OVERLAP_SECONDS)
    present_lines = [f'  {{secret = "…", until = {until:%Y-%m-%dT%H:%M:%SZ}}},'] * len(present)
    setting = "\n".join(["secrets = [", *present_lines, f'  "{fresh}",', "]"])
    return await show(visit, made=(fresh, setting, until))


# ---------------------------------------------------------------- replays and operations


async def delivery(visit: Visit) -> Response:
    """Lead to the event, whose page shows every attempt."""
    found = await visit.receiver.store.delivery(visit.path("delivery_id"))
    return RedirectResponse(f"{HOME}/events/{found.event_id}", 303)


async def replay_picked(visit: Visit) -> Response:
    """Begin another round for the deliveries that were picked on a page."""
    ids, back = visit.form.get("id", []), visit.given("back")
    if not ids:
        raise UsageError("no delivery was picked: nothing was replayed")
    done = await replays.make.handle(visit.call(body=replays.NewReplay(ids=ids)))
    inside = back if is_inside(back) else f"{HOME}/deliveries"
    told = f"replayed.{done.replayed}" if done.replayed else "nothing"
    return RedirectResponse(f"{inside}{'&' if '?' in inside else '?'}done={told}", 303)


async def plan(visit: Visit) -> Response:
    """Count what fits the filters of a list of deliveries or of parked callbacks; nothing is done yet."""
    receiver, kind = visit.receiver, visit.given("kind") or BulkKind.REPLAY
    if kind not in (*BulkKind,):
        raise UsageError("the form names an operation that there is not: load its page again")
    wanted = visit.sent(replays.NewReplay)
    state = DeliveryState(wanted.state) if wanted.state else None
    chosen = filter_of(wanted, Selection, state=state)
    router, by, now = build_router(receiver.settings), visit.session.name, receiver.clock()
    counted = await planned(receiver.store, router, BulkKind(kind), chosen, by=by, now=now)
    return await visit.page("operation.html", one=counted.operation, planned=counted)


async def operation(visit: Visit) -> Response:
    """Show one operation, and how far it has come."""
    found = await visit.receiver.store.operation(visit.path("operation_id"))
    return await visit.page("operation.html", one=found, planned=None)


async def progress(visit: Visit) -> Response:
    """Answer how far an operation has come, for the page that follows it."""
    one = await visit.receiver.store.operation(visit.path("operation_id"))
    return JSONResponse({"done": one.done, "changed": one.changed, "state": one.state})


async def run(visit: Visit) -> Response:
    """Run an operation, at another rate where one is given."""
    await operations.resume.handle(visit.call(query=visit.sent(operations.RunQuery)))
    return _to_operation(visit)


async def stop(visit: Visit) -> Response:
    """Stop an operation."""
    await operations.stop.handle(visit.call())
    return _to_operation(visit)


def _to_operation(visit: Visit) -> Response:
    return RedirectResponse(f"{HOME}/operations/{visit.path('operation_id')}", 303)
