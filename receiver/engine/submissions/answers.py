"""What a provider's answer tells of a job: committed before the caller has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from receiver.core.destination_events import Routed
from receiver.core.errors import PickupRefused, StoreUnavailable, SubmissionRefused
from receiver.core.event import RecordStatus
from receiver.core.observe import Observers
from receiver.core.submission import Submission, SubmissionEnd, SubmissionState, text_at
from receiver.core.submission_events import unknown_event
from receiver.core.work import Pickup
from receiver.engine.requests import new_pickup
from receiver.engine.submissions.call import UNKNOWN, Answer, Passing
from receiver.outbound.client import ReplyBroken
from receiver.settings.model import SubmitSettings
from receiver.storage.store.store import Store

if TYPE_CHECKING:
    from receiver.outbound.streams import Incoming

_MOST_URL = 8192
_START_BYTES = 64 * 1024
"""Bytes of an answer in which the job's id is looked for, and the most of one that is remembered."""


class Answers:
    """Passes answers back, and commits what submissions came to."""

    def __init__(
        self,
        settings: SubmitSettings,
        store: Store,
        observer: Observers,
        clock: Callable[[], int],
        routed: Routed,
        wake: Callable[[Iterable[str]], None],
    ) -> None:
        """`routed` tells which destinations want an event; `wake` gets those of a new one."""
        self._settings, self._store, self._observer, self._clock = settings, store, observer, clock
        self._routed, self._wake = routed, wake

    def passed_back(self, passing: Passing, reply: Incoming, start: bytes = b"") -> Answer:
        """Return a provider's answer, of which `start` was read."""
        passing.report.outcome = "forwarded"
        return passing.answer(reply.status, reply.headers, self._rest(passing, reply, start))

    async def learned(self, passing: Passing, reply: Incoming) -> Answer:
        """Commit what the provider's answer says of the job, and pass it back."""
        if not 200 <= reply.status < 300:
            await self.end(passing, SubmissionState.REFUSED, status=reply.status)
            return self.passed_back(passing, reply)
        try:
            start, whole = await self._start(reply)
        except (ReplyBroken, TimeoutError):
            await self.end(passing, SubmissionState.UNKNOWN, status=424)
            raise SubmissionRefused(424, UNKNOWN) from None
        job = text_at(start, passing.rule.job) if whole else None
        passing.report.job_id = job
        if job is None:
            self._observer.note("warning", "submit.no_job_id", source=passing.call.source)
        body = self._led_back(passing, start) if whole else start
        answer = self.passed_back(passing, reply, body)
        if len(body) != len(start):
            answer.headers = [pair for pair in answer.headers if pair[0] != "content-length"]
        kept = msgspec.msgpack.encode((answer.headers, body)) if whole else None
        await self.end(passing, SubmissionState.ACCEPTED, status=reply.status, job=job, answer=kept)
        return answer

    async def _start(self, reply: Incoming) -> tuple[bytes, bool]:
        """Return the start of an answer's body, and whether that is all of it. Raises `ReplyBroken`, `TimeoutError`."""
        start, whole = bytearray(), False
        while len(start) <= _START_BYTES and not whole:
            async with asyncio.timeout(self._settings.idle_seconds):
                piece = await reply.read()
            start += piece
            whole = not piece
        return bytes(start), whole

    async def _rest(self, passing: Passing, reply: Incoming, start: bytes) -> AsyncIterator[bytes]:
        """Yield an answer's body: what was read of it, and what comes. Raises `ReplyBroken`, `TimeoutError`."""
        piece = start
        while True:
            if piece:
                passing.report.bytes_out += len(piece)
                yield piece
            async with asyncio.timeout(self._settings.idle_seconds):
                piece = await reply.read()
            if not piece:
                return

    def _led_back(self, passing: Passing, raw: bytes) -> bytes:
        """Return an answer whose URLs of the API lead to receiver: the caller asks there, with its token."""
        base = passing.source.api.base
        for place in passing.rule.rewrite:
            url = text_at(raw, place, most=_MOST_URL)
            if url is not None and url.startswith(f"{base}/"):
                ours = f"{self._settings.url}/submit/{passing.call.source}{url[len(base) :]}"
                raw = raw.replace(f'"{url}"'.encode(), f'"{ours}"'.encode())
        return raw

    async def end(
        self,
        passing: Passing,
        state: SubmissionState | None,
        *,
        status: int | None = None,
        job: str | None = None,
        answer: bytes | None = None,
    ) -> None:
        """Commit what a submission came to; None: nothing was sent. What the store cannot take is told: the job costs money."""
        submission, expected = passing.submission, passing.expectation
        if submission is None:
            return
        pickup = self._pickup(passing, job)
        ended = SubmissionEnd(
            id=submission.id,
            state=state,
            status=status,
            job_id=pickup.job_id if pickup else job,
            answer=answer,
            expectation=(submission.source, expected.key) if expected else None,
            pickup=pickup,
            now=self._clock(),
        )
        if state is None:
            passing.submission = None
        try:
            await asyncio.shield(self._ended(passing, submission, ended))
        except StoreUnavailable as error:
            facts = {"submission_id": submission.id, "job_id": job, "reason": error.message}
            self._observer.note("error", "submit.not_recorded", **facts)

    async def _ended(self, passing: Passing, submission: Submission, ended: SubmissionEnd) -> None:
        if ended.state is SubmissionState.UNKNOWN:  # its event first: who ends in between leaves an open one
            await self.tell(submission, passing.source.settings.provider)
        await self._store.end_submission(ended)

    async def tell(self, submission: Submission, provider: str) -> None:
        """Record the event that the outcome of a submission is not known; a second one is none. Raises `StoreUnavailable`."""
        recording = unknown_event(submission, provider, now=self._clock(), routed=self._routed)
        if (await self._store.record(recording)).status is RecordStatus.RECORDED:
            self._wake(recording.destinations)

    def _pickup(self, passing: Passing, job: str | None) -> Pickup | None:
        """Return the fetching of a job's result, for providers that do not call back."""
        if job is None or not passing.rule.fetch or passing.source.pull is None:
            return None
        try:
            return new_pickup(passing.source.pull, job, ref=passing.call.ref, now=self._clock())
        except PickupRefused as error:
            facts = {"source": passing.call.source, "reason": error.message}
            self._observer.note("warning", "submit.no_pickup", **facts)
            return None
