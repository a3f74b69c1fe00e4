"""What differs between the settings that run and those that were read again, and which of it a running process can take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from receiver.settings.model import Section, Settings

FIXED = ("data", "server", "store", "blobs", "journal")
"""Sections that are taken at the start alone: sockets, files and connections hang on them."""
_FIXED_PLACES = ("submit.listen",)


Changes = dict[str, list[str]]
"""The names of what a reload changes, never a value: by `sources_added`, `sources_removed`, `sources_changed`, the same of
destinations, `settings_changed` for other settings that were taken, and `needs_restart` for those that the process goes on
without.
"""


def taken(running: Settings, read: Settings) -> tuple[Settings, Changes]:
    """Return what a process that runs with `running` runs with after it has read `read`, and what that changes."""
    fixed: dict[str, Any] = {name: getattr(running, name) for name in FIXED}
    fixed["submit"] = read.submit.model_copy(update={"listen": running.submit.listen})
    changes = _named("sources", running.sources, read.sources)
    changes |= _named("destinations", running.destinations, read.destinations)
    changes |= {"settings_changed": [], "needs_restart": []}
    for name in Settings.model_fields.keys() - {"sources", "destinations"}:
        for place in _differing(getattr(running, name), getattr(read, name), name):
            needs_restart = name in FIXED or place in _FIXED_PLACES
            changes["needs_restart" if needs_restart else "settings_changed"].append(place)
    return read.model_copy(update=fixed), {what: sorted(names) for what, names in changes.items() if names}


def _differing(before: Any, after: Any, place: str) -> list[str]:
    """Return the settings of a section that differ; of what is no section, its place."""
    if not isinstance(before, Section):
        return [place] if before != after else []
    names = type(before).model_fields
    return [f"{place}.{name}" for name in names if getattr(before, name) != getattr(after, name)]


def _named(kind: str, before: Mapping[str, Section], after: Mapping[str, Section]) -> Changes:
    return {
        f"{kind}_added": [name for name in after if name not in before],
        f"{kind}_removed": [name for name in before if name not in after],
        f"{kind}_changed": [name for name in after if name in before and after[name] != before[name]],
    }
