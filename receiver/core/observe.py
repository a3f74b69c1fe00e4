"""What the engine reports to its listeners. Logs and metrics are listeners; the engine knows neither."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from msgspec import Struct

from receiver.core.work import Outcome, PickupOutcome


class CallbackReport(Struct, kw_only=True):
    """One callback and its answer. The intake fills it in on the way; listeners only read it."""

    source: str = "unknown"
    """Name of a configured source, or `unknown`: never what a stranger wrote in the path."""
    provider: str = ""
    method: str
    answer: str = ""
    """`recorded`, `duplicate`, `late`, `parked`, `journaled`, or a sender error's label (`rejected`, `too_large`, …)."""
    status: int = 0
    seconds: float = 0.0
    """From the first header to the answer."""
    size: int = 0
    """Body bytes read."""
    event_id: str | None = None
    event_type: str | None = None
    job_id: str | None = None
    ref: str | None = None
    content_type: str = ""
    peer: str | None = None
    proofs: str = ""
    reason: str = ""
    """Why it was refused, parked or journaled: names the setting to look at, never a secret."""
    count: int = 1
    """Number of callbacks in this report: those refused as `overloaded` in one moment are reported together."""


class AttemptReport(Struct, frozen=True, kw_only=True):
    """One attempt of a delivery and its consequence."""

    destination: str
    delivery_id: str
    event_id: str
    event_type: str
    number: int
    outcome: Outcome
    seconds: float
    waited_seconds: float
    """From recording to the start of this attempt."""
    state: str
    """The delivery's state afterwards; `lost` when another worker held the claim by then."""
    due_at: int | None


class PickupReport(Struct, frozen=True, kw_only=True):
    """One attempt of a pickup and its consequence."""

    source: str
    provider: str
    pickup_id: str
    job_id: str | None
    ref: str | None
    number: int
    outcome: PickupOutcome
    seconds: float
    state: str
    """The pickup's state afterwards; `lost` when another worker held the claim by then."""
    due_at: int | None
    event_id: str | None = None
    """The event that ended it."""
    event_type: str | None = None


class Observer(Protocol):
    """A listener. Must not raise and must not block."""

    def callback(self, report: CallbackReport) -> None:
        """One callback was answered."""

    def attempt(self, report: AttemptReport) -> None:
        """One attempt was settled."""

    def pickup(self, report: PickupReport) -> None:
        """One attempt of a pickup was settled."""

    def journal(self, depth: int, oldest_age_seconds: float) -> None:
        """The journal's depth changed."""

    def note(self, level: str, event: str, **fields: Any) -> None:
        """Something a person should know; `level` is `info`, `warning` or `error`, `event` a dotted fact."""


class Observers:
    """Several listeners as one. A listener that fails (a closed stream, a full disk) never fails the engine."""

    def __init__(self, listeners: Iterable[Observer]) -> None:
        self._listeners = tuple(listeners)

    def callback(self, report: CallbackReport) -> None:
        """Report to every listener."""
        for listener in self._listeners:
            with suppress(Exception):
                listener.callback(report)

    def attempt(self, report: AttemptReport) -> None:
        """Report to every listener."""
        for listener in self._listeners:
            with suppress(Exception):
                listener.attempt(report)

    def pickup(self, report: PickupReport) -> None:
        """Report to every listener."""
        for listener in self._listeners:
            with suppress(Exception):
                listener.pickup(report)

    def journal(self, depth: int, oldest_age_seconds: float) -> None:
        """Report to every listener."""
        for listener in self._listeners:
            with suppress(Exception):
                listener.journal(depth, oldest_age_seconds)

    def note(self, level: str, event: str, **fields: Any) -> None:
        """Report to every listener."""
        for listener in self._listeners:
            with suppress(Exception):
                listener.note(level, event, **fields)


_STEERING = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """Return JSON text in which no character can steer a terminal: what JSON itself lets through is escaped as well."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def no_secrets(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fields` without values under names that carry secrets; the last line of defence for logs."""
    return {key: ("[redacted]" if _SECRET_NAME.search(key) else value) for key, value in fields.items()}


_SECRET_NAME = re.compile("authorization|secret|password|token|dg-project-id|cookie|api_key", re.IGNORECASE)
