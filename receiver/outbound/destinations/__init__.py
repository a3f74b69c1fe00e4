"""One file for each kind of destination."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module

from receiver.core.errors import ConfigError
from receiver.outbound.destinations.base import Kind
from receiver.settings.model import DestinationSettings


@cache
def kinds() -> Mapping[str, type[Kind]]:
    """Return every kind of destination by the name that `kind = "…"` uses. A kind is found by its module."""
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return {kind.kind: kind for kind in sorted(Kind.__subclasses__(), key=lambda kind: kind.kind)}


def kind_of(settings: DestinationSettings) -> type[Kind]:
    """Return the kind that a destination is of. Raises `ConfigError` when there is no such kind."""
    try:
        return kinds()[settings.kind]
    except KeyError:
        known = ", ".join(kinds())
        message = f"there is no kind {settings.kind!r}; write one of {known}"
        raise ConfigError(f"destinations.{settings.name}.kind: {message}") from None
