"""The console's addresses: which page is where, and what each form may do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.routing import Route

from receiver.core.destination_health import ACTIONS
from receiver.core.work import DeliveryState, PickupState
from receiver.settings.model import ApiScope
from receiver.web.api import acts, deliveries, operations, pickups
from receiver.web.api import destinations as api_destinations
from receiver.web.api import overview as api_overview
from receiver.web.console import destinations, event, events, jobs, overview, retention, sources
from receiver.web.console.guard import Guard
from receiver.web.console.lists import Listing
from receiver.web.console.login import Doors
from receiver.web.console.rendering import Templates, static
from receiver.web.console.visit import HOME, Console, Handler

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver
    from receiver.web.console.sessions import Sessions

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
    "/parked": events.parked,
    "/jobs": jobs.jobs,
    "/pickups": Listing("pickups.html", pickups.listed, [*PickupState], jobs.tries_of),
    "/pickups/{pickup_id}": jobs.one_pickup,
    "/rejections": sources.refused,
    "/sources": Listing("sources.html", api_overview.sources, more=sources.newest_of),
    "/sources/{name}": sources.show,
    "/deliveries": Listing("deliveries.html", deliveries.listed, [*DeliveryState]),
    "/deliveries/{delivery_id}": destinations.delivery,
    "/destinations": Listing("destinations.html", api_destinations.listed, more=destinations.settings_of),
    "/destinations/{name}": destinations.show,
    "/operations": Listing("operations.html", operations.listed),
    "/operations/{operation_id}": destinations.operation,
    "/operations/{operation_id}/progress": destinations.progress,
    "/retention": retention.show,
    "/erase": retention.look,
    "/audit": Listing("audit.html", acts.listed),
}
"""What shows something, by path."""
_OPERATE, _ADMIN = ApiScope.OPERATE, ApiScope.ADMIN
_ACTS: Mapping[str, tuple[ApiScope, Handler]] = {
    "/events/{event_id}/replay": (_OPERATE, event.send),
    "/events/{event_id}/renormalize": (_OPERATE, event.renormalize),
    "/deliveries/replay-picked": (_OPERATE, destinations.replay_picked),
    "/operations": (_OPERATE, destinations.plan),
    "/operations/{operation_id}/run": (_OPERATE, destinations.run),
    "/operations/{operation_id}/stop": (_OPERATE, destinations.stop),
    **{f"/destinations/{{name}}/{act}": (_OPERATE, destinations.act) for act in ACTIONS},
    "/destinations/{name}/test": (_OPERATE, destinations.test),
    "/destinations/{name}/rotate": (_ADMIN, destinations.rotate),
    "/rejections/{rejection_id}/verify": (_OPERATE, sources.verify),
    "/rejections/{rejection_id}/accept": (_ADMIN, sources.accept),
    "/sources/{name}/url": (_OPERATE, sources.make_url),
    "/sources/{name}/test": (_OPERATE, sources.test),
    "/erase": (_ADMIN, retention.erase),
}
"""What a form does and the scope that it needs, by path."""


def routes(receiver: Receiver, sessions: Sessions) -> list[Route]:
    """Return the routes of the console."""
    guard = Guard(Console(receiver, sessions, Templates()))
    doors = Doors(guard)
    return [
        Route(f"{HOME}/static/{{digest}}/{{name}}", guard.open(static)),
        Route(f"{HOME}/login", guard.open(doors.login), methods=["GET", "POST"]),
        Route(f"{HOME}/logout", guard.act(None, doors.logout), methods=["POST"]),
        Route(HOME, guard.open(doors.home)),
        Route("/", guard.open(doors.home)),
        *(Route(HOME + path, guard.page(handle), methods=["GET"]) for path, handle in _PAGES.items()),
        *(Route(HOME + path, guard.act(*act), methods=["POST"]) for path, act in _ACTS.items()),
    ]
