"""The log: one wide structured line for each callback and each attempt, as JSON or for a person.

core/observe.py defines the reports; docs/operating.md lists every line. JSON lines of one turn of the event loop are written
together: the hot path pays for one write, not for a hundred.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec
from msgspec.structs import asdict

from receiver.core.clock import iso, wall_clock
from receiver.core.observe import (
    AttemptReport,
    CallbackReport,
    PickupReport,
    Repeats,
    SubmissionReport,
    harmless,
    no_secrets,
)
from receiver.core.work import Outcome

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_BLANK = ("", None)
_DIGITS = {"seconds": 6, "body_seconds": 6, "proved_seconds": 6, "waited_seconds": 3}
_ALWAYS = frozenset(("source", "provider", "method", "status", "seconds", "size"))
"""Fields of a callback's line that are written even when they are empty."""
_UNSAID = frozenset(("answer", "began", "count"))
"""Fields of a report that its line has not, or only in their place."""
_NUMBERS = re.compile(r"[0-9]+")
_WAITING_SECONDS = 30.0
"""Least time between two lines `journal.waiting`."""
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
        self._repeats = Repeats(clock)
        self._last_waiting: float | None = None
        """When the last line `journal.waiting` was written; None while the journal is empty."""

    def callback(self, report: CallbackReport) -> None:
        """Write one line: `callback.recorded`, `callback.rejected` …"""
        level = "info" if report.status < 400 else "warning"
        if not self._shows(level):
            return
        left_out = 0
        if report.status >= 400 and report.count == 1:
            # What a stranger can repeat at will must not fill the disk; metrics count every one.
            repeated = self._repeats.left_out((report.source, report.answer, _NUMBERS.sub("", report.reason)))
            if repeated is None:
                return
            left_out = repeated
        line: dict[str, Any] = {}
        for name, value in asdict(report).items():
            if (value or name in _ALWAYS) and name not in _UNSAID:
                line[name] = round(value, 6) if name in _DIGITS else value
        if report.count != 1:
            line["count"] = report.count
        if left_out:
            line["left_out"] = left_out
        self._write(level, f"callback.{report.answer}", line)

    def attempt(self, report: AttemptReport) -> None:
        """Write one line: `attempt.delivered`, `attempt.refused` …"""
        kind = report.outcome.kind.value
        level = "info" if kind == "delivered" else "warning"
        if self._shows(level):
            self._line(level, f"attempt.{kind}", _fields(report))

    def pickup(self, report: PickupReport) -> None:
        """Write one line: `pickup.collected`, `pickup.gone`, `pickup.refused` …; `pickup.not_yet` at level debug."""
        kind = "gone" if report.state == "gone" else report.outcome.kind.value
        level = {"collected": "info", "not_yet": "debug"}.get(kind, "warning")
        self._line(level, f"pickup.{kind}", _fields(report))

    def submission(self, report: SubmissionReport) -> None:
        """Write one line: `submit.forwarded`, `submit.refused` …"""
        level = "info" if report.outcome in ("forwarded", "replayed") else "warning"
        stranger = not report.application
        if stranger and self._repeats.left_out((report.source, report.status)) is None:
            return
        self._line(level, f"submit.{report.outcome}", _fields(report))

    def journal(self, depth: int, oldest_age_seconds: float) -> None:
        """Write a line when callbacks begin to wait in the journal, every half minute while they do, and when none is left.

        In an outage every callback changes the depth: a line for each would bury the rest. Metrics have them all.
        """
        now, last = self._clock(), self._last_waiting
        if depth and (last is None or now - last >= _WAITING_SECONDS):
            self._last_waiting = now
            fields = {"depth": depth, "oldest_age_seconds": oldest_age_seconds}
            self._line("warning", "journal.waiting", fields)
        elif not depth and last is not None:
            self._last_waiting = None
            self._line("info", "journal.empty", {})

    def note(self, level: str, event: str, **fields: Any) -> None:
        """Write what a person should know."""
        self._line(level, event, no_secrets(fields))

    def _line(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if self._shows(level):
            self._write(level, event, {key: value for key, value in fields.items() if value not in _BLANK})

    def _shows(self, level: str) -> bool:
        return _LEVELS[level] >= self._level


def _fields(report: CallbackReport | AttemptReport | PickupReport | SubmissionReport) -> dict[str, Any]:
    """Return a report's fields as a line shows them: times rounded, an outcome as its status and detail."""
    fields: dict[str, Any] = {}
    for name, value in asdict(report).items():
        if isinstance(value, Outcome):
            fields |= {"status": value.status, "detail": value.detail}
        elif name in _DIGITS:
            fields[name] = round(value, _DIGITS[name])
        else:
            fields[name] = value
    return fields


class _JsonLines:
    """Writes JSON lines: those of one turn of the event loop together, those of other threads one by one."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()

    def write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        fields = {"at": iso(wall_clock()), "level": level, "event": event} | fields
        try:
            line = _encode(fields)
        except (UnicodeEncodeError, TypeError):  # a listener must not raise, whatever is reported to it
            line = _encode({key: _encodable(value) for key, value in fields.items()})
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
        _put(self._out, harmless((b"\n".join(lines) + b"\n").decode()))


def _put(out: TextIO, text: str) -> None:
    with contextlib.suppress(
        OSError, ValueError
    ):  # a log that is gone (closed pipe, full disk) must not stop a callback
        out.write(text)
        out.flush()


def _encodable(value: Any) -> Any:
    """Return the value itself where JSON takes it, else what it looks like."""
    try:
        _encode(value)
    except (UnicodeEncodeError, TypeError):
        return ascii(value)
    return value


def _console(out: TextIO) -> Callable[[str, str, dict[str, Any]], None]:
    """Return a writer of lines for a terminal; each value as its `repr`, so that no text can draw a line of its own."""
    bold, dim, off = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if out.isatty() else ("", "", "")
    colors = {"info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"} if out.isatty() else {}

    def write(level: str, event: str, fields: dict[str, Any]) -> None:
        pairs = " ".join([f"{dim}{name}={off}{value!r}" for name, value in fields.items()])
        head = f"{dim}{datetime.now(UTC):%H:%M:%S}{off} [{colors.get(level, '')}{level:9}{off}] {bold}{event:20}{off}"
        _put(out, f"{head} {pairs}".rstrip() + "\n")

    return write
