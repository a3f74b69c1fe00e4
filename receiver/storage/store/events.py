"""The road in: callbacks, events and deliveries are recorded, rejections kept.

Nothing in this package but the backends waits or commits: a backend opens a transaction, these functions run in it, and it
commits. Those that write take many callers' requests at once: a statement of many rows costs little more than one of one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from receiver.core.event import (
    Answered,
    CallbackRow,
    Event,
    Recorded,
    Recording,
    RecordStatus,
    Rejection,
    Stage,
    new_id,
)
from receiver.storage.store.database import Row, Session, Value, clean


@dataclass(frozen=True, slots=True)
class NewRecording:
    """A recording, and the ids of its deliveries."""

    recording: Recording
    delivery_ids: tuple[str, ...]

    @classmethod
    def of(cls, recording: Recording) -> NewRecording:
        """Make the ids here, not in the writer's thread: drawing random bytes lets go of the interpreter's lock."""
        at = recording.event.recorded_at
        return cls(recording, tuple(new_id("dlv", at) for _ in recording.destinations))


@dataclass(frozen=True, slots=True)
class Resolution:
    """A callback of `source` that a pickup may be watching for, the event that it leads to, and when it came."""

    source: str
    answered: Answered
    event_id: str
    at: int


@dataclass(frozen=True, slots=True)
class RejectRequest:
    """Rejections to keep, and how many of each source."""

    rejections: tuple[Rejection, ...]
    keep: int


def record(session: Session, requests: Sequence[NewRecording]) -> list[Recorded]:
    """Write callbacks, events and deliveries; tell duplicates and late ones."""
    rows = [callback_row(new.recording.callback, new.recording.event.id) for new in requests]
    fresh = {row[0] for row in session.run_rows("insert_callbacks", rows)}
    kept: list[NewRecording] = []
    for new in requests:
        if new.recording.callback.id in fresh:
            fresh.discard(new.recording.callback.id)  # the same callback twice in one batch counts once
            kept.append(new)
    late = _late(session, [new.recording.event for new in kept])
    session.run_rows("insert_events", [event_row(new.recording.event) for new in kept])
    deliveries = [row for new in kept if new.recording.event.id not in late for row in delivery_rows(new)]
    session.run_rows("insert_deliveries", deliveries)
    done = {id(new) for new in kept}
    results = [_recorded(new, late) if id(new) in done else _duplicate(session, new) for new in requests]
    resolutions = [
        Resolution(
            new.recording.callback.source,
            new.recording.answered,
            result.event_id,
            new.recording.event.recorded_at,
        )
        for new, result in zip(requests, results, strict=True)
        if new.recording.answered
    ]
    if resolutions:
        resolve(session, resolutions)
    return results


def _recorded(new: NewRecording, late: set[str]) -> Recorded:
    event_id = new.recording.event.id
    return Recorded(
        status=RecordStatus.LATE if event_id in late else RecordStatus.RECORDED, event_id=event_id
    )


def _duplicate(session: Session, new: NewRecording) -> Recorded:
    return Recorded(status=RecordStatus.DUPLICATE, event_id=first_event(session, new.recording.callback))


def first_event(session: Session, callback: CallbackRow) -> str:
    """Return the event of the first callback that is the same as this one, by either key. There must be one."""
    keys = {
        "source": callback.source,
        "idempotency_key": clean(callback.idempotency_key),
        "second_key": clean(callback.second_key),
    }
    event_id: str = session.run("first_event", keys)[0][0]
    return event_id


def resolve(session: Session, resolutions: Sequence[Resolution]) -> None:
    """Tell the pickups that watch for these callbacks: a final one collects them, another brings the job id they lack."""
    rows: dict[tuple[str, str], tuple[Value, ...]] = {}
    for resolution in resolutions:
        answered = resolution.answered
        watched = (resolution.source, clean(answered.key) or "")
        _, _, known_id, event_id, _ = rows.get(watched, (None,) * 5)
        if (answered.final or answered.job_id) and event_id is None:  # nothing comes after a final one
            job_id = known_id or clean(answered.job_id)
            rows[watched] = (
                *watched,
                job_id,
                resolution.event_id if answered.final else None,
                resolution.at,
            )
    if not rows:
        return
    resolved = {(row[0], row[1]) for row in session.run_rows("resolve_pickups", list(rows.values()))}
    unresolved = [row for watched, row in rows.items() if watched not in resolved]
    session.run_rows("resolve_gone_pickups", unresolved)


def _late(session: Session, events: Sequence[Event]) -> set[str]:
    """Return the ids of the events that tell of progress after their job's end, earlier ones of the batch included."""
    jobs = {
        (clean(event.job_id), event.source)
        for event in events
        if event.stage is Stage.PROGRESS and event.job_id
    }
    if not jobs:
        return set()
    ended = {(row[0], row[1]) for row in session.run_rows("ended_jobs", list(jobs))}
    late = set()
    for event in events:
        job = (clean(event.job_id), event.source)
        if event.stage is Stage.PROGRESS and job in ended:
            late.add(event.id)
        elif event.stage is Stage.FINAL:
            ended.add(job)
    return late


