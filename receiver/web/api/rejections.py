"""Callbacks that were refused: listed, verified again, accepted once."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from receiver.app.second_look import accept_once, verify_again
from receiver.web.api.call import Call
from receiver.web.api.lists import Limit
from receiver.web.views import Page, RejectionAccepted, RejectionJudged, RejectionShown, shown

MAX_REASON = 500


class RejectionQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """Which rejections to list, newest first."""

    source: str | None = None
    ref: str | None = None
    limit: Limit = 50


class Acceptance(Struct, forbid_unknown_fields=True, frozen=True):
    """Why a callback is accepted that nothing proves."""

    reason: Annotated[str, Meta(min_length=1, max_length=MAX_REASON, pattern=r"\S")]
    """For the audit."""


async def listed(call: Call[RejectionQuery, None]) -> Page[RejectionShown]:
    """List callbacks that were refused; the last 100 of each source and kind are kept."""
    found = await call.receiver.store.rejections(
        call.query.source, limit=call.query.limit, ref=call.query.ref
    )
    return Page(items=[shown(one, RejectionShown) for one in found], next=None)


async def verify(call: Call[None, None]) -> RejectionJudged:
    """Verify a request again by today's settings; nothing is recorded."""
    return msgspec.convert(await verify_again(call.receiver, call.path["rejection_id"]), RejectionJudged)


async def accept(call: Call[None, Acceptance]) -> RejectionAccepted:
    """Record a callback on the word of whoever asks."""
    recorded = await accept_once(call.receiver, call.path["rejection_id"])
    return RejectionAccepted(
        status=recorded.status.value, event_id=recorded.event_id, pickup_id=recorded.pickup_id
    )
