"""What a command asks is what the API asks: the same operations, in this process, of the store that is there."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from receiver.cli.options import ask
from receiver.core.act import COMMAND_LINE
from receiver.core.clock import wall_clock
from receiver.core.errors import UsageError
from receiver.core.event import EVENT_TYPES

if TYPE_CHECKING:
    from receiver.settings.model import Settings
    from receiver.storage.store.store import Store
    from receiver.web.api.operation import Operation

_KNOWN: Mapping[str, Callable[[Settings], Collection[str]]] = {
    "source": lambda settings: settings.sources,
    "destination": lambda settings: settings.destinations,
    "type": lambda _: EVENT_TYPES,
}
"""What a filter by name may be."""


async def called(
    store: Store,
    settings: Settings,
    operation: Operation,
    *,
    query: Any = None,
    body: Any = None,
    **path: str,
) -> Any:
    """Return what an operation gives. Raises as it does."""
    from receiver.settings.model import ApiScope
    from receiver.web.api.access import Holder
    from receiver.web.api.operation import Call

    holder = Holder(COMMAND_LINE, frozenset(ApiScope))
    call = Call(
        store=store, settings=settings, now=wall_clock(), holder=holder, query=query, body=body, path=path
    )
    return await operation.handle(call)


def asked(settings: Settings, operation: Operation, **path: str) -> Any:
    """Return what an operation without a query gives. Raises as it does, and as `opened_store` does."""
    return ask(settings, lambda store: called(store, settings, operation, **path))


def listed(settings: Settings, operation: Operation, limit: int, **filters: Any) -> list[Any]:
    """Return what an operation lists, at most `limit`, page by page. Raises `UsageError` for a name that does not exist."""

    async def read(store: Store) -> list[Any]:
        query, items = operation.query(limit=limit, **filters), []
        while True:
            page = await called(store, settings, operation, query=query)
            items += page.items
            if page.next is None or len(items) >= limit:
                return items[:limit]
            query = replace(query, after=page.next)

    found = ask(settings, read)
    if not found:
        for name in _KNOWN.keys() & filters.keys():
            refuse_unknown(settings, name, filters[name])
    return found


def refuse_unknown(settings: Settings, what: str, pattern: str | None) -> None:
    """Raise `UsageError` for a name, or a pattern of names, that fits nothing."""
    from receiver.settings.problems import did_you_mean

    known = _KNOWN[what](settings)
    if pattern is not None and not fnmatch.filter(known, pattern):
        there = did_you_mean(pattern, known) or f"there is: {', '.join(sorted(known)) or 'none'}"
        raise UsageError(f"there is no {'event type' if what == 'type' else what} {pattern!r}; {there}")
