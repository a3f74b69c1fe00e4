"""What every method of the store does, over any database that runs the named statements.

Nothing here waits or commits: an adapter opens a transaction, calls these functions and commits. The writing
ones take many callers' requests at once, because a statement of many rows costs little more than one of one row.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from receiver.core.event import (
    Answered,
    CallbackRow,
    Event,
    Recorded,
    Recording,
    RecordStatus,
    Rejection,
    Stage,
)
from receiver.core.work import Claimed, Settlement

Value = str | int | float | bytes | None
Row = Sequence[Any]


class Session(Protocol):
    """A connected database, inside a transaction that the adapter began."""

    def run(self, name: str, params: Mapping[str, Value], wanted: str = "") -> list[Row]:
        """Run a statement and return its rows; `wanted` are the conditions of a listing."""

    def run_rows(self, name: str, rows: Sequence[Sequence[Value]]) -> list[Row]:
        """Run a statement that takes rows of parameters, however many, and return its rows."""

    def script(self, text: str) -> None:
        """Run a migration."""

    def alone(self) -> None:
        """Keep other processes from migrating until the transaction ends."""


@dataclass(frozen=True, slots=True)
class NewRecording:
    """A recording, and the ids of its deliveries."""

    recording: Recording
    delivery_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A callback of `source` that a pickup may be watching for, the event that it leads to, and when it came."""

    source: str
    answered: Answered
    event_id: str
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A request for due deliveries; `token` names this one claim, so that a worker cannot mistake an old one for it."""

    destination: str
    token: str
    limit: int
    now: int
    lease_until: int


@dataclass(frozen=True, slots=True)
class Release:
    """Claims handed back."""

    claims: tuple[Claimed, ...]
    now: int


@dataclass(frozen=True, slots=True)
class Replay:
    """Deliveries that shall have another round."""

    delivery_ids: tuple[str, ...]
    now: int


@dataclass(frozen=True, slots=True)
class Reject:
    """Rejections to keep."""

    rejections: tuple[Rejection, ...]
    keep: int


# ---------------------------------------------------------------- the road in


def record(session: Session, wanted: Sequence[NewRecording]) -> list[Recorded]:
    """Write callbacks, events and deliveries; tell duplicates and late ones."""
    rows = [callback_row(new.recording.callback, new.recording.event.id) for new in wanted]
    fresh = {row[0] for row in session.run_rows("insert_callbacks", rows)}
    kept: list[NewRecording] = []
    for new in wanted:
        if new.recording.callback.id in fresh:
            fresh.discard(new.recording.callback.id)  # the same callback twice in one batch counts once
            kept.append(new)
    late = _late(session, [new.recording.event for new in kept])
    if kept:
        session.run_rows("insert_events", [event_row(new.recording.event) for new in kept])
    deliveries = [row for new in kept if new.recording.event.id not in late for row in delivery_rows(new)]
    if deliveries:
        session.run_rows("insert_deliveries", deliveries)
    done = {id(new) for new in kept}
    found = [_recorded(new, late) if id(new) in done else _duplicate(session, new) for new in wanted]
    answer(
        session,
        [
            Answer(
                new.recording.callback.source,
                new.recording.answered,
                one.event_id,
                new.recording.event.recorded_at,
            )
            for new, one in zip(wanted, found, strict=True)
            if new.recording.answered
        ],
    )
    return found


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
    found: str = session.run("first_event", keys)[0][0]
    return found


def answer(session: Session, wanted: Sequence[Answer]) -> None:
    """Tell the pickups that watch for these callbacks. Without any, nothing is run."""
    told: dict[tuple[str, str], tuple[Value, ...]] = {}
    for one in wanted:
        watched = (one.source, clean(one.answered.key) or "")
        _, _, known_id, event_id, _ = told.get(watched, (None,) * 5)
        news = one.answered.final or one.answered.job_id
        if news and event_id is None:  # nothing comes after a final answer
            job_id = known_id or clean(one.answered.job_id)
            told[watched] = (*watched, job_id, one.event_id if one.answered.final else None, one.at)
    if not told:
        return
    reached = {(row[0], row[1]) for row in session.run_rows("answer_pickups", list(told.values()))}
    unreached = [row for watched, row in told.items() if watched not in reached]
    if unreached:
        session.run_rows("answer_gone_pickups", unreached)


def _late(session: Session, events: Sequence[Event]) -> set[str]:
    """Return the ids of the events that tell of progress after their job's end, earlier ones of the batch included."""
    asked = {
        (clean(event.job_id), event.source)
        for event in events
        if event.stage is Stage.PROGRESS and event.job_id
    }
    if not asked:
        return set()
    ended = {(row[0], row[1]) for row in session.run_rows("ended_jobs", list(asked))}
    late = set()
    for event in events:
        job = (clean(event.job_id), event.source)
        if event.stage is Stage.PROGRESS and job in ended:
            late.add(event.id)
        elif event.stage is Stage.FINAL:
            ended.add(job)
    return late


