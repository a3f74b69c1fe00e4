"""The log: one wide structured line for each callback and each attempt, as JSON or for a person to read.

JSON lines of one turn of the event loop are written together: the hot path pays for one write, not for a hundred.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

import msgspec
import structlog

from receiver.core.clock import wall_clock
from receiver.core.envelope import iso
from receiver.core.observe import AttemptReport, CallbackReport, PickupReport, no_secrets

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_QUIET = ("", None)
_WAITING_SECONDS = 30.0
"""Least time between two lines that say the same of the journal."""
_encode = msgspec.json.Encoder().encode


class LogObserver:
    """Writes what the engine reports to a stream."""

    def __init__(
        self,
        *,
        style: str,
        level: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        out = stream or sys.stderr
        if style == "auto":
            style = "console" if out.isatty() else "json"
        self._level = _LEVELS[level]
        self._write = _JsonLines(out).write if style == "json" else _console(out)
        self._clock = clock
        self._waiting_told: float | None = None
        """When it was last told that callbacks wait in the journal; None while none does."""

    def callback(self, report: CallbackReport) -> None:
        """Write one line: `callback.recorded`, `callback.rejected` …"""
        level = "info" if report.status < 400 else "warning"
        if _LEVELS[level] < self._level:
            return
        line: dict[str, Any] = {
            "source": report.source,
            "provider": report.provider,
            "method": report.method,
            "status": report.status,
            "seconds": round(report.seconds, 6),
            "size": report.size,
        }
        more = {
            "event_id": report.event_id,
            "event_type": report.event_type,
            "job_id": report.job_id,
            "ref": report.ref,
            "content_type": report.content_type,
            "peer": report.peer,
            "proofs": report.proofs,
            "reason": report.reason,
            "count": report.count if report.count > 1 else None,
        }
        line |= {name: value for name, value in more.items() if value}
        self._write(level, f"callback.{report.answer}", line)

    def attempt(self, report: AttemptReport) -> None:
        """Write one line: `attempt.delivered`, `attempt.refused` …"""
        outcome = report.outcome
        fine = outcome.kind.value == "delivered"
        if fine and self._level > 20:
            return
        line = {
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
        self._line("info" if fine else "warning", f"attempt.{outcome.kind.value}", line)

    def pickup(self, report: PickupReport) -> None:
        """Write one line: `pickup.collected`, `pickup.gone`, `pickup.refused` …; `pickup.not_yet` at level debug."""
        outcome = report.outcome
        line = {
            "source": report.source,
            "provider": report.provider,
            "pickup_id": report.pickup_id,
            "job_id": report.job_id,
            "ref": report.ref,
            "number": report.number,
            "status": outcome.status,
            "detail": outcome.detail,
            "seconds": round(report.seconds, 6),
            "state": report.state,
            "due_at": report.due_at,
            "event_id": report.event_id,
            "event_type": report.event_type,
        }
        levels = {"collected": "info", "not_yet": "debug"}
        ended = report.state == "gone"
        level = "warning" if ended else levels.get(outcome.kind.value, "warning")
        self._line(level, f"pickup.{'gone' if ended else outcome.kind.value}", line)

    def journal(self, depth: int, oldest_age_seconds: float) -> None:
        """Write a line when callbacks begin to wait in the journal, now and then while they do, and when none does any more.

        In an outage every callback changes the depth: a line for each would bury the rest. Metrics have them all.
        """
        now, told = self._clock(), self._waiting_told
        if depth and (told is None or now - told >= _WAITING_SECONDS):
            self._waiting_told = now
            fields = {"depth": depth, "oldest_age_seconds": oldest_age_seconds}
            self._line("warning", "journal.waiting", fields)
        elif not depth and told is not None:
            self._waiting_told = None
            self._line("info", "journal.empty", {})

    def note(self, level: str, event: str, **fields: Any) -> None:
        """Write what a person should know."""
        self._line(level, event, no_secrets(fields))

    def _line(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if _LEVELS[level] < self._level:
            return
        self._write(level, event, {key: value for key, value in fields.items() if value not in _QUIET})


class _JsonLines:
    """Writes JSON lines; those of one turn of the event loop at once, those from elsewhere at once and alone."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()

    def write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        told = {"at": _now(), "level": level, "event": event} | fields
        try:
            line = _encode(told)
        except (UnicodeEncodeError, TypeError):  # a listener must not raise, whatever it is told
            line = _encode({key: _encodable(value) for key, value in told.items()})
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            with self._lock:
                self._flush([line])
            return
        if not self._waiting:
            loop.call_soon(self._turn)
        self._waiting.append(line)

    def _turn(self) -> None:
        lines, self._waiting = self._waiting, []
        if lines:
            with self._lock:
                self._flush(lines)

    def _flush(self, lines: list[bytes]) -> None:
        try:
            self._out.write((b"\n".join(lines) + b"\n").decode())
            self._out.flush()
        except (OSError, ValueError):  # a log that is gone (closed pipe, full disk) must not stop a callback
            return


def _encodable(value: Any) -> Any:
    """Return the value itself where JSON takes it, else what it looks like."""
    try:
        _encode(value)
    except (UnicodeEncodeError, TypeError):
        return ascii(value)
    return value


def _now() -> str:
    return iso(wall_clock())


def _console(out: TextIO) -> Any:
    """Render for a terminal; every value as its `repr`, so that nobody's text can draw a line of its own."""
    render = structlog.dev.ConsoleRenderer(
        colors=out.isatty(), sort_keys=False, repr_native_str=True, pad_event_to=20
    )

    def write(level: str, event: str, fields: dict[str, Any]) -> None:
        line = render(None, level, {"timestamp": _now(), "level": level, "event": event, **fields})
        try:
            out.write(f"{line}\n")
            out.flush()
        except (OSError, ValueError):  # as above
            return

    return write
