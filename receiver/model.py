"""The values that travel through receiver (floor 1): pure data, no I/O.

Times are epoch milliseconds (`int`), given as parameters and never read from a clock here. Ids are text
made here and sortable by time. They are msgspec structs: frozen like dataclasses, and a tenth of their cost to make, of which
each callback makes a dozen.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Protocol

from msgspec import Struct, field

from receiver.errors import CallbackRejected

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
TIME_CHARS = 10
"""Characters after an id's prefix that tell its millisecond."""
_random = random.Random(os.urandom(32))
"""Ids must not collide and need not be secret; asking the kernel for each would cost more than the id."""


def new_id(prefix: str, now: int) -> str:
    """Return `prefix_` + 26 characters: 48 bits of epoch milliseconds, then 80 random bits (base 32, sortable)."""
    number = (now & 0xFFFFFFFFFFFF) << 80 | _random.getrandbits(80)
    return f"{prefix}_" + "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])


# ---------------------------------------------------------------- the road in


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


# ---------------------------------------------------------------- the event


class Stage(StrEnum):
    """Where in its job an event stands; decides what a late event may still do."""

    PROGRESS = "progress"
    """More is to come; pointless once the job has completed."""
    FINAL = "final"
    """The job has ended."""
    OPEN = "open"
    """No order is known (streaming messages, parked callbacks)."""


class AudioDraft(Struct, frozen=True, kw_only=True):
    """The body of this callback is the audio; this is what is said of it."""

    content_type: str
    extension: str
    """Without the dot: `mp3`, `wav`, `ogg`, `raw` …"""
    sample_rate_hz: int | None = None
    """Only for formats whose bytes carry none (raw PCM, mu-law, A-law)."""
    channels: int | None = None
    codec: str | None = None
    bytes_per_frame: int | None = None
    """For raw formats: bytes of one sample of all channels, which turns a size into a length."""


class RemoteResult(Struct, frozen=True, kw_only=True):
    """A result that still lies at the provider, behind a link that expires."""

    kind: str
    """`audio`, `transcript` or `media`: the field of the event that carries it."""
    url: str
    expires_at: int | None = None


class TranscriptDraft(Struct, frozen=True, kw_only=True):
    """The text of a transcript, as far as the callback carries it."""

    text: str | None
    confidence: float | None = None
    language: str | None = None
    duration_seconds: float | None = None
    channels: int | None = None


class JobError(Struct, frozen=True, kw_only=True):
    """What the provider says went wrong."""

    message: str
    code: str | None = None
    details: str | None = None


class EventDraft(Struct, frozen=True, kw_only=True):
    """One callback in receiver's words, before it is whole (stored, with an id)."""

    type: str
    """Dotted, one of `EVENT_TYPES`."""
    idempotency_key: str
    """The provider's own identity for this callback; unique within the source."""
    second_key: str | None = None
    """Another identity, also unique (deAPI: job and event)."""
    job_id: str | None = None
    ref: str | None = None
    occurred_at: int
    stage: Stage = Stage.FINAL
    audio: AudioDraft | None = None
    remote: RemoteResult | None = None
    transcript: TranscriptDraft | None = None
    error: JobError | None = None
    parked: str | None = None
    """Why the callback was not understood; set exactly for `callback.parked`."""
    provider_data: Mapping[str, Any] = field(default_factory=dict)
    """The provider's own fields, secrets removed."""
    document: bytes | None = None
    """The body to keep, secrets removed; None when the body is audio (it is kept as a blob)."""


EVENT_TYPES = (
    "speech.processing",
    "speech.completed",
    "speech.failed",
    "transcript.processing",
    "transcript.completed",
    "transcript.failed",
    "transcript.partial",
    "analysis.completed",
    "analysis.failed",
    "media.processing",
    "media.completed",
    "media.failed",
    "callback.overdue",
    "callback.parked",
    "destination.failing",
    "destination.recovered",
    "destination.disabled",
)


class AudioFacts(Struct, frozen=True, kw_only=True):
    """What the stored bytes themselves say; None where they do not."""

    duration_seconds: float | None = None
    duration_estimated: bool = False
    sample_rate_hz: int | None = None
    channels: int | None = None
    codec: str | None = None


class StoredBlob(Struct, frozen=True, kw_only=True):
    """One stored object: audio, or a document too long for an event."""

    key: str
    uri: str
    """`file:///…` or `s3://bucket/key`."""
    content_type: str
    size: int
    sha256: str


