"""What stands before every page: which names it answers to, who is logged in, whose form it is, what the browser may do."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlsplit

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from receiver.core.act import Act
from receiver.core.errors import ConfigError, NotFound, ReceiverError, StoreUnavailable, UsageError
from receiver.core.event import new_id
from receiver.settings.model import ApiScope
from receiver.web.callbacks import Proxies

if TYPE_CHECKING:
    from starlette.requests import Request

    from receiver.app.wiring import Receiver
    from receiver.web.console.rendering import Templates
    from receiver.web.console.sessions import Session, Sessions

HOME = "/console"
_FORM_BYTES = 64 * 1024
_BODY_SECONDS = 10.0
_STORE_SECONDS = 10.0
_AT_ONCE, _WAITING = 2, 8
_AUDITED = frozenset(("kind", "to", "state", "destination", "source", "type", "until", "reason"))
"""What the audit tells of a form: nothing that may be secret, or somebody's."""
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


@dataclass(slots=True)
class Visit:
    """One request of somebody who is logged in."""

    request: Request
    session: Session
    guard: Guard
    form: Mapping[str, list[str]] = field(default_factory=dict)
    """The fields of a form that was sent; empty for a page."""

    def given(self, name: str) -> str:
        """Return a field of the form, or of the address for a page; empty when it is not there."""
        if self.form:
            return self.form.get(name, [""])[0]
        return self.request.query_params.get(name, "").strip()

    def path(self, name: str) -> str:
        """Return a part of the path."""
        return str(self.request.path_params[name])

    async def page(self, template: str, *, status: int = 200, **data: Any) -> Response:
        """Return a page."""
        return await self.guard.render(template, self, status=status, **data)


Handler = Callable[[Visit], Awaitable[Response]]


