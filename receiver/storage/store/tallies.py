"""Counts per minute, later per hour, that every process adds to; and the list of live processes."""

from __future__ import annotations

from collections import Counter

from msgspec.structs import astuple

from receiver.core.tally import HOUR, Process, Tally, TallyBatch
from receiver.storage.store.statements import Each, Session, value_of


@Each
def add(session: Session, batch: TallyBatch) -> None:
    """Add what a process counted, note that it lives, add minutes that are old to their hours, and forget old hours."""
    session.run_rows("add_tallies", [astuple(one) for one in batch.tallies])
    session.run_rows("note_processes", [astuple(batch.process)])
    hours: Counter[tuple[int, str, str, str]] = Counter()
    for minute, kind, name, outcome, count in session.run("forget_tallies", {"before": batch.before}):
        hours[minute // HOUR * HOUR, kind, name, outcome] += count
    session.run_rows("add_hours", [(*key, count) for key, count in sorted(hours.items())])
    session.run("forget_hours", {"before": batch.hours_before})
    session.run("forget_processes", {"before": batch.before})


def tallies(session: Session, since: int, until: int, step: int) -> list[Tally]:
    """Return the counts of minutes, and of hours that are older, that began in a time, oldest first; added up by steps of so many milliseconds."""
    rows = session.run("tallies_between", {"since": since, "until": until, "step": step})
    return [value_of(Tally, row) for row in rows]


def processes(session: Session) -> list[Process]:
    """Return the processes, latest start first."""
    return [value_of(Process, row) for row in session.run("list_processes", {})]
