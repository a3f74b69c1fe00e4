"""What the lists of the API have in common: times, patterns, cursors, pages."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, TypeVar

from msgspec import Meta, Struct

from receiver.core.event import Place
from receiver.core.page import Page as Found
from receiver.web.api.problems import Refused
from receiver.web.views import Page, shown

T = TypeVar("T", bound=Struct)
S = TypeVar("S", bound=Struct)
Limit = Annotated[int, Meta(ge=1, le=500)]
"""Things on a page."""
Moment = Annotated[datetime, Meta(tz=True)]
"""A time with its zone: `2026-11-21T10:00:00Z`."""
Count = Annotated[int, Meta(ge=0, le=2**53)]
Length = Annotated[float, Meta(ge=0, le=10**9)]
"""Seconds."""
_PLACE = re.compile(r"(\d{1,18})\.(evt_[a-z0-9]{1,64})")


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


def cursor_of(place: Place) -> str:
    """Return the cursor that names a place."""
    return f"{place.position}.{place.id}"


def page(found: Found[T], kind: type[S]) -> Page[S]:
    """Return a page of a list that goes by ids, the newest first."""
    return Page(items=[shown(one, kind) for one in found], next=found.after)
