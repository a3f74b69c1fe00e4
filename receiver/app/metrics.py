"""The Prometheus metrics: their declarations (`METRICS`), and the observer that counts the reports of core/observe.py.

docs/operating.md lists every metric.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

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

from receiver.core.destinations import DestinationState, DestinationStatus
from receiver.core.errors import SenderError, WrongSource
from receiver.core.observe import AttemptReport, CallbackReport, PickupReport, SubmissionReport
from receiver.core.work import Due, OutcomeKind, StoreStats
from receiver.system.files import free_bytes

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 6, 10, 30)
_Times = partial(Histogram, buckets=_SECONDS)
_Waits = partial(Histogram, buckets=(*_SECONDS, 60, 300, 3600))
_Found = partial(Gauge, multiprocess_mode="mostrecent")
"""What any process finds out when it is asked."""
_Summed, _Longest = (partial(Gauge, multiprocess_mode=mode) for mode in ("sum", "max"))
METRICS: tuple[tuple[Any, str, str, str], ...] = (
    (Counter, "receiver_callbacks", "source answer", "Callbacks by source and answer."),
    (Counter, "receiver_token_secret_callbacks", "secret", "Callbacks by the token secret of their URL."),
    (Counter, "receiver_callback_bytes", "source", "Body bytes read."),
    (_Times, "receiver_ack_seconds", "source", "From the first header of a callback to its answer."),
    (Counter, "receiver_attempts", "destination outcome", "Attempts by destination and outcome."),
    (Counter, "receiver_deliveries", "destination state", "Deliveries that ended, by destination and state."),
    (_Times, "receiver_attempt_seconds", "destination", "How long an attempt took."),
    (_Waits, "receiver_delivery_wait_seconds", "destination", "From recording to the first attempt."),
    (_Found, "receiver_due_deliveries", "destination", "Deliveries that are due."),
    (_Found, "receiver_oldest_due_age_seconds", "destination", "Age of the oldest due delivery."),
    (_Found, "receiver_dead_deliveries", "destination", "Dead letters."),
    (_Found, "receiver_destination_failures", "destination", "Failed attempts in a row."),
    (_Found, "receiver_destination_held", "destination state", "1 for the state that holds its deliveries."),
    (Counter, "receiver_pickup_attempts", "source outcome", "Attempts of pickups by source and outcome."),
    (Counter, "receiver_pickups", "source state", "Pickups that ended, by source and state."),
    (_Found, "receiver_due_pickups", "source", "Pickups that are due."),
    (_Found, "receiver_oldest_due_pickup_age_seconds", "source", "Age of the oldest due pickup."),
    (Counter, "receiver_submissions", "source request outcome", "Calls of applications to providers."),
    (Counter, "receiver_submission_bytes", "source", "Body bytes of these calls that were passed on."),
    (_Times, "receiver_submission_seconds", "source", "From a call's head to the end of its answer."),
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
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]  # prometheus_client declares no types here


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
            MultiProcessCollector(self.shown)  # type: ignore[no-untyped-call]  # prometheus_client declares no types here
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
