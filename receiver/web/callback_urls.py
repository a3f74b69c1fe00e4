"""`/api/v1/callback-urls`: callback URLs for an application to hand to a provider, one for each job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct, field

from receiver.engine.requests import MAX_REF, HandedOut, calls_back, hand_out
from receiver.web.api import Refused, answer, read
from receiver.web.pickups import Seconds, checked_format, source_named
from receiver.web.shown import time_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from receiver.app.wiring import Receiver
    from receiver.settings.model import SourceSettings


class NewCallbackUrl(Struct, forbid_unknown_fields=True, frozen=True):
    """The body of a POST."""

    source: str
    ref: Annotated[str, Meta(max_length=MAX_REF)] | None = None
    expires_seconds: Annotated[float, Meta(gt=0, le=10 * 365 * 86400)] | None = None
    format: dict[str, str | int] = field(default_factory=dict)
    expect_within_seconds: Seconds | None = None
    job_secret: bool = False


class CallbackUrls:
    """Hands callback URLs out."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def make(self, request: Request) -> Response:
        """Answer 201 with a fresh URL; with `expect_within_seconds` its expectation is stored before."""
        wanted = await read(request, NewCallbackUrl)
        receiver = self._receiver
        source = source_named(receiver, wanted.source)
        _refuse_contradictions(source, wanted)
        made = hand_out(
            receiver.settings.public_url,
            source,
            receiver.tokens,
            provider=receiver.ports.pulls.get(source.name),
            ref=wanted.ref,
            format=checked_format(wanted.format),
            expires_seconds=wanted.expires_seconds,
            expect_seconds=wanted.expect_within_seconds,
            job_secret=wanted.job_secret,
            now=receiver.clock(),
        )
        if made.expectation is not None:
            await receiver.store.add_pickup(made.expectation)
            receiver.collector.wake(source.name)
        return answer(_fields(made, wanted), status=201)


def _fields(made: HandedOut, wanted: NewCallbackUrl) -> dict[str, Any]:
    expected = made.expectation
    return {
        "url": made.url,
        "source": wanted.source,
        "token": made.token,
        "ref": wanted.ref,
        "webhook_secret": made.webhook_secret,
        "expect_by": time_of(expected.due_at) if expected else None,
        "pickup_id": expected.id if expected else None,
    }


def _refuse_contradictions(source: SourceSettings, wanted: NewCallbackUrl) -> None:
    if not calls_back(source):
        raise Refused(
            422,
            f"{source.name} is of provider {source.provider}, which does not call back: use /api/v1/pickups",
        )
    if wanted.job_secret and source.provider != "deapi":
        raise Refused(422, "job_secret is for deAPI: it alone takes a webhook_secret with a job")
    expires, within = wanted.expires_seconds, wanted.expect_within_seconds
    if expires is not None and within is not None and expires < within:
        raise Refused(422, "the URL would expire before its callback is overdue: make expires_seconds larger")
