"""What differs between the settings that run and those that were read again, and which of it a running process can take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from receiver.settings.model import Section, Settings

FIXED = ("data", "server", "store", "blobs", "journal")
"""Sections that are taken at the start alone: sockets, files and connections hang on them."""
_FIXED_PLACES = ("submit.listen",)


class Names(Struct, frozen=True):
    """Which sources, or destinations, are other ones now."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


class Changes(Struct, frozen=True):
    """What a reload changes. Settings are told by their names, never by their values."""

    sources: Names = Names()
    destinations: Names = Names()
    settings: tuple[str, ...] = ()
    """Other settings that were taken, as `api.tokens`."""
    restart: tuple[str, ...] = ()
    """Settings that differ and need a restart: the process goes on with those that it has."""


def taken(running: Settings, read: Settings) -> tuple[Settings, Changes]:
    """Return what a process that runs with `running` runs with after it has read `read`, and what that changes."""
    fixed: dict[str, Any] = {name: getattr(running, name) for name in FIXED}
    fixed["submit"] = read.submit.model_copy(update={"listen": running.submit.listen})
    named = ("sources", "destinations")
    restart: list[str] = []
    settings: list[str] = []
    for name in Settings.model_fields:
        if name not in named:
            for place in _differing(getattr(running, name), getattr(read, name), name):
                needs_restart = name in FIXED or place in _FIXED_PLACES
                (restart if needs_restart else settings).append(place)
    changes = Changes(
        sources=_names(running.sources, read.sources),
        destinations=_names(running.destinations, read.destinations),
        settings=tuple(settings),
        restart=tuple(restart),
    )
    return read.model_copy(update=fixed), changes


def _differing(before: Any, after: Any, place: str) -> list[str]:
    """Return the settings of a section that differ; of what is no section, its place."""
    if not isinstance(before, Section):
        return [place] if before != after else []
    names = type(before).model_fields
    return [f"{place}.{name}" for name in names if getattr(before, name) != getattr(after, name)]


def _names(before: Mapping[str, Section], after: Mapping[str, Section]) -> Names:
    return Names(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(name for name in after if name in before and after[name] != before[name]),
    )