def event_of(row: Row) -> Event:
    """Return the event that the columns of `events` hold, in the order of the table."""
    return Event(
        id=row[0],
        type=row[1],
        source=row[2],
        provider=row[3],
        job_id=row[4],
        ref=row[5],
        stage=Stage(row[6]),
        occurred_at=row[7],
        recorded_at=row[8],
        data=row[9],
        blob_key=row[10],
    )


def callback_row(row: CallbackRow, event_id: str) -> tuple[Value, ...]:
    """Return the parameters of `insert_callbacks`."""
    return (
        row.id,
        event_id,
        row.source,
        clean(row.idempotency_key),
        clean(row.second_key),
        row.method,
        clean(row.content_type),
        row.received_at,
        row.body_size,
        row.body_sha256,
        row.body,
        row.proofs,
    )


def event_row(event: Event) -> tuple[Value, ...]:
    """Return the parameters of `insert_events`."""
    return (
        event.id,
        event.type,
        event.source,
        event.provider,
        clean(event.job_id),
        clean(event.ref),
        event.stage.value,
        event.occurred_at,
        event.recorded_at,
        event.data,
        event.blob_key,
    )


def delivery_rows(new: NewRecording) -> Iterable[tuple[Value, ...]]:
    """Return the parameters of `insert_deliveries`."""
    at = new.recording.event.recorded_at
    for delivery_id, destination in zip(new.delivery_ids, new.recording.destinations, strict=True):
        yield delivery_id, new.recording.event.id, destination, at, at, at


# ---------------------------------------------------------------- rejections

_SEQUENCE = itertools.count()


def reject(session: Session, requests: Sequence[RejectRequest]) -> list[None]:
    """Keep rejections and trim each source to its newest."""
    rows = [_rejection_row(rejection) for request in requests for rejection in request.rejections]
    session.run_rows("insert_rejections", rows)
    limits = {rejection.source: request.keep for request in requests for rejection in request.rejections}
    for source, keep in limits.items():
        session.run("trim_rejections", {"source": source, "keep": keep})
    return [None] * len(requests)


def rejection_id(row: Rejection) -> str:
    """Return an id that sorts by time, then by the order of arrival; its end tells processes apart."""
    return f"rej_{row.at:013x}{next(_SEQUENCE):010x}{os.urandom(4).hex()}"


def _rejection_row(row: Rejection) -> tuple[Value, ...]:
    return (
        rejection_id(row),
        row.source,
        row.at,
        row.status,
        clean(row.reason),
        row.method,
        row.peer,
        clean(row.content_type),
        clean(row.user_agent),
    )
