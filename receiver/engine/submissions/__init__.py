"""Submissions: forwards an application's calls to a provider's API, and puts receiver's callback into those that start a
job.

The order of the commits is the guarantee. The job's row, token and expectation are committed before a byte is sent; the
provider's answer is committed before the caller gets it. If the provider may have a job, but its answer did not arrive
whole, the caller gets 424: no SDK retries that, and the event still comes through the callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack

from msgspec.structs import replace

from receiver.core.errors import ReceiverError, StoreUnavailable, SubmissionRefused
from receiver.core.observe import SubmissionReport
from receiver.core.submission import SubmissionFilter, SubmissionState, names_in
from receiver.engine.requests import MAX_REF
from receiver.engine.submissions.allowances import Applications
from receiver.engine.submissions.answers import commit, end, learned, passed_back
from receiver.engine.submissions.bodies import Stream
from receiver.engine.submissions.call import Answer, Call, Parts, Passing, refusal
from receiver.engine.submissions.injection import refuse_method_fields
from receiver.engine.submissions.repeats import Repeated, begin, fingerprint_of, remembered
from receiver.engine.submissions.sending import exchange, make, stream
from receiver.engine.submissions.source import SubmitSource
from receiver.settings.submitting import SubmissionJob
from receiver.system.background import Background

__all__ = ["Answer", "Call", "Parts", "Submissions", "SubmitSource"]
OPEN_SECONDS = 3600
"""Age from which a submission's process must have ended."""
_SWEEP_SECONDS, _AGAIN_SECONDS = 60.0, 1.0
_NO_JOB = frozenset(("refused", "not_sent", "replayed"))
"""Outcomes without a job."""


