"""Submissions in the store: written before anything is sent, found again by repeated calls, and ended with their outcome."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import asdict, astuple

from receiver.core.callback import TokenClaims
from receiver.core.event import Answered
from receiver.core.page import Page
from receiver.core.retention import Subject, SubjectKind
from receiver.core.submission import REPEAT_SECONDS, Submission, SubmissionFilter, SubmissionState, Usage
from receiver.core.work import Pickup
from receiver.storage.store import pickups, small_tables
from receiver.storage.store.events import resolve
from receiver.storage.store.listing import named, newest_first, page
from receiver.storage.store.statements import Each, Row, Session, Value, value_of


@Each
def begin(
    session: Session,
    wanted: Submission,
    claims: TokenClaims | None = None,
    expectation: Pickup | None = None,
) -> Submission | None:
    """Write a submission, its token and expectation; or return the earlier one that it repeats, and write nothing.

    That is one with its idempotency key, or an identical one whose answer did not arrive, or has not yet.
    """
    if (earlier := _earlier(session, wanted)) is not None:
        return earlier
    row = astuple(wanted)
    if not session.run_rows("insert_submissions", [(*row[:11], int(row[11]), *row[12:])]):
        return _earlier(session, wanted)  # another process wrote one with the key a moment ago
    if claims is not None:
        small_tables.add_tokens(session, [claims])
    if expectation is not None:
        pickups.add(session, [expectation])
    return None


def _earlier(session: Session, wanted: Submission) -> Submission | None:
    since = wanted.created_at - REPEAT_SECONDS * 1000
    rows = session.run("earlier_submission", asdict(wanted) | {"since": since})
    return _of(rows[0]) if rows else None


@Each
def fingerprinted(session: Session, wanted: Submission) -> Submission | None:
    """Note the fingerprint of a submission whose body has ended; return the earlier one that it repeats."""
    session.run("fingerprint_submission", asdict(wanted))
    return _earlier(session, wanted)


@Each
def end(session: Session, ended: Submission, pickup: Pickup | None = None) -> None:
    """Write what a submission came to, and the pickup of its result; one that is still open was not sent, and is removed.

    Its expectation gets the job id, or is removed if no job was made.
    """
    session.run("drop_submission" if ended.state is SubmissionState.OPEN else "end_submission", asdict(ended))
    if ended.state in (SubmissionState.OPEN, SubmissionState.REFUSED):
        session.run("drop_expectation", {"source": ended.source, "key": ended.expectation})
    elif ended.job_id is not None:
        answered = Answered(key=ended.expectation, final=False, job_id=ended.job_id)
        resolve(session, [(ended.source, answered, "", ended.updated_at)])
    if pickup is not None:
        pickups.add(session, [pickup])


@Each
def delivered(session: Session, submission_id: str) -> None:
    """Note that the caller has its answer: an identical submission is a new one from now on."""
    session.run("deliver_submission", {"id": submission_id})


@Each
def forget(session: Session, *, before: int) -> None:
    """Forget older answers, and the idempotency keys that find them."""
    session.run("forget_answers", {"before": before})


def erase(session: Session, subject: Subject, jobs: Sequence[tuple[str, str]]) -> None:
    """Remove what is kept of the submissions of a subject, whose jobs (source and id) these are."""
    for source, job_id in jobs:
        session.run("erase_token_refs", {"source": source, "job_id": job_id})
        session.run("erase_submissions", {"source": source, "job_id": job_id})
    if subject.kind is SubjectKind.REF:
        session.run("erase_refs", {"ref": subject.key})
        session.run("erase_submissions_of_ref", {"ref": subject.key})


_LISTING = newest_first("submissions")


def submissions(session: Session, filter: SubmissionFilter) -> Page[Submission]:
    """List submissions, newest first, a page at a time."""
    indexed: dict[str, Value] = {"job_id = :job_id": filter.job_id, "ref = :ref": filter.ref}
    others: dict[str, Value] = {
        "application || '' = :application": filter.application,
        **named("source || ''", filter.source, "source"),
        "created_at < :before": filter.before,
    }
    if filter.state is SubmissionState.OPEN:  # few, and an index has them
        indexed["id IN (SELECT id FROM submissions WHERE state = 'open')"] = filter.state
    else:
        others["state || '' = :state"] = filter.state
    return page(session, _LISTING, indexed, others, after=filter.after, limit=filter.limit, item=_of)


def count(session: Session, requests: Sequence[Sequence[Usage]]) -> list[tuple[int, ...]]:
    """Count what processes take from applications' limits; return the new total of each. All lock rows in the same order."""
    asked = [(usage, of, place) for of, request in enumerate(requests) for place, usage in enumerate(request)]
    totals = {(of, at): int(session.run("count_usage", asdict(one))[0][0]) for one, of, at in sorted(asked)}
    return [tuple(totals[of, at] for at in range(len(request))) for of, request in enumerate(requests)]


def _of(row: Row) -> Submission:
    return value_of(Submission, (*row[:11], bool(row[11]), *row[12:]))
