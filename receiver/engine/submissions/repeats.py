"""Prevents double submission: finds the earlier submission that a call repeats, waits for it, and returns its answer."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable

import msgspec
from msgspec.structs import replace

from receiver.core.errors import SubmissionRefused
from receiver.core.event import new_id
from receiver.core.submission import Submission, SubmissionState
from receiver.engine.submissions.call import UNKNOWN, Answer, Passing, once

_LOOK_SECONDS = 0.25
"""Between two looks at a submission that another call waits for."""


class Repeated(Exception):
    """The body has ended, and is the same as an earlier submission's."""

    def __init__(self, earlier: Submission) -> None:
        self.earlier = earlier


async def begin(passing: Passing) -> Submission | None:
    """Commit the job's row, token and expectation before sending; or return the earlier submission that this one repeats.

    Raises `StoreUnavailable`, `SubmissionRefused`.
    """
    new, issued, store = _new(passing), passing.issued, passing.parts.store
    claims, expectation = (issued.claims, issued.expectation) if issued else (None, None)
    earlier = await _repeated(passing, new, lambda: store.begin_submission(new, claims, expectation))
    if earlier is None:
        passing.submission = new
    return earlier


def _new(passing: Passing) -> Submission:
    call, issued, now = passing.call, passing.issued, passing.at
    key = call.header("idempotency-key") or None
    if key is not None and not (len(key) <= 255 and key.isascii() and key.isprintable()):
        raise SubmissionRefused(422, "an Idempotency-Key has 1 to 255 visible characters")
    return Submission(
        id=new_id("sub", now),
        application=passing.allowance.application,
        source=call.source,
        request=passing.rule.request,
        token_id=issued.claims.token_id if issued and issued.claims else None,
        ref=call.ref,
        idempotency_key=key,
        fingerprint=passing.fingerprint,
        created_at=now,
        updated_at=now,
    )


async def ended(passing: Passing, digest: str) -> None:
    """Look at a streamed body that has ended but for its last piece. Raises `Repeated` when it was an earlier submission's."""
    if passing.submission is not None:
        wanted = replace(passing.submission, fingerprint=fingerprint_of(passing, digest))
        earlier = await _repeated(passing, wanted, lambda: passing.parts.store.fingerprint_submission(wanted))
        if earlier is not None:
            raise Repeated(earlier)


async def _repeated(
    passing: Passing, new: Submission, look: Callable[[], Awaitable[Submission | None]]
) -> Submission | None:
    """Return the earlier submission that stands for a new one, with its answer; None if the new one is to be sent.

    Raises `SubmissionRefused` with 424 when the earlier one takes too long.
    """
    until = time.monotonic() + passing.parts.settings.answer_seconds
    while (earlier := await look()) is not None:
        while earlier.state is SubmissionState.OPEN:
            if time.monotonic() > until:
                raise SubmissionRefused(424, "the same submission is under way, and has no answer yet")
            await asyncio.sleep(_LOOK_SECONDS)
            found = await passing.parts.store.submission(earlier.id)
            earlier = found or replace(earlier, state=SubmissionState.REFUSED)
        same_key = new.idempotency_key is not None and new.idempotency_key == earlier.idempotency_key
        # Without a key it stands for the new one if its caller never had the answer.
        if earlier.state is SubmissionState.ACCEPTED if same_key else _is_lost(earlier):
            return earlier
    return None


def _is_lost(earlier: Submission) -> bool:
    return not earlier.delivered and earlier.state is not SubmissionState.REFUSED


def fingerprint_of(passing: Passing, digest: str) -> str:
    """Return the hash of a whole request; `digest` is that of its body."""
    call = passing.call
    parts = (call.source, call.method, call.path, call.query, call.ref or "", digest)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def remembered(passing: Passing, earlier: Submission) -> Answer:
    """Return the answer that an earlier submission had. Raises `SubmissionRefused` with 424 where it had none."""
    passing.submission, passing.report.outcome = earlier, "replayed"
    if earlier.answer is None:
        raise SubmissionRefused(424, UNKNOWN)
    headers, body = msgspec.msgpack.decode(earlier.answer, type=tuple[list[tuple[str, str]], bytes])
    headers += [("x-receiver-submission", earlier.id), ("x-receiver-replayed", "1")]
    return Answer(status=earlier.status or 200, headers=headers, body=once(body))
