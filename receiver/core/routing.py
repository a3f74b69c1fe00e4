"""Which destinations want an event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Struct

from receiver.core.event import EVENT_TYPES

ABOUT_DESTINATIONS = "destination."
"""The prefix of the types of events about destinations."""


class Condition(Struct, frozen=True):
    """A condition on one field of an event's data."""

    field: str
    """Its place below `data`, with dots: `audio.duration_seconds`."""
    values: tuple[Any, ...] = ()
    """The field equals one of these; empty: any value."""
    least: float | None = None
    most: float | None = None
    """The field is a number between `least` and `most`, both included."""

    def holds(self, data: Any) -> bool:
        """Tell whether the condition holds. A missing field counts as null."""
        for name in self.field.split("."):
            data = data.get(name) if isinstance(data, dict) else None
        if self.values:
            return any(
                data == value and isinstance(data, bool) is isinstance(value, bool) for value in self.values
            )
        if isinstance(data, bool) or not isinstance(data, int | float):
            return False
        return (self.least is None or data >= self.least) and (self.most is None or data <= self.most)


def checked_place(field: str) -> None:
    """Raise `ValueError` unless a text can be the place of a field below `data`."""
    if not all(field.split(".")):
        raise ValueError(f"{field!r} is no field: write its place below data, as in audio.duration_seconds")


def conditions(where: Mapping[str, Any]) -> tuple[Condition, ...]:
    """Return the conditions that a `where` setting writes by field: a value, a list of values, or `{min = 1, max = 60}`.

    Raises `ValueError` with what to write.
    """
    return tuple(_condition(field, wanted) for field, wanted in where.items())


def _condition(field: str, wanted: Any) -> Condition:
    checked_place(field)
    if isinstance(wanted, Mapping):
        numbers = [
            one for one in wanted.values() if isinstance(one, int | float) and not isinstance(one, bool)
        ]
        if not wanted or set(wanted) - {"min", "max"} or len(numbers) < len(wanted):
            raise ValueError(f"{field}: write a range as {{min = 1, max = 60}}, with one of the two at least")
        return Condition(field, least=wanted.get("min"), most=wanted.get("max"))
    values = tuple(wanted) if isinstance(wanted, list | tuple) else (wanted,)
    if not values or not all(isinstance(one, str | int | float | bool) for one in values):
        raise ValueError(
            f"{field}: write a text, a number, true or false, a list of such, or {{min = 1, max = 60}}"
        )
    return Condition(field, values)


class Decision(msgspec.Struct, frozen=True):
    """Whether an event goes to a destination, and why."""

    destination: str
    sent: bool
    rule: str


class Route(Struct, frozen=True):
    """Which sources and event types one destination gets; `*` stands for anything, as in `speech.*`."""

    destination: str
    sources: tuple[str, ...] = ("*",)
    events: tuple[str, ...] = ("*",)
    where: tuple[Condition, ...] = ()
    """Conditions on fields of the event's data, which must all hold."""

    def refusal(self, source: str, event_type: str) -> str | None:
        """Return the rule that keeps events of this source and type away; None where only the conditions decide.

        Events about destinations go to those only that name them (`destination.*`), whatever their `sources`.
        """
        events = self.events
        if event_type.startswith(ABOUT_DESTINATIONS):
            events = tuple(pattern for pattern in events if pattern.startswith(ABOUT_DESTINATIONS))
        elif not _any(self.sources, source):
            return "its sources do not name this source"
        return None if _any(events, event_type) else "its events do not name this type"

    def decide(self, source: str, event_type: str, data: Any) -> Decision:
        """Tell whether an event goes to the destination, and which rule says so."""
        refusal = self.refusal(source, event_type)
        for condition in self.where:
            if refusal is None and not condition.holds(data):
                refusal = f"where.{condition.field} does not hold"
        fits = "sources, events and where fit" if self.where else "sources and events fit"
        return Decision(self.destination, sent=refusal is None, rule=refusal or fits)


def _any(patterns: Sequence[str], value: str) -> bool:
    return any(fnmatchcase(value, pattern) for pattern in patterns)


class Router:
    """All routes. Decisions that depend only on source and type are cached."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = tuple(routes)
        self._always = lru_cache(maxsize=1024)(self._whatever_the_data)

    def destinations(self, source: str, event_type: str, data: bytes = b"{}") -> tuple[str, ...]:
        """Return the destinations that an event goes to; `data` is its data as JSON."""
        return self.decided(source, event_type, data)[0]

    def decided(self, source: str, event_type: str, data: bytes) -> tuple[tuple[str, ...], bytes]:
        """Return the event's destinations, and all decisions as JSON, which is stored with the event."""
        return self._always(source, event_type) or self._decided(source, event_type, data)

    def _whatever_the_data(self, source: str, event_type: str) -> tuple[tuple[str, ...], bytes] | None:
        """Return the decision from source and type alone; None if it also depends on the event's data."""
        if any(route.where and route.refusal(source, event_type) is None for route in self._routes):
            return None
        return self._decided(source, event_type, b"{}")

    def _decided(self, source: str, event_type: str, data: bytes) -> tuple[tuple[str, ...], bytes]:
        decisions = self.decisions(source, event_type, data)
        return tuple(one.destination for one in decisions if one.sent), msgspec.json.encode(decisions)

    def decisions(self, source: str, event_type: str, data: bytes) -> list[Decision]:
        """Return, for each destination, whether the event goes there, and why."""
        fields = _decode(data)
        return [route.decide(source, event_type, fields) for route in self._routes]


_decode = msgspec.json.Decoder().decode


def fitting_types(pattern: str) -> tuple[str, ...]:
    """Return the event types that a pattern fits; the text itself when it is none and has no `*`."""
    fit = tuple(one for one in EVENT_TYPES if fnmatchcase(one, pattern))
    return fit if fit or any(char in pattern for char in "*?[") else (pattern,)
