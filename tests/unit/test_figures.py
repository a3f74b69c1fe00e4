"""The figures of the last hour: read from the counters, a minute each."""

from __future__ import annotations

import asyncio

import pytest

from receiver.app.figures import Figures
from receiver.app.observers import MetricsObserver
from receiver.core.observe import CallbackReport


@pytest.mark.asyncio
async def test_what_was_counted_before_the_first_reading_is_no_part_of_the_hour() -> None:
    metrics = MetricsObserver()
    figures = Figures(metrics, lambda: 60_000)
    _called(metrics, "recorded", 0.004)
    figures.start()
    await asyncio.sleep(0)  # its first reading
    for _ in range(98):
        _called(metrics, "recorded", 0.004)
    _called(metrics, "rejected", 0.2)
    hour = figures.hour()
    await figures.stop()
    assert hour.since == 60_000
    assert hour.by_label("callbacks") == {"recorded": 98, "rejected": 1}
    assert (hour.line("callbacks"), hour.line("callbacks", "rejected")) == ([99], [1])
    assert (hour.acknowledged(0.5), hour.acknowledged(1)) == (0.005, 0.25)


def test_without_a_callback_there_is_no_time_to_an_answer() -> None:
    assert Figures(MetricsObserver(), lambda: 0).hour().acknowledged(0.99) is None


def _called(metrics: MetricsObserver, answer: str, seconds: float) -> None:
    metrics.callback(CallbackReport(source="deepgram", method="POST", answer=answer, seconds=seconds))
