"""The audit log: each change made over the API, in the console or on the command line, by whom and when. Pure data, no I/O."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from receiver.core.event import new_id

COMMAND_LINE = "command line"
"""The actor's name in the audit log where a person uses the command line, which has no token."""
_AUDITED = frozenset(
    (
        *("source", "destination", "to", "state", "type", "kind", "since", "until", "rate", "dry_run"),
        *("reason", "deliveries"),
    )
)
"""The request fields that the audit log may show. All others may hold a secret or personal data."""


class Act(Struct, frozen=True, kw_only=True):
    """One request that changes something. The store keeps it before the change is made."""

    id: str
    at: int
    token: str
    """The name of the token that authorized the request."""
    action: str
    """`POST /replays`, `console /replays`, `receiver replay` …"""
    subject: str
    """The path of the request; for a command, the operation or the destination."""
    detail: str
    """JSON: the request's fields, without secrets and personal data."""
    peer: str | None
    key: str | None
    """The caller's idempotency key; unique among the acts of a token."""
    digest: str
    """SHA-256 of the request's path and body: the same key stands for the same request."""
    status: int | None = None
    """How it was answered; None while it is under way, or where the process ended meanwhile."""
    answer: bytes | None = None
    """The answer where it must be given again."""


def new_act(
    action: str,
    token: str,
    *,
    at: int,
    subject: str,
    details: Mapping[str, object],
    peer: str | None = None,
    key: str | None = None,
    digest: str = "",
) -> Act:
    """Return an act that begins. Of `detail` it keeps only the fields that the audit log may show."""
    told = {name: value for name, value in details.items() if name in _AUDITED and value not in (None, "")}
    return Act(
        id=new_id("act", at),
        at=at,
        token=token,
        action=action,
        subject=subject,
        detail=msgspec.json.encode(told).decode(),
        peer=peer,
        key=key,
        digest=digest,
    )
