"""What goes out: deliveries and dead letters, their replay one by one and many at once, and destinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from starlette.responses import RedirectResponse, Response

from receiver.core.destination import DestinationStatus
from receiver.core.errors import NotFound, UsageError
from receiver.core.event import EVENT_TYPES
from receiver.core.page import pages
from receiver.core.work import DeliveryFilter, DeliveryState
from receiver.engine.destinations import ACTIONS, act_on_destination, standings
from receiver.web.console.event import answer_of, listed
from receiver.web.console.events import PAGE, fields_of
from receiver.web.console.guard import HOME, Visit, is_inside
from receiver.web.console.rendering import length, query

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver
    from receiver.core.destination import DestinationState
    from receiver.core.work import Delivery

_FILTERS = ("state", "destination", "source", "type", "after")
_ENDED = (DeliveryState.DEAD, DeliveryState.DELIVERED)
_MOST = 10_000
"""Deliveries that one replay of many takes."""
_BATCH = 500


class Outgoing:
    """The pages, and the forms that replay."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    # ------------------------------------------------------------ deliveries

    async def deliveries(self, visit: Visit) -> Response:
        """Show deliveries, newest first."""
        fields = fields_of(visit, _FILTERS)
        wanted = replace(_filter(fields), after=fields["after"] or None, limit=PAGE + 1)
        found = await self._receiver.store.deliveries(wanted)
        return await visit.page(
            "deliveries.html",
            fields=fields,
            choices=self._choices(),
            deliveries=found[:PAGE],
            after=found[PAGE - 1].id if len(found) > PAGE else found.after,
        )

    def _choices(self) -> dict[str, Sequence[str]]:
        settings = self._receiver.settings
        return {
            "state": [state.value for state in DeliveryState],
            "destination": list(settings.destinations),
            "source": list(settings.sources),
            "type": EVENT_TYPES,
        }

    async def delivery(self, visit: Visit) -> Response:
        """Lead to the event, whose page shows every attempt."""
        found = await self._receiver.store.delivery(visit.path("delivery_id"))
        return RedirectResponse(f"{HOME}/events/{found.event_id}", 303)

    # ------------------------------------------------------------ replay

    async def replay_picked(self, visit: Visit) -> Response:
        """Begin another round for the deliveries that were picked on a page."""
        ids = visit.form.get("id", [])
        if not ids:
            raise UsageError("no delivery was picked: nothing was replayed")
        return await self._replayed(visit, ids, "picked", visit.given("back"))

    async def replay_event(self, visit: Visit) -> Response:
        """Send an event again to a destination, or for the first time to one that it never went to."""
        event_id, to = visit.path("event_id"), visit.given("to")
        if to not in self._receiver.settings.destinations:
            raise UsageError("there is no such destination")
        event = await self._receiver.store.event(event_id)
        there = await self._receiver.store.deliveries(DeliveryFilter(event_id=event.id, destination=to))
        if not there:
            now = self._receiver.clock()
            added = await self._receiver.store.add_deliveries([(event.id, to)], now=now)
            self._receiver.relay.wake([to])
            return _back(f"{HOME}/events/{event.id}", "replayed", len(added))
        return await self._replayed(visit, [one.id for one in there], event.id, f"{HOME}/events/{event.id}")

    async def _replayed(self, visit: Visit, ids: Sequence[str], subject: str, back: str) -> Response:
        """Replay deliveries; those under way or gone are left alone."""
        store = self._receiver.store
        done = await store.replay(ids, now=self._receiver.clock())
        destinations = set()
        for delivery_id in done[:PAGE]:
            try:
                destinations.add((await store.delivery(delivery_id)).destination)
            except NotFound:
                continue
        self._receiver.relay.wake(destinations)
        return _back(back, "replayed" if done else "nothing", len(done))

    async def dry_run(self, visit: Visit) -> Response:
        """Count what a replay by these filters would take, and fix how far it reaches."""
        fields = fields_of(visit, (*_FILTERS, "until"))
        until = self._receiver.clock()
        found, more = await self._ended(fields, until)
        oldest = min((one.created_at for one in found), default=None)
        counts: dict[str, int] = {}
        for one in found:
            counts[one.destination] = counts.get(one.destination, 0) + 1
        return await visit.page(
            "replay.html",
            fields={name: value for name, value in fields.items() if name != "after"} | {"until": str(until)},
            count=len(found),
            more=more,
            most=_MOST,
            oldest=oldest,
            newest=max((one.created_at for one in found), default=None),
            delivered=sum(one.state is DeliveryState.DELIVERED for one in found),
            counts=counts,
        )

    async def replay_many(self, visit: Visit) -> Response:
        """Replay what a dry run counted: by its filters, up to its moment, the oldest first."""
        fields = {name: visit.given(name) for name in (*_FILTERS, "until")}
        if not (fields["until"].isdecimal() and len(fields["until"]) <= 15):
            raise UsageError("the form names no moment: count again, then replay")
        found, _ = await self._ended(fields, int(fields["until"]))
        done = 0
        for start in range(0, len(found), _BATCH):
            ids = [one.id for one in found[start : start + _BATCH]]
            done += len(await self._receiver.store.replay(ids, now=self._receiver.clock()))
        self._receiver.relay.wake({one.destination for one in found})
        return _back(f"{HOME}/deliveries{query(_named(fields))}", "replayed" if done else "nothing", done)

    async def _ended(self, fields: Mapping[str, str], until: int) -> tuple[list[Delivery], bool]:
        """Return deliveries that have ended, the oldest first, and whether there are more than one replay takes."""
        found: list[Delivery] = []
        wanted = replace(_filter(fields), until=until, limit=_BATCH)
        async for page in pages(self._receiver.store.deliveries, wanted):
            found += [one for one in page if one.state in _ENDED]
            if len(found) > _MOST:
                break
        return found[:_MOST][::-1], len(found) > _MOST

    # ------------------------------------------------------------ destinations

    async def destinations(self, visit: Visit) -> Response:
        """Show where events go."""
        receiver = self._receiver
        found = await standings(receiver.store, receiver.settings.destinations, now=receiver.clock())
        return await visit.page(
            "destinations.html", destinations=found, settings=receiver.settings.destinations
        )

    async def destination(self, visit: Visit) -> Response:
        """Show one destination: what it takes, how it is doing, its latest deliveries and answers."""
        name = visit.path("name")
        settings = self._receiver.settings.destinations.get(name)
        if settings is None:
            raise NotFound(
                f"there is no destination {name[:100]}; there is: {listed(self._names()) or 'none'}"
            )
        store = self._receiver.store
        latest = await store.deliveries(DeliveryFilter(destination=name, limit=20))
        lines: list[dict[str, Any]] = []
        for one in latest:
            attempts = await store.attempts(one.id) if one.attempts else []
            answer = answer_of(attempts[-1]) if attempts else ""
            lines.append({"delivery": one, "attempts": attempts[-12:], "answer": answer})
        (standing,) = await standings(store, (name,), now=self._receiver.clock())
        return await visit.page(
            "destination.html",
            name=name,
            standing=standing,
            sentence=condition(standing.state, self._receiver.clock()),
            settings=settings,
            lines=lines,
        )

    async def act(self, visit: Visit) -> Response:
        """Pause, resume or enable a destination, in every process."""
        name, action = visit.path("name"), visit.path("action")
        if action not in ACTIONS:
            raise NotFound(f"a destination can be {listed(sorted(ACTIONS))}d, and nothing else")
        names, now = self._receiver.settings.destinations, self._receiver.clock()
        await act_on_destination(self._receiver.store, names, name, action, now=now)
        return RedirectResponse(f"{HOME}/destinations/{name}?done={action}d", 303)

    def _names(self) -> list[str]:
        return list(self._receiver.settings.destinations) or ["none"]


