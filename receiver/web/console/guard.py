"""Checks every console request: host name, login, form token, and the security headers of its answer."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import Awaitable, Callable
from functools import cached_property
from urllib.parse import parse_qs, quote, urlsplit

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from receiver.core.audit import new_act
from receiver.settings.model import ApiScope
from receiver.web.api.problems import TITLES, Refused, refusal_of
from receiver.web.api.serving import received
from receiver.web.console.sessions import RENEW_SECONDS, Session
from receiver.web.console.visit import HOME, Console, Handler, Visit

_SECONDS = 20.0
"""How long a request may take, its body and the store together, unless its handler sets `request.state.limit` anew."""
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'{media}; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_TITLES = TITLES | {422: "Nothing was done", 503: "The store does not answer"}
Answering = Callable[[Request], Awaitable[Response]]


class Guard:
    """Lets requests through to the pages."""

    def __init__(self, console: Console) -> None:
        self.console, self._receiver, self._sessions = console, console.receiver, console.sessions
        settings = console.receiver.settings
        named = [urlsplit(settings.public_url or "").hostname, *settings.console.hosts]
        self._hosts = {name.lower() for name in named if name} | {"localhost"}

    @cached_property
    def _headers(self) -> dict[str, str]:
        """The headers of each answer. Audio may come from the bucket as well, which is of one origin."""
        link = self._receiver.blobs.presign("a.wav", content_type="audio/wav", expires_at=2**41)
        parts = urlsplit(link or "")
        media = f" {parts.scheme}://{parts.netloc}" if link else ""
        return _HEADERS | {"content-security-policy": _POLICY.format(media=media)}

    # ------------------------------------------------------------ the doors

    def open(self, handle: Answering) -> Answering:
        """Return `handle` for anybody who asks by a name of ours, logged in or not."""

        async def opened(request: Request) -> Response:
            response = await self._told(request, self._let_in(request, handle))
            for name, value in self._headers.items():
                response.headers.setdefault(name, value)
            return response

        return opened

    def page(self, handle: Handler) -> Answering:
        """Return `handle` for whoever is logged in; others are asked to log in first."""

        async def paged(request: Request) -> Response:
            session = await self._session(request)
            if session is None:
                query = f"?{request.url.query}" if request.url.query else ""
                return RedirectResponse(f"{HOME}/login?next={quote(request.url.path + query, safe='')}", 303)
            response = await handle(self.console.visit(request, session))
            if time.time() - session.used_at > RENEW_SECONDS:
                self.keep(request, response, session)
            return response

        return self.open(paged)

    def act(self, scope: ApiScope | None, handle: Handler) -> Answering:
        """Return `handle` for a form that a page of this session made, by whoever has the scope; None asks for none."""

        async def acted(request: Request) -> Response:
            session = await self._session(request)
            if session is None:
                raise Refused(403, "you are logged out: nothing was done. Log in, then send it again.")
            form = await read_form(request)
            if not self._sessions.is_form_token(form.get("form", [""])[0], session, request.url.path):
                raise Refused(403, "this form was not made by a page of your session: nothing was done.")
            if scope is not None and scope not in session.scopes:
                raise Refused(403, f"your token, {session.name}, lacks the scope {scope}: nothing was done.")
            visit = self.console.visit(request, session, form)
            return await (handle(visit) if scope is None else self._noted(visit, handle))

        return self.open(acted)

    async def _let_in(self, request: Request, handle: Answering) -> Response:
        names = [hostname(given) for given in request.headers.getlist("host")]
        if not (len(names) == 1 and (names[0] in self._hosts or _is_address(names[0]))):
            detail = "the console does not answer to this name: add it to console.hosts, or use an address\n"
            return PlainTextResponse(detail, 421)
        if request.method == "POST" and not _is_ours(request):
            raise Refused(403, "this came from another site: nothing was done.")
        async with asyncio.timeout(_SECONDS) as request.state.limit:
            return await handle(request)

    async def _told(self, request: Request, answering: Awaitable[Response]) -> Response:
        """Answer; whatever goes wrong becomes a page that says so, without a session only the words."""
        try:
            return await answering
        except Exception as error:
            refused = refusal_of(error)
            if refused.status == 500:  # a fault of ours is told to operators, never to whoever asks
                self._receiver.observer.note("error", "console.internal_error", error=type(error).__name__)
        title, detail = _TITLES[refused.status], refused.detail
        if refused.status == 503:
            depth = self._receiver.journal.depth
            detail = f"{detail.rstrip('.')}. Callbacks go to the journal, where {depth} wait. Load the page again to try once more."
        session = self._sessions.read(request.cookies.get(cookie_name(request), ""))
        if session is None:
            return PlainTextResponse(f"{title}: {detail}\n", refused.status)
        visit = self.console.visit(request, session)
        return await visit.page("error.html", refused.status, title=title, detail=detail)

    # ------------------------------------------------------------ who it is

    async def _session(self, request: Request) -> Session | None:
        session = self._sessions.read(request.cookies.get(cookie_name(request), ""))
        if session is None:
            return None
        ended = await self._receiver.store.login_ended(session.id, session.name, session.issued_at * 1000)
        return None if ended else session

    def keep(self, request: Request, response: Response, session: Session | None) -> None:
        """Have the browser keep a session's cookie, or forget it (None)."""
        name, secure = cookie_name(request), is_https(request)
        value, age = (self._sessions.cookie(session), None) if session else ("", 0)
        response.set_cookie(name, value, age, secure=secure, httponly=True, samesite="strict")

    async def _noted(self, visit: Visit, handle: Handler) -> Response:
        """Do what a form asks for, noted before it is done, and with its answer after."""
        request, ids = visit.request, visit.form.get("id")
        details = {name: visit.given(name) for name in visit.form}
        act = new_act(
            f"console {request.scope['route'].path.removeprefix(HOME)}",
            visit.session.name,
            at=visit.now,
            subject=request.url.path,
            details=details | {"deliveries": str(len(ids)) if ids else None},
            peer=visit.peer,
        )
        await visit.store.begin_act(act)
        response = await self._told(request, handle(visit))
        await visit.store.end_act(act.id, status=response.status_code, answer=None)
        return response