class Submissions:
    """Forwards the calls of all applications, in one process."""

    def __init__(self, parts: Parts, sources: Mapping[str, SubmitSource]) -> None:
        """`sources` are those that may be submitted to, by name."""
        self.parts, self.sources = parts, sources
        self.applications = Applications(parts.settings.tokens, parts.settings.at_once)
        self._background = Background()

    # ------------------------------------------------------------ its life

    async def open(self) -> None:
        """Prepare to send, and start to close submissions of ended processes."""
        for source in self.sources.values():
            await source.upstream.open()
        if self.sources:
            self._background.start(self._sweep_forever(), self._record_forever())

    async def close(self) -> None:
        """Let go of connections."""
        await self._background.stop()
        with contextlib.suppress(StoreUnavailable):
            await self._record()
        for source in self.sources.values():
            await source.upstream.close()

    async def _sweep_forever(self) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                await self.sweep()
            await asyncio.sleep(_SWEEP_SECONDS)

    async def _record_forever(self) -> None:
        while True:
            await asyncio.sleep(_AGAIN_SECONDS)
            with contextlib.suppress(StoreUnavailable):
                await self._record()

    async def _record(self) -> None:
        """Record what the store could not take when it came. Raises `StoreUnavailable`."""
        while unrecorded := self.parts.unrecorded:
            await commit(self.parts, *unrecorded[0])
            unrecorded.pop(0)

    async def sweep(self) -> None:
        """Forget expired answers; mark submissions of ended processes `unknown`. Raises `StoreUnavailable`."""
        parts, now = self.parts, self.parts.clock()
        left = SubmissionFilter(state=SubmissionState.OPEN, before=now - OPEN_SECONDS * 1000, limit=500)
        for submission in await parts.store.submissions(left):
            source = self.sources.get(submission.source)
            provider = source.settings.provider if source else submission.source
            await commit(parts, replace(submission, state=SubmissionState.UNKNOWN, updated_at=now), provider)
            parts.observer.note("warning", "submit.abandoned", submission_id=submission.id)
        await parts.store.forget_answers(before=now - round(parts.settings.remember_seconds * 1000))

    # ------------------------------------------------------------ one call

    @contextlib.asynccontextmanager
    async def passing(self, call: Call) -> AsyncGenerator[Answer]:
        """Yield the answer to a call. Whoever sends it sets `delivered`; what belongs to it ends with the block."""
        began, report, observer = time.perf_counter(), SubmissionReport(), self.parts.observer
        passing: Passing | None = None
        async with AsyncExitStack() as stack:
            try:
                passing = await self._admitted(call, report, stack)
                job = passing.rule.job
                answer = await (self._pass_on(passing) if job is None else self._submit(passing, job))
            except (
                Exception,
                asyncio.CancelledError,
            ) as error:  # cancelled: receiver stops, and still answers
                if not isinstance(error, ReceiverError | OSError | MemoryError | asyncio.CancelledError):
                    observer.note("error", "submit.bug", error=type(error).__name__)
                answer = refusal(error, report, passing)
            report.status = answer.status
            try:
                yield answer
            finally:
                if passing is not None and passing.rule.job is not None:
                    await self._answered(passing, answer)
                report.seconds = time.perf_counter() - began
                observer.submission(report)

    async def _answered(self, passing: Passing, answer: Answer) -> None:
        """Record whether a submission's answer reached the caller."""
        submission, report = passing.submission, passing.report
        if submission is not None:
            report.submission_id, report.job_id = submission.id, submission.job_id
            if answer.delivered:
                with contextlib.suppress(StoreUnavailable):
                    await self.parts.store.deliver_submission(submission.id)
        if report.outcome in _NO_JOB:
            passing.allowance.no_job()

    async def _admitted(self, call: Call, report: SubmissionReport, stack: AsyncExitStack) -> Passing:
        """Check everything known before the body; return the call if it may be forwarded. Raises `SubmissionRefused`,
        `StoreUnavailable`.
        """
        source = self.sources.get(call.source)
        if source is None:
            raise SubmissionRefused(404, "there is no such source, or nothing may be submitted to it")
        report.source, table = call.source, source.table
        path, query = table.place(call.path, call.query, call.header(table.target_header))
        call = replace(call, path=path, query=query)
        rule = table.find(call.method, path)
        report.request = rule.request
        if any(name.startswith("sec-websocket") for name, _ in call.headers):
            raise SubmissionRefused(404, "a WebSocket is not passed on")
        refuse_method_fields(name for name, _ in names_in(query))
        allowance = self.applications.prove(call.headers, table)
        report.application = allowance.application
        if call.ref is not None and not (len(call.ref) <= MAX_REF and call.ref.isprintable()):
            raise SubmissionRefused(422, f"a ref has {MAX_REF} printable characters at most")
        report.ref = call.ref
        stack.enter_context(self.applications.calling(allowance, call.source, rule.kind))
        await allowance.admit(rule.kind, self.parts.store, self.parts.clock)
        return Passing(self.parts, call, source, rule, allowance, report, stack, query)

    async def _pass_on(self, passing: Passing) -> Answer:
        """Forward a call that starts no job: an upload, or a question about a job of the same application."""
        if (job := passing.rule.names.get("job")) is not None:
            await passing.own(job)
        await stream(passing, needed=passing.rule.kind == "upload")
        return passed_back(passing, await exchange(passing))

    async def _submit(self, passing: Passing, job: SubmissionJob) -> Answer:
        """Forward a call that starts a job: committed first, sent once, and the answer committed before the caller gets it."""
        await make(passing, job)
        if (earlier := await begin(passing)) is not None:
            if isinstance(passing.body, Stream):  # it has the same key: is it the same?
                passing.fingerprint = fingerprint_of(passing, await passing.body.whole_digest())
            if earlier.fingerprint != passing.fingerprint:
                raise SubmissionRefused(422, "this Idempotency-Key came with another request")
            return remembered(passing, earlier)
        try:
            return await learned(passing, job, await exchange(passing))
        except Repeated as repeated:
            await end(passing, SubmissionState.OPEN)
            return remembered(passing, repeated.earlier)
        except BaseException:
            if passing.began:
                await end(passing, SubmissionState.UNKNOWN, status=424)
            else:
                await end(passing, SubmissionState.OPEN)
            raise
