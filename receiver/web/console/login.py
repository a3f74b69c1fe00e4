"""Logging in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import RedirectResponse, Response

from receiver.core.observe import Repeats
from receiver.storage.store.small_tables import everywhere
from receiver.web.console.guard import Guard, hostname, inside, read_form
from receiver.web.console.sessions import LoginLimit
from receiver.web.console.visit import HOME, Visit

if TYPE_CHECKING:
    from starlette.requests import Request

    from receiver.web.console.sessions import Session


_LOOPBACK = ("127.0.0.1", "::1")


class Doors:
    """The form that logs in, the link that does it once, and the way out."""

    def __init__(self, guard: Guard) -> None:
        self._guard, self._console = guard, guard.console
        self._limit = LoginLimit()
        self._failures = Repeats()

    async def home(self, request: Request) -> Response:
        """Lead to the overview."""
        return RedirectResponse(f"{HOME}/", 303)

    async def login(self, request: Request) -> Response:
        """Show the form, take it, or take the secret of a one-time link."""
        link, peer = request.query_params.get("once", ""), self._console.proxies.caller_of(request) or ""
        if request.method == "GET" and not link:
            return await self._form(request.query_params.get("next", ""))
        if link:
            session, wanted = self._by_link(request, link), ""
        elif self._limit.refuses(peer):
            trouble = "Too many wrong tokens came from your address: wait a minute, then try again."
            return await self._form("", trouble, status=429)
        else:
            form = await read_form(request)
            session = self._console.sessions.by_token(form.get("token", [""])[0])
            wanted = form.get("next", [""])[0]
        if session is None:
            return await self._failed(peer, wanted, by_link=bool(link))
        self._console.receiver.observer.note("info", "console.login", token=session.name, peer=peer)
        response = RedirectResponse(HOME + inside(wanted, "/"), 303)
        self._guard.keep(request, response, session)
        return response

    async def _failed(self, peer: str, wanted: str, *, by_link: bool) -> Response:
        if not by_link:  # any page elsewhere could make a browser follow such links
            self._limit.failed(peer)
        if (left_out := self._failures.left_out("login")) is not None:
            fields = {"peer": peer, "left_out": left_out}
            self._console.receiver.observer.note("warning", "console.login_failed", **fields)
        trouble = "That link was used, or is too old." if by_link else "No such token, or it may not read."
        return await self._form(wanted, trouble, status=401)

    def _by_link(self, request: Request, link: str) -> Session | None:
        """Return a session for a one-time link: only on this machine itself, and never by way of a proxy."""
        peer, name = request.client.host if request.client else "", hostname(request.headers.get("host", ""))
        near = peer in _LOOPBACK and name in (*_LOOPBACK, "localhost")
        here = near and "x-forwarded-for" not in request.headers
        return self._console.sessions.by_link(link) if here else None

    async def _form(self, wanted: str, trouble: str = "", *, status: int = 200) -> Response:
        return await self._console.render("login.html", status, next=wanted, trouble=trouble)

    async def logout(self, visit: Visit) -> Response:
        """End this login, or with `everywhere` all by the same token."""
        session = visit.session
        subject = everywhere(session.name) if visit.given("everywhere") else session.id
        await visit.store.end_login(subject, now=visit.now)
        response = visit.lead("/login")
        self._guard.keep(visit.request, response, None)
        return response
