"""Callback URLs, handed out for one job each."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

from receiver.engine.requests import MAX_REF, checked_format, issue_callback_url, source_named
from receiver.settings.model import ApiScope
from receiver.web.api.operation import Again, Served, operation
from receiver.web.api.pickups import Seconds
from receiver.web.views import CallbackUrl, issued_url


class NewCallbackUrl(Struct, forbid_unknown_fields=True, frozen=True):
    """The job that a callback URL is for."""

    source: str
    ref: Annotated[str, Meta(max_length=MAX_REF)] | None = None
    expires_seconds: Annotated[float, Meta(gt=0, le=10 * 365 * 86400)] | None = None
    format: dict[str, str | int] = field(default_factory=dict)
    expect_within_seconds: Seconds | None = None
    job_secret: bool = False
    short: bool = False
    """A token of 40 characters, whose meaning is kept."""


@operation("POST /callback-urls", ApiScope.OPERATE, statuses=(201,), again=Again.REFUSED)
async def make(call: Served[None, NewCallbackUrl]) -> CallbackUrl:
    """Make a callback URL for one job."""
    receiver, wanted = call.receiver, call.body
    source = source_named(receiver.settings, wanted.source)
    made = issue_callback_url(
        receiver.settings.public_url,
        source,
        receiver.tokens,
        provider=receiver.ports.pulls.get(source.name),
        ref=wanted.ref,
        format=checked_format(wanted.format),
        expires_seconds=wanted.expires_seconds,
        expect_seconds=wanted.expect_within_seconds,
        job_secret=wanted.job_secret,
        short=wanted.short,
        now=call.now,
    )
    if made.claims is not None:
        await receiver.store.add_token(made.claims)
    if made.expectation is not None:
        await receiver.store.add_pickup(made.expectation)
        receiver.collector.wake([source.name])
    return issued_url(made)
