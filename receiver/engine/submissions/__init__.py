"""Submissions: forwards an application's calls to a provider's API, and puts receiver's callback into those that start a
job.

The order of the commits is the guarantee. The job's row, token and expectation are committed before a byte is sent; the
provider's answer is committed, or kept in the journal, before the caller gets it. If the provider may have a job, but its
answer did not arrive whole, the caller gets 424: no SDK retries that, and the event still comes through the callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import msgspec
from msgspec.structs import replace

from receiver.core.errors import ReceiverError, SenderError, StoreUnavailable, SubmissionRefused
from receiver.core.observe import SubmissionReport
from receiver.core.submission import SubmissionFilter, SubmissionState, names_in
from receiver.engine.pickups import MAX_REF
from receiver.engine.submissions.allowances import Applications
from receiver.engine.submissions.injection import refuse_method_fields
from receiver.engine.submissions.passing import UNKNOWN, Answer, Call, Parts, Passing, once
from receiver.engine.submissions.source import SubmitSource
from receiver.system.background import BackgroundPart

__all__ = ["Answer", "Call", "Parts", "Submissions", "SubmitSource"]
OPEN_SECONDS = 3600
"""Age from which a submission's process must have ended."""
_SWEEP_SECONDS = 60.0


class Submissions(BackgroundPart):
    """Forwards the calls of all applications, in one process, and closes what ended processes left open."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        self.applications = Applications(parts.settings)

    async def _run(self) -> None:
        while self.parts.sources:
            with contextlib.suppress(StoreUnavailable):
                await self.sweep()
            await asyncio.sleep(_SWEEP_SECONDS)

    async def sweep(self) -> None:
        """Forget expired answers; mark submissions of ended processes `unknown`. Raises `StoreUnavailable`."""
        parts, now = self.parts, self.parts.clock()
        left = SubmissionFilter(state=SubmissionState.OPEN, before=now - OPEN_SECONDS * 1000, limit=500)
        for submission in await parts.store.submissions(left):
            await parts.commit(replace(submission, state=SubmissionState.UNKNOWN, updated_at=now))
            parts.observer.note("warning", "submit.abandoned", submission_id=submission.id)
        await parts.store.forget_answers(before=now - round(parts.settings.remember_seconds * 1000))

    @contextlib.asynccontextmanager
    async def passing(self, call: Call) -> AsyncGenerator[Answer]:
        """Yield the answer to a call. Whoever sends it sets `delivered`; what belongs to it ends with the block."""
        began, report = time.perf_counter(), SubmissionReport()
        passing: Passing | None = None
        async with AsyncExitStack() as stack:
            try:
                passing = await self._admitted(call, report, stack)
                answer = await passing.answer()
            except (Exception, asyncio.CancelledError) as error:
                answer = self._refusal(error, report, passing)
            report.status = answer.status
            submission = passing and passing.submission
            if submission:
                report.submission_id, report.job_id = submission.id, submission.job_id
                answer.headers.append(("x-receiver-submission", submission.id))
            try:
                yield answer
            finally:
                if submission and answer.delivered:
                    with contextlib.suppress(StoreUnavailable):
                        await self.parts.store.deliver_submission(submission.id)
                if passing and passing.rule.job and report.outcome in ("refused", "not_sent", "replayed"):
                    passing.allowance.jobs.left += 1  # there is no job
                report.seconds = time.perf_counter() - began
                self.parts.observer.submission(report)

    async def _admitted(self, call: Call, report: SubmissionReport, stack: AsyncExitStack) -> Passing:
        """Return the call if what is known before its body lets it pass. Raises `SubmissionRefused`, `StoreUnavailable`."""
        source = self.parts.sources.get(call.source)
        if source is None:
            raise SubmissionRefused(404, "there is no such source, or nothing may be submitted to it")
        report.source, table = call.source, source.api.table
        path, query = table.place(call.path, call.query, call.header(table.target_header))
        call = replace(call, path=path, query=query)
        rule = table.find(call.method, path)
        report.request = rule.request
        if any(name.startswith("sec-websocket") for name, _ in call.headers):
            raise SubmissionRefused(404, "a WebSocket is not passed on")
        refuse_method_fields(name for name, _ in names_in(query))
        allowance = self.applications.prove(call.headers, table)
        report.application = allowance.settings.name
        if call.ref is not None and not (len(call.ref) <= MAX_REF and call.ref.isprintable()):
            raise SubmissionRefused(422, f"a ref has {MAX_REF} printable characters at most")
        report.ref = call.ref
        stack.enter_context(self.applications.calling(allowance, call.source, rule.kind))
        await allowance.admit(rule.kind, self.parts.store, self.parts.clock)
        return Passing(self.parts, call, source, rule, allowance, report, stack)

    def _refusal(self, error: BaseException, report: SubmissionReport, passing: Passing | None) -> Answer:
        """Return the answer to what went wrong. Whatever the provider may have of the call decides."""
        status, message, wait = 503, "an internal error; nothing was sent", None
        if isinstance(error, SubmissionRefused | SenderError):
            status, message, wait = error.status, error.message, getattr(error, "retry_after", None)
        elif isinstance(error, ReceiverError | OSError | MemoryError):
            message, wait = "nothing was sent: receiver cannot keep the job now; send it again", 5
        elif not isinstance(error, asyncio.CancelledError):  # that is a stop of receiver's
            self.parts.observer.note("error", "submit.bug", error=type(error).__name__)
        if passing is not None and passing.began and status == 503:
            status, message, wait = 424, UNKNOWN, None
        report.outcome, report.reason = {424: "unknown", 503: "not_sent"}.get(status, "refused"), message
        payload = {"status": report.outcome, "error": message}
        if passing is not None and passing.submission is not None:
            payload["submission"] = passing.submission.id
        body = msgspec.json.encode(payload)
        headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        if wait is not None:
            headers.append(("retry-after", str(wait)))
        return Answer(status, headers, once(body))
