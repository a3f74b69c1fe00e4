"""Prometheus metrics. Labels are bounded: configured names and fixed words, never ids or a stranger's text."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from receiver.core.observe import AttemptReport, CallbackReport, PickupReport
from receiver.core.work import StoreStats

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 6, 10, 30)


class MetricsObserver:
    """Counts what the engine reports; `render` adds what the store says at scrape time."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._callbacks = Counter(
            "receiver_callbacks", "Callbacks by source and answer.", ["source", "answer"], registry=registry
        )
        self._bytes = Counter("receiver_callback_bytes", "Body bytes read.", ["source"], registry=registry)
        self._ack = Histogram(
            "receiver_ack_seconds",
            "From the first header of a callback to its answer.",
            ["source"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._deliveries = Counter(
            "receiver_attempts",
            "Attempts by destination and outcome.",
            ["destination", "outcome"],
            registry=registry,
        )
        self._ended = Counter(
            "receiver_deliveries",
            "Deliveries that ended, by destination and state.",
            ["destination", "state"],
            registry=registry,
        )
        self._attempt = Histogram(
            "receiver_attempt_seconds",
            "How long an attempt took.",
            ["destination"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._waited = Histogram(
            "receiver_delivery_wait_seconds",
            "From recording an event to the start of its first attempt.",
            ["destination"],
            buckets=(*_SECONDS, 60, 300, 3600),
            registry=registry,
        )
        self._due = Gauge(
            "receiver_due_deliveries", "Deliveries that are due.", ["destination"], registry=registry
        )
        self._age = Gauge(
            "receiver_oldest_due_age_seconds",
            "How long the oldest due delivery has been due.",
            ["destination"],
            registry=registry,
        )
        self._dead = Gauge("receiver_dead_deliveries", "Dead letters.", ["destination"], registry=registry)
        self._pickup_attempts = Counter(
            "receiver_pickup_attempts",
            "Attempts of pickups by source and outcome.",
            ["source", "outcome"],
            registry=registry,
        )
        self._pickups_ended = Counter(
            "receiver_pickups",
            "Pickups that ended, by source and state.",
            ["source", "state"],
            registry=registry,
        )
        self._pickups_due = Gauge(
            "receiver_due_pickups", "Pickups that are due.", ["source"], registry=registry
        )
        self._pickups_age = Gauge(
            "receiver_oldest_due_pickup_age_seconds",
            "How long the oldest due pickup has been due.",
            ["source"],
            registry=registry,
        )
        self._journal = Gauge(
            "receiver_journal_depth", "Callbacks waiting in the journal.", registry=registry
        )
        self._journal_age = Gauge(
            "receiver_journal_oldest_age_seconds",
            "How long the oldest callback has waited in the journal.",
            registry=registry,
        )
        self._notes = Counter(
            "receiver_notes", "Warnings and errors by their name.", ["level", "event"], registry=registry
        )
        self._pruned = Counter(
            "receiver_pruned", "What the janitor removed, by class.", ["class"], registry=registry
        )
        self._children: dict[tuple[Any, ...], Any] = {}

    def _child(self, metric: Any, *labels: str) -> Any:
        """Look a labelled child up once; prometheus-client's own lookup takes a lock each time."""
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def callback(self, report: CallbackReport) -> None:
        """Count a callback, its bytes and the time to its answer."""
        self._child(self._callbacks, report.source, report.answer).inc(report.count)
        ack = self._child(self._ack, report.source)
        for _ in range(report.count):
            ack.observe(report.seconds)
        if report.size:
            self._child(self._bytes, report.source).inc(report.size)

    def attempt(self, report: AttemptReport) -> None:
        """Count an attempt, and the delivery when it ended."""
        self._child(self._deliveries, report.destination, report.outcome.kind.value).inc()
        self._child(self._attempt, report.destination).observe(report.seconds)
        if report.number == 1:
            self._child(self._waited, report.destination).observe(report.waited_seconds)
        if report.state in ("delivered", "dead"):
            self._child(self._ended, report.destination, report.state).inc()

    def pickup(self, report: PickupReport) -> None:
        """Count an attempt of a pickup, and the pickup when it ended."""
        self._child(self._pickup_attempts, report.source, report.outcome.kind.value).inc()
        if report.state in ("collected", "gone"):
            self._child(self._pickups_ended, report.source, report.state).inc()

    def journal(self, depth: int, oldest_age_seconds: float) -> None:
        """Show the journal's depth and age."""
        self._journal.set(depth)
        self._journal_age.set(oldest_age_seconds)

    def note(self, level: str, event: str, **fields: Any) -> None:
        """Count warnings and errors, and what the janitor removed."""
        if event == "janitor.swept":
            for name, count in fields.items():
                if isinstance(count, int) and not isinstance(count, bool):
                    self._child(self._pruned, name).inc(count)
        if level != "info":
            self._child(self._notes, level, event).inc()

    def render(
        self, stats: StoreStats | None, destinations: tuple[str, ...], sources: tuple[str, ...], now: int
    ) -> bytes:
        """Return the exposition text; `stats` is None while the store is out."""
        if stats is not None:
            waiting = {item.source: item for item in stats.pickups}
            for name in sources:
                pickups = waiting.get(name)
                self._child(self._pickups_due, name).set(pickups.depth if pickups else 0)
                since = max(0, now - pickups.oldest_due_at) / 1000 if pickups else 0
                self._child(self._pickups_age, name).set(since)
            due = {item.destination: item for item in stats.due}
            for name in destinations:
                item = due.get(name)
                self._child(self._due, name).set(item.depth if item else 0)
                age = max(0, now - item.oldest_due_at) / 1000 if item else 0
                self._child(self._age, name).set(age)
                self._child(self._dead, name).set(stats.dead.get(name, 0))
        return generate_latest(self.registry)