class Event(Struct, frozen=True, kw_only=True):
    """One normalized, whole, stored fact."""

    id: str
    type: str
    source: str
    provider: str
    job_id: str | None
    ref: str | None
    stage: Stage
    occurred_at: int
    recorded_at: int
    data: bytes
    """The event's `data` object as JSON; stored links still without their URL (made afresh at each attempt)."""
    blob_key: str | None = None
    """The blob that `data` links to."""


class CallbackRow(Struct, frozen=True, kw_only=True):
    """The proved callback as it is kept next to its event."""

    id: str
    source: str
    idempotency_key: str
    second_key: str | None
    method: str
    content_type: str
    received_at: int
    body_size: int
    body_sha256: str
    body: bytes | None
    """Kept bytes, secrets removed; None when they are a blob."""
    proofs: str
    """Comma-separated names of the proofs that held."""


class Recording(Struct, frozen=True, kw_only=True):
    """What one transaction writes: the callback, its event, and one delivery per matching destination.

    The ids of callback and event are made for the same millisecond, so that one leads to the other.
    """

    callback: CallbackRow
    event: Event
    destinations: tuple[str, ...]


class RecordStatus(StrEnum):
    """What `store.record` found."""

    RECORDED = "recorded"
    DUPLICATE = "duplicate"
    LATE = "late"
    """Recorded without deliveries: the job had already ended."""


class Recorded(Struct, frozen=True, kw_only=True):
    """The answer to a `Recording`; `event_id` is that of the first one for a duplicate."""

    status: RecordStatus
    event_id: str


class Rejection(Struct, frozen=True, kw_only=True):
    """A callback that was not proved, kept without its body."""

    source: str
    at: int
    status: int
    reason: str
    method: str
    peer: str | None
    content_type: str
    user_agent: str


# ---------------------------------------------------------------- the road out


class DeliveryState(StrEnum):
    """`pending → delivering → delivered`, back to `pending`, or `dead`."""

    PENDING = "pending"
    """Waits for `due_at`; set when recorded, after a failed attempt, by a handed-back claim and by replay."""
    DELIVERING = "delivering"
    """Claimed; `due_at` is the end of the lease, so a crashed worker's row is simply due again."""
    DELIVERED = "delivered"
    """Acknowledged by the destination; has no `due_at`."""
    DEAD = "dead"
    """A dead letter: the policy was exhausted or the destination answered 410; has no `due_at`."""


class OutcomeKind(StrEnum):
    """What one attempt found."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    """The destination answered, and not with 2xx (3xx is not followed)."""
    GONE = "gone"
    """410: the destination does not want this any more."""
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    """No connection, no name, TLS trouble, or the connection broke."""
    BLOCKED = "blocked"
    """The address guard refused; nothing was sent."""


class Outcome(Struct, frozen=True, kw_only=True):
    """What one attempt found: a value, never an exception."""

    kind: OutcomeKind
    status: int | None = None
    detail: str = ""
    response: bytes = b""
    """The first 16 KiB of the reply."""
    retry_after: float | None = None
    """Seconds the destination asked for."""


class Claimed(Struct, frozen=True, kw_only=True):
    """One delivery taken by a worker, with its event."""

    delivery_id: str
    destination: str
    event: Event
    attempts: int
    """Attempts made before this claim, over all rounds."""
    round_start: int
    """`attempts` when the present round began: the policy sees `attempts - round_start`."""
    claimed_by: str
    lease_until: int


class Settlement(Struct, frozen=True, kw_only=True):
    """The record of one attempt and its consequence; applied only if the claim is still held."""

    claim: Claimed
    started_at: int
    duration_ms: int
    outcome: Outcome
    state: DeliveryState
    due_at: int | None
    """When it is due again; None for `delivered` and `dead`."""


class Delivery(Struct, frozen=True, kw_only=True):
    """One event owed to one destination, as the store shows it."""

    id: str
    event_id: str
    event_type: str
    destination: str
    state: DeliveryState
    attempts: int
    round_start: int
    due_at: int | None
    claimed_by: str | None
    created_at: int
    updated_at: int
    last_outcome: str | None


class Attempt(Struct, frozen=True, kw_only=True):
    """One recorded try of a delivery, numbered from 1, never renumbered."""

    delivery_id: str
    number: int
    started_at: int
    duration_ms: int
    outcome: OutcomeKind
    status: int | None
    detail: str
    response: bytes


class Due(Struct, frozen=True, kw_only=True):
    """What waits for one destination."""

    destination: str
    depth: int
    oldest_due_at: int


class StoreStats(Struct, frozen=True, kw_only=True):
    """Depths and ages, read at scrape time so that replicas agree."""

    due: tuple[Due, ...]
    dead: Mapping[str, int]
