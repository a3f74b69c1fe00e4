"""Submissions: passes an application's calls on to a provider's API, with receiver's callback in those that make a job.

The order is the promise. What receiver needs for the job's event (row, token, expectation) is committed before a byte is sent,
what the provider answers is committed before the caller has it. Once the provider may have a job and its answer did not come
whole, the caller is answered 424: no provider's program repeats that, and the event comes by the callback all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from receiver.core import callback_urls
from receiver.core.callback import Body, MemoryBody, TokenClaims, split_media_type
from receiver.core.errors import (
    BodyTooSlow,
    ConfigError,
    JournalUnavailable,
    OwnCallback,
    PickupRefused,
    SenderError,
    StoreUnavailable,
    SubmissionRefused,
)
from receiver.core.event import new_id
from receiver.core.observe import Observers, SubmissionReport
from receiver.core.submission import (
    NewSubmission,
    ProviderApi,
    Rule,
    Submission,
    SubmissionEnd,
    SubmissionFilter,
    SubmissionState,
    filled,
    headers_back,
    headers_out,
    names_in,
)
from receiver.core.tokens import SHORT_CHARS, CallbackTokens
from receiver.core.work import Pickup
from receiver.engine import injection
from receiver.engine.allowances import DAY_MS, Allowance, Applications
from receiver.engine.passing_bodies import Held, Outgoing, Stream
from receiver.engine.requests import FORMAT_KEYS, MAX_REF, new_expectation, new_pickup
from receiver.outbound.client import Failure, ReplyBroken
from receiver.outbound.guard import Target, target
from receiver.outbound.upstream import CONNECT_SECONDS, NotSent, Upstream
from receiver.providers import PullProvider
from receiver.settings.model import SourceSettings, SubmitSettings
from receiver.storage.store.store import Store
from receiver.system.files import BodyBuffer, FileBody, Receive

if TYPE_CHECKING:
    from receiver.outbound.streams import Incoming

TOKEN_SECONDS = 7 * 86_400
"""How long a submission's callback URL is good."""
REPEAT_SECONDS = 600
"""How long an identical submission is taken for the repetition of one whose answer was lost."""
_MOST_URL = 8192
_START_BYTES = 64 * 1024
"""Bytes of an answer in which the job's id is looked for, and the most of one that is remembered."""
_MOST_SECONDS = 65.0
"""The longest wait for an answer, for a caller who asks the provider to wait."""
_LOOK_SECONDS = 0.25
"""Between two looks at a submission that another call waits for."""
_READ_SECONDS = 1800.0
"""How long a whole body may take in which the callback is set."""
OPEN_SECONDS = 3600
"""After so long no submission is under way any more: its process has ended."""
_SWEEP_SECONDS = 60.0
_UNKNOWN = "the provider may have the job, and its answer did not come whole; its callback is expected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """An application's call, its body unread."""

    source: str
    method: str
    path: str
    """What follows the source, with its slash."""
    query: str
    headers: tuple[tuple[str, str], ...]
    ref: str | None
    receive: Receive

    def header(self, name: str) -> str:
        """Return a header's first value, "" when there is none."""
        return next((value for key, value in self.headers if key == name), "")


