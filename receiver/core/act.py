"""What was done over the API, by whom and when. Pure data, no I/O."""

from __future__ import annotations

from msgspec import Struct


class Act(Struct, frozen=True, kw_only=True):
    """One request that changes something, noted before it is carried out."""

    id: str
    at: int
    token: str
    """The name of the token that it was asked with."""
    action: str
    """`POST /replays` …"""
    subject: str
    """The path as it was called."""
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