class Misplaced(Exception):
    """A request that a browser of ours, on a page of ours, does not make."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Guard:
    """Lets requests through to the pages."""

    def __init__(self, receiver: Receiver, sessions: Sessions, templates: Templates) -> None:
        self._receiver, self.sessions, self._templates = receiver, sessions, templates
        settings = receiver.settings
        named = [urlsplit(settings.public_url or "").hostname, *settings.console.hosts]
        self._hosts = {name.lower() for name in named if name} | {"localhost"}
        self._proxies = Proxies(settings.server.trusted_proxies)
        self._rendering = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0
        self._media_origin: str | None = None

    # ------------------------------------------------------------ the doors

    def open(
        self, handle: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return `handle` for anybody who asks by a name of ours, logged in or not."""

        async def opened(request: Request) -> Response:
            try:
                self._check_host(request)
                if request.method == "POST":
                    check_origin(request)
                response = await self._handled(request, handle(request))
            except Misplaced as misplaced:
                response = PlainTextResponse(misplaced.detail + "\n", misplaced.status)
            return self._sealed(response)

        return opened

    def page(self, handle: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Return `handle` for whoever is logged in; others are asked to log in first."""

        async def paged(request: Request) -> Response:
            session = await self.session(request)
            if session is None:
                query = f"?{request.url.query}" if request.url.query else ""
                return RedirectResponse(f"{HOME}/login?next={quote(request.url.path + query, safe='')}", 303)
            response = await handle(Visit(request, session, self))
            if session.stale:
                self.keep(request, response, session)
            return response

        return self.open(paged)

    def act(self, scope: ApiScope | None, handle: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Return `handle` for a form that a page of this session made, by whoever has the scope; None asks for none."""

        async def acted(request: Request) -> Response:
            session = await self.session(request)
            if session is None:
                raise Misplaced(
                    403, "you are not logged in any more: nothing was done. Log in and send it again."
                )
            form = await read_form(request)
            given = form.get("form", [""])[0]
            if not self.sessions.is_form_token(given, session, request.url.path):
                raise Misplaced(403, "this form was not made by a page of your session: nothing was done.")
            visit = Visit(request, session, self, form)
            if scope is not None and not session.may(scope):
                detail = f"Your token, {session.name}, lacks the scope {scope}: nothing was done."
                return await visit.page("error.html", status=403, title="Not allowed", detail=detail)
            return await (handle(visit) if scope is None else self._noted(visit, handle))

        return self.open(acted)

    async def _handled(self, request: Request, handled: Awaitable[Response]) -> Response:
        try:
            async with asyncio.timeout(_BODY_SECONDS + _STORE_SECONDS):
                return await handled
        except NotFound as error:
            return await self.error(request, 404, "Not found", error.message)
        except (UsageError, ConfigError) as error:
            return await self.error(request, 422, "Nothing was done", error.message)
        except (StoreUnavailable, TimeoutError) as error:
            what = error.message if isinstance(error, ReceiverError) else "It did not answer in time."
            depth = self._receiver.journal.depth
            detail = f"{what} Callbacks go to the journal, where {depth} wait. Load the page again to try once more."
            return await self.error(request, 503, "The store does not answer", detail)
        except Misplaced:
            raise
        except Exception as error:  # a fault of ours is told to operators, never to whoever asks
            self._receiver.observer.note("error", "console.internal_error", error=type(error).__name__)
            return await self.error(request, 500, "An internal error", "The log says more.")

    async def error(self, request: Request, status: int, title: str, detail: str) -> Response:
        """Return a page that says what went wrong; without a session only the words."""
        cookie = request.cookies.get(self.cookie_name(request), "")
        session = self.sessions.read(cookie)
        if session is None:
            return PlainTextResponse(f"{title}: {detail}\n", status)
        return await self.render(
            "error.html", Visit(request, session, self), status=status, title=title, detail=detail
        )

    # ------------------------------------------------------------ sessions

    def cookie_name(self, request: Request) -> str:
        """Return the cookie's name: behind HTTPS one that no other host and no plain connection can set."""
        return "__Host-receiver" if is_https(request) else "receiver-console"

    async def session(self, request: Request) -> Session | None:
        """Return who is logged in."""
        session = self.sessions.read(request.cookies.get(self.cookie_name(request), ""))
        if session is None:
            return None
        ended = await self._receiver.store.login_ended(session.id, session.name, session.issued_at * 1000)
        return None if ended else session

    def keep(self, request: Request, response: Response, session: Session | None) -> None:
        """Have the browser keep a session's cookie, or forget it (None)."""
        name, secure = self.cookie_name(request), is_https(request)
        if session is None:
            response.delete_cookie(name, path="/", secure=secure, httponly=True, samesite="strict")
        else:
            value = self.sessions.cookie(session)
            response.set_cookie(name, value, path="/", secure=secure, httponly=True, samesite="strict")

    def peer(self, request: Request) -> str:
        """Return the caller's address, behind proxies that are trusted to name it."""
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in request.scope["headers"]]
        return self._proxies.caller(request.client.host, headers) if request.client else "unknown"

    async def _noted(self, visit: Visit, handle: Handler) -> Response:
        """Do what a form asks for, noted before it is done, and with its answer after."""
        request, now = visit.request, self._receiver.clock()
        details = {name: values[0] for name, values in visit.form.items() if name in _AUDITED and values[0]}
        if ids := visit.form.get("id"):
            details["deliveries"] = str(len(ids))
        act = Act(
            id=new_id("act", now),
            at=now,
            token=visit.session.name,
            action=f"console {request.scope['route'].path.removeprefix(HOME)}",
            subject=request.url.path,
            detail=msgspec.json.encode(details).decode(),
            peer=self.peer(request),
            key=None,
            digest="",
        )
        await self._receiver.store.begin_act(act)
        response = await self._handled(request, handle(visit))
        await self._receiver.store.end_act(act.id, status=response.status_code, answer=None)
        return response

    # ------------------------------------------------------------ names and headers

    def _check_host(self, request: Request) -> None:
        given = request.headers.getlist("host")
        host = hostname(given[0]) if len(given) == 1 else ""
        if not (host in self._hosts or _is_address(host)):
            detail = "the console does not answer to this name: add it to console.hosts, or use an address"
            raise Misplaced(421, detail)

    def _sealed(self, response: Response) -> Response:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("content-security-policy", _POLICY.format(media=self._media()))
        return response

    def _media(self) -> str:
        """Return where audio may come from beside ourselves: the bucket's origin."""
        if self._media_origin is None:
            link = self._receiver.blobs.presign("a.wav", content_type="audio/wav", expires_at=2**41)
            parts = urlsplit(link or "")
            self._media_origin = f" {parts.scheme}://{parts.netloc}" if link else ""
        return self._media_origin

    # ------------------------------------------------------------ rendering

    async def render(self, template: str, visit: Visit | None, *, status: int = 200, **data: Any) -> Response:
        """Return a page; rendered in a thread, a few at once, so that callbacks never wait for one."""
        if self._waiting >= _WAITING:
            return PlainTextResponse(
                "The console is busy: try again in a moment.\n", 503, {"retry-after": "2"}
            )
        self._waiting += 1
        try:
            async with self._rendering:
                text = await asyncio.to_thread(self._templates.render, template, visit, data)
        finally:
            self._waiting -= 1
        return Response(text, status, media_type="text/html")


def is_https(request: Request) -> bool:
    """Tell whether the browser speaks HTTPS, to us or to the proxy before us."""
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", "").lower())


def hostname(host: str) -> str:
    """Return the name in a `Host` header, without its port and in lower case; empty when it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def check_origin(request: Request) -> None:
    """Raise `Misplaced` unless a page of ours sent this request."""
    origin = request.headers.get("origin")
    if origin is None:
        ours = request.headers.get("sec-fetch-site") == "same-origin"
    else:
        host = request.headers.get("host", "").lower()
        ours = origin.lower() in (f"http://{host}", f"https://{host}")
    if not ours:
        raise Misplaced(403, "this came from another site: nothing was done.")


def is_inside(address: str) -> bool:
    """Tell whether an address, as a form or a link names it, is one of the console's own pages."""
    return address.startswith(f"{HOME}/") and address.isprintable() and "\\" not in address


async def read_form(request: Request) -> dict[str, list[str]]:
    """Return the fields of a form. Raises `Misplaced` when it is none, or too long."""
    if (
        request.headers.get("content-type", "").partition(";")[0].strip()
        != "application/x-www-form-urlencoded"
    ):
        raise Misplaced(415, "send a form: application/x-www-form-urlencoded")
    body = b""
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > _FORM_BYTES:
                raise Misplaced(413, f"the form is larger than {_FORM_BYTES} bytes")
    except ClientDisconnect:
        raise Misplaced(400, "the connection ended before the form did") from None
    form: dict[str, list[str]] = {}
    try:
        for name, value in parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=1000):
            form.setdefault(name, []).append(value)
    except ValueError:
        raise Misplaced(400, "the form is not readable") from None
    return form
