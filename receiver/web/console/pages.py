"""Pages and forms that are one operation of the API each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from receiver.core.event import EVENT_TYPES
from receiver.web.api.operation import Operation
from receiver.web.console.visit import Visit


def filters(visit: Visit, kind: type[Struct] | None, states: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a list's template shows of its filters: those that are given, and what may be chosen.

    That is what the settings know, never what happens to be on the page.
    """
    settings, names = visit.settings, kind.__struct_fields__ if kind else ()
    tokens = [token.name for token in settings.api.tokens]
    known = {"source": settings.sources, "destination": settings.destinations, "type": EVENT_TYPES}
    choices = {name: list(of) for name, of in (known | {"token": tokens}).items() if name in names}
    given = {name: visit.given(name) for name in names}
    return {"fields": given, "choices": ({"state": states} if states else {}) | choices}


class Page(Struct, frozen=True):
    """A page that shows what an operation of the API gives."""

    template: str
    operation: Operation
    states: Sequence[str] = ()
    """What the filter `state` may be."""
    always: Mapping[str, Any] = {}
    """What every look asks for, whatever the address says."""
    more: Callable[[Visit, Any], Awaitable[Mapping[str, Any]]] | None = None
    """Returns what else the template needs, of what was given."""

    async def __call__(self, visit: Visit) -> Response:
        """Show what the address asks for."""
        kind = self.operation.query
        query = replace(visit.asked(kind), **self.always) if kind else visit.asked(kind)
        found = await visit.do(self.operation, query=query)
        more = await self.more(visit, found) if self.more else {}
        return await visit.page(self.template, found=found, **filters(visit, kind, self.states), **more)


class Form(Struct, frozen=True):
    """A form that does one operation of the API, and leads to a page."""

    operation: Operation
    to: str
    """The page's path, with parts of the form's in braces."""

    async def __call__(self, visit: Visit) -> Response:
        """Do it."""
        await visit.do(self.operation, query=visit.sent(self.operation.query))
        return visit.lead(self.to.format_map(visit.path))
