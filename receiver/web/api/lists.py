"""What the lists of the API have in common: what they take, cursors, pages, and names that there are."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from msgspec import Meta, Struct

from receiver.core.errors import UsageError
from receiver.core.event import EVENT_TYPES, Place
from receiver.core.page import Page as Found
from receiver.core.routing import fitting_types
from receiver.settings.load import did_you_mean
from receiver.web.api.problems import Refused
from receiver.web.views import Page

if TYPE_CHECKING:
    from receiver.settings.model import Settings
    from receiver.storage.store.store import Store

T = TypeVar("T")
S = TypeVar("S", bound=Struct)
Limit = Annotated[int, Meta(ge=1, le=500)]
"""Things on a page."""
Moment = Annotated[datetime, Meta(tz=True)]
"""A time with its zone: `2026-11-21T10:00:00Z`."""
Count = Annotated[int, Meta(ge=0, le=2**53)]
Length = Annotated[float, Meta(ge=0, le=10**9)]
"""Seconds."""
_PLACE = re.compile(r"(\d{1,18})\.(evt_[a-z0-9]{1,64})")


class Paged(Struct, forbid_unknown_fields=True, frozen=True):
    """What every list takes."""

    after: str | None = None
    """`next` of the page before."""
    limit: Limit = 50


def filter_of(query: Struct, kind: type[S], **made: Any) -> S:
    """Return the filter that a query asks for by fields of the same names: times in milliseconds, and the types that fit `type`.

    `made` are fields whose values are made otherwise. Raises `UsageError` for a `type` that there is not: nothing fits it, ever.
    """
    values = {name: getattr(query, name, None) for name in kind.__struct_fields__}
    pattern = getattr(query, "type", None)
    refuse_unknown("event type", pattern, EVENT_TYPES)
    if "types" in values and pattern is not None:
        values["types"] = fitting_types(pattern)
    given = {name: millis(value) if isinstance(value, datetime) else value for name, value in values.items()}
    return kind(**{name: value for name, value in given.items() if value is not None} | made)


def millis(moment: datetime | None) -> int | None:
    """Return a time as epoch milliseconds."""
    return None if moment is None else int(moment.timestamp() * 1000)


def place_of(cursor: str | None) -> Place | None:
    """Return the place that a cursor names. Raises `Refused` when it is none of ours."""
    if cursor is None:
        return None
    found = _PLACE.fullmatch(cursor)
    if found is None:
        raise Refused(400, "after: it is no cursor of this list; take next or cursor of a page before")
    return Place(int(found[1]), found[2])


async def known_place(store: Store, cursor: str | None) -> Place | None:
    """Return the place that a cursor names. Raises `Refused` when it is none of ours, or the store has not come so far."""
    place = place_of(cursor)
    if place is not None and place.position > (await store.positions()).end:
        raise Refused(
            409,
            "after: this database has not come so far: it was restored, or is another. Begin again at 0.evt_0, and drop the "
            "events that you have by their ids",
        )
    return place


def cursor_of(place: Place) -> str:
    """Return the cursor that names a place."""
    return f"{place.position}.{place.id}"


def page(found: Found[T]) -> Page[T]:
    """Return a page of a list that goes by ids, the newest first."""
    return Page(items=found, next=found.after)


def refuse_unknown(what: str, pattern: str | None, known: Collection[str]) -> None:
    """Raise `UsageError` for a name, or a pattern of names, that fits nothing."""
    if pattern is not None and not fnmatch.filter(known, pattern):
        there = did_you_mean(pattern, known) or f"there is: {', '.join(sorted(known)) or 'none'}"
        raise UsageError(f"there is no {what} {pattern[:100]!r}; {there}")


def refuse_unconfigured(settings: Settings, query: Struct) -> None:
    """Raise `UsageError` where a query names a source or a destination that the settings lack.

    Events about a destination have its name for a source.
    """
    source = getattr(query, "source", None)
    if not fnmatch.filter(settings.destinations, source or ""):
        refuse_unknown("source", source, settings.sources)
    refuse_unknown("destination", getattr(query, "destination", None), settings.destinations)
