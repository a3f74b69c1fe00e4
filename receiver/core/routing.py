"""Which destinations want an event."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from receiver.core.event import EVENT_TYPES

ABOUT_DESTINATIONS = "destination."
"""How the types of events begin that are about destinations."""


@dataclass(frozen=True, slots=True)
class Route:
    """Which sources and event types one destination gets; `*` stands for anything, as in `speech.*`."""

    destination: str
    sources: tuple[str, ...] = ("*",)
    events: tuple[str, ...] = ("*",)

    def wants(self, source: str, event_type: str) -> bool:
        """Tell whether an event of this source and type goes to the destination.

        Events about destinations go to those only that name them (`destination.*`), whatever their `sources`.
        """
        if event_type.startswith(ABOUT_DESTINATIONS):
            named = [pattern for pattern in self.events if pattern.startswith(ABOUT_DESTINATIONS)]
            return _any(named, event_type)
        return _any(self.sources, source) and _any(self.events, event_type)


def _any(patterns: Sequence[str], value: str) -> bool:
    return any(fnmatchcase(value, pattern) for pattern in patterns)


class Router:
    """All routes; answers are remembered, since sources and types are few."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = tuple(routes)
        self.destinations = lru_cache(maxsize=1024)(self._destinations)

    def _destinations(self, source: str, event_type: str) -> tuple[str, ...]:
        return tuple(r.destination for r in self._routes if r.wants(source, event_type))


def fitting_types(pattern: str) -> tuple[str, ...]:
    """Return the event types that a pattern fits; the text itself when it is none and has no `*`."""
    fit = tuple(one for one in EVENT_TYPES if fnmatchcase(one, pattern))
    return fit if fit or any(char in pattern for char in "*?[") else (pattern,)
