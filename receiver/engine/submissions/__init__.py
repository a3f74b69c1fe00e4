"""Submissions: passes an application's calls on to a provider's API, with receiver's callback in those that make a job.

The order is the promise. What receiver needs for the job's event (row, token, expectation) is committed before a byte is sent,
what the provider answers is committed before the caller has it. Once the provider may have a job and its answer did not come
whole, the caller is answered 424: no provider's program repeats that, and the event comes by the callback all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace

from receiver.core.destination_events import Routed
from receiver.core.errors import ReceiverError, StoreUnavailable, SubmissionRefused
from receiver.core.observe import Observers, SubmissionReport
from receiver.core.submission import SubmissionFilter, SubmissionState
from receiver.core.tokens import CallbackTokens
from receiver.engine.requests import MAX_REF
from receiver.engine.submissions.allowances import Applications
from receiver.engine.submissions.answers import Answers
from receiver.engine.submissions.bodies import Stream
from receiver.engine.submissions.call import Answer, Call, Passing, SubmitSource, refusal
from receiver.engine.submissions.exchange import exchange
from receiver.engine.submissions.injection import jobs_named
from receiver.engine.submissions.repeats import Repeated, Repeats, fingerprint_of, remembered
from receiver.engine.submissions.requests import Requests
from receiver.settings.model import SubmitSettings
from receiver.storage.store.store import Store
from receiver.system.background import Background
from receiver.system.files import BodyBuffer

__all__ = ["Answer", "Call", "Submissions", "SubmitSource"]
OPEN_SECONDS = 3600
"""After so long no submission is under way any more: its process has ended."""
_SWEEP_SECONDS = 60.0
_NO_JOB = frozenset(("refused", "not_sent", "replayed"))
"""Outcomes of a submission that make no job."""


class Submissions:
    """All applications' calls of one process."""

    def __init__(
        self,
        *,
        settings: SubmitSettings,
        sources: Mapping[str, SubmitSource],
        public_url: str | None,
        store: Store,
        tokens: CallbackTokens,
        bodies: BodyBuffer,
        observer: Observers,
        clock: Callable[[], int],
        routed: Routed,
        wake: Callable[[Iterable[str]], None],
    ) -> None:
        """`routed` tells which destinations want an event; `wake` gets those of a new one."""
        self.settings = settings
        self.sources = sources
        self._store, self._observer, self._clock = store, observer, clock
        self.applications = Applications(settings.tokens)
        self._requests = Requests(settings, public_url, tokens, bodies, clock)
        self._repeats = Repeats(settings, store, clock)
        self._answers = Answers(settings, store, observer, clock, routed, wake)
        self._under_way = 0
        self._background = Background()

    # ------------------------------------------------------------ its life

    async def open(self) -> None:
        """Make ready to send, and begin to give up what ended processes left."""
        for source in self.sources.values():
            await source.upstream.open()
        if self.sources:
            self._background.start(self._sweep_forever())

    async def close(self) -> None:
        """Let go of connections."""
        await self._background.stop()
        for source in self.sources.values():
            await source.upstream.close()

    async def _sweep_forever(self) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                await self.sweep()
            await asyncio.sleep(_SWEEP_SECONDS)

    async def sweep(self) -> None:
        """Forget answers whose time is up; give up submissions whose process has ended. Raises `StoreUnavailable`."""
        now = self._clock()
        before, remember_ms = now - OPEN_SECONDS * 1000, round(self.settings.remember_seconds * 1000)
        left = SubmissionFilter(state=SubmissionState.OPEN, before=before, limit=500)
        for submission in await self._store.submissions(left):
            source = self.sources.get(submission.source)
            provider = source.settings.provider if source is not None else submission.source
            await self._answers.tell(submission, provider)
        ended = await self._store.sweep_submissions(open_before=before, answers_before=now - remember_ms)
        for submission_id in ended:
            self._observer.note("warning", "submit.abandoned", submission_id=submission_id)

    # ------------------------------------------------------------ one call

    @contextlib.asynccontextmanager
    async def passing(self, call: Call) -> AsyncGenerator[Answer]:
        """Yield the answer to a call. Whoever sends it sets `delivered`; what belongs to it ends with the block."""
        began, report = time.perf_counter(), SubmissionReport()
        passing: Passing | None = None
        async with AsyncExitStack() as stack:
            try:
                passing = await self._admitted(call, report, stack)
                submits = passing.rule.kind == "submit"
                answer = await (self._submit(passing) if submits else self._pass_on(passing))
            except Exception as error:
                if not isinstance(error, ReceiverError | OSError | MemoryError):
                    self._observer.note("error", "submit.bug", error=type(error).__name__)
                answer = refusal(error, report, passing)
            report.status = answer.status
            try:
                yield answer
            finally:
                if passing is not None and passing.submission is not None and answer.delivered:
                    with contextlib.suppress(StoreUnavailable):
                        await self._store.deliver_submission(passing.submission.id)
                if passing is not None and report.outcome in _NO_JOB and passing.rule.kind == "submit":
                    passing.allowance.no_job()
                report.seconds = time.perf_counter() - began
                self._observer.submission(report)

    async def _admitted(self, call: Call, report: SubmissionReport, stack: AsyncExitStack) -> Passing:
        """Return a call that may be passed on, by all that is known before its body. Raises `SubmissionRefused`, `StoreUnavailable`."""
        source = self.sources.get(call.source)
        if source is None:
            raise SubmissionRefused(404, "there is no such source, or nothing may be submitted to it")
        report.source = call.source
        path, query = source.api.place(call.path, call.query, call.header(source.api.target_header))
        call = replace(call, path=path, query=query)
        rule, names = source.api.find(call.method, call.path)
        report.request = f"{rule.method} {rule.path}"
        if any(name.startswith("sec-websocket") for name, _ in call.headers):
            raise SubmissionRefused(404, "a WebSocket is not passed on")
        allowance = self.applications.prove(call.headers, source.api)
        report.application = allowance.application
        if self._under_way >= self.settings.at_once:
            raise SubmissionRefused(503, "receiver has as many calls under way as it takes", retry_after=2)
        if call.ref is not None and not (len(call.ref) <= MAX_REF and call.ref.isprintable()):
            raise SubmissionRefused(422, f"a ref has {MAX_REF} printable characters at most")
        report.ref = call.ref
        stack.enter_context(self._counted())
        await allowance.admit(call.source, rule.kind, self._store, self._clock)
        stack.enter_context(allowance.under_way())
        return Passing(call, source, rule, names, allowance, report, stack)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    async def _pass_on(self, passing: Passing) -> Answer:
        """Pass on what makes no job: an upload, or a question about a job of the same application."""
        await self._own(passing, passing.names.get("job"))
        body = await self._requests.stream(passing, self._repeats.ended)
        reply = await exchange(passing, passing.call.query, body, self.settings)
        return self._answers.passed_back(passing, reply)

    async def _own(self, passing: Passing, job: str | None) -> None:
        """Raise `SubmissionRefused` for a job that is not one of the application's."""
        if job is None:
            return
        wanted = SubmissionFilter(
            application=passing.allowance.application, source=passing.call.source, job_id=job, limit=1
        )
        if not await self._store.submissions(wanted):
            raise SubmissionRefused(404, "no job of this application has this id")

    async def _submit(self, passing: Passing) -> Answer:
        """Pass on what makes a job: written first, sent once, and what the answer tells written before it goes back."""
        request = await self._requests.made(passing, self._repeats.ended)
        if passing.held is not None and passing.rule.refers:
            for job in await asyncio.to_thread(jobs_named, passing.held.load(), passing.rule):
                await self._own(passing, job)
        earlier = await self._repeats.begin(passing, request.claims, request.fingerprint)
        if earlier is not None:
            if isinstance(request.body, Stream):  # it has the same key: is it the same?
                digest = await request.body.drain(self.settings.idle_seconds)
                request.fingerprint = fingerprint_of(passing, digest)
            if earlier.fingerprint != request.fingerprint:
                raise SubmissionRefused(422, "this Idempotency-Key came with another request")
            return remembered(passing, earlier)
        try:
            reply = await exchange(passing, request.query, request.body, self.settings)
        except Repeated as repeated:
            await self._answers.end(passing, None)
            return remembered(passing, repeated.earlier)
        except BaseException:
            state = SubmissionState.UNKNOWN if passing.began else None
            await self._answers.end(passing, state, status=424)
            raise
        return await self._answers.learned(passing, reply)