def is_https(request: Request) -> bool:
    """Tell whether the browser speaks HTTPS, to us or to the proxy before us."""
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", "").lower())


def cookie_name(request: Request) -> str:
    """Return the cookie's name: behind HTTPS one that no other host and no plain connection can set."""
    return "__Host-receiver" if is_https(request) else "receiver-console"


def hostname(host: str) -> str:
    """Return the name in a `Host` header, without its port and in lower case; empty when it is none."""
    with contextlib.suppress(ValueError):
        return (urlsplit(f"//{host}").hostname or "").lower()
    return ""


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return False


def _is_ours(request: Request) -> bool:
    """Tell whether a page of ours sent this request."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "").lower()
    if origin is None:
        return request.headers.get("sec-fetch-site") == "same-origin"
    return origin.lower() in (f"http://{host}", f"https://{host}")


def inside(address: str, other: str) -> str:
    """Return the path of the page of ours that an address names, without `HOME`; `other` where it names none."""
    ours = address.startswith(f"{HOME}/") and address.isprintable() and "\\" not in address
    return address.removeprefix(HOME) if ours else other


async def read_form(request: Request) -> dict[str, list[str]]:
    """Return the fields of a form. Raises `Refused` when it is none, too long or too slow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        raise Refused(422, "send a form: application/x-www-form-urlencoded")
    body = await received(request)
    try:
        return parse_qs(body.decode(), keep_blank_values=True, max_num_fields=1000)
    except ValueError:
        raise Refused(400, "the form is not readable") from None
