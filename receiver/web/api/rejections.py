"""Callbacks that were refused: listed, verified again, accepted once."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from receiver.app.trial import accept_once, verify_again
from receiver.core.event import Rejection
from receiver.settings.model import ApiScope
from receiver.web.api.lists import Limit
from receiver.web.api.operation import Call, Served, operation
from receiver.web.views import Page

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


class ProofJudged(Struct, frozen=True, kw_only=True):
    """What one proof says of a request."""

    proof: str
    holds: bool
    reason: str
    """Why it does not hold; empty where it does."""
    signed: str | None
    """The beginning of the message that was signed, secrets removed; null where the proof signs none."""


class RejectionJudged(Struct, frozen=True, kw_only=True):
    """What today's settings say of a request that was refused, as of the time when it came. Nothing was recorded."""

    verdict: str
    """`accepted`, `parked`, `ignored`, `handshake` or `refused`."""
    reason: str
    proofs: list[ProofJudged]
    """Of sources without code, each proof; of others none, as the reason says it."""


class RejectionAccepted(Struct, frozen=True, kw_only=True):
    """A callback that an operator accepted."""

    status: str
    """`recorded`, `late`, or `duplicate` of what was recorded before."""
    event_id: str
    """The event; that of the first where it is a duplicate."""
    pickup_id: str | None
    """The pickup that brings the event's result home; null where nothing is fetched."""


@operation("GET /rejections", ApiScope.READ)
async def listed(call: Call[RejectionQuery, None]) -> Page[Rejection]:
    """List callbacks that were refused, newest first."""
    query = call.query
    found = await call.store.rejections(query.source, limit=query.limit, ref=query.ref)
    return Page(items=found, next=None)


@operation("POST /rejections/{rejection_id}/verify", ApiScope.OPERATE)
async def verify(call: Served[None, None]) -> RejectionJudged:
    """Verify a kept request again, by today's settings and as of its arrival; record nothing."""
    return msgspec.convert(await verify_again(call.receiver, call.path["rejection_id"]), RejectionJudged)


@operation("POST /rejections/{rejection_id}/accept", ApiScope.ADMIN)
async def accept(call: Served[None, Acceptance]) -> RejectionAccepted:
    """Record a kept request that nothing proves, for a reason that the audit keeps; once more, it is a duplicate."""
    made = await accept_once(call.receiver, call.path["rejection_id"])
    return RejectionAccepted(status=made.status.value, event_id=made.event_id, pickup_id=made.pickup_id)
