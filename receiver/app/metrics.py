"""Prometheus metrics. Labels are bounded: configured names and fixed words, never ids or a stranger's text."""

from __future__ import annotations

from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from receiver.core.observe import AttemptReport, CallbackReport, PickupReport
from receiver.core.work import StoreStats

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 6, 10, 30)
_Times = partial(Histogram, buckets=_SECONDS)
_LongTimes = partial(Histogram, buckets=(*_SECONDS, 60, 300, 3600))
METRICS: tuple[tuple[Any, str, str, tuple[str, ...]], ...] = (
    (Counter, "receiver_callbacks", "Callbacks by source and answer.", ("source", "answer")),
    (Counter, "receiver_callback_bytes", "Body bytes read.", ("source",)),
    (_Times, "receiver_ack_seconds", "From the first header of a callback to its answer.", ("source",)),
    (Counter, "receiver_attempts", "Attempts by destination and outcome.", ("destination", "outcome")),
    (
        Counter,
        "receiver_deliveries",
        "Deliveries that ended, by destination and state.",
        ("destination", "state"),
    ),
    (_Times, "receiver_attempt_seconds", "How long an attempt took.", ("destination",)),
    (
        _LongTimes,
        "receiver_delivery_wait_seconds",
        "From recording an event to the start of its first attempt.",
        ("destination",),
    ),
    (Gauge, "receiver_due_deliveries", "Deliveries that are due.", ("destination",)),
    (
        Gauge,
        "receiver_oldest_due_age_seconds",
        "How long the oldest due delivery has been due.",
        ("destination",),
    ),
    (Gauge, "receiver_dead_deliveries", "Dead letters.", ("destination",)),
    (
        Counter,
        "receiver_pickup_attempts",
        "Attempts of pickups by source and outcome.",
        ("source", "outcome"),
    ),
    (Counter, "receiver_pickups", "Pickups that ended, by source and state.", ("source", "state")),
    (Gauge, "receiver_due_pickups", "Pickups that are due.", ("source",)),
    (
        Gauge,
        "receiver_oldest_due_pickup_age_seconds",
        "How long the oldest due pickup has been due.",
        ("source",),
    ),
    (Gauge, "receiver_journal_depth", "Callbacks waiting in the journal.", ()),
    (
        Gauge,
        "receiver_journal_oldest_age_seconds",
        "How long the oldest callback has waited in the journal.",
        (),
    ),
    (Counter, "receiver_notes", "Warnings and errors by their name.", ("level", "event")),
    (Counter, "receiver_pruned", "What the janitor removed, by class.", ("class",)),
)


class _Series(dict[tuple[str, ...], Any]):
    """The series by metric and label values, each looked up once: prometheus-client's own lookup takes a lock every time."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._metrics = {
            name: kind(name, text, labels, registry=registry) for kind, name, text, labels in METRICS
        }

    def __missing__(self, key: tuple[str, ...]) -> Any:
        metric, labels = self._metrics[key[0]], key[1:]
        series = self[key] = metric.labels(*labels) if labels else metric
        return series


class MetricsObserver:
    """Counts what the engine reports; `render` adds what the store says at scrape time."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._series = _Series(self.registry)

    def callback(self, report: CallbackReport) -> None:
        """Count a callback, its bytes and the time to its answer."""
        series = self._series
        series["receiver_callbacks", report.source, report.answer].inc(report.count)
        ack = series["receiver_ack_seconds", report.source]
        for _ in range(report.count):
            ack.observe(report.seconds)
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

    def render(
        self, stats: StoreStats | None, destinations: tuple[str, ...], sources: tuple[str, ...], now: int
    ) -> bytes:
        """Return the exposition text; `stats` is None while the store is out."""
        if stats is not None:
            due_pickups = {item.source: item for item in stats.pickups}
            for name in sources:
                pickups = due_pickups.get(name)
                self._series["receiver_due_pickups", name].set(pickups.depth if pickups else 0)
                since = max(0, now - pickups.oldest_due_at) / 1000 if pickups else 0
                self._series["receiver_oldest_due_pickup_age_seconds", name].set(since)
            due = {item.destination: item for item in stats.due}
            for name in destinations:
                item = due.get(name)
                self._series["receiver_due_deliveries", name].set(item.depth if item else 0)
                age = max(0, now - item.oldest_due_at) / 1000 if item else 0
                self._series["receiver_oldest_due_age_seconds", name].set(age)
                self._series["receiver_dead_deliveries", name].set(stats.dead.get(name, 0))
        return generate_latest(self.registry)
