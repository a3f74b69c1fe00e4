"""Lists: those of the API, each with its template, its filters as links, and the way to its older page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
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
    of_settings = [name for name in _CHOICES if name in names]
    choices |= {name: list(_CHOICES[name](visit.receiver.settings)) for name in of_settings}
    return {"fields": {name: visit.given(name) for name in names}, "choices": choices}


class Listing(Struct, frozen=True):
    """The page of one list."""

    template: str
    operation: Operation
    """The operation of the API that lists."""
    states: Sequence[str] = ()
    more: Callable[[Visit, Sequence[Any]], Awaitable[Mapping[str, Any]]] | None = None
    """Returns what else the template needs, of the items."""

    async def __call__(self, visit: Visit) -> Response:
        """Show the page that the address asks for."""
        kind = self.operation.query
        found = await self.operation.handle(visit.call(query=visit.query(kind)))
        more = await self.more(visit, found.items) if self.more else {}
        shown = filters(visit, kind, self.states)
        return await visit.page(self.template, items=found.items, after=found.next, **shown, **more)
