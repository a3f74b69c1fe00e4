"""Which fields of an event's data a destination gets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

import msgspec

from receiver.core.event_document import EventData

Fields = Mapping[str, Any]
"""Names of the wanted fields, each with the wanted fields below it. An empty mapping means the whole field."""

ALWAYS = ("event_id", "schema", "source", "job_id")
"""What every event holds: it tells which event it is, and of which job."""


def fields(places: Iterable[str]) -> Fields:
    """Return the fields at these places below `data` (`audio.url`), and those that are always sent."""
    return _tree([*ALWAYS, *places])


def _tree(places: Iterable[str]) -> Fields:
    below: dict[str, list[str]] = {}
    for place in places:
        name, _, rest = place.partition(".")
        below.setdefault(name, []).append(rest)
    return {name: {} if "" in rests else _tree(rests) for name, rests in below.items()}


def projected(data: Mapping[str, Any], wanted: Fields) -> dict[str, Any]:
    """Return the wanted fields of `data`, as far as it has them. What is null stays null, whatever is wanted below it."""
    kept = {}
    for name, value in data.items():
        below = wanted.get(name)
        if below is None:
            continue
        if not below or value is None:
            kept[name] = value
        elif isinstance(value, dict):
            kept[name] = projected(value, below)
    return kept


def _places(kind: type[msgspec.Struct], above: str = "") -> Iterator[str]:
    for field in msgspec.structs.fields(kind):
        yield above + field.name
        for part in get_args(field.type):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                yield from _places(part, f"{above}{field.name}.")


PLACES = frozenset(_places(EventData))
"""The places of all fields that events have, but for the provider's own."""


def may_be_there(place: str) -> bool:
    """Tell whether any event may have a field at this place below `data`."""
    return place in PLACES or place.startswith("provider_data.")
