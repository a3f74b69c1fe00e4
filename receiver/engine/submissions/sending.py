"""Builds the provider's request from an application's call, with the callback in query or body, and sends it once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from receiver.core.callback import Body, split_media_type
from receiver.core.errors import OwnCallback, SubmissionRefused
from receiver.core.submission import filled, headers_out, names_in
from receiver.engine.requests import FORMAT_KEYS
from receiver.engine.submissions.bodies import Stream, held_body
from receiver.engine.submissions.call import UNKNOWN, Passing
from receiver.engine.submissions.injection import into_form, into_json, into_query, jobs_named, members
from receiver.engine.submissions.repeats import ended, fingerprint_of
from receiver.outbound.client import CONNECT_SECONDS, Failure
from receiver.outbound.guard import Target, target
from receiver.settings.submitting import SubmissionJob

if TYPE_CHECKING:
    from receiver.outbound.streams import Incoming

_READ_SECONDS = 1800.0
"""How long a whole body may take in which the callback is set."""
_AT_ONCE = 64 * 1024
"""Bytes of a body that are looked through without a thread."""
_MOST_SECONDS = 65.0
"""The longest wait for an answer, for a caller who asks the provider to wait."""
T = TypeVar("T")


async def make(passing: Passing, job: SubmissionJob) -> None:
    """Make the request of a call that makes a job. Raises `SubmissionRefused`, `SenderError`."""
    if job.set_in == "body":
        await _set_in_body(passing, job)
        return
    await stream(passing, needed=True)
    values = _values(passing, job)
    if (query := _unless_own(passing, lambda: into_query(passing.query, job, values))) is not None:
        passing.query = query


def _values(passing: Passing, job: SubmissionJob) -> Mapping[str, Any]:
    """Return what to put into the request, with a fresh callback URL unless the result is fetched."""
    call, source, passing.at = passing.call, passing.source, passing.parts.clock()
    known = {"ref": call.ref or "", "secret": source.secret}
    if not job.fetch:
        asked = {name: value for name, value in names_in(call.query) if name in FORMAT_KEYS}
        asked |= filled(job.format, passing.rule.names)
        passing.issued = issued = source.issue(ref=call.ref, format=asked, now=passing.at)
        known |= {"callback": issued.url, "token": issued.token or ""}
        known["secret"] = issued.webhook_secret or source.secret
    wanted = {name: text for name, text in job.set.items() if known["secret"] or "{secret}" not in str(text)}
    values: Mapping[str, Any] = filled(wanted, known)
    return values


def _unless_own(passing: Passing, change: Callable[[], T]) -> T | None:
    """Return the changed query or body; None if the caller's own callback is to be passed on. Raises `OwnCallback` if it is not."""
    try:
        return change()
    except OwnCallback as own:
        if passing.source.settings.own_callback != "pass":
            raise
        passing.issued, passing.report.reason = None, own.message
        return None


async def _set_in_body(passing: Passing, job: SubmissionJob) -> None:
    content_type = passing.call.header("content-type")
    media_type, settings = split_media_type(content_type)[0], passing.parts.settings
    if passing.call.header("content-encoding") not in ("", "identity"):
        raise SubmissionRefused(415, "send the body without a Content-Encoding: the callback is set in it")
    if media_type == "application/json":
        held = await _read(passing, settings.max_json_bytes)
        found = await _looked_through(held, lambda: members(held.load()))
        for name, job_id in jobs_named(found, job):
            await passing.own(job_id, f"{name}: ")
        change = partial(into_json, held, found, job)
    elif job.require or job.refers:  # what they say of the JSON cannot be seen in another form
        raise SubmissionRefused(415, "send application/json: what it says decides whether it is passed on")
    elif media_type == "multipart/form-data":
        held = await _read(passing, settings.max_form_bytes)
        change = partial(into_form, held, content_type, job)
    else:
        message = "send application/json or multipart/form-data: the callback is set in it"
        raise SubmissionRefused(415, message)
    values = _values(passing, job)
    body = await _looked_through(held, lambda: _unless_own(passing, lambda: change(values)))
    passing.body = body or held_body(held, [(0, held.size)])
    passing.body.content_type = passing.body.content_type or content_type  # the one by which it was read
    passing.fingerprint = fingerprint_of(passing, passing.body.digest or held.sha256)


