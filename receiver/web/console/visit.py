"""One request of somebody who is logged in, and what all pages share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from jinja2 import Environment
from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from receiver.engine.waveforms import Waveforms
from receiver.web.api.access import Holder
from receiver.web.api.operation import Operation, Served
from receiver.web.api.reading import read_query
from receiver.web.proxies import Proxies

if TYPE_CHECKING:
    from starlette.requests import Request

    from receiver.app.wiring import Receiver
    from receiver.web.console.sessions import Session, Sessions

HOME = "/console"
_AT_ONCE, _WAITING = 2, 8
S = TypeVar("S", bound=Struct)


class Console:
    """What all pages share."""

    def __init__(self, receiver: Receiver, sessions: Sessions, templates: Environment) -> None:
        self.receiver, self.sessions = receiver, sessions
        self.proxies = Proxies(receiver.settings.server.trusted_proxies)
        self.waveforms = Waveforms(receiver.blobs)
        self.streams = WeakSet["Request"]()
        """The lists that follow what is recorded; one whose browser went before it began is gone by itself."""
        self.playing = asyncio.Lock()
        """Held while a provider is played: that takes a process of its own."""
        self._templates = templates
        self._rendering = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0

    def visit(self, request: Request, session: Session, form: Mapping[str, list[str]] | None = None) -> Visit:
        """Return a request of somebody who is logged in; `form` has the fields of one that was sent."""
        return Visit(
            store=self.receiver.store,
            settings=self.receiver.settings,
            now=self.receiver.clock(),
            holder=Holder(session.name, session.scopes),
            query=None,
            body=None,
            path=request.path_params,
            receiver=self.receiver,
            request=request,
            peer=self.proxies.caller_of(request),
            session=session,
            console=self,
            form=form or {},
        )

    async def render(self, template: str, status: int = 200, **data: Any) -> Response:
        """Return a page; rendered in a thread, a few at once, so that callbacks never wait for one."""
        if self._waiting >= _WAITING:
            busy = "The console is busy: try again in a moment.\n"
            return PlainTextResponse(busy, 503, {"retry-after": "2"})
        self._waiting += 1
        try:
            async with self._rendering:
                text = await asyncio.to_thread(self._rendered, template, data)
        finally:
            self._waiting -= 1
        return Response(text, status, media_type="text/html")

    def _rendered(self, template: str, data: Mapping[str, Any]) -> str:
        return self._templates.get_template(template).render(now=int(time.time() * 1000), **data)


class Visit(Served[Any, Any], frozen=True, kw_only=True):
    """One request of somebody who is logged in: as the API has it, with what pages need besides."""

    session: Session
    console: Console
    form: Mapping[str, list[str]]
    """The fields of a form that was sent; empty for a page."""

    def given(self, name: str) -> str:
        """Return a field of the form, or of the address for a page; empty when it is not there."""
        if self.form:
            return self.form.get(name, [""])[0].strip()
        return self.request.query_params.get(name, "").strip()

    def asked(self, kind: type[S] | None) -> S:
        """Return the filters in the address. Raises `Refused` for those that the list does not have."""
        pairs = [(name, value.strip()) for name, value in self.request.query_params.multi_items()]
        query: S = read_query([(name, value) for name, value in pairs if value and name != "done"], kind)
        return query

    def sent(self, kind: type[S] | None, **more: str) -> S:
        """Return what the form says as the query or body of an operation, `more` with it. Raises `Refused`."""
        names = kind.__struct_fields__ if kind else ()
        body: S = read_query(
            [*((name, given) for name in names if (given := self.given(name))), *more.items()], kind
        )
        return body

    async def do(self, operation: Operation, query: Any = None, body: Any = None) -> Any:
        """Return what an operation of the API gives."""
        return await operation.handle(replace(self, query=query, body=body))

    async def page(self, template: str, status: int = 200, **data: Any) -> Response:
        """Return a page: its template gets `data`, the filters in the address as `fields`, and what all pages need."""
        url = self.request.url
        shared = {
            "session": self.session,
            "path": url.path,
            "here": f"{url.path}?{url.query}",
            "done": self.request.query_params.get("done", ""),
            "form_token": partial(self.console.sessions.form_token, self.session),
            "fields": {},
        }
        return await self.console.render(template, status, **(shared | data))

    def lead(self, path: str) -> Response:
        """Lead to a page of the console."""
        return RedirectResponse(f"{HOME}{path}", 303)


Handler = Callable[[Visit], Awaitable[Response]]
