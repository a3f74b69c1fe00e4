"""A few hundred requests of the benchmark: it measures today's tables, settings and commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import history, measures, tool
from bench import processes as p
from bench.soak import Sample, picture
from receiver.storage.store.sqlite import SqliteStore


def test_the_benchmark_runs_on_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog that is filled through the store, and callbacks of its load generator, all arrive at its sink."""
    monkeypatch.setattr(tool, "compiled", lambda: None)  # to compile the other one may take a minute
    with p.sink(tmp_path) as sink:
        config = p.config(tmp_path, destination=sink.port)
        (tmp_path / "data").mkdir()
        measures.fill(SqliteStore(str(tmp_path / "data" / "receiver.db")), 100, migrate=True)
        with p.receiver(tmp_path, config) as (port, pid):
            told = measures.load([port], "/callbacks/deepgram", "listen", 0.3, connections=8)
            assert told["requests"] > 10
            assert measures.cpu(pid) > 0
            sink.ask(100 + int(told["requests"]))
            assert sink.told()["seen"] == 100 + told["requests"]


def test_the_page_compares_the_last_ten_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "RUNS", tmp_path / "history.json")
    for number in range(12):
        numbers = {"embedded.listen.rate": 1000.0 + number, "embedded.listen.of_bare": 0.25}
        runs = history.add([measures.Row("callbacks/s", "", numbers=numbers)], [("Python", "3.11")])
    assert len(runs) == 10
    lines = [line for line in history.page(runs) if line.startswith("|")]
    assert len(lines) == 12
    assert "| 1,011 |  | 0.25 |" in lines[2], "the newest first, and what was not measured is left blank"


def test_the_long_run_is_drawn_as_three_curves_over_the_callbacks() -> None:
    drawn = picture([Sample(500, 80.0, 70, 30.0), Sample(1000, 81.0, 70, 60.0)])
    curves = re.findall(r'<polyline points="([^"]*)"', drawn)
    ends = [[float(point.partition(",")[0]) for point in curve.split()] for curve in curves]
    assert ends == [[440.0, 820.0]] * 3