async def _looked_through(body: Body, look: Callable[[], T]) -> T:
    """Return the result of a function over a whole body; a long body is processed in a thread."""
    return look() if body.size <= _AT_ONCE else await asyncio.to_thread(look)


async def _read(passing: Passing, most: int) -> Body:
    """Read a whole body; it goes with the call."""
    parts = passing.parts
    body = await parts.bodies.read(
        passing.call.receive, limit=most, total=_READ_SECONDS, idle=parts.settings.idle_seconds
    )
    passing.stack.callback(body.discard)
    passing.count(body.size)
    return body


async def stream(passing: Passing, *, needed: bool) -> None:
    """Take the caller's body as it comes, its first piece read. Raises `SubmissionRefused` if it is `needed` and empty."""
    call, settings = passing.call, passing.parts.settings
    length = call.header("content-length")
    body = Stream(
        call.receive,
        int(length) if length.isdecimal() else None,
        most=settings.max_body_bytes,
        idle_seconds=settings.idle_seconds,
        count=passing.count,
    )
    if await body.begin():
        passing.body = body
    elif needed:
        raise SubmissionRefused(422, "the body is empty")
    if not body.more:
        passing.fingerprint = fingerprint_of(passing, await body.whole_digest())
    elif passing.rule.kind == "submit":
        body.ended = partial(ended, passing)


async def exchange(passing: Passing) -> Incoming:
    """Send the request; return the head of its answer. Raises `SubmissionRefused` when none came, and for a redirect."""
    body, settings, call = passing.body, passing.parts.settings, passing.call
    question = f"?{passing.query}" if passing.query else ""
    place = target(f"{passing.source.table.base}{call.path}{question}")
    if not isinstance(place, Target):
        raise SubmissionRefused(404, place)
    patience = _patience(call.header("prefer"), settings.answer_seconds)
    pieces = body.timed(body.content, settings.idle_seconds, patience) if body.content else None
    passing.began = True
    try:
        async with body.limit:
            body.wait(CONNECT_SECONDS + patience)
            reply = await passing.source.upstream.exchange(call.method, place, _headers(passing), pieces)
    except TimeoutError:
        raise SubmissionRefused(424, UNKNOWN) from None
    if isinstance(reply, Failure):
        passing.began = (
            body.error is None and reply.sent
        )  # without its last piece the provider has no whole request
        if body.error is not None:
            raise body.error
        if not reply.sent:
            raise SubmissionRefused(503, f"nothing was sent: {reply.detail}", retry_after=5)
        raise SubmissionRefused(424, UNKNOWN)
    passing.stack.callback(reply.close)
    if reply.status < 200 or (300 <= reply.status < 400 and reply.status != 304):
        raise SubmissionRefused(424, f"the provider answers {reply.status}, which is followed nowhere")
    return reply


def _headers(passing: Passing) -> list[tuple[str, str]]:
    body = passing.body
    headers = headers_out(passing.call.headers, passing.source.table.header, passing.source.headers)
    if body.content_type is not None:
        headers = [pair for pair in headers if pair[0] != "content-type"]
        headers.append(("content-type", body.content_type))
    return headers if body.length is None else [*headers, ("content-length", str(body.length))]


def _patience(prefer: str, seconds: float) -> float:
    """Return how long the provider's answer may take: longer when the caller asks the provider to wait."""
    for part in prefer.split(","):
        name, _, wish = part.strip().partition("=")
        if name == "wait":
            seconds = max(seconds, min(_MOST_SECONDS, (float(wish) if wish.isdecimal() else 60.0) + 5))
    return seconds
