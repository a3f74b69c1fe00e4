"""Builds the provider's request from an application's call, with the callback in query or body, and sends it once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from receiver.core.callback import Body, TokenClaims, split_media_type
from receiver.core.callback_urls import compose
from receiver.core.errors import OwnCallback, SubmissionRefused
from receiver.core.submission import filled, headers_out, names_in
from receiver.engine.requests import FORMAT_KEYS
from receiver.engine.submissions.bodies import Held, Stream
from receiver.engine.submissions.call import UNKNOWN, Passing
from receiver.engine.submissions.injection import into_form, into_json, into_query
from receiver.engine.submissions.repeats import ended, fingerprint_of
from receiver.outbound.client import CONNECT_SECONDS, Failure
from receiver.outbound.guard import Target, target
from receiver.settings.submitting import SubmissionJob

if TYPE_CHECKING:
    from receiver.outbound.streams import Incoming

TOKEN_SECONDS = 7 * 86_400
"""How long a submission's callback URL is good."""
_READ_SECONDS = 1800.0
"""How long a whole body may take in which the callback is set."""
_AT_ONCE = 64 * 1024
"""Bytes of a body that are looked through without a thread."""
_MOST_SECONDS = 65.0
"""The longest wait for an answer, for a caller who asks the provider to wait."""
T = TypeVar("T")


async def make(passing: Passing, job: SubmissionJob) -> None:
    """Make the request of a call that makes a job. Raises `SubmissionRefused`, `SenderError`."""
    claims, values = _issued(passing, job)
    try:
        if job.set_in == "query":
            passing.query = into_query(passing.query, job, values)
        else:
            await _set_in_body(passing, job, values)
        passing.claims = claims
    except OwnCallback as own:
        if passing.source.settings.own_callback != "pass":
            raise
        passing.report.reason = own.message
        if passing.held is not None:
            passing.body = Held(passing.held, ((0, passing.held.size),))
            passing.fingerprint = fingerprint_of(passing, passing.held.sha256)
    if passing.held is None:
        await stream(passing, needed=job.needs_body)


def _issued(passing: Passing, job: SubmissionJob) -> tuple[TokenClaims, Mapping[str, Any]]:
    """Return the claims of the job's token, and the values to put into the request."""
    call, api, now = passing.call, passing.source.api, passing.parts.clock()
    seconds = passing.source.settings.submit_expect_seconds or api.table.expect_seconds
    asked = {name: value for name, value in names_in(call.query) if name in FORMAT_KEYS}
    token, claims = passing.parts.tokens.issue_short(
        call.source,
        ref=call.ref,
        format={**asked, **filled(job.format, passing.rule.names)},
        expires_at=now + TOKEN_SECONDS * 1000,
        job_secret=api.job_secrets,
        now=now,
        expect_by=now + round(seconds * 1000),
    )
    secret = passing.parts.tokens.job_secrets(token)[0] if api.job_secrets else api.secret
    url = compose(passing.parts.public_url, call.source, token=token, basic=api.basic)
    known = {"callback": url, "secret": secret, "token": token, "ref": call.ref or ""}
    wanted = {name: text for name, text in job.set.items() if secret or "{secret}" not in str(text)}
    return claims, filled(wanted, known)


async def _set_in_body(passing: Passing, job: SubmissionJob, values: Mapping[str, Any]) -> None:
    content_type = passing.call.header("content-type")
    media_type, settings = split_media_type(content_type)[0], passing.parts.settings
    if media_type == "application/json":
        held = await _read(passing, settings.max_json_bytes)
        changed = await looked_through(held, lambda: into_json(held.load(), job, values))
        passing.body, digest = Held(held, (changed,)), held.sha256
    elif job.require or job.refers:  # what they say of the JSON cannot be seen in another form
        raise SubmissionRefused(415, "send application/json: what it says decides whether it is passed on")
    elif media_type == "multipart/form-data":
        held = await _read(passing, settings.max_form_bytes)
        into = partial(into_form, held, content_type, job, values)
        passing.body, digest = await looked_through(held, into)
    else:
        message = "send application/json or multipart/form-data: the callback is set in it"
        raise SubmissionRefused(415, message)
    passing.fingerprint = fingerprint_of(passing, digest)


async def looked_through(body: Body, look: Callable[[], T]) -> T:
    """Return the result of a function over a whole body; a long body is processed in a thread."""
    return look() if body.size <= _AT_ONCE else await asyncio.to_thread(look)


async def _read(passing: Passing, most: int) -> Body:
    """Read a whole body; it goes with the call."""
    parts = passing.parts
    body = await parts.bodies.read(
        passing.call.receive, limit=most, total=_READ_SECONDS, idle=parts.settings.idle_seconds
    )
    passing.held = body
    passing.stack.callback(body.discard)
    passing.count(body.size)
    return body


async def stream(passing: Passing, *, needed: bool) -> None:
    """Take the caller's body as it comes, its first piece read."""
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
        passing.fingerprint = fingerprint_of(passing, await body.digest())
    elif passing.rule.kind == "submit":
        body.ended = partial(ended, passing)


async def exchange(passing: Passing) -> Incoming:
    """Send the request; return the head of its answer. Raises `SubmissionRefused` when none came, and for a redirect."""
    body, settings = passing.body, passing.parts.settings
    question = f"?{passing.query}" if passing.query else ""
    place = target(f"{passing.source.api.table.base}{passing.call.path}{question}")
    if not isinstance(place, Target):
        raise SubmissionRefused(404, place)
    patience = _patience(passing)
    pieces = body.timed(body.content, settings.idle_seconds, patience) if body.content else None
    passing.began = True
    try:
        async with body.limit:
            body.wait(CONNECT_SECONDS + patience)
            reply = await passing.source.upstream.exchange(
                passing.call.method, place, _headers(passing), pieces
            )
            body.answered = True
    except TimeoutError:
        raise SubmissionRefused(424, UNKNOWN) from None
    if isinstance(reply, Failure):
        if body.error is not None:  # the last piece was not sent: the provider has no whole request
            passing.began = False
            raise body.error
        if not reply.sent:
            passing.began = False
            raise SubmissionRefused(503, f"nothing was sent: {reply.detail}", retry_after=5)
        raise SubmissionRefused(424, UNKNOWN)
    passing.stack.callback(reply.close)
    if reply.status < 200 or (300 <= reply.status < 400 and reply.status != 304):
        raise SubmissionRefused(424, f"the provider answers {reply.status}, which is followed nowhere")
    return reply


def _headers(passing: Passing) -> list[tuple[str, str]]:
    api, body = passing.source.api, passing.body
    headers = headers_out(passing.call.headers, api.table.header, api.headers)
    if body.content_type is not None:
        headers = [pair for pair in headers if pair[0] != "content-type"]
        headers.append(("content-type", body.content_type))
    return headers if body.length is None else [*headers, ("content-length", str(body.length))]


def _patience(passing: Passing) -> float:
    """Return how long the provider's answer may take: longer when the caller asks the provider to wait."""
    seconds = passing.parts.settings.answer_seconds
    for part in passing.call.header("prefer").split(","):
        name, _, wish = part.strip().partition("=")
        if name == "wait":
            seconds = max(seconds, min(_MOST_SECONDS, (float(wish) if wish.isdecimal() else 60.0) + 5))
    return seconds
