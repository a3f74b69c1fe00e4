"""What was done over the API, in the console and on the command line, by whom and when. Pure data, no I/O."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from receiver.core.event import new_id

COMMAND_LINE = "command line"
"""Stands for the name of a token where a person acts by a command."""
_AUDITED = frozenset(
    (
        *("source", "destination", "to", "state", "type", "kind", "since", "until", "rate", "dry_run"),
        *("reason", "deliveries"),
    )
)
"""What the audit tells of what was asked for: nothing that may be secret, or somebody's."""


class Act(Struct, frozen=True, kw_only=True):
    """One request that changes something, noted before it is carried out."""

    id: str
    at: int
    token: str
    """The name of the token that it was asked with."""
    action: str
    """`POST /replays`, `console /replays`, `receiver replay` …"""
    subject: str
    """The path as it was called; the operation or the destination of a command."""
    detail: str
    """JSON: what was asked for, without what may be secret or somebody's."""
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
    """Return an act that begins; of the details only what may be told is kept."""
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