@dataclass(slots=True, kw_only=True)
class Answer:
    """What the caller is answered."""

    status: int
    headers: list[tuple[str, str]]
    body: AsyncIterator[bytes]
    delivered: bool = False
    """To be set when all of it was sent to a caller who was still there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitSource:
    """A source that may be submitted to."""

    settings: SourceSettings
    api: ProviderApi
    upstream: Upstream
    pull: PullProvider | None


@dataclass(slots=True)
class _Passing:
    """One call on its way."""

    call: Call
    source: SubmitSource
    rule: Rule
    names: Mapping[str, str]
    allowance: Allowance
    report: SubmissionReport
    stack: AsyncExitStack
    began: bool = False
    """The provider may have some of it."""
    submission: Submission | None = None
    expectation: Pickup | None = None
    held: Body | None = None
    """The body, where all of it was read."""


class _Repeated(Exception):
    """A body has ended, and was an earlier submission's."""

    def __init__(self, earlier: Submission) -> None:
        self.earlier = earlier


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
    ) -> None:
        self.settings = settings
        self.sources = sources
        self._public_url = public_url
        self._store, self._tokens, self._bodies = store, tokens, bodies
        self._observer, self._clock = observer, clock
        self.applications = Applications(settings.tokens)
        self._under_way = 0
        self._sweeping: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ its life

    async def open(self) -> None:
        """Make ready to send, and begin to give up what ended processes left."""
        for source in self.sources.values():
            await source.upstream.open()
        self._sweeping = asyncio.create_task(self._sweep_forever()) if self.sources else None

    async def close(self) -> None:
        """Let go of connections."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
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
        remember_ms = round(self.settings.remember_seconds * 1000)
        ended = await self._store.sweep_submissions(
            open_before=now - OPEN_SECONDS * 1000, answers_before=now - remember_ms
        )
        for submission_id in ended:
            self._observer.note("warning", "submit.abandoned", submission_id=submission_id)

    # ------------------------------------------------------------ one call

    @contextlib.asynccontextmanager
    async def passing(self, call: Call) -> AsyncGenerator[Answer]:
        """Yield the answer to a call. Whoever sends it sets `delivered`; what belongs to it ends with the block."""
        began = time.perf_counter()
        report = SubmissionReport()
        async with AsyncExitStack() as stack:
            passing: list[_Passing] = []
            try:
                answer = await self._answer(call, report, stack, passing)
            except Exception as error:
                answer = self._refusal(error, report, passing[0] if passing else None)
            report.status = answer.status
            try:
                yield answer
            finally:
                if passing and passing[0].submission is not None and answer.delivered:
                    with contextlib.suppress(StoreUnavailable):
                        await self._store.deliver_submission(passing[0].submission.id)
                report.seconds = time.perf_counter() - began
                self._observer.submission(report)

    async def _answer(
        self, call: Call, report: SubmissionReport, stack: AsyncExitStack, passings: list[_Passing]
    ) -> Answer:
        source = self.sources.get(call.source)
        if source is None:
            raise SubmissionRefused(404, "there is no such source, or nothing may be submitted to it")
        report.source = call.source
        rule, names = source.api.find(call.method, call.path)
        report.request = f"{rule.method} {rule.path}"
        if len(call.query) > 8192 or any(name.startswith("sec-websocket") for name, _ in call.headers):
            raise SubmissionRefused(404, "this is not passed on")
        allowance = self.applications.prove(call.headers, source.api)
        report.application = allowance.application
        if self._under_way >= self.settings.at_once:
            raise SubmissionRefused(503, "receiver has as many calls under way as it takes", retry_after=2)
        allowance.check(call.source, rule.kind, self._clock())
        stack.enter_context(self._counted())
        stack.enter_context(allowance.under_way())
        passing = _Passing(call, source, rule, names, allowance, report, stack)
        passings.append(passing)
        if rule.kind != "submit":
            return await self._pass_on(passing)
        report.ref = call.ref
        if call.ref is not None and len(call.ref) > MAX_REF:
            raise SubmissionRefused(422, f"the ref has {len(call.ref)} characters; {MAX_REF} is the most")
        since = self._clock() // DAY_MS * DAY_MS
        jobs = await self._store.jobs_since(allowance.application, since)
        allowance.check_jobs(jobs, self._clock())
        return await self._submit(passing)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def _refusal(self, error: Exception, report: SubmissionReport, passing: _Passing | None) -> Answer:
        """Return the answer to what went wrong. Whatever the provider may have of it decides."""
        headers: list[tuple[str, str]] = []
        match error:
            case SubmissionRefused():
                status, message = error.status, error.message
                if error.retry_after is not None:
                    headers.append(("retry-after", str(error.retry_after)))
            case SenderError():
                status, message = error.status, error.message
            case StoreUnavailable() | JournalUnavailable() | OSError() | MemoryError():
                status, message = 503, "nothing was sent: receiver cannot keep the job now; send it again"
                headers.append(("retry-after", "5"))
            case _:  # a bug of ours
                self._observer.note("error", "submit.bug", error=type(error).__name__)
                status, message = 503, "an internal error; nothing was sent"
        if passing is not None and passing.began and status == 503:
            status, message, headers = 424, _UNKNOWN, []
        report.outcome = {424: "unknown", 503: "not_sent"}.get(status, "refused")
        report.reason = message
        payload = {"status": report.outcome, "error": message}
        if passing is not None and passing.submission is not None:
            payload["submission"] = passing.submission.id
        body = msgspec.json.encode(payload)
        headers += [("content-type", "application/json"), ("content-length", str(len(body)))]
        return Answer(status=status, headers=headers, body=_once(body))

    # ------------------------------------------------------------ what makes no job

    async def _pass_on(self, passing: _Passing) -> Answer:
        job = passing.names.get("job")
        if job is not None:
            wanted = SubmissionFilter(
                application=passing.allowance.application, source=passing.call.source, job_id=job, limit=1
            )
            if not await self._store.submissions(wanted):
                raise SubmissionRefused(404, "no job of this application has this id")
        body = await self._stream(passing, passing.call.query, None)
        reply = await self._exchange(passing, passing.call.query, body)
        passing.report.outcome = "forwarded"
        return self._passed_back(passing, reply, b"")

    # ------------------------------------------------------------ what makes a job

    async def _submit(self, passing: _Passing) -> Answer:
        claims, values = self._issue(passing)
        try:
            query, body, fingerprint = await self._prepare(passing, values)
        except OwnCallback as own:
            if passing.source.settings.own_callback != "pass" or passing.held is not None:
                raise
            passing.report.reason = own.message
            return await self._pass_on(passing)
        earlier = await self._begin(passing, claims, fingerprint)
        if earlier is not None:
            if isinstance(body, Stream):  # it has the same key: is it the same?
                digest = await body.drain(self.settings.idle_seconds)
                fingerprint = self._fingerprint(passing, digest)
            if earlier.fingerprint != fingerprint:
                raise SubmissionRefused(422, "this Idempotency-Key came with another request")
            return self._remembered(passing, earlier)
        try:
            reply = await self._exchange(passing, query, body)
        except _Repeated as repeated:
            await self._end(passing, None)
            return self._remembered(passing, repeated.earlier)
        except BaseException:
            await self._end(passing, SubmissionState.UNKNOWN if passing.began else None, status=424)
            raise
        return await self._learned(passing, reply)

    def _issue(self, passing: _Passing) -> tuple[TokenClaims, Mapping[str, Any]]:
        """Return the claims of the job's token, and what is put into the request."""
        call, source, rule = passing.call, passing.source, passing.rule
        now = self._clock()
        seconds = source.settings.submit_expect_seconds or source.api.expect_seconds
        asked = {name: value for name, value in names_in(call.query) if name in FORMAT_KEYS}
        token, claims = self._tokens.issue_short(
            call.source,
            ref=call.ref,
            format={**asked, **filled(rule.format, passing.names)},
            expires_at=now + TOKEN_SECONDS * 1000,
            job_secret=source.api.job_secrets,
            expect_by=now + round(seconds * 1000),
        )
        api = source.api
        secret = self._tokens.job_secrets(token)[0] if api.job_secrets else api.secret
        url = "" if rule.fetch else callback_url(self._public_url, call.source, source.api, token)
        values: Mapping[str, Any] = filled(
            rule.set, {"callback": url, "secret": secret, "token": token, "ref": call.ref or ""}
        )
        return claims, values

    async def _prepare(
        self, passing: _Passing, values: Mapping[str, Any]
    ) -> tuple[str, Outgoing | None, str | None]:
        """Return query and body with the callback in them, and the fingerprint where it is known already.

        Raises `SubmissionRefused`, `SenderError`.
        """
        call, rule = passing.call, passing.rule
        if rule.set_in == "query":
            query = injection.into_query(call.query, rule, values)
            stream = await self._stream(passing, query, lambda digest: self._ended(passing, digest))
            return query, stream, None if stream else self._fingerprint(passing, "")
        media_type, _ = split_media_type(call.header("content-type"))
        if media_type == "application/json":
            body = await self._read(passing, self.settings.max_json_bytes)
            changed = await asyncio.to_thread(lambda: injection.into_json(body.load(), rule, values))
            return call.query, Held(body, (changed,)), self._fingerprint(passing, body.sha256)
        if media_type != "multipart/form-data":
            raise SubmissionRefused(
                415, "send application/json or multipart/form-data: the callback is set in it"
            )
        body = await self._read(passing, self.settings.max_form_bytes)
        form = await asyncio.to_thread(injection.into_form, body, call.header("content-type"), rule, values)
        held = Held(body, form.segments, form.content_type)
        return call.query, held, self._fingerprint(passing, form.digest)

    async def _read(self, passing: _Passing, most: int) -> MemoryBody | FileBody:
        """Read a whole body; it goes with the call."""
        body = await self._bodies.read(
            passing.call.receive, limit=most, total=_READ_SECONDS, idle=self.settings.idle_seconds
        )
        passing.held = body
        passing.stack.callback(body.discard)
        passing.report.bytes_in = body.size
        passing.allowance.add_bytes(body.size)
        return body

    async def _stream(
        self, passing: _Passing, query: str, ended: Callable[[str], Awaitable[None]] | None
    ) -> Stream | None:
        """Return a body to be passed through, its first piece read; None when it is empty."""
        call = passing.call
        length = call.header("content-length")

        async def nothing(digest: str) -> None:
            return

        def count(size: int) -> None:
            passing.report.bytes_in += size
            passing.allowance.add_bytes(size)

        stream = Stream(
            call.receive,
            int(length) if length.isdecimal() else None,
            most=self.settings.max_body_bytes,
            count=count,
            ended=ended or nothing,
        )
        if await stream.begin(self.settings.idle_seconds):
            return stream
        if passing.rule.needs_body:
            raise SubmissionRefused(422, "the body is empty")
        return None

    # ------------------------------------------------------------ never twice

    def _fingerprint(self, passing: _Passing, digest: str) -> str:
        """Return the hash of a whole request; `digest` is that of its body."""
        call = passing.call
        parts = (call.source, call.method, call.path, call.query, call.ref or "", digest)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

    async def _begin(
        self, passing: _Passing, claims: TokenClaims, fingerprint: str | None
    ) -> Submission | None:
        """Commit what is to be known of a job before it is sent; or return the earlier submission that this one repeats."""
        call, now = passing.call, self._clock()
        key = call.header("idempotency-key") or None
        if key is not None and not (len(key) <= 255 and key.isascii() and key.isprintable()):
            raise SubmissionRefused(422, "an Idempotency-Key has 1 to 255 visible characters")
        submission = Submission(
            id=new_id("sub", now),
            application=passing.allowance.application,
            source=call.source,
            request=passing.report.request,
            token_id=claims.token_id,
            ref=call.ref,
            idempotency_key=key,
            fingerprint=fingerprint,
            created_at=now,
            updated_at=now,
        )
        new = NewSubmission(
            submission=submission,
            claims=None if passing.rule.fetch else claims,
            expectation=new_expectation(call.source, claims, passing.source.pull, now=now),
            repeats_since=now - REPEAT_SECONDS * 1000,
            remembered_since=now - round(self.settings.remember_seconds * 1000),
        )
        while (earlier := await self._store.begin_submission(new)) is not None:
            settled = await self._settled(earlier)
            if key is not None and earlier.idempotency_key == key:
                if settled.state is SubmissionState.ACCEPTED:
                    return settled
            elif not settled.delivered and settled.state is not SubmissionState.REFUSED:
                return settled
        passing.submission, passing.report.submission_id = submission, submission.id
        passing.expectation = new.expectation
        return None

    async def _ended(self, passing: _Passing, digest: str) -> None:
        """A streamed body has ended but for its last piece. Raises `_Repeated` when it was an earlier submission's."""
        if passing.submission is None:
            return
        since = self._clock() - REPEAT_SECONDS * 1000
        fingerprint = self._fingerprint(passing, digest)
        submission = passing.submission
        while True:
            earlier = await self._store.fingerprint_submission(
                submission.id, submission.application, fingerprint, since=since
            )
            if earlier is None:
                return
            settled = await self._settled(earlier)
            if not settled.delivered and settled.state is not SubmissionState.REFUSED:
                raise _Repeated(settled)

    async def _settled(self, earlier: Submission) -> Submission:
        """Wait until an earlier submission has its answer. Raises `SubmissionRefused` with 424 when that takes too long."""
        until = time.monotonic() + self.settings.answer_seconds
        while earlier.state is SubmissionState.OPEN:
            if time.monotonic() > until:
                raise SubmissionRefused(424, "the same submission is under way, and has no answer yet")
            await asyncio.sleep(_LOOK_SECONDS)
            found = await self._store.submission(earlier.id)
            earlier = found or replace(earlier, state=SubmissionState.REFUSED)
        return earlier

    def _remembered(self, passing: _Passing, earlier: Submission) -> Answer:
        """Return the answer that an earlier submission had."""
        report = passing.report
        passing.submission = earlier
        report.submission_id, report.job_id, report.outcome = earlier.id, earlier.job_id, "replayed"
        if earlier.answer is None:
            raise SubmissionRefused(424, _UNKNOWN)
        headers, body = msgspec.msgpack.decode(earlier.answer, type=tuple[list[tuple[str, str]], bytes])
        headers += [("x-receiver-submission", earlier.id), ("x-receiver-replayed", "1")]
        return Answer(status=earlier.status or 200, headers=headers, body=_once(body))

    # ------------------------------------------------------------ the provider

    async def _exchange(self, passing: _Passing, query: str, body: Outgoing | None) -> Incoming:
        """Send a request; return the head of its answer. Raises `SubmissionRefused` when none came, and for a redirect."""
        call, api, settings = passing.call, passing.source.api, self.settings
        out = body or Outgoing(None)
        out.idle_seconds, out.answer_seconds = settings.idle_seconds, self._patience(call)
        place = target(f"{api.base}{call.path}{'?' if query else ''}{query}")
        if not isinstance(place, Target):
            raise SubmissionRefused(404, place)
        headers = headers_out(call.headers, api)
        if body is not None and body.length is not None:
            headers.append(("content-length", str(body.length)))
        if body is not None and body.content_type is not None:
            headers = [pair for pair in headers if pair[0] != "content-type"]
            headers.append(("content-type", body.content_type))
        passing.began = True
        try:
            async with out.limit:
                out.wait(CONNECT_SECONDS + out.answer_seconds)
                reply = await passing.source.upstream.exchange(
                    call.method, place, headers, body.pieces() if body else None
                )
                out.answered = True
        except TimeoutError:
            if out.waits_for_caller:
                passing.began = False
                raise BodyTooSlow from None
            raise SubmissionRefused(424, _UNKNOWN) from None
        if isinstance(reply, Failure):
            if out.error is not None:  # the last piece was not sent: the provider has no whole request
                passing.began = False
                raise out.error
            if isinstance(reply, NotSent):
                passing.began = False
                raise SubmissionRefused(503, f"nothing was sent: {reply.detail}", retry_after=5)
            raise SubmissionRefused(424, _UNKNOWN)
        passing.stack.callback(reply.close)
        if 300 <= reply.status < 400 and reply.status != 304:
            raise SubmissionRefused(
                424, f"the provider answers {reply.status}, and redirects are not followed"
            )
        return reply

    def _patience(self, call: Call) -> float:
        """Return how long the provider's answer may take: longer when the caller asks the provider to wait."""
        seconds = self.settings.answer_seconds
        for part in call.header("prefer").split(","):
            name, _, wish = part.strip().partition("=")
            if name == "wait":
                seconds = max(seconds, min(_MOST_SECONDS, (float(wish) if wish.isdecimal() else 60.0) + 5))
        return seconds

    async def _learned(self, passing: _Passing, reply: Incoming) -> Answer:
        """Commit what the provider's answer says of the job, and pass it back."""
        passing.report.outcome = "forwarded"
        if not 200 <= reply.status < 300:
            await self._end(passing, SubmissionState.REFUSED, status=reply.status)
            return self._passed_back(passing, reply, b"")
        start, whole = bytearray(), False
        try:
            while len(start) <= _START_BYTES and not whole:
                async with asyncio.timeout(self.settings.idle_seconds):
                    piece = await reply.read()
                start += piece
                whole = not piece
        except (ReplyBroken, TimeoutError):
            await self._end(passing, SubmissionState.UNKNOWN, status=424)
            raise SubmissionRefused(424, _UNKNOWN) from None
        job = _at(bytes(start), passing.rule.job) if whole else None
        passing.report.job_id = job
        if job is None:
            self._observer.note("warning", "submit.no_job_id", source=passing.call.source)
        body = self._led_back(passing, bytes(start)) if whole else bytes(start)
        answer = self._passed_back(passing, reply, body)
        if len(body) != len(start):
            answer.headers = [pair for pair in answer.headers if pair[0] != "content-length"]
        kept = msgspec.msgpack.encode((answer.headers, body)) if whole else None
        await self._end(passing, SubmissionState.ACCEPTED, status=reply.status, job=job, answer=kept)
        return answer

    def _led_back(self, passing: _Passing, raw: bytes) -> bytes:
        """Return an answer whose URLs of the API lead to receiver: the caller asks there, with its token."""
        base = passing.source.api.base
        for place in passing.rule.rewrite:
            url = _at(raw, place, most=_MOST_URL)
            if url is not None and url.startswith(f"{base}/"):
                ours = f"{self.settings.url}/submit/{passing.call.source}{url[len(base) :]}"
                raw = raw.replace(f'"{url}"'.encode(), f'"{ours}"'.encode())
        return raw

    async def _end(
        self,
        passing: _Passing,
        state: SubmissionState | None,
        *,
        status: int | None = None,
        job: str | None = None,
        answer: bytes | None = None,
    ) -> None:
        """Commit what a submission came to. What the store cannot take is told: the job exists and costs money."""
        submission, expectation = passing.submission, passing.expectation
        if submission is None or expectation is None:
            return
        pickup, now = None, self._clock()
        if job is not None and passing.rule.fetch and passing.source.pull is not None:
            try:
                pickup = new_pickup(passing.source.pull, job, ref=passing.call.ref, now=now)
                job = pickup.job_id
            except PickupRefused as error:
                self._observer.note(
                    "warning", "submit.no_pickup", source=submission.source, reason=error.message
                )
        ended = SubmissionEnd(
            id=submission.id,
            state=state,
            status=status,
            job_id=job,
            answer=answer,
            expectation=(submission.source, expectation.key),
            pickup=pickup,
            now=now,
        )
        if state is None:
            passing.submission = None
        try:
            await asyncio.shield(self._store.end_submission(ended))
        except StoreUnavailable as error:
            self._observer.note(
                "error", "submit.not_recorded", submission_id=submission.id, job_id=job, reason=error.message
            )

    def _passed_back(self, passing: _Passing, reply: Incoming, start: bytes) -> Answer:
        headers = headers_back(reply.headers)
        if passing.submission is not None:
            headers.append(("x-receiver-submission", passing.submission.id))
        return Answer(status=reply.status, headers=headers, body=self._rest(passing, reply, start))

    async def _rest(self, passing: _Passing, reply: Incoming, start: bytes) -> AsyncIterator[bytes]:
        """Yield an answer's body: what was read of it, and what comes. Raises `ReplyBroken`, `TimeoutError`."""
        piece = start
        while True:
            if piece:
                passing.report.bytes_out += len(piece)
                yield piece
            async with asyncio.timeout(self.settings.idle_seconds):
                piece = await reply.read()
            if not piece:
                return


