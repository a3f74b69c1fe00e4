"""The exchange with the provider: a request goes out once, and what is not a whole answer to it is an unknown outcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from receiver.core.errors import BodyTooSlow, SubmissionRefused
from receiver.core.submission import headers_out
from receiver.engine.submissions.bodies import Outgoing
from receiver.engine.submissions.call import UNKNOWN, Call, Passing
from receiver.outbound.client import Failure
from receiver.outbound.guard import Target, target
from receiver.outbound.upstream import CONNECT_SECONDS, NotSent
from receiver.settings.model import SubmitSettings

if TYPE_CHECKING:
    from receiver.outbound.streams import Incoming

_MOST_SECONDS = 65.0
"""The longest wait for an answer, for a caller who asks the provider to wait."""


async def exchange(passing: Passing, query: str, body: Outgoing | None, settings: SubmitSettings) -> Incoming:
    """Send a request; return the head of its answer. Raises `SubmissionRefused` when none came, and for a redirect."""
    call, api = passing.call, passing.source.api
    out = body or Outgoing(None)
    out.idle_seconds, out.answer_seconds = settings.idle_seconds, _patience(call, settings)
    place = target(f"{api.base}{call.path}{'?' if query else ''}{query}")
    if not isinstance(place, Target):
        raise SubmissionRefused(404, place)
    passing.began = True
    reply = await _sent(passing, place, _headers(passing, body), out, body)
    if isinstance(reply, Failure):
        if out.error is not None:  # the last piece was not sent: the provider has no whole request
            passing.began = False
            raise out.error
        if isinstance(reply, NotSent):
            passing.began = False
            raise SubmissionRefused(503, f"nothing was sent: {reply.detail}", retry_after=5)
        raise SubmissionRefused(424, UNKNOWN)
    passing.stack.callback(reply.close)
    if 300 <= reply.status < 400 and reply.status != 304:
        raise SubmissionRefused(424, f"the provider answers {reply.status}, and redirects are not followed")
    return reply


async def _sent(
    passing: Passing,
    place: Target,
    headers: Sequence[tuple[str, str]],
    out: Outgoing,
    body: Outgoing | None,
) -> Incoming | Failure:
    try:
        async with out.limit:
            out.wait(CONNECT_SECONDS + out.answer_seconds)
            reply = await passing.source.upstream.exchange(
                passing.call.method, place, headers, body.pieces() if body else None
            )
            out.answered = True
            return reply
    except TimeoutError:
        if out.waits_for_caller:
            passing.began = False
            raise BodyTooSlow from None
        raise SubmissionRefused(424, UNKNOWN) from None


def _headers(passing: Passing, body: Outgoing | None) -> list[tuple[str, str]]:
    headers = headers_out(passing.call.headers, passing.source.api)
    if body is not None and body.length is not None:
        headers.append(("content-length", str(body.length)))
    if body is not None and body.content_type is not None:
        headers = [pair for pair in headers if pair[0] != "content-type"]
        headers.append(("content-type", body.content_type))
    return headers


def _patience(call: Call, settings: SubmitSettings) -> float:
    """Return how long the provider's answer may take: longer when the caller asks the provider to wait."""
    seconds = settings.answer_seconds
    for part in call.header("prefer").split(","):
        name, _, wish = part.strip().partition("=")
        if name == "wait":
            seconds = max(seconds, min(_MOST_SECONDS, (float(wish) if wish.isdecimal() else 60.0) + 5))
    return seconds
