"""Prevents double submission: finds the earlier submission that a call repeats, waits for it, and returns its answer."""

from __future__ import annotations

import asyncio
import hashlib
import time

import msgspec
from msgspec.structs import replace

from receiver.core.errors import SubmissionRefused
from receiver.core.event import new_id
from receiver.core.submission import NewSubmission, Submission, SubmissionState
from receiver.engine.requests import new_expectation
from receiver.engine.submissions.call import UNKNOWN, Answer, Passing, once

REPEAT_SECONDS = 600
"""How long an identical submission is taken for the repetition of one whose answer was lost."""
_LOOK_SECONDS = 0.25
"""Between two looks at a submission that another call waits for."""


class Repeated(Exception):
    """The body has ended, and is the same as an earlier submission's."""

    def __init__(self, earlier: Submission) -> None:
        self.earlier = earlier


async def begin(passing: Passing, *, fetch: bool) -> Submission | None:
    """Commit the job's row, token and expectation before sending; or return the earlier submission that this one repeats.

    With `fetch` no callback comes. Raises `StoreUnavailable`, `SubmissionRefused`.
    """
    new = _new(passing, fetch=fetch)
    key = new.submission.idempotency_key
    while (earlier := await passing.parts.store.begin_submission(new)) is not None:
        settled = await _settled(passing, earlier)
        if key is not None and earlier.idempotency_key == key:
            if settled.state is SubmissionState.ACCEPTED:
                return settled
        elif _stands(settled):
            return settled
    passing.submission, passing.expectation = new.submission, new.expectation
    passing.report.submission_id = new.submission.id
    return None


def _new(passing: Passing, *, fetch: bool) -> NewSubmission:
    call, claims, now = passing.call, passing.claims, passing.parts.clock()
    key = call.header("idempotency-key") or None
    if key is not None and not (len(key) <= 255 and key.isascii() and key.isprintable()):
        raise SubmissionRefused(422, "an Idempotency-Key has 1 to 255 visible characters")
    submission = Submission(
        id=new_id("sub", now),
        application=passing.allowance.application,
        source=call.source,
        request=passing.rule.request,
        token_id=claims.token_id if claims else None,
        ref=call.ref,
        idempotency_key=key,
        fingerprint=passing.fingerprint,
        created_at=now,
        updated_at=now,
    )
    return NewSubmission(
        submission=submission,
        claims=None if fetch else claims,
        expectation=new_expectation(call.source, claims, passing.source.pull, now=now) if claims else None,
        repeats_since=now - REPEAT_SECONDS * 1000,
        remembered_since=now - round(passing.parts.settings.remember_seconds * 1000),
    )


async def ended(passing: Passing, digest: str) -> None:
    """Look at a streamed body that has ended but for its last piece. Raises `Repeated` when it was an earlier submission's."""
    if passing.submission is None:
        return
    since = passing.parts.clock() - REPEAT_SECONDS * 1000
    wanted = replace(passing.submission, fingerprint=fingerprint_of(passing, digest))
    while (earlier := await passing.parts.store.fingerprint_submission(wanted, since=since)) is not None:
        settled = await _settled(passing, earlier)
        if _stands(settled):
            raise Repeated(settled)


async def _settled(passing: Passing, earlier: Submission) -> Submission:
    """Wait until an earlier submission has its answer. Raises `SubmissionRefused` with 424 when that takes too long."""
    until = time.monotonic() + passing.parts.settings.answer_seconds
    while earlier.state is SubmissionState.OPEN:
        if time.monotonic() > until:
            raise SubmissionRefused(424, "the same submission is under way, and has no answer yet")
        await asyncio.sleep(_LOOK_SECONDS)
        found = await passing.parts.store.submission(earlier.id)
        earlier = found or replace(earlier, state=SubmissionState.REFUSED)
    return earlier


def _stands(settled: Submission) -> bool:
    """Whether a submission with its answer stands for an identical one: the caller never had that answer."""
    return not settled.delivered and settled.state is not SubmissionState.REFUSED


def fingerprint_of(passing: Passing, digest: str) -> str:
    """Return the hash of a whole request; `digest` is that of its body."""
    call = passing.call
    parts = (call.source, call.method, call.path, call.query, call.ref or "", digest)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def remembered(passing: Passing, earlier: Submission) -> Answer:
    """Return the answer that an earlier submission had. Raises `SubmissionRefused` with 424 where it had none."""
    report = passing.report
    passing.submission = earlier
    report.submission_id, report.job_id, report.outcome = earlier.id, earlier.job_id, "replayed"
    if earlier.answer is None:
        raise SubmissionRefused(424, UNKNOWN)
    headers, body = msgspec.msgpack.decode(earlier.answer, type=tuple[list[tuple[str, str]], bytes])
    headers += [("x-receiver-submission", earlier.id), ("x-receiver-replayed", "1")]
    return Answer(status=earlier.status or 200, headers=headers, body=once(body))
