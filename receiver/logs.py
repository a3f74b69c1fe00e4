"""The log (floor 4): one wide structured line for each callback and each attempt, as JSON or for a person to read."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import Any, TextIO

import msgspec
import structlog

from receiver.observe import AttemptReport, CallbackReport, no_secrets

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_CALLBACK_FIELDS = tuple(f.name for f in fields(CallbackReport))
_QUIET = ("", None)


class LogObserver:
    """Writes what the engine reports to a stream."""

    def __init__(self, *, style: str, level: str, stream: TextIO | None = None) -> None:
        out = stream or sys.stderr
        if style == "auto":
            style = "console" if out.isatty() else "json"
        self._level = _LEVELS[level]
        render: Any = _json if style == "json" else _console(out.isatty())
        self._log = structlog.wrap_logger(
            structlog.WriteLogger(out),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                render,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(self._level),
        )

    def callback(self, report: CallbackReport) -> None:
        """Write one line: `callback.recorded`, `callback.rejected` …"""
        if self._level > 20 and report.status < 400:
            return
        line = {name: getattr(report, name) for name in _CALLBACK_FIELDS}
        line["seconds"] = round(report.seconds, 6)
        line["peer"] = report.peer
        kept = {key: value for key, value in line.items() if value not in _QUIET}
        write = self._log.info if report.status < 400 else self._log.warning
        write(f"callback.{report.answer}", **kept)

    def attempt(self, report: AttemptReport) -> None:
        """Write one line: `attempt.delivered`, `attempt.refused` …"""
        outcome = report.outcome
        failed = outcome.kind.value != "delivered"
        if self._level > 20 and not failed:
            return
        line: dict[str, Any] = {
            "destination": report.destination,
            "delivery_id": report.delivery_id,
            "event_id": report.event_id,
            "event_type": report.event_type,
            "number": report.number,
            "status": outcome.status,
            "detail": outcome.detail,
            "seconds": round(report.seconds, 6),
            "waited_seconds": round(report.waited_seconds, 3),
            "state": report.state,
            "due_at": report.due_at,
        }
        kept = {key: value for key, value in line.items() if value not in _QUIET}
        write = self._log.warning if failed else self._log.info
        write(f"attempt.{outcome.kind.value}", **kept)

    def journal(self, depth: int, oldest_age_seconds: float) -> None:
        """Write a line when callbacks wait in the journal."""
        if depth:
            self._log.warning("journal.waiting", depth=depth, oldest_age_seconds=oldest_age_seconds)
        else:
            self._log.debug("journal.empty")

    def note(self, level: str, event: str, **fields: Any) -> None:
        """Write what a person should know."""
        self._log.log(_LEVELS[level], event, **no_secrets(fields))


def _json(logger: Any, method: str, event: dict[str, Any]) -> str:
    ordered = {"at": event.pop("timestamp"), "level": event.pop("level"), "event": event.pop("event")}
    return msgspec.json.encode(ordered | event).decode()


def _console(colours: bool) -> structlog.dev.ConsoleRenderer:
    """Render for a terminal; every value as its `repr`, so that nobody's text can draw a line of its own."""
    return structlog.dev.ConsoleRenderer(
        colors=colours, sort_keys=False, repr_native_str=True, pad_event_to=20
    )
