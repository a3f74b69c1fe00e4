"""What an independent harness measured of another queue over PostgreSQL, beside what these rows measured of receiver.

Source: https://github.com/hardbyte/postgresql-job-queue-benchmarking, results/2026-05-09-full-sweep/SUMMARY.md (sections
"Throughput sweep" and "Chaos suite") and phase_b_summary.md there. Its author also wrote one of the other queues in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

FIGURES = Path(__file__).resolve().parents[1] / "bench" / "figures.json"
_RATES = ("deliveries.1.rate", "deliveries.2.rate", "deliveries.4.rate")


class Judged(Protocol):
    """A row of ours."""

    before: float
    after: float
    recovered: float | None

    @property
    def name(self) -> str:
        """Its cell's name."""


_THEIRS = (
    ("PostgreSQL stopped and started", "postgres-stops", "0 %"),
    ("connections ended by the server", "backends-die", "0 %"),
    ("connections used up", "connections-run-out", "99 %"),
    ("a process killed and started again", "kill-worker", "73 %"),
    ("processes killed again and again", "kill-loop", "18 %"),
)
"""Their scenario in our words, our cell, and Procrastinate's rate in recovery by its rate before."""


def beside(rows: Sequence[Judged]) -> list[str]:
    """Return the section's lines; empty unless every row it speaks of was run."""
    known = {row.name: row for row in rows}
    if not all(cell in known for _, cell, _ in _THEIRS):
        return []
    return [
        _TEXT,
        "| fault | Procrastinate 3.8.1, theirs | receiver, here |",
        "| --- | --- | --- |",
        *(f"| {what} | {theirs} | {_ratio(known[cell])} |" for what, cell, theirs in _THEIRS),
        "",
        _rates(),
        "",
    ]


def _ratio(row: Judged) -> str:
    back = "never" if row.recovered is None else f"95 % after {row.recovered:.1f} s"
    return f"{100 * row.after / row.before:.0f} % ({back})" if row.before else back


def _rates() -> str:
    figures = json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {}
    told = [f"{figures[name]:,.0f}" for name in _RATES if name in figures]
    ours = (
        f"receiver makes {', '.join(told[:-1])} and {told[-1]} deliveries a second with 1, 2 and 4 processes on two cores that also "
        "carry PostgreSQL and the destination; each is one HTTP request, signed, answered and recorded"
        if len(told) == len(_RATES)
        else "receiver's are in the benchmarks"
    )
    return (
        "At its best, with 64 workers, that harness had 269 jobs a second of it, each a function that returns at once, on four cores; "
        f"{ours} ([benchmarks](benchmarks.md)). Machines and work differ, so the two rates cannot be compared as a ratio."
    )


_TEXT = """\
## Beside another queue

An independent [harness](https://github.com/hardbyte/postgresql-job-queue-benchmarking) puts queues over PostgreSQL under faults like these. In its
[run of May 2026](https://github.com/hardbyte/postgresql-job-queue-benchmarking/blob/main/results/2026-05-09-full-sweep/SUMMARY.md) (PostgreSQL 18, four
cores) three of eight queues recovered from all five faults; Procrastinate, the best known in Python, did not recover from a restart of PostgreSQL. The harness's
author also wrote one of the queues in it. The columns are the rate after the fault divided by the rate before. receiver's rate after the fault is that of the last
8 s of load of the row above; over 100 % the backlog of the fault is being delivered.
"""
