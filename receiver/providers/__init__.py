"""One file for each speech provider, on a frame that they share."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module

from receiver.core.errors import ConfigError
from receiver.providers.base import Adapter
from receiver.settings.model import SourceSettings


@cache
def adapters() -> Mapping[str, type[Adapter]]:
    """Return every provider's adapter by the name that `provider = "…"` uses. A provider is found by its module."""
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return {kind.provider: kind for kind in sorted(Adapter.__subclasses__(), key=lambda kind: kind.provider)}


def adapter_of(source: SourceSettings) -> type[Adapter]:
    """Return the adapter of a source's provider. Raises `ConfigError` when there is no such provider."""
    try:
        return adapters()[source.provider]
    except KeyError:
        known = ", ".join(adapters())
        message = f"there is no provider {source.provider!r}; write one of {known}"
        raise ConfigError(f"sources.{source.name}.provider: {message}") from None
