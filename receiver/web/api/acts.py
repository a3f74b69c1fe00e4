"""The audit of what is done over the API, and idempotency keys: one row for each request that changes something."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from receiver.core.audit import Act, new_act
from receiver.settings.model import ApiScope
from receiver.web.api.lists import Paged, page
from receiver.web.api.operation import Again, Call, Served, operation
from receiver.web.api.problems import Refused
from receiver.web.views import Page

KEY_CHARS = 200
_UNDER_WAY_MS = 60_000
"""An act that has no answer after so long was ended with its process, and may be done anew."""


def act_of(action: str, call: Served[Any, Any], raw: bytes) -> Act:
    """Return the act that a request is. Raises `Refused` for a key that is too long."""
    request = call.request
    key = request.headers.get("idempotency-key") or None
    if key is not None and len(key) > KEY_CHARS:
        raise Refused(400, f"Idempotency-Key is longer than {KEY_CHARS} characters")
    path = request.url.path
    return new_act(
        action,
        call.holder.name,
        at=call.now,
        subject=path,
        details={} if call.body is None else msgspec.to_builtins(call.body),
        peer=call.peer,
        key=key,
        digest=hashlib.sha256(path.encode() + b"\0" + raw).hexdigest(),
    )


def refuse_other(noted: Act, act: Act, *, again: Again) -> None:
    """Raise `Refused` for a request that has the key of another, of one under way, or of one that is not done twice."""
    if noted.digest != act.digest:
        raise Refused(422, "the Idempotency-Key was used for another request: take a new one")
    if noted.status is None and act.at - noted.at < _UNDER_WAY_MS:
        raise Refused(409, "a request with this Idempotency-Key is under way", {"retry-after": "5"})
    if again is Again.REFUSED and noted.status is not None and noted.status < 400:
        raise Refused(409, "it was made before, and its answer is not kept: take a new Idempotency-Key")


class ActQuery(Paged, frozen=True):
    """Which acts to list, newest first."""

    token: str | None = None
    """The name of the token that it was asked with."""


@operation("GET /audit", ApiScope.READ)
async def listed(call: Call[ActQuery, None]) -> Page[Act]:
    """List what was done over the API, in the console and by commands, newest first."""
    query = call.query
    return page(await call.store.acts(query.token, query.after, query.limit))
