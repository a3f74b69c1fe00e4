"""The console's addresses: which page is where, and what each form may do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.routing import Route

from receiver.core.explain import PARKED
from receiver.core.work import DeliveryState, PickupState
from receiver.settings.model import ApiScope
from receiver.web.api import acts, deliveries, operations, pickups, rejections
from receiver.web.api import events as api_events
from receiver.web.api import overview as api_overview
from receiver.web.console import destinations, event, events, jobs, overview, retention, sources
from receiver.web.console.guard import Guard
from receiver.web.console.login import Doors
from receiver.web.console.pages import Form, Page
from receiver.web.console.rendering import environment, static
from receiver.web.console.visit import HOME, Console, Handler

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver
    from receiver.web.console.sessions import Sessions

_PARKED = {"type": PARKED, "limit": 20}  # each with its body
_PAGES: Mapping[str, Handler] = {
    "/": overview.show,
    "/find": jobs.find,
    "/events": events.events,
    "/events/live": events.live,
    "/events/{event_id}": event.show,
    "/events/{event_id}/audio": event.audio,
    "/events/{event_id}/peaks": event.peaks,
    "/events/{event_id}/download/event": event.download,
    "/events/{event_id}/download/body": event.download_body,
    "/parked": Page("parked.html", api_events.listed, always=_PARKED, more=events.bodies_of),
    "/jobs": jobs.jobs,
    "/pickups": Page("pickups.html", pickups.listed, [*PickupState]),
    "/pickups/{pickup_id}": Page("pickup.html", pickups.one),
    "/rejections": Page("rejections.html", rejections.listed, always={"limit": 500}),
    "/rejections/{rejection_id}": sources.rejection,
    "/sources": Page("sources.html", api_overview.sources, more=sources.newest_of),
    "/sources/{name}": sources.show,
    "/deliveries": Page("deliveries.html", deliveries.listed, [*DeliveryState]),
    "/deliveries/{delivery_id}": destinations.delivery,
    "/destinations": Page("destinations.html", api_overview.destinations),
    "/destinations/{name}": destinations.show,
    "/operations": Page("operations.html", operations.listed),
    "/operations/{operation_id}": Page("operation.html", operations.one),
    "/operations/{operation_id}/progress": destinations.progress,
    "/retention": retention.show,
    "/erase": retention.look,
    "/audit": Page("audit.html", acts.listed),
}
"""What shows something, by path."""
_ACTS: Mapping[ApiScope, Mapping[str, Handler]] = {
    ApiScope.OPERATE: {
        "/events/{event_id}/replay": event.send,
        "/events/{event_id}/renormalize": event.renormalize,
        "/deliveries/replay-picked": destinations.replay_picked,
        "/operations": destinations.plan,
        "/operations/{operation_id}/run": Form(operations.resume, "/operations/{operation_id}"),
        "/operations/{operation_id}/stop": Form(operations.stop, "/operations/{operation_id}"),
        "/destinations/{name}/pause": Form(api_overview.pause, "/destinations/{name}?done=paused"),
        "/destinations/{name}/resume": Form(api_overview.resume, "/destinations/{name}?done=resumed"),
        "/destinations/{name}/enable": Form(api_overview.enable, "/destinations/{name}?done=enabled"),
        "/destinations/{name}/test": destinations.test,
        "/rejections/{rejection_id}/verify": sources.verify,
        "/sources/{name}/url": sources.make_url,
        "/sources/{name}/test": sources.test,
    },
    ApiScope.ADMIN: {
        "/destinations/{name}/rotate": destinations.rotate,
        "/rejections/{rejection_id}/accept": sources.accept,
        "/erase": retention.erase,
    },
}
"""What a form does, by the scope that it needs and its path."""


def routes(receiver: Receiver, sessions: Sessions) -> list[Route]:
    """Return the routes of the console."""
    guard = Guard(Console(receiver, sessions, environment()))
    doors = Doors(guard)
    return [
        Route(f"{HOME}/static/{{digest}}/{{name}}", guard.open(static)),
        Route(f"{HOME}/login", guard.open(doors.login), methods=["GET", "POST"]),
        Route(f"{HOME}/logout", guard.act(None, doors.logout), methods=["POST"]),
        Route(HOME, guard.open(doors.home)),
        Route("/", guard.open(doors.home)),
        *(Route(HOME + path, guard.page(handle), methods=["GET"]) for path, handle in _PAGES.items()),
        *(
            Route(HOME + path, guard.act(scope, handle), methods=["POST"])
            for scope, acts in _ACTS.items()
            for path, handle in acts.items()
        ),
    ]
