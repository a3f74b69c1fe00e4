"""Listings a page at a time. What a page costs does not grow with the table, whatever is asked for.

Conditions are of two kinds. Those that an index has, together with the order of the listing, cost nothing. For all others rows are
looked at one by one, so many in a page at most: then a page may be short, and says where the next begins. Columns of other indexes
stand in them as `column || ''`, so that no database goes along an index of another order and has to sort what it finds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from receiver.core.errors import NotFound
from receiver.core.event import TIME_CHARS, new_id
from receiver.core.page import Page
from receiver.core.work import DeliveryState
from receiver.storage.store.statements import Row, Session, Value

LOOKED_AT = 1_000
"""The most rows that one page examines: so a page of a million rows costs as much as one of a thousand."""
LOOKED_UP = 300
"""The most rows that one page examines if each needs a lookup in another table."""
_PARAMETER = re.compile(r":(\w+)")
Conditions = Mapping[str, Value | tuple[str, ...]]
"""SQL to value; one parameter each, if any. Those whose value is None are left out."""


class Listing(NamedTuple):
    """The order of a listing, and its statements."""

    rows: str
    """The statement that lists them."""
    place: str
    """The statement that finds where a page has to end."""
    key: str
    """SQL of the sort key; the place where a page begins is a value of it."""
    columns: tuple[int, ...]
    """The columns of `rows` that are the key."""
    onward: bool = False
    """True: oldest first; False: newest first."""


def newest_first(table: str) -> Listing:
    """Return the listing of a table's rows by their ids, newest first."""
    return Listing(f"list_{table}", f"place_of_{table}", "id", (0,))


OF_STATE = {
    DeliveryState.PENDING: "d.due_at IS NOT NULL AND d.state = 'pending'",
    DeliveryState.DELIVERING: "d.id IN (SELECT id FROM deliveries WHERE claimed_by IS NOT NULL)",
    DeliveryState.DEAD: "d.state = 'dead'",
}
"""Conditions for rare states, worded as their partial indexes are."""


_LIKE = str.maketrans({"*": "%", "?": "_", "%": "!%", "_": "!_", "!": "!!"})


def is_pattern(name: str | None) -> bool:
    """Tell whether a name stands for several."""
    return bool({"*", "?"} & set(name or ""))


def named(column: str, name: str | None, parameter: str) -> dict[str, str | None]:
    """Return the condition that a column has a name; or fits it, where `*` stands for anything in it."""
    if name is None or not is_pattern(name):
        return {f"{column} = :{parameter}": name}
    return {f"{column} LIKE :{parameter} ESCAPE '!'": name.translate(_LIKE)}


def bound(prefix: str, at: int) -> str:
    """Return a text that sorts before all ids of `prefix` made at or after `at`, and after all older ones."""
    return new_id(prefix, max(at, 0))[: len(prefix) + 1 + TIME_CHARS]


def page(
    session: Session,
    listing: Listing,
    indexed: Conditions,
    others: Conditions,
    *,
    after: tuple[Value, ...] | str | None,
    limit: int,
    item: Callable[[Row], Any],
    looked_at: int = LOOKED_AT,
) -> Page[Any]:
    """Return the items after the place `after`. `looked_at` limits the rows that conditions without an index examine."""
    params: dict[str, Value] = {}
    texts = _added(indexed, params)
    beyond, until = (">", "<=") if listing.onward else ("<", ">=")
    if after is not None:
        place = (after,) if isinstance(after, str) else after
        texts.append(_compared(listing, beyond, "after", place, params))
    last: tuple[Value, ...] | None = None
    looked_for = dict(params)
    more = _added(others, looked_for)
    if more:
        places = session.run(listing.place, {**params, "looked_at": looked_at}, _all(texts))
        last = tuple(places[0]) if places else None
    if last is not None:
        # A bound on this side holds for the last place already; beside it, SQLite would walk to that bound instead.
        bound = f"{listing.key.strip('()').partition(',')[0]} {until[0]}"
        texts = [text for text in texts if not text.startswith(bound)]
        more.append(_compared(listing, until, "last", last, looked_for))
    rows = session.run(listing.rows, {**looked_for, "limit": limit}, _all([*texts, *more]))
    if len(rows) == limit:
        last = tuple(rows[-1][column] for column in listing.columns)
    return Page(map(item, rows), last[0] if last and len(last) == 1 else last)


def _all(texts: list[str]) -> str:
    return " AND ".join(texts) or "TRUE"


def _added(conditions: Conditions, params: dict[str, Value]) -> list[str]:
    """Return the texts of conditions that have a value, and add their parameters; `IN :name` has one for each of its values."""
    texts = []
    for text, value in conditions.items():
        name = "".join(_PARAMETER.findall(text)[:1])
        if isinstance(value, tuple):
            names = [f"{name}_{number}" for number in range(len(value))]
            params.update(zip(names, value, strict=True))
            listed = ", ".join(f":{one}" for one in names)
            texts.append(text.replace(f":{name}", f"({listed})") if value else "FALSE")
        elif value is not None:
            texts.append(text)
            if name:
                params[name] = value
    return texts


def _compared(
    listing: Listing, how: str, name: str, place: tuple[Value, ...], params: dict[str, Value]
) -> str:
    """Return the condition that compares a row's key with a place; add its parameters."""
    names = [f"{name}_{number}" for number in range(len(place))]
    params.update(zip(names, place, strict=True))
    return f"{listing.key} {how} ({', '.join(f':{one}' for one in names)})"


def listed(session: Session, listing: str, conditions: Conditions, limit: int, fixed: str = "") -> list[Row]:
    """Return the first rows of a listing under those conditions that have a value, and under `fixed`."""
    params: dict[str, Value] = {}
    texts = _added(conditions, params)
    return session.run(listing, {**params, "limit": limit}, _all([*texts, fixed] if fixed else texts))


def one(session: Session, noun: str, listing: str, row_id: str, column: str = "id") -> Row:
    """Return the row of a listing that has this id. Raises `NotFound`."""
    rows = listed(session, listing, {f"{column} = :id": row_id}, 1)
    if not rows:
        raise NotFound(f"no {noun} has the id {row_id}")
    return rows[0]
