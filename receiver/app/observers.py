"""The log (one wide structured line for each callback and each attempt, as JSON or for a person) and the metrics.

core/observe.py has what is reported to them; docs/operating.md lists every line and every metric. JSON
lines of one turn of the event loop are written together: the hot path pays for one write, not for a hundred.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, TextIO

import msgspec
from msgspec.structs import asdict
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector

from receiver.core.clock import wall_clock
from receiver.core.destination import DestinationState, DestinationStatus
from receiver.core.errors import SenderError, WrongSource
from receiver.core.event_json import iso
from receiver.core.observe import (
    AttemptReport,
    CallbackReport,
    PickupReport,
    Repeats,
    SubmissionReport,
    harmless,
    no_secrets,
)
from receiver.core.work import Due, Outcome, OutcomeKind, StoreStats
from receiver.system.space import free_bytes

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


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 6, 10, 30)
_Times = partial(Histogram, buckets=_SECONDS)
_Waits = partial(Histogram, buckets=(*_SECONDS, 60, 300, 3600))
_Found = partial(Gauge, multiprocess_mode="mostrecent")
"""What any process finds out when it is asked."""
_Summed, _Longest = (partial(Gauge, multiprocess_mode=mode) for mode in ("sum", "max"))
METRICS: tuple[tuple[Any, str, str, str], ...] = (
    (Counter, "receiver_callbacks", "source answer", "Callbacks by source and answer."),
    (
        Counter,
        "receiver_token_secret_callbacks",
        "secret",
        "Proved callbacks by the secret of tokens.secrets, counted from 1, that signed their URL.",
    ),
    (Counter, "receiver_callback_bytes", "source", "Body bytes read."),
    (_Times, "receiver_ack_seconds", "source", "From the first header of a callback to its answer."),
    (Counter, "receiver_attempts", "destination outcome", "Attempts by destination and outcome."),
    (Counter, "receiver_deliveries", "destination state", "Deliveries that ended, by destination and state."),
    (_Times, "receiver_attempt_seconds", "destination", "How long an attempt took."),
    (_Waits, "receiver_delivery_wait_seconds", "destination", "From recording to the first attempt."),
    (_Found, "receiver_due_deliveries", "destination", "Deliveries that are due."),
    (_Found, "receiver_oldest_due_age_seconds", "destination", "Age of the oldest due delivery."),
    (_Found, "receiver_dead_deliveries", "destination", "Dead letters."),
    (
        _Found,
        "receiver_destination_failures",
        "destination",
        "Failed attempts in a row: what opens the breaker.",
    ),
    (_Found, "receiver_destination_held", "destination state", "1 for the state that holds its deliveries."),
    (Counter, "receiver_pickup_attempts", "source outcome", "Attempts of pickups by source and outcome."),
    (Counter, "receiver_pickups", "source state", "Pickups that ended, by source and state."),
    (_Found, "receiver_due_pickups", "source", "Pickups that are due."),
    (_Found, "receiver_oldest_due_pickup_age_seconds", "source", "Age of the oldest due pickup."),
    (Counter, "receiver_submissions", "source request outcome", "Calls of applications to providers."),
    (Counter, "receiver_submission_bytes", "source", "Body bytes of these calls that were passed on."),
    (
        _Times,
        "receiver_submission_seconds",
        "source",
        "From the head of such a call to the end of its answer.",
    ),
    (_Summed, "receiver_journal_depth", "", "Callbacks waiting in the journal."),
    (_Longest, "receiver_journal_oldest_age_seconds", "", "Age of the oldest callback in the journal."),
    (_Found, "receiver_disk_free_bytes", "setting", "Room where the folder of a setting lies."),
    (Counter, "receiver_notes", "level event", "Warnings and errors by their name."),
    (Counter, "receiver_pruned", "class", "What the janitor removed, by class."),
)
"""Kind, name, labels and what it says."""


_ANSWERS = ("recorded", "duplicate", "late", "parked", "journaled", "not_kept", "overloaded")


_OF_PICKUPS = (OutcomeKind.COLLECTED, OutcomeKind.NOT_YET, OutcomeKind.UNUSABLE, OutcomeKind.NOT_STORED)
_OF_DELIVERIES = (OutcomeKind.DELIVERED, OutcomeKind.TOO_LARGE)
_REFUSALS: tuple[type[SenderError], ...] = (*SenderError.__subclasses__(), WrongSource)


def _counters(destinations: Iterable[str], sources: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Yield the name and the labels of each counter that these destinations and sources can have."""
    refused = [error.label for error in _REFUSALS]
    for name in sources:
        yield "receiver_callback_bytes", name
        yield from (("receiver_callbacks", name, answer) for answer in (*_ANSWERS, *refused))
        yield from (
            ("receiver_pickup_attempts", name, kind.value)
            for kind in OutcomeKind
            if kind not in _OF_DELIVERIES
        )
        yield from (("receiver_pickups", name, state) for state in ("collected", "gone"))
    for name in destinations:
        yield from (
            ("receiver_attempts", name, kind.value) for kind in OutcomeKind if kind not in _OF_PICKUPS
        )
        yield from (("receiver_deliveries", name, state) for state in ("delivered", "dead"))


_SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus-client looks for the folder of metrics that several processes share."""


def share_metrics(folder: str, number: int) -> None:
    """Have this process count in a file of `folder`, so that each process shows the sums of all.

    Its successor, by the same number, counts on where it ended.
    """
    os.environ[_SHARED_FOLDER] = folder
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]  # of prometheus_client, which has types for some of it


class _Series(dict[tuple[str, ...], Any]):
    """The series by metric and label values, each looked up once: prometheus-client's own lookup takes a lock every time."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._metrics = {
            name: kind(name, text, labels.split(), registry=registry) for kind, name, labels, text in METRICS
        }

    def __missing__(self, key: tuple[str, ...]) -> Any:
        metric, labels = self._metrics[key[0]], key[1:]
        series = self[key] = metric.labels(*labels) if labels else metric
        return series


class MetricsObserver:
    """Counts what the engine reports; `render` adds what the store says at scrape time."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = self.shown = CollectorRegistry()
        if _SHARED_FOLDER in os.environ:
            self.shown = CollectorRegistry()
            MultiProcessCollector(self.shown)  # type: ignore[no-untyped-call]  # as above
        else:
            ProcessCollector(registry=self.registry)
        self._series = _Series(self.registry)

    def callback(self, report: CallbackReport) -> None:
        """Count a callback, its bytes and the time to its answer."""
        series = self._series
        series["receiver_callbacks", report.source, report.answer].inc(report.count)
        ack = series["receiver_ack_seconds", report.source]
        for _ in range(report.count):
            ack.observe(report.seconds)
        if report.token_secret:
            series["receiver_token_secret_callbacks", str(report.token_secret)].inc()
        if report.size:
            series["receiver_callback_bytes", report.source].inc(report.size)

    def attempt(self, report: AttemptReport) -> None:
        """Count an attempt, and the delivery when it ended."""
        self._series["receiver_attempts", report.destination, report.outcome.kind.value].inc()
        self._series["receiver_attempt_seconds", report.destination].observe(report.seconds)
        if report.number == 1:
            self._series["receiver_delivery_wait_seconds", report.destination].observe(report.waited_seconds)
        if report.state in ("delivered", "dead"):
            self._series["receiver_deliveries", report.destination, report.state].inc()

    def pickup(self, report: PickupReport) -> None:
        """Count an attempt of a pickup, and the pickup when it ended."""
        self._series["receiver_pickup_attempts", report.source, report.outcome.kind.value].inc()
        if report.state in ("collected", "gone"):
            self._series["receiver_pickups", report.source, report.state].inc()

    def submission(self, report: SubmissionReport) -> None:
        """Count a call, its bytes and its time."""
        self._series["receiver_submissions", report.source, report.request, report.outcome].inc()
        self._series["receiver_submission_bytes", report.source].inc(report.bytes_in)
        self._series["receiver_submission_seconds", report.source].observe(report.seconds)

    def journal(self, depth: int, oldest_age_seconds: float) -> None:
        """Show the journal's depth and age."""
        self._series["receiver_journal_depth",].set(depth)
        self._series["receiver_journal_oldest_age_seconds",].set(oldest_age_seconds)

    def note(self, level: str, event: str, **fields: Any) -> None:
        """Count warnings and errors, and what the janitor removed."""
        if event == "janitor.swept":
            for name, count in fields.items():
                if isinstance(count, int) and not isinstance(count, bool):
                    self._series["receiver_pruned", name].inc(count)
        if level != "info":
            self._series["receiver_notes", level, event].inc()

    def disks(self, folders: Mapping[str, str]) -> None:
        """Show what is free where the folders lie, by the settings that name them."""
        for name, folder in folders.items():
            with contextlib.suppress(OSError):
                self._series["receiver_disk_free_bytes", name].set(free_bytes(folder))

    def destinations(self, states: Iterable[DestinationState]) -> None:
        """Show how destinations are; nothing changes while the store is out."""
        for state in states:
            self._series["receiver_destination_failures", state.name].set(state.failures)
            for status in DestinationStatus:
                if status is not DestinationStatus.ACTIVE:
                    held = self._series["receiver_destination_held", state.name, status.value]
                    held.set(state.status is status)

    def _begin(self, destinations: Iterable[str], sources: Iterable[str]) -> None:
        """Show every counter that there can be from the start, at 0: an alert on its growth would miss the first otherwise."""
        for labels in _counters(destinations, sources):
            _ = self._series[labels]

    def render(
        self, stats: StoreStats | None, destinations: tuple[str, ...], sources: tuple[str, ...], now: int
    ) -> bytes:
        """Return the exposition text; `stats` is None while the store is out."""
        self._begin(destinations, sources)
        if stats is not None:
            self._due(
                "receiver_due_deliveries", "receiver_oldest_due_age_seconds", destinations, stats.due, now
            )
            self._due(
                "receiver_due_pickups", "receiver_oldest_due_pickup_age_seconds", sources, stats.pickups, now
            )
            for name in destinations:
                self._series["receiver_dead_deliveries", name].set(stats.dead.get(name, 0))
        return generate_latest(self.shown)

    def _due(self, depth: str, age: str, names: Iterable[str], due: Iterable[Due], now: int) -> None:
        found = {item.name: item for item in due}
        for name in names:
            item = found.get(name)
            self._series[depth, name].set(item.depth if item else 0)
            self._series[age, name].set(max(0, now - item.oldest_due_at) / 1000 if item else 0)
