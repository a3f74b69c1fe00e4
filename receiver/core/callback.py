"""A callback on its way in: its head, its body, what was proved of it. Pure data, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from msgspec import Struct, field

from receiver.core.errors import CallbackRejected


class Body(Protocol):
    """A received body, whole, counted and hashed; small ones in memory, others in a temporary file."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    @property
    def sha256(self) -> str:
        """Lower-case hex digest of the bytes."""

    @property
    def prefix(self) -> bytes:
        """The first bytes (up to 4096), enough to tell a format by its magic."""

    @property
    def path(self) -> str | None:
        """The temporary file that holds the bytes, or None when they are in memory."""

    def load(self) -> bytes:
        """Return all bytes. Meant for JSON, whose size is capped far below that of audio."""


class HeldBody(Body, Protocol):
    """A body in a temporary place."""

    def discard(self) -> None:
        """Let go of it; harmless to repeat."""


class Head(Struct, frozen=True, kw_only=True):
    """What is known of a callback before a byte of its body is read."""

    source: str
    """Name of the configured source that the path named."""
    method: str
    headers: tuple[tuple[str, str], ...]
    """As they came, names in lower case, values decoded as latin-1; duplicates kept."""
    token: str | None = None
    """The callback token from the path, not yet checked."""
    received_at: int
    peer: str | None = None

    def all(self, name: str) -> list[str]:
        """Return every value of the header `name` (lower case)."""
        return [pair[1] for pair in self.headers if pair[0] == name]

    def one(self, name: str) -> str | None:
        """Return the header's value, None when absent; more than one is a `CallbackRejected`."""
        found: str | None = None
        count = 0
        for key, value in self.headers:
            if key == name:
                found = value
                count += 1
        if count > 1:
            raise CallbackRejected(f"the header {name} came {count} times; send it once")
        return found

    def content_type(self) -> str:
        """Return the `Content-Type` as it came, cut at 200 characters; "" when absent."""
        values = self.all("content-type")
        return values[0][:200] if values else ""

    def media_type(self) -> tuple[str, dict[str, str]]:
        """Return the lower-case media type without parameters ("" when absent) and its parameters, leniently."""
        values = self.all("content-type")
        if not values:
            return "", {}
        kind, *rest = values[0].split(";")
        pairs = (part.partition("=") for part in rest)
        return kind.strip().lower(), {
            key.strip().lower(): value.strip().strip('"') for key, _, value in pairs if key.strip()
        }


class TokenClaims(Struct, frozen=True, kw_only=True):
    """What a callback token says: we handed this URL out, for this source and job."""

    source: str
    token_id: str
    """Random, unique to each URL handed out."""
    ref: str | None = None
    format: Mapping[str, Any] = field(default_factory=dict)
    """What was asked of the provider (`encoding`, `container`, `sample_rate`, …): decides raw formats."""
    expires_at: int | None = None
    job_secret: bool = False
    """The job has a webhook secret of its own, derived from this token."""
    expect_by: int | None = None
    """The callback is overdue after this time, and late when it comes then."""

    @property
    def expectation(self) -> str:
        """The `key` of the pickup that watches for this callback."""
        return f"token:{self.token_id}"


class Admission(Struct, frozen=True, kw_only=True):
    """The head passed: read the body, up to `body_limit` bytes."""

    head: Head
    claims: TokenClaims | None
    proofs: frozenset[str]
    """Names of the proofs that held so far, for example `basic`, `token`."""
    body_limit: int


class VerifiedCallback(Struct, frozen=True, kw_only=True):
    """A callback that was proved. Only `provider.verify` makes one; `provider.normalize` takes nothing else.

    The journal restores one that it was given before, with the proofs that held then.
    """

    head: Head
    claims: TokenClaims | None
    proofs: frozenset[str]
    body: Body

    @property
    def source(self) -> str:
        """Name of the source."""
        return self.head.source

    @property
    def ref(self) -> str | None:
        """The caller's own correlation string."""
        return self.claims.ref if self.claims else None
