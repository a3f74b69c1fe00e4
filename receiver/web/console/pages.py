"""Pages and forms that are one operation of the API each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from receiver.core.event import EVENT_TYPES
from receiver.web.api.operation import Operation
from receiver.web.console.visit import Visit

if TYPE_CHECKING:
    from receiver.settings.model import Settings

_CHOICES: Mapping[str, Callable[[Settings], Iterable[str]]] = {
    "source": lambda settings: settings.sources,
    "destination": lambda settings: settings.destinations,
    "type": lambda _: EVENT_TYPES,
    "token": lambda settings: [token.name for token in settings.api.tokens],
}
"""What a filter may be, as the settings know it: never what happens to be on the page."""


def filters(visit: Visit, kind: type[Struct] | None, states: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a list's template shows of its filters: those that are given, and what may be chosen."""
    names = kind.__struct_fields__ if kind else ()
    choices = {"state": list(states)} if states else {}
    choices |= {name: list(of(visit.receiver.settings)) for name, of in _CHOICES.items() if name in names}
    return {"fields": {name: visit.given(name) for name in names}, "choices": choices}


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
        query = replace(visit.query(kind), **self.always) if kind else visit.query(kind)
        found = await self.operation.handle(visit.call(query=query))
        more = await self.more(visit, found) if self.more else {}
        return await visit.page(self.template, found=found, **filters(visit, kind, self.states), **more)


class Form(Struct, frozen=True):
    """A form that does one operation of the API, and leads to a page."""

    operation: Operation
    to: str
    """The page's path, with parts of the form's in braces."""

    async def __call__(self, visit: Visit) -> Response:
        """Do it."""
        await self.operation.handle(visit.call(query=visit.sent(self.operation.query)))
        return visit.lead(self.to.format_map(visit.request.path_params))