def callback_url(public_url: str | None, source: str, api: ProviderApi, token: str) -> str:
    """Return the URL for a job's callback. Raises `ConfigError` when the provider could not call it."""
    url = callback_urls.callback_url(
        public_url, source, https_only=api.https_only, token=token, basic=api.basic
    )
    if len(url) > api.max_url:
        raise ConfigError(f"public_url: {source} takes callback URLs of {api.max_url} characters at most")
    return url


def checked_api(public_url: str | None, url: str | None, source: str, api: ProviderApi | None) -> ProviderApi:
    """Return what applications may call of a source. Raises `ConfigError` when nothing could be submitted to it."""
    if api is None:
        raise ConfigError("receiver does not know what may be passed on to this provider: leave submit out")
    if not api.headers:
        raise ConfigError(f"submissions need the provider's key: set sources.{source}.api_key")
    if url is None and any(rule.rewrite for rule in api.rules):
        raise ConfigError(
            "answers of this provider have URLs that are to lead back to receiver: set submit.url"
        )
    if any(rule.kind == "submit" and not rule.fetch for rule in api.rules):
        callback_url(public_url, source, api, "a" * SHORT_CHARS)
    return api


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _at(raw: bytes, place: str, *, most: int = 500) -> str | None:
    """Return the text at a place of a JSON document, None when there is none that could be a job's id."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    for name in place.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    good = isinstance(value, str) and 0 < len(value) <= most and value.isascii() and value.isprintable()
    return value if good else None
