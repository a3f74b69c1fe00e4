"""One page of a listing, and all of a listing page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

T = TypeVar("T")
F = TypeVar("F", bound=Struct)


class Page(list[T], Generic[T]):
    """The items of one page. It may hold fewer than were asked for, or none, although there are more."""

    def __init__(self, items: Iterable[T], after: Any = None) -> None:
        super().__init__(items)
        self.after = after
        """Where the next page begins: the filter's own `after`; None when there is no more."""


async def pages(listing: Callable[[F], Awaitable[Page[T]]], filter: F) -> AsyncIterator[Page[T]]:
    """Yield page after page, until there is no more."""
    after: Any = None
    while True:
        page = await listing(filter if after is None else replace(filter, after=after))
        yield page
        after = page.after
        if after is None:
            return


async def filled(listing: Callable[[F], Awaitable[Page[T]]], filter: F, limit: int) -> Page[T]:
    """Return `limit` items, or all that there are."""
    found: Page[T] = Page([])
    async for page in pages(listing, filter):
        found += page
        found.after = page.after
        if len(found) >= limit:
            break
    return found
