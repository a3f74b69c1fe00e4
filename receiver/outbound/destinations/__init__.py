"""The frame of destinations: somewhere an event is sent, one attempt at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, ClassVar

from receiver.core.errors import Code, ConfigError, Finding
from receiver.core.work import Outcome
from receiver.outbound.client import NO_CERTIFICATES, holds_certificates
from receiver.settings.model import DestinationSettings, Section
from receiver.system.modules import class_named, module_names


class Destination(ABC):
    """One configured destination, as the engine sees it. A subclass is one kind; its module says everything that is particular to it."""

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

    async def open(self) -> None:  # noqa: B027 - most have nothing to make ready
        """Make ready to send, where there is something to make ready."""

    async def close(self) -> None:  # noqa: B027 - most keep no connection of their own
        """Let go of connections, where there are any."""

    @abstractmethod
    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Make one attempt: sign `body` (the whole JSON event) as of `timestamp` (epoch milliseconds) and send it.

        Whatever the far side does is an `Outcome`; nothing it does is raised. Bounded in time and bytes.
        """

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
def kinds() -> Mapping[str, type[Destination]]:
    """Return every kind of destination by the name that `kind = "…"` uses, which is its module's."""
    return {name: kind for name in module_names(__name__) if (kind := kind_named(name)) is not None}


def kind_named(name: str) -> type[Destination] | None:
    """Return the kind with this name, None when there is none. Only its module is imported."""
    kind: type[Destination] | None = class_named(__name__, name, Destination, "kind")
    return kind


def kind_of(settings: DestinationSettings) -> type[Destination]:
    """Return the kind that a destination is of. Raises `ConfigError` when there is no such kind."""
    found = kind_named(settings.kind)
    if found is None:
        message = f"there is no kind {settings.kind!r}; write one of {', '.join(kinds())}"
        raise ConfigError(f"destinations.{settings.name}.kind: {message}")
    return found
