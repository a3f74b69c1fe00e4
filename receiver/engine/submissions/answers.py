"""Reads the job from a provider's answer, and commits it before the caller gets the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from receiver.core.errors import PickupRefused, StoreUnavailable, SubmissionRefused
from receiver.core.event import RecordStatus
from receiver.core.own_events import unknown_event
from receiver.core.submission import Submission, SubmissionState, headers_back, text_at
from receiver.core.work import Pickup
from receiver.engine.requests import new_pickup
from receiver.engine.submissions.bodies import Pace
from receiver.engine.submissions.call import UNKNOWN, Answer, Parts, Passing
from receiver.outbound.client import ReplyBroken
from receiver.settings.submitting import SubmissionJob

if TYPE_CHECKING:
    from receiver.outbound.streams import Incoming

_MOST_URL = 8192
_START_BYTES = 64 * 1024
"""Bytes of an answer in which the job's id is searched."""
_KEPT_BYTES = 2 * _START_BYTES
"""The most of an answer, headers and body, that is kept for repeats."""


def passed_back(passing: Passing, reply: Incoming, start: bytes = b"") -> Answer:
    """Return a provider's answer, of which `start` was read."""
    passing.report.outcome = "forwarded"
    lines = headers_back(reply.headers)
    if passing.submission is not None:
        lines.append(("x-receiver-submission", passing.submission.id))
    return Answer(status=reply.status, headers=lines, body=_rest(passing, reply, start))


async def learned(passing: Passing, job: SubmissionJob, reply: Incoming) -> Answer:
    """Commit what the provider's answer says of the job, and pass it back. Raises `SubmissionRefused` when it does not come whole."""
    if not 200 <= reply.status < 300:
        await end(passing, SubmissionState.REFUSED, status=reply.status)
        return passed_back(passing, reply)
    try:
        async with asyncio.timeout(passing.parts.settings.answer_seconds):
            start, whole = await _start(reply)
    except (ReplyBroken, TimeoutError):
        raise SubmissionRefused(424, UNKNOWN) from None
    job_id = text_at(start, job.job) if whole else None
    if job_id is None:
        passing.parts.observer.note("warning", "submit.no_job_id", source=passing.call.source)
    body = _led_back(passing, job, start) if whole else start
    answer = passed_back(passing, reply, body)
    if len(body) != len(start):
        answer.headers = [pair for pair in answer.headers if pair[0] != "content-length"]
    kept = msgspec.msgpack.encode((answer.headers, body)) if whole else b""
    pickup = _pickup(passing, job_id) if job.fetch and job_id else None
    job_id = pickup.job_id if pickup else job_id
    found = {
        "status": reply.status,
        "job_id": job_id,
        "answer": kept if 0 < len(kept) <= _KEPT_BYTES else None,
    }
    await end(passing, SubmissionState.ACCEPTED, pickup, **found)
    return answer


async def _start(reply: Incoming) -> tuple[bytes, bool]:
    """Return the start of an answer's body, and whether that is all of it. Raises `ReplyBroken`."""
    start, whole = bytearray(), False
    while len(start) <= _START_BYTES and not whole:
        piece = await reply.read()
        start += piece
        whole = not piece
    return bytes(start), whole


async def _rest(passing: Passing, reply: Incoming, start: bytes) -> AsyncIterator[bytes]:
    """Yield an answer's body: what was read of it, and what comes. Raises `ReplyBroken`, `TimeoutError`."""
    settings, piece = passing.parts.settings, start
    pace = Pace(settings.idle_seconds)
    while True:
        if piece:
            passing.report.bytes_out += len(piece)
            yield piece
        async with asyncio.timeout(min(pace.idle_seconds, pace.until - time.monotonic())):
            piece = await reply.read()
        if not piece:
            return
        pace.came(piece)
        if passing.report.bytes_out + len(piece) > settings.max_body_bytes:
            raise ReplyBroken


def _led_back(passing: Passing, job: SubmissionJob, raw: bytes) -> bytes:
    """Return an answer whose URLs of the provider's API point to receiver instead, so that the caller polls through receiver."""
    table = passing.source.table
    for place in job.rewrite:
        url = text_at(raw, place, most=_MOST_URL)
        if url is not None and url.startswith(f"{table.base}/"):
            here = f"{passing.parts.settings.url}/submit/{passing.call.source}{table.folder}"
            for said in (url, url.replace("/", "\\/")):  # PHP escapes each slash
                raw = raw.replace(f'"{said}"'.encode(), f'"{here}{url[len(table.base) :]}"'.encode())
    return raw


def _pickup(passing: Passing, job_id: str) -> Pickup | None:
    """Return the pickup of a job's result, for providers that do not call back."""
    pull, call = passing.source.pull, passing.call
    try:
        return None if pull is None else new_pickup(pull, job_id, ref=call.ref, now=passing.parts.clock())
    except PickupRefused as error:
        passing.parts.observer.note("warning", "submit.no_pickup", source=call.source, reason=error.message)
        return None


async def end(passing: Passing, state: SubmissionState, pickup: Pickup | None = None, **found: Any) -> None:
    """Commit what a submission came to; `OPEN`: nothing was sent. If the store fails, that is logged and done later."""
    parts, submission = passing.parts, passing.submission
    if submission is None:
        return
    ended = replace(submission, state=state, updated_at=parts.clock(), **found)
    passing.submission = None if state is SubmissionState.OPEN else ended
    provider = passing.source.settings.provider
    try:
        await asyncio.shield(commit(parts, ended, provider, pickup))
    except StoreUnavailable as error:
        parts.unrecorded.append((ended, provider, pickup))
        facts = {"submission_id": ended.id, "job_id": ended.job_id, "reason": error.message}
        parts.observer.note("error", "submit.not_recorded", **facts)


async def commit(parts: Parts, ended: Submission, provider: str, pickup: Pickup | None = None) -> None:
    """Write what a submission came to, and the event if that is not known. Raises `StoreUnavailable`."""
    if ended.state is SubmissionState.UNKNOWN:  # its event first: who ends in between leaves an open one
        recording = unknown_event(ended, provider, now=parts.clock(), routed=parts.routed)
        if (await parts.store.record(recording)).status is RecordStatus.RECORDED:  # a second one is none
            parts.wake(recording.destinations)
    await parts.store.end_submission(ended, pickup)
