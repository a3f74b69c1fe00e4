"""What a command asks is what the API asks: the same operations, in this process, of the store that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from receiver.cli.opening import ask
from receiver.core.audit import COMMAND_LINE
from receiver.core.clock import wall_clock

if TYPE_CHECKING:
    from receiver.settings.model import Settings
    from receiver.storage.store.store import Store
    from receiver.web.api.operation import Operation


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
        from receiver.web.api.lists import KNOWN, refuse_unknown

        for name in KNOWN.keys() & filters.keys():
            refuse_unknown(settings, name, filters[name])
    return found
