"""The destination's port, and the frame of its kinds: somewhere an event is sent, one attempt at a time."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, Protocol

from receiver.core.errors import ConfigError
from receiver.core.findings import Code, Finding
from receiver.core.work import Outcome
from receiver.outbound.client import NO_CERTIFICATES, holds_certificates
from receiver.settings.model import DestinationSettings, Section


class Destination(Protocol):
    """One configured destination, as the engine sees it."""

    name: str
    """Its name in the configuration."""

    @abstractmethod
    async def open(self) -> None:
        """Make ready to send."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections."""

    @abstractmethod
    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Make one attempt: sign `body` (the whole JSON event) as of `timestamp` (epoch milliseconds) and send it.

        Whatever the far side does is an `Outcome`; nothing it does is raised. Bounded in time and bytes.
        """


class Kind(Destination, ABC):
    """The frame of a `Destination`. A subclass is one kind; its module says everything that is particular to it."""

    kind: ClassVar[str]
    """The name that `kind = "…"` uses."""
    Settings: ClassVar[type[Section]]
    """The kind's own settings, beside those that every destination has."""
    needs: ClassVar[tuple[str, str] | None] = None
    """The module that it imports, and the extra of receiver that brings it."""
    codes: ClassVar[Mapping[str, Code]] = {}
    """What `receiver check` may find about this kind."""

    def __init__(self, settings: DestinationSettings) -> None:
        """Raises `ConfigError` when a setting cannot be used."""
        self.name = settings.name

    async def open(self) -> None:
        """Make ready to send, where there is something to make ready."""

    async def close(self) -> None:
        """Let go of connections, where there are any."""

    async def probe(self) -> str | None:
        """Ask the far side whether it would take events, and give it none; return what is in the way.

        None: nothing is, or only an event could tell. The destination is open.
        """
        return None

    @classmethod
    def findings(cls, where: str, options: Any) -> Iterator[Finding]:
        """Yield what is wrong or doubtful about valid settings; `where` is `destinations.NAME`."""
        ca_file = getattr(options, "ca_file", None)
        if ca_file is not None and not holds_certificates(ca_file):
            fix = "name a file with certificates in PEM form"
            yield Finding("E009", f"{where}.ca_file", NO_CERTIFICATES, fix)


@cache
def kinds() -> Mapping[str, type[Kind]]:
    """Return every kind of destination by the name that `kind = "…"` uses. A kind is found by its module."""
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return {kind.kind: kind for kind in sorted(_named(Kind.__subclasses__()), key=lambda kind: kind.kind)}


def _named(classes: Iterable[type[Kind]]) -> Iterator[type[Kind]]:
    """Yield those of these classes and below them that have a name: the others are frames of several kinds."""
    for kind in classes:
        if "kind" in vars(kind):
            yield kind
        yield from _named(kind.__subclasses__())


def kind_named(name: str) -> type[Kind] | None:
    """Return the kind with this name, None when there is none. Only its module is imported."""
    if not any(module.name == name for module in pkgutil.iter_modules(__path__)):
        return None
    import_module(f"{__name__}.{name}")
    return next(kind for kind in _named(Kind.__subclasses__()) if kind.kind == name)


def kind_of(settings: DestinationSettings) -> type[Kind]:
    """Return the kind that a destination is of. Raises `ConfigError` when there is no such kind."""
    found = kind_named(settings.kind)
    if found is None:
        message = f"there is no kind {settings.kind!r}; write one of {', '.join(kinds())}"
        raise ConfigError(f"destinations.{settings.name}.kind: {message}")
    return found
