"""All figures of the last ten runs, with their commits, in history.json: what docs/benchmarks.md compares."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.measures import Row

RUNS = Path(__file__).with_name("history.json")
_KEPT = 10
_SHOWN = {
    "embedded.listen.rate": "callbacks/s, JSON",
    "embedded.listen.cpu_us": "µs",
    "embedded.listen.of_bare": "of bare",
    "embedded.listen.p99_ms": "ack p99, ms",
    "embedded.speech.rate": "callbacks/s, audio",
    "embedded.speech.cpu_us": "µs",
    "embedded.deliveries.rate": "deliveries/s",
    "embedded.deliveries.cpu_us": "µs",
    "event.send_to_sink_p50_ms": "send to destination p50, ms",
    "speech.1.rate": "callbacks/s, audio, PostgreSQL and S3",
    "speech.1.receiver_cpu_ms": "ms",
    "deliveries.1.rate": "deliveries/s, PostgreSQL",
    "deliveries.1.receiver_cpu_ms": "ms",
}
"""What the page shows of a run; the file has all of it."""


def add(rows: Iterable[Row], facts: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Write this run down; return the last ten, this one last."""
    runs: list[dict[str, Any]] = json.loads(RUNS.read_text()) if RUNS.exists() else []
    runs.append(
        {
            "commit": _git("rev-parse", "--short=10", "HEAD")
            + ("+" if _git("status", "--porcelain", "-uno") else ""),
            "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
            "machine": dict(facts),
            "figures": {name: value for row in rows for name, value in row.numbers.items()},
        }
    )
    RUNS.write_text(json.dumps(runs[-_KEPT:], indent=1) + "\n")
    return runs[-_KEPT:]


def page(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the page's table, the newest run first."""
    lines = [
        "## The last ten runs",
        "",
        "Machines and their neighbours differ from run to run: compare processor times and ratios before rates. A `+` behind a commit says that files had been changed.",
        "",
        f"| commit | at | {' | '.join(_SHOWN.values())} |",
        f"| --- | --- |{' --- |' * len(_SHOWN)}",
    ]
    for run in reversed(list(runs)):
        figures = [_figure(run["figures"].get(name)) for name in _SHOWN]
        lines.append(f"| {run['commit']} | {run['at']} | {' | '.join(figures)} |")
    return lines


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=RUNS.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()
