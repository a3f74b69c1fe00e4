"""Submissions in the store: written before anything is sent, found again by repeated calls, and ended with their outcome."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from msgspec.structs import asdict, astuple

from receiver.core.event import Answered
from receiver.core.page import Page
from receiver.core.retention import Subject, SubjectKind
from receiver.core.submission import (
    NewSubmission,
    Submission,
    SubmissionEnd,
    SubmissionFilter,
    SubmissionState,
    Usage,
)
from receiver.storage.store import pickups, tokens
from receiver.storage.store.events import resolve
from receiver.storage.store.statements import Row, Session, Value, each, listed, value_of


def begin(session: Session, requests: Sequence[NewSubmission]) -> list[Submission | None]:
    """Write submissions, their tokens and expectations; or return the earlier one that each repeats, and write nothing.

    That is one with its idempotency key, or an identical one whose answer did not arrive, or has not yet.
    """
    return [_begin(session, new) for new in requests]


def _begin(session: Session, new: NewSubmission) -> Submission | None:
    earlier = _with_key(session, new) or _repeated(session, new.submission, new.repeats_since)
    if earlier:
        return earlier
    row = astuple(new.submission)
    stored = session.run_rows("insert_submissions", [(*row[:11], int(row[11]), *row[12:])])
    if not stored:  # another process wrote one with the key a moment ago
        return _with_key(session, new)
    if new.claims is not None:
        tokens.add(session, [new.claims])
    if new.expectation is not None:
        pickups.add(session, [new.expectation])
    return None


def _with_key(session: Session, new: NewSubmission) -> Submission | None:
    wanted = new.submission
    if wanted.idempotency_key is None:
        return None
    condition = "application = :application AND source = :source AND idempotency_key = :idempotency_key"
    found = _first(session, condition, asdict(wanted))
    if found is not None and found.created_at < new.remembered_since:
        session.run("forget_submission_key", {"id": found.id})
        return None
    return found


def _repeated(session: Session, wanted: Submission, since: int) -> Submission | None:
    if wanted.fingerprint is None:
        return None
    condition = (
        "application = :application AND fingerprint = :fingerprint AND delivered = 0 "
        "AND created_at >= :since AND id <> :id AND state <> 'refused'"
    )
    return _first(session, condition, {**asdict(wanted), "since": since})


def _first(session: Session, condition: str, params: Mapping[str, Value]) -> Submission | None:
    named = {name: params[name] for name in re.findall(r":(\w+)", condition)}
    rows = session.run("list_submissions", {**named, "limit": 1}, condition)
    return _of(rows[0]) if rows else None


@each
def fingerprinted(session: Session, wanted: Submission, since: int) -> Submission | None:
    """Note the fingerprint of a submission whose body has ended; return the earlier one that it repeats."""
    session.run("fingerprint_submission", {"id": wanted.id, "fingerprint": wanted.fingerprint})
    return _repeated(session, wanted, since)


@each
def end(session: Session, ended: SubmissionEnd) -> None:
    """Write a submission's end: its expectation gets the job id, or is removed if no job was made."""
    if ended.state is None:
        session.run("drop_submission", {"id": ended.id})
    else:
        written = ("id", "state", "status", "job_id", "answer", "now")
        session.run("end_submission", {name: getattr(ended, name) for name in written})
    if ended.expectation is not None:
        source, key = ended.expectation
        if ended.state in (None, SubmissionState.REFUSED) or ended.pickup is not None:
            session.run("drop_expectation", {"source": source, "key": key})
        elif ended.job_id is not None:
            resolve(session, [(source, Answered(key=key, final=False, job_id=ended.job_id), "", ended.now)])
    if ended.pickup is not None:
        pickups.add(session, [ended.pickup])


@each
def delivered(session: Session, submission_id: str) -> None:
    """Note that the caller has its answer: an identical submission is a new one from now on."""
    session.run("deliver_submission", {"id": submission_id})


@each
def sweep(session: Session, open_before: int, answers_before: int) -> list[str]:
    """Forget old answers and idempotency keys; return the submissions that were open for too long, which are `unknown` now."""
    session.run("forget_answers", {"before": answers_before})
    rows = session.run("abandon_submissions", {"before": open_before})
    return [row[0] for row in rows]


def erase(session: Session, subject: Subject, jobs: Sequence[tuple[str, str]]) -> None:
    """Remove what is kept of the submissions of a subject, whose jobs (source and id) these are."""
    for source, job_id in jobs:
        session.run("erase_token_refs", {"source": source, "job_id": job_id})
        session.run("erase_submissions", {"source": source, "job_id": job_id})
    if subject.kind is SubjectKind.REF:
        session.run("erase_refs", {"ref": subject.key})
        session.run("erase_submissions_of_ref", {"ref": subject.key})


def submission(session: Session, submission_id: str) -> Submission | None:
    """Return one submission; None when there is none (any more)."""
    rows = session.run("list_submissions", {"id": submission_id, "limit": 1}, "id = :id")
    return _of(rows[0]) if rows else None


def submissions(session: Session, filter: SubmissionFilter) -> Page[Submission]:
    """List submissions, newest first."""
    same = ("application", "source", "state", "job_id", "ref")
    conditions: dict[str, Value] = {f"{name} = :{name}": getattr(filter, name) for name in same}
    conditions |= {"created_at < :before": filter.before, "id < :after": filter.after}
    found = [_of(row) for row in listed(session, "list_submissions", conditions, filter.limit)]
    return Page(found, found[-1].id if len(found) == filter.limit else None)


def count(session: Session, requests: Sequence[Sequence[Usage]]) -> list[tuple[int, ...]]:
    """Count what processes take from applications' limits; return the new total of each.

    All processes lock rows in the same order. A window that has ended counts nothing any more.
    """
    places = [(number, place) for number, one in enumerate(requests) for place in range(len(one))]
    totals = [[0] * len(request) for request in requests]
    for number, place in sorted(places, key=lambda at: requests[at[0]][at[1]]):
        usage = requests[number][place]
        totals[number][place] = int(session.run("count_usage", asdict(usage))[0][0])
    return [tuple(one) for one in totals]


def _of(row: Row) -> Submission:
    return value_of(Submission, (*row[:11], bool(row[11]), *row[12:]))
