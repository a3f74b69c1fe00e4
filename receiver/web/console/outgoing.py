"""What goes out: deliveries and dead letters, their replay one by one, and destinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from starlette.responses import RedirectResponse, Response

from receiver.core.destination import DestinationStatus
from receiver.core.destination_events import destination_test
from receiver.core.errors import NotFound, UsageError
from receiver.core.event import EVENT_TYPES
from receiver.core.webhook import new_webhook_secret
from receiver.core.work import DeliveryFilter, DeliveryState
from receiver.engine.destinations import ACTIONS, act_on_destination, standings
from receiver.settings.rotation import rotated
from receiver.web.console.event import answer_of, listed
from receiver.web.console.events import PAGE, fields_of
from receiver.web.console.guard import HOME, Visit, is_inside
from receiver.web.console.rendering import length

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver
    from receiver.core.destination import DestinationState

_OVERLAP_SECONDS = 24 * 3600
_FILTERS = ("state", "destination", "source", "type", "after")


@dataclass(frozen=True, slots=True)
class Rotated:
    """A fresh secret of a destination, on its way to the settings."""

    name: str
    secret: str
    setting: str
    until: datetime


class Outgoing:
    """The pages, and the forms that replay, test and rotate."""

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

    # ------------------------------------------------------------ destinations

    async def destinations(self, visit: Visit) -> Response:
        """Show where events go."""
        receiver = self._receiver
        found = await standings(receiver.store, receiver.settings.destinations, now=receiver.clock())
        return await visit.page(
            "destinations.html", destinations=found, settings=receiver.settings.destinations
        )

    async def destination(self, visit: Visit, *, made: Rotated | None = None) -> Response:
        """Show one destination: what it takes, how it is doing, its latest deliveries and answers."""
        name = self._named(visit)
        settings = self._receiver.settings.destinations[name]
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
            made=made,
        )

    async def test(self, visit: Visit) -> Response:
        """Send a test event to a destination, and show how it fares."""
        receiver, name, now = self._receiver, self._named(visit), self._receiver.clock()
        recorded = await receiver.store.record(destination_test(name, by=visit.session.name, now=now))
        receiver.relay.wake([name])
        return RedirectResponse(f"{HOME}/events/{recorded.event_id}?done=sent", 303)

    async def rotate(self, visit: Visit) -> Response:
        """Show a fresh secret, this once, and the setting that has it beside the present ones."""
        name, now = self._named(visit), datetime.now(UTC).replace(microsecond=0)
        present = self._receiver.settings.destinations[name].options.get("secrets", ())
        if not present:
            raise UsageError(f"{name} signs nothing: it has no secrets")
        fresh, until = new_webhook_secret(), now + timedelta(seconds=_OVERLAP_SECONDS)
        setting = rotated([""] * len(present), fresh, until)
        return await self.destination(visit, made=Rotated(name, fresh, setting, until))

    async def act(self, visit: Visit) -> Response:
        """Pause, resume or enable a destination, in every process."""
        name, action = visit.path("name"), visit.path("action")
        if action not in ACTIONS:
            raise NotFound(f"a destination can be {listed(sorted(ACTIONS))}d, and nothing else")
        names, now = self._receiver.settings.destinations, self._receiver.clock()
        await act_on_destination(self._receiver.store, names, name, action, now=now)
        return RedirectResponse(f"{HOME}/destinations/{name}?done={action}d", 303)

    def _named(self, visit: Visit) -> str:
        name, names = visit.path("name"), self._receiver.settings.destinations
        if name not in names:
            raise NotFound(f"there is no destination {name[:100]}; there is: {listed([*names] or ['none'])}")
        return name


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
        types=(fields["type"],) if fields["type"] else None,
    )


def _back(path: str, done: str, count: int) -> Response:
    """Lead back to a page of ours, which says what was done."""
    inside = path if is_inside(path) else f"{HOME}/deliveries"
    return RedirectResponse(f"{inside}{'&' if '?' in inside else '?'}done={done}.{count}", 303)