def condition(state: DestinationState, now: int) -> str:
    """Return how a destination is, in a sentence or two."""
    wait = (
        f" The next probe is in {length((state.held_until - now) / 1000)}." if state.held_until > now else ""
    )
    failures = f"{state.failures} attempts in a row failed." if state.failures else ""
    match state.status:
        case DestinationStatus.DISABLED:
            return "Disabled: it answered 410. Its deliveries wait, and spend no attempts, until somebody enables it."
        case DestinationStatus.PAUSED:
            return "Paused: its deliveries wait, and spend no attempts, until somebody resumes it."
        case DestinationStatus.FAILING:
            return f"Held: {failures} Its deliveries wait, and spend no attempts, until a probe is answered well.{wait}"
    return f"Active.{' ' if failures else ''}{failures}"


def _filter(fields: Mapping[str, str]) -> DeliveryFilter:
    try:
        state = DeliveryState(fields["state"]) if fields["state"] else None
    except ValueError:
        raise UsageError(
            f"a delivery is {listed([one.value for one in DeliveryState])}, and nothing else"
        ) from None
    return DeliveryFilter(
        state=state,
        destination=fields["destination"] or None,
        source=fields["source"] or None,
        event_types=(fields["type"],) if fields["type"] else None,
    )


def _named(fields: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if value and name not in ("after", "until")}


def _back(path: str, done: str, count: int) -> Response:
    """Lead back to a page of ours, which says what was done."""
    inside = path if is_inside(path) else f"{HOME}/deliveries"
    return RedirectResponse(f"{inside}{'&' if '?' in inside else '?'}done={done}.{count}", 303)