def clean(text: str | None) -> str | None:
    """Return `text` as both databases can hold it: no lone surrogates, no NUL (JSON from a provider may have them)."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def clean_value(value: Value) -> Value:
    """Return a parameter as both databases can hold it: what somebody asks for may be any text."""
    return clean(value) if isinstance(value, str) else value


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


_SEQUENCE = itertools.count()


def reject(session: Session, wanted: Sequence[Reject]) -> list[None]:
    """Keep rejections and trim each source to its newest."""
    rows = [_rejection_row(rejection) for asked in wanted for rejection in asked.rejections]
    if rows:
        session.run_rows("insert_rejections", rows)
    limits = {rejection.source: asked.keep for asked in wanted for rejection in asked.rejections}
    for source, keep in limits.items():
        session.run("trim_rejections", {"source": source, "keep": keep})
    return [None] * len(wanted)


def rejection_id(row: Rejection) -> str:
    """Return an id that sorts by time, then by the order of arrival; its end tells processes apart."""
    return f"rej_{row.at:013x}{next(_SEQUENCE):010x}{os.urandom(4).hex()}"


def _rejection_row(row: Rejection) -> tuple[Value, ...]:
    reason, content_type, user_agent = clean(row.reason), clean(row.content_type), clean(row.user_agent)
    return (
        rejection_id(row),
        row.source,
        row.at,
        row.status,
        reason,
        row.method,
        row.peer,
        content_type,
        user_agent,
    )


# ---------------------------------------------------------------- the road out


def claim(session: Session, wanted: Sequence[Claim]) -> list[list[Claimed]]:
    """Take due deliveries for each request; all of them are marked by one statement."""
    answers: list[list[Claimed]] = []
    for asked in wanted:
        params: dict[str, Value] = {"destination": asked.destination, "now": asked.now, "limit": asked.limit}
        taken = [_claimed(row, asked) for row in session.run("due_deliveries", params)]
        # Marked before the next request looks, so that no two of one batch get the same rows.
        if taken:
            rows = [(one.delivery_id, asked.token, asked.lease_until, asked.now) for one in taken]
            session.run_rows("claim_deliveries", rows)
        answers.append(taken)
    return answers


def _claimed(row: Row, asked: Claim) -> Claimed:
    return Claimed(
        delivery_id=row[0],
        destination=asked.destination,
        event=event_of(row[3:]),
        attempts=row[1],
        round_start=row[2],
        claimed_by=asked.token,
        lease_until=asked.lease_until,
    )


def settle(session: Session, wanted: Sequence[Settlement]) -> list[bool]:
    """Write attempts and their consequences, each only while its claim is held."""
    kept: set[int] = set()
    waiting = list(wanted)
    while waiting:
        # One settlement of each delivery at a time: when two claims of one delivery meet here, or one claim comes
        # twice, only the statement can tell which of them is held.
        batch = {one.claim.delivery_id: one for one in reversed(waiting)}
        held = {
            row[0]
            for row in session.run_rows("settle_deliveries", [_settled_row(one) for one in batch.values()])
        }
        kept |= {id(one) for delivery_id, one in batch.items() if delivery_id in held}
        tried = {id(one) for one in batch.values()}
        waiting = [one for one in waiting if id(one) not in tried]
    attempts = [_attempt_row(one) for one in wanted if id(one) in kept]
    if attempts:
        session.run_rows("insert_attempts", attempts)
    return [id(one) in kept for one in wanted]


def _settled_row(one: Settlement) -> tuple[Value, ...]:
    claim = one.claim
    ended_at = one.started_at + one.duration_ms
    outcome = one.outcome.kind.value
    return claim.delivery_id, claim.claimed_by, claim.attempts, one.state.value, one.due_at, outcome, ended_at


def _attempt_row(one: Settlement) -> tuple[Value, ...]:
    return (
        one.claim.delivery_id,
        one.claim.attempts + 1,
        one.started_at,
        one.duration_ms,
        one.outcome.kind.value,
        one.outcome.status,
        clean(one.outcome.detail),
        one.outcome.response,
    )


def release(session: Session, wanted: Sequence[Release]) -> list[int]:
    """Hand claims back, due at once."""
    return [_release(session, asked) for asked in wanted]


def _release(session: Session, asked: Release) -> int:
    rows = [(one.delivery_id, one.claimed_by, one.attempts, asked.now) for one in asked.claims]
    return len(session.run_rows("release_deliveries", rows)) if rows else 0


def replay(session: Session, wanted: Sequence[Replay]) -> list[list[str]]:
    """Begin another round for deliveries that have ended; answers keep the order that was asked in."""
    return [_replay(session, asked) for asked in wanted]


def _replay(session: Session, asked: Replay) -> list[str]:
    ids = list(dict.fromkeys(asked.delivery_ids))
    done = (
        {row[0] for row in session.run_rows("replay_deliveries", [(one, asked.now) for one in ids])}
        if ids
        else ()
    )
    return [one for one in ids if one in done]


def ping(session: Session, wanted: Sequence[int]) -> list[None]:
    """Change the row of this number; the commit that follows is the proof."""
    session.run("ping", {"id": wanted[0]})
    return [None] * len(wanted)
