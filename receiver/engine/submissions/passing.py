"""One application's call on its way to the provider and back."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from receiver.core.callback import split_media_type
from receiver.core.errors import (
    JournalUnavailable,
    MalformedCallback,
    PickupRefused,
    StoreUnavailable,
    SubmissionRefused,
)
from receiver.core.event import RecordStatus, new_id
from receiver.core.observe import Observers, SubmissionReport
from receiver.core.own_events import Routed, unknown_event
from receiver.core.submission import (
    Submission,
    SubmissionFilter,
    SubmissionState,
    as_entry,
    filled,
    headers_back,
    headers_out,
    is_name,
    names_in,
    text_at,
)
from receiver.core.work import Pickup
from receiver.engine.pickups import FORMAT_KEYS, IssuedUrl, new_pickup
from receiver.engine.submissions.allowances import Allowance
from receiver.engine.submissions.bodies import START, Outgoing, Pace, Stream
from receiver.engine.submissions.injection import Injection
from receiver.engine.submissions.source import SubmitSource
from receiver.outbound.client import CONNECT_SECONDS, Failure, ReplyBroken
from receiver.outbound.guard import target
from receiver.settings.model import SubmitSettings
from receiver.settings.submitting import Rule, SubmissionJob
from receiver.storage.journal import Journal
from receiver.storage.store.store import Store
from receiver.system.body_buffer import BodyBuffer, Receive
from receiver.system.codings import CodingBroken, Inflater, coding

if TYPE_CHECKING:
    from receiver.outbound.streams import Incoming

UNKNOWN = "the provider may have the job, and its answer did not come whole; its callback is expected"
_LOOK_SECONDS = 0.25
"""Between two looks at a submission that another call waits for."""
_KEPT_BYTES = 2 * START
"""The most of an answer, headers and body, that is kept for repeats."""


class Call(Struct, frozen=True, kw_only=True):
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

    def fingerprint(self, digest: str) -> str:
        """Return the hash of the whole request; `digest` is that of its body."""
        parts = (self.source, self.method, self.path, self.query, self.ref or "", digest)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


class Answer(Struct):
    """The answer to the caller."""

    status: int
    headers: list[tuple[str, str]]
    body: AsyncIterator[bytes]
    delivered: bool = False
    """To be set when all of it was sent to a caller who was still there."""


class Parts(Struct, kw_only=True):
    """The parts that all calls of a process share."""

    settings: SubmitSettings
    sources: Mapping[str, SubmitSource]
    """Those that may be submitted to, by name."""
    store: Store
    journal: Journal
    bodies: BodyBuffer
    observer: Observers
    clock: Callable[[], int]
    routed: Routed
    """Returns the destinations of an event."""
    wake: Callable[[Iterable[str]], None]
    """Wakes the destinations of a new event."""

    async def commit(self, ended: Submission, pickup: Pickup | None = None) -> None:
        """Write what a submission came to, and the event if that is not known. Raises `StoreUnavailable`.

        `pickup` is that of the job's result, where nobody calls back.
        """
        if ended.state is SubmissionState.UNKNOWN:  # its event first: who ends in between leaves an open one
            source = self.sources.get(ended.source)
            provider = source.settings.provider if source else ended.source
            recording = unknown_event(ended, provider, now=self.clock(), routed=self.routed)
            if (await self.store.record(recording)).status is RecordStatus.RECORDED:  # a second one is none
                self.wake(recording.destinations)
        await self.store.end_submission(ended, pickup)

    async def end(self, ended: Submission, pickup: Pickup | None) -> None:
        """Write what a submission came to; what the store cannot take now is kept in the journal."""
        try:
            await self.commit(ended, pickup)
        except StoreUnavailable as error:
            try:
                await self.journal.keep(as_entry(ended, pickup), key=ended.id, reason=error.message)
            except JournalUnavailable as full:
                facts = {"submission_id": ended.id, "job_id": ended.job_id, "reason": full.message}
                self.observer.note("error", "submit.not_recorded", **facts)


class Repeated(Exception):
    """An earlier submission stands for this one."""


class Passing(Struct):
    """A call that may be passed on."""

    parts: Parts
    call: Call
    source: SubmitSource
    rule: Rule
    allowance: Allowance
    report: SubmissionReport
    stack: AsyncExitStack
    """Releases what goes with the call."""
    submission: Submission | None = None
    began: bool = False
    """Sending began: the provider may have part of the request."""
    body: Outgoing = Outgoing()
    stream: Stream | None = None
    at: int = 0
    """When the job's row and its callback URL were made, in epoch milliseconds."""
    issued: IssuedUrl | None = None
    """The callback URL; None when the callback is the caller's own, or none comes."""
    error: Exception | None = None
    """The error that ended the body early."""

    async def answer(self) -> Answer:
        """Pass the call on; return the provider's answer. Raises `SubmissionRefused`, `SenderError`, `StoreUnavailable` and others."""
        job = self.rule.job
        if job is not None:
            return await self._submit(job)
        if (name := self.rule.names.get("job")) is not None:
            await self._own(name)
        await self._take(needed=self.rule.kind == "upload")
        return self._passed_back(await self._exchange(self.call.query))

    async def _submit(self, job: SubmissionJob) -> Answer:
        """Start a job: committed first, sent once, and the answer committed before the caller gets it."""
        try:
            query = await self._make(job)
            await self._begin()
            return await self._learned(job, await self._exchange(query))
        except BaseException as error:
            await self._end(SubmissionState.UNKNOWN if self.began else SubmissionState.OPEN, status=424)
            if isinstance(error, Repeated):
                return await self._remembered(error.args[0])
            raise

    async def _own(self, job_id: Any, where: str = "") -> None:
        """Raise `SubmissionRefused` unless this is a job of the application; `where` says how the call names it."""
        of, source = self.allowance.settings.name, self.call.source
        wanted = SubmissionFilter(application=of, source=source, job_id=job_id, limit=1)
        if not (is_name(job_id) and await self.parts.store.submissions(wanted)):
            raise SubmissionRefused(404, f"{where}no job of this application has this id")

    async def _make(self, job: SubmissionJob) -> str:
        """Make the request of a job, and return its query. Raises `SubmissionRefused`, `SenderError`."""
        query = self.call.query
        if job.set_in == "query":
            await self._take(needed=True)
            query = (injection := self._injection(job)).into_query(query)
        else:
            injection = await self._set_in_body(job)
        if injection.own:
            self.issued, self.report.reason = None, f"{injection.own[:100]} is the caller's own"
        for name, job_id in injection.refers:
            await self._own(job_id, f"{name}: ")
        return query

    async def _take(self, *, needed: bool) -> None:
        """Take the caller's body as it comes. Raises `SubmissionRefused` when it is empty and `needed`, `SenderError`."""
        length = self.call.header("content-length")
        size = int(length) if length.isdecimal() else None
        self.stream = Stream(self.call.receive, size, self.parts.settings, self._count)
        self.body = await self.stream.outgoing(self._body_ended if self.rule.kind == "submit" else None)
        if needed and self.body.content is None:
            raise SubmissionRefused(422, "the body is empty")

    async def _set_in_body(self, job: SubmissionJob) -> Injection:
        call, settings, content_type = self.call, self.parts.settings, self.call.header("content-type")
        ways = {"application/json": (Injection.into_json, settings.max_json_bytes)}
        if not (job.require or job.refers):  # what they say of the JSON cannot be seen in another form
            ways["multipart/form-data"] = (Injection.into_form, settings.max_form_bytes)
        media_type = split_media_type(content_type)[0]
        if media_type not in ways or call.header("content-encoding") not in ("", "identity"):
            wanted = f"send {' or '.join(ways)}, without a Content-Encoding"
            raise SubmissionRefused(415, f"{wanted}: the callback is set in it")
        change, most = ways[media_type]
        idle = settings.idle_seconds
        body = await self.parts.bodies.read(call.receive, limit=most, total=Pace.SECONDS, idle=idle)
        self.stack.callback(body.discard)
        self._count(body.size)
        injection = self._injection(job)
        changed = partial(change, injection, body, content_type)
        try:
            self.body = changed() if body.size <= START else await asyncio.to_thread(changed)
        except MalformedCallback as error:
            raise SubmissionRefused(422, error.message) from None
        return injection

    def _injection(self, job: SubmissionJob) -> Injection:
        """Return what puts the callback into the request: a fresh URL, unless the result is fetched."""
        call, source, self.at = self.call, self.source, self.parts.clock()
        known = {"ref": call.ref or "", "secret": source.api.secret}
        if not job.fetch:
            asked = {name: value for name, value in names_in(call.query) if name in FORMAT_KEYS}
            asked |= filled(job.format, self.rule.names)
            self.issued = issued = source.issue(ref=call.ref, format=asked, now=self.at)
            known |= {"callback": issued.url, "token": issued.token or ""}
            known["secret"] = issued.webhook_secret or source.api.secret
        wanted = {n: text for n, text in job.set.items() if known["secret"] or "{secret}" not in str(text)}
        return Injection(job, filled(wanted, known), passes_own=source.settings.own_callback == "pass")

    def _count(self, size: int) -> None:
        """Count bytes of the caller's body."""
        self.report.bytes_in += size
        self.allowance.bytes.left -= size

    async def _begin(self) -> None:
        """Commit the job's row, token and expectation before sending. Raises `Repeated`, `StoreUnavailable`, `SubmissionRefused`."""
        call, digest, key = self.call, self.body.digest, self.call.header("idempotency-key") or None
        if key is not None and not is_name(key, 255):
            raise SubmissionRefused(422, "an Idempotency-Key has 1 to 255 visible characters")
        claims, expectation = (self.issued.claims, self.issued.expectation) if self.issued else (None, None)
        new = Submission(
            id=new_id("sub", self.at),
            application=self.allowance.settings.name,
            source=call.source,
            request=self.rule.request,
            token_id=claims.token_id if claims else None,
            ref=call.ref,
            idempotency_key=key,
            fingerprint=call.fingerprint(digest) if digest else None,
            created_at=self.at,
            updated_at=self.at,
        )
        await self._unless_repeated(partial(self.parts.store.begin_submission, new, claims, expectation))
        self.submission = new

    async def _body_ended(self, digest: str) -> None:
        """Look at a streamed body that has ended but for its last piece. Raises `Repeated` when it was an earlier submission's."""
        if self.submission is not None:
            wanted = replace(self.submission, fingerprint=self.call.fingerprint(digest))
            await self._unless_repeated(partial(self.parts.store.fingerprint_submission, wanted))

    async def _unless_repeated(self, look: Callable[[], Awaitable[Submission | None]]) -> None:
        """Raise `Repeated` where an earlier submission stands for this one, once it has an answer; 424 when that takes too long."""
        until = time.monotonic() + self.parts.settings.answer_seconds
        while (earlier := await look()) is not None:
            if earlier.state is not SubmissionState.OPEN:
                raise Repeated(earlier)
            if time.monotonic() > until:
                raise SubmissionRefused(424, "the same submission is under way, and has no answer yet")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _remembered(self, earlier: Submission) -> Answer:
        """Return the answer of an earlier submission. Raises `SubmissionRefused`: 424 without one, 422 for another request's key."""
        digest = await self.stream.digest() if self.stream else self.body.digest
        if earlier.fingerprint != self.call.fingerprint(digest):
            raise SubmissionRefused(422, "this Idempotency-Key came with another request")
        self.submission, self.report.outcome = earlier, "replayed"
        if earlier.answer is None:
            raise SubmissionRefused(424, UNKNOWN)
        headers, body = msgspec.msgpack.decode(earlier.answer, type=tuple[list[tuple[str, str]], bytes])
        headers.append(("x-receiver-replayed", "1"))
        return Answer(earlier.status or 200, headers, once(body))

    async def _exchange(self, query: str) -> Incoming:
        """Send the request; return the head of its answer. Raises `SubmissionRefused` when none came, and for a redirect."""
        call, api, upstream, content = self.call, self.source.api, self.source.upstream, self.body.content
        place = target(f"{api.table.base}{call.path}{'?' if query else ''}{query}")
        if isinstance(place, str):
            raise SubmissionRefused(404, place)
        patience = _patience(call.header("prefer"), self.parts.settings.answer_seconds)
        ours = {**api.auth, **api.table.headers, **self.body.headers}
        headers = headers_out(call.headers, api.table.header, ours)
        self.began = True
        try:
            async with asyncio.timeout(CONNECT_SECONDS + patience) as limit:
                pieces = self._timed(content, limit, patience) if content else None
                reply = await upstream.exchange(call.method, place, headers, pieces)
        except TimeoutError:
            raise SubmissionRefused(424, UNKNOWN) from None
        if isinstance(reply, Failure):
            self.began = self.error is None and reply.sent  # without its last piece there is no whole request
            if self.error is not None:
                raise self.error
            if not reply.sent:
                raise SubmissionRefused(503, f"nothing was sent: {reply.detail}", retry_after=5)
            raise SubmissionRefused(424, UNKNOWN)
        self.stack.callback(reply.close)
        if reply.status < 200 or (300 <= reply.status < 400 and reply.status != 304):
            raise SubmissionRefused(424, f"the provider answers {reply.status}, which is followed nowhere")
        return reply

    async def _timed(
        self, content: AsyncIterator[bytes], limit: asyncio.Timeout, answer_seconds: float
    ) -> AsyncIterator[bytes]:
        """Yield a body: the provider takes each piece within `idle_seconds`, and answers within `answer_seconds`."""

        def wait(seconds: float | None) -> None:
            # A provider may answer before it has read all: then the limit has ended, and the body still goes out.
            with contextlib.suppress(RuntimeError):
                limit.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)

        try:
            wait(None)
            async for piece in content:
                wait(self.parts.settings.idle_seconds)
                yield piece
                wait(None)  # the next piece has a time of its own
            wait(answer_seconds)
        except Exception as error:
            self.error = error
            raise

    def _passed_back(self, reply: Incoming, start: bytes = b"") -> Answer:
        """Return a provider's answer, of which `start` was read."""
        self.report.outcome = "forwarded"
        return Answer(reply.status, headers_back(reply.headers), self._rest(reply, start))

    async def _rest(self, reply: Incoming, piece: bytes) -> AsyncIterator[bytes]:
        """Yield an answer's body: what was read of it, and what comes. Raises `ReplyBroken`, `TimeoutError`."""
        settings, report = self.parts.settings, self.report
        pace = Pace(settings.idle_seconds)
        while True:
            if piece:
                report.bytes_out += len(piece)
                yield piece
            async with asyncio.timeout(min(pace.idle_seconds, pace.until - time.monotonic())):
                piece = await reply.read()
            if not piece:
                return
            pace.came(piece)
            if report.bytes_out + len(piece) > settings.max_body_bytes:
                raise ReplyBroken

    async def _learned(self, job: SubmissionJob, reply: Incoming) -> Answer:
        """Commit what the provider's answer says of the job, and pass it back. Raises `SubmissionRefused` when it does not come whole."""
        if not 200 <= reply.status < 300:
            await self._end(SubmissionState.REFUSED, status=reply.status)
            return self._passed_back(reply)
        start, whole = await self._start(reply)
        plain = _plain(start, reply.headers.get("content-encoding", ""))
        job_id, body = text_at(plain, job.job), self._led_back(job, plain)
        answer = self._passed_back(reply, body)
        if body != start:
            answer.headers = [h for h in answer.headers if h[0] not in ("content-length", "content-encoding")]
        kept = msgspec.msgpack.encode((answer.headers, body)) if whole else b""
        if job_id is None:
            self.parts.observer.note("warning", "submit.no_job_id", source=self.call.source)
        pickup = self._pickup(job_id) if job.fetch and job_id else None
        found: dict[str, Any] = {"status": reply.status, "job_id": pickup.job_id if pickup else job_id}
        found["answer"] = kept if 0 < len(kept) <= _KEPT_BYTES else None
        await self._end(SubmissionState.ACCEPTED, pickup, **found)
        return answer

    async def _start(self, reply: Incoming) -> tuple[bytes, bool]:
        """Return the start of an answer's body, and whether that is all of it. Raises `SubmissionRefused`."""
        start, whole = bytearray(), False
        try:
            async with asyncio.timeout(self.parts.settings.answer_seconds):
                while len(start) <= START and not whole:
                    piece = await reply.read()
                    start += piece
                    whole = not piece
        except (ReplyBroken, TimeoutError):
            raise SubmissionRefused(424, UNKNOWN) from None
        return bytes(start), whole

    def _led_back(self, job: SubmissionJob, raw: bytes) -> bytes:
        """Return an answer whose URLs of the provider's API point to receiver instead, so that the caller polls through receiver."""
        table = self.source.api.table
        here = f"{self.parts.settings.url}/submit/{self.call.source}{table.folder}"
        for place in job.rewrite:
            url = text_at(raw, place, most=8192)
            if url is not None and url.startswith(f"{table.base}/"):
                for said in (url, url.replace("/", "\\/")):  # PHP escapes each slash
                    raw = raw.replace(f'"{said}"'.encode(), f'"{here}{url[len(table.base) :]}"'.encode())
        return raw

    def _pickup(self, job_id: str) -> Pickup | None:
        """Return the pickup of a job's result, for providers that do not call back."""
        pull, now, source = self.source.pull, self.parts.clock(), self.call.source
        try:
            return None if pull is None else new_pickup(pull, job_id, ref=self.call.ref, now=now)
        except PickupRefused as error:
            self.parts.observer.note("warning", "submit.no_pickup", source=source, reason=error.message)
            return None

    async def _end(self, state: SubmissionState, pickup: Pickup | None = None, **found: Any) -> None:
        """Commit what the submission came to; `OPEN`: nothing was sent. What the store cannot take is kept in the journal."""
        if self.submission is None:
            return
        made = replace(self.submission, state=state, updated_at=self.parts.clock(), **found)
        self.submission = None if state is SubmissionState.OPEN else made
        await asyncio.shield(self.parts.end(made, pickup))


async def once(data: bytes) -> AsyncIterator[bytes]:
    """Yield bytes that are here."""
    yield data


def _patience(prefer: str, seconds: float) -> float:
    """Return how long the provider's answer may take: up to 65 s when the caller asks the provider to wait."""
    for part in prefer.split(","):
        name, _, wish = part.strip().partition("=")
        if name == "wait":
            seconds = max(seconds, min(65.0, (float(wish) if wish.isdecimal() else 60.0) + 5))
    return seconds


def _plain(data: bytes, named: str) -> bytes:
    """Return an answer without its content coding, which some use unasked; as it is if that cannot be undone within bounds."""
    plain = bytearray()
    if code := coding(named):
        with contextlib.suppress(CodingBroken):
            for piece in (inflater := Inflater(code)).feed(data):
                plain += piece
                if len(plain) > START:
                    return data
            inflater.finish()
            return bytes(plain)
    return data
