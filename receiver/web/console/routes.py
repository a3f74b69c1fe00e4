"""The console's addresses: which page is where, and what each form may do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from receiver.core.observe import Repeats
from receiver.settings.model import ApiScope
from receiver.storage.store.logins import everywhere
from receiver.web.console.event import EventPages
from receiver.web.console.events import Events
from receiver.web.console.guard import HOME, Guard, Handler, Visit, hostname, is_inside, read_form
from receiver.web.console.incoming import Incoming
from receiver.web.console.operations import Operations
from receiver.web.console.outgoing import Outgoing
from receiver.web.console.overview import Overview
from receiver.web.console.rendering import Templates, static
from receiver.web.console.retention import RetentionPages
from receiver.web.console.sessions import LoginLimit, Sessions

if TYPE_CHECKING:
    from starlette.requests import Request

    from receiver.app.wiring import Receiver
    from receiver.web.console.sessions import Session


def routes(receiver: Receiver, sessions: Sessions, *, intake: bool) -> list[Route]:
    """Return the routes of the console."""
    guard = Guard(receiver, sessions, Templates())
    doors = Doors(receiver, guard)
    opened = [
        Route(f"{HOME}/static/{{digest}}/{{name}}", guard.open(static)),
        Route(f"{HOME}/login", guard.open(doors.login), methods=["GET", "POST"]),
        Route(f"{HOME}/logout", guard.act(None, doors.logout), methods=["POST"]),
        Route(HOME, guard.open(doors.home)),
        Route("/", guard.open(doors.home)),
    ]
    overview, events, event = Overview(receiver), Events(receiver), EventPages(receiver)
    incoming, outgoing, operations = Incoming(receiver), Outgoing(receiver), Operations(receiver)
    retention = RetentionPages(receiver)
    pages = _pages(overview, events, event, incoming, outgoing, operations, retention)
    acts = _acts(event, incoming, outgoing, operations, retention)
    return [
        *opened,
        *(Route(HOME + path, guard.page(handle), methods=["GET"]) for path, handle in pages.items()),
        *(Route(HOME + path, guard.act(scope, act), methods=["POST"]) for path, (scope, act) in acts.items()),
    ]


def _pages(
    overview: Overview,
    events: Events,
    event: EventPages,
    incoming: Incoming,
    outgoing: Outgoing,
    operations: Operations,
    retention: RetentionPages,
) -> Mapping[str, Handler]:
    """Return what shows something, by path."""
    return {
        "/": overview.show,
        "/find": overview.find,
        "/events": events.list,
        "/events/live": events.live,
        "/events/{event_id}": event.show,
        "/events/{event_id}/audio": event.audio,
        "/events/{event_id}/peaks": event.peaks,
        "/events/{event_id}/download/{what}": event.download,
        "/jobs": incoming.jobs,
        "/pickups": incoming.pickups,
        "/rejections": incoming.rejections,
        "/parked": incoming.parked,
        "/sources": incoming.sources,
        "/sources/{name}": incoming.source,
        "/deliveries": outgoing.deliveries,
        "/deliveries/{delivery_id}": outgoing.delivery,
        "/destinations": outgoing.destinations,
        "/destinations/{name}": outgoing.destination,
        "/operations": operations.list,
        "/operations/{operation_id}": operations.one,
        "/operations/{operation_id}/progress": operations.progress,
        "/retention": retention.show,
        "/erase": retention.look,
        "/audit": retention.audit,
    }


def _acts(
    event: EventPages,
    incoming: Incoming,
    outgoing: Outgoing,
    operations: Operations,
    retention: RetentionPages,
) -> Mapping[str, tuple[ApiScope, Handler]]:
    """Return what a form does and the scope that it needs, by path."""
    return {
        "/events/{event_id}/replay": (ApiScope.OPERATE, outgoing.replay_event),
        "/events/{event_id}/renormalize": (ApiScope.OPERATE, event.renormalize),
        "/operations": (ApiScope.OPERATE, operations.plan),
        "/operations/{operation_id}/{action}": (ApiScope.OPERATE, operations.change),
        "/deliveries/replay-picked": (ApiScope.OPERATE, outgoing.replay_picked),
        "/destinations/{name}/test": (ApiScope.OPERATE, outgoing.test),
        "/destinations/{name}/rotate": (ApiScope.ADMIN, outgoing.rotate),
        "/destinations/{name}/{action}": (ApiScope.OPERATE, outgoing.act),
        "/rejections/{rejection_id}/verify": (ApiScope.OPERATE, incoming.verify),
        "/rejections/{rejection_id}/accept": (ApiScope.ADMIN, incoming.accept),
        "/sources/{name}/url": (ApiScope.OPERATE, incoming.make_url),
        "/sources/{name}/test": (ApiScope.OPERATE, incoming.test),
        "/erase": (ApiScope.ADMIN, retention.erase),
    }


class Doors:
    """Logging in and out."""

    def __init__(self, receiver: Receiver, guard: Guard) -> None:
        self._receiver, self._guard = receiver, guard
        self._limit = LoginLimit()
        self._failures = Repeats()

    async def home(self, request: Request) -> Response:
        """Lead to the overview."""
        return RedirectResponse(f"{HOME}/", 303)

    async def login(self, request: Request) -> Response:
        """Show the form, take it, or take the secret of a one-time link."""
        link = request.query_params.get("once", "")
        if request.method == "GET" and not link:
            return await self._form(request.query_params.get("next", ""))
        peer = self._guard.peer(request)
        if link:
            session, wanted = self._by_link(request, link), ""
        elif self._limit.refuses(peer):
            trouble = "Too many wrong tokens came from your address: wait a minute, then try again."
            return await self._form("", trouble, status=429)
        else:
            form = await read_form(request)
            session = self._guard.sessions.by_token(form.get("token", [""])[0])
            wanted = form.get("next", [""])[0]
        if session is None:
            if not link:  # any page elsewhere could make a browser follow such links
                self._limit.failed(peer)
            if (left_out := self._failures.left_out("login")) is not None:
                self._receiver.observer.note("warning", "console.login_failed", peer=peer, left_out=left_out)
            trouble = (
                "That link was used, or is too old." if link else "No token is like that, or it may not read."
            )
            return await self._form(wanted, trouble, status=401)
        self._receiver.observer.note("info", "console.login", token=session.name, peer=peer)
        response = RedirectResponse(wanted if is_inside(wanted) else f"{HOME}/", 303)
        self._guard.keep(request, response, session)
        return response

    def _by_link(self, request: Request, link: str) -> Session | None:
        """Return a session for a one-time link: only on this machine itself, and never by way of a proxy."""
        loopback = ("127.0.0.1", "::1")
        near = request.client is not None and request.client.host in loopback
        named = hostname(request.headers.get("host", "")) in (*loopback, "localhost")
        if not (near and named) or "x-forwarded-for" in request.headers:
            return None
        return self._guard.sessions.by_link(link)

    async def _form(self, wanted: str, trouble: str = "", *, status: int = 200) -> Response:
        return await self._guard.render("login.html", None, status=status, next=wanted, trouble=trouble)

    async def logout(self, visit: Visit) -> Response:
        """End this login, or with `everywhere` all by the same token."""
        session = visit.session
        subject = everywhere(session.name) if visit.given("everywhere") else session.id
        await self._receiver.store.end_login(subject, now=self._receiver.clock())
        response = RedirectResponse(f"{HOME}/login", 303)
        self._guard.keep(visit.request, response, None)
        return response
