"""Ids, and the event from draft to record: pure data, no I/O. Times are epoch milliseconds (`int`), always passed in.

Ids are text, made in this file and sortable by time. A callback's idempotency keys hold within its source, or only within the
job whose URL it came by. core/event_json.py encodes an event as JSON; engine/recorder.py stores its parts and completes it.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from receiver.core.callback import Arrival, Head, VerifiedCallback

_ALPHABET = b"0123456789abcdefghjkmnpqrstvwxyz"
_CHARS = _ALPHABET * 8
"""The character of each byte: its last five bits count."""
TIME_CHARS = 10
"""Characters after an id's prefix that encode its millisecond."""
_CHANCE_CHARS = 16
_random = random.Random(os.urandom(32))
"""Ids must not collide and need not be secret; asking the kernel for each would cost more than the id."""
# A process that was forked from one which had imported this would go on with the same numbers as its siblings.
os.register_at_fork(after_in_child=lambda: _random.seed(os.urandom(32)))


def new_id(prefix: str, now: int) -> str:
    """Return `prefix_` + 26 characters: 48 bits of epoch milliseconds, then 80 random bits (base 32, sortable)."""
    return _with_chance(prefix, _of_moment(now))


def id_beside(prefix: str, other: str) -> str:
    """Return a new id with the millisecond of another id."""
    return _with_chance(prefix, other.partition("_")[2][:TIME_CHARS])


def moment(made: str) -> str:
    """Return the characters of an id that encode its millisecond."""
    return made.partition("_")[2][:TIME_CHARS]


def _with_chance(prefix: str, moment: str) -> str:
    chance = _random.getrandbits(8 * _CHANCE_CHARS).to_bytes(_CHANCE_CHARS)
    return f"{prefix}_{moment}{chance.translate(_CHARS).decode()}"


@lru_cache(maxsize=64)
def _of_moment(now: int) -> str:
    """Return the characters of a millisecond: all ids of a callback have the same."""
    return bytes([_CHARS[now >> shift & 31] for shift in range(45, -1, -5)]).decode()


class Stage(StrEnum):
    """An event's place in its job; decides the effect of a late event."""

    PROGRESS = "progress"
    """The job goes on. Such an event is of no use once the job has ended."""
    FINAL = "final"
    """The job has ended."""
    OPEN = "open"
    """No order is known (streaming messages, parked callbacks)."""


class AudioDraft(Struct, frozen=True, kw_only=True):
    """The callback's body is audio, with these properties as the provider stated them."""

    content_type: str
    extension: str
    """Without the dot: `mp3`, `wav`, `ogg`, `raw` …"""
    sample_rate_hz: int | None = None
    """Only for formats whose bytes carry none (raw PCM, mu-law, A-law)."""
    channels: int | None = None
    codec: str | None = None
    bytes_per_frame: int | None = None
    """For raw formats: bytes of one sample of all channels, which turns a size into a length."""


class FileDraft(Struct, frozen=True, kw_only=True):
    """The callback's body is a file other than audio, to be stored and linked to."""

    part: str
    """The field of the event that links to it: `media` (image, video, …) or `document` (text)."""
    content_type: str
    extension: str
    """Without the dot."""


class RemoteResult(Struct, frozen=True, kw_only=True):
    """A result that is still at the provider. A pickup downloads it, and the event waits for that."""

    key: str
    """The result's identity, whether it comes by callback or by polling; also the pickup's `key`."""
    url: str | None
    """Where the result lies; None when the provider has to be polled."""
    deadline_at: int
    """When to give up, in epoch milliseconds."""


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
    late: bool = False
    """It came after the time within which it was expected."""
    replaces: str | None = None
    """The event that was made of the same callback before, where it is read again."""
    audio: AudioDraft | None = None
    file: FileDraft | None = None
    remote: RemoteResult | None = None
    transcript: TranscriptDraft | None = None
    error: JobError | None = None
    parked: str | None = None
    """Why the callback was not understood; set exactly for `callback.parked`."""
    provider_data: Mapping[str, Any] = field(default_factory=dict)
    """The provider's own fields, secrets removed."""
    document: bytes | None = None
    """The body to keep, secrets removed; None when the body is audio (it is kept as a blob)."""
    content: bytes | None = None
    """The bytes of `audio` or `file` when they are only a part of the callback's body."""


EVENT_TYPES = (
    "speech.processing",
    "speech.completed",
    "speech.failed",
    "transcript.processing",
    "transcript.completed",
    "transcript.failed",
    "transcript.partial",
    "analysis.processing",
    "analysis.completed",
    "analysis.failed",
    "media.processing",
    "media.completed",
    "media.failed",
    "callback.overdue",
    "callback.parked",
    "submission.unknown",
    "source.failing",
    "source.recovered",
    "destination.failing",
    "destination.recovered",
    "destination.disabled",
    "destination.test",
)


class AudioFacts(Struct, kw_only=True):
    """What the stored bytes themselves say; None where they do not."""

    duration_seconds: float | None = None
    duration_estimated: bool = False
    sample_rate_hz: int | None = None
    channels: int | None = None
    codec: str | None = None
    how: str = ""
    """How the length was had, for a person."""


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
    size: int | None = None
    """Bytes of that blob."""
    duration_ms: int | None = None
    """How long its audio plays, where that is known."""


class CallbackRow(Struct, frozen=True, kw_only=True):
    """The proved callback as it is kept next to its event."""

    id: str
    source: str
    idempotency_key: str
    second_key: str | None = None
    method: str
    content_type: str = ""
    received_at: int
    body_size: int = 0
    body_sha256: str = ""
    body: bytes | None = None
    """Kept bytes, secrets removed; None when they are a blob."""
    proofs: str = ""
    """Comma-separated names of the proofs that held; empty for an event of receiver's own."""
    arrival: bytes | None = None
    """An `Arrival` as JSON, secrets removed; None for what receiver fetched itself."""


ASKED = "asked"
"""The proof of a result that receiver fetched from its provider itself."""


class Callback(Struct, frozen=True, kw_only=True):
    """A callback as the store shows it, without its body."""

    id: str
    event_id: str
    source: str
    method: str
    content_type: str
    received_at: int
    body_size: int
    body_sha256: str
    proofs: str
    arrival: Arrival | None = None


class Answered(Struct, frozen=True, kw_only=True):
    """The expectation that a callback answers."""

    key: str
    """The pickup's `key`."""
    final: bool
    """False: the job is still under way, and only its id was learned."""
    job_id: str | None


class Recording(Struct, frozen=True, kw_only=True):
    """What one transaction writes: the callback, its event, and one delivery per matching destination.

    The ids of callback and event are made for the same millisecond, so that one leads to the other.
    """

    callback: CallbackRow
    event: Event
    destinations: tuple[str, ...]
    answered: Answered | None = None
    routing: bytes | None = None
    """Of each destination whether the event goes there, and by which rule: `Decision`s as JSON."""
    replaces: str | None = None
    """An event of the same callback, without which nothing is written: what was erased meanwhile does not come back."""


class RecordStatus(StrEnum):
    """The result of `store.record`."""

    RECORDED = "recorded"
    DUPLICATE = "duplicate"
    LATE = "late"
    """Recorded without deliveries: the job had already ended."""
    GONE = "gone"
    """Not recorded: the event to be replaced no longer exists. `event_id` is that event's id."""


class Recorded(Struct, frozen=True, kw_only=True):
    """The answer to a `Recording` or a `Deferral`; `event_id` is that of the first one for a duplicate."""

    status: RecordStatus
    event_id: str
    pickup_id: str | None = None
    """The pickup that brings the event's result home, for a `Deferral`."""


class RejectedRequest(Struct, frozen=True, kw_only=True):
    """A request that was refused, whole: what came as its proof may be a secret, so nothing shows that."""

    head: Head
    body: bytes


class Rejection(Struct, frozen=True, kw_only=True):
    """A callback that was not proved."""

    id: str = ""
    """Given by the store."""
    source: str
    at: int
    status: int
    kind: str
    """One of `RejectionKind`."""
    reason: str
    method: str
    peer: str | None
    content_type: str
    user_agent: str
    token_id: str | None = None
    """Of the URL's token where that is one of ours, though the callback was not proved; None for what may be anybody's."""
    ref: str | None = None
    """What that token says the callback is about."""
    setting: str = ""
    """The setting that the failing check went by; empty for one that was kept before this was."""
    headers: tuple[str, ...] = ()
    """Names of the request's headers, in lower case; empty for one that was kept before names were."""
    request_kept: bool = False
    """Told by the store: its request is kept, so that it can be verified again or accepted."""
    request: RejectedRequest | None = None
    """For the store to keep; never in a list."""


class Place(NamedTuple):
    """An event's place in the order of recording."""

    position: int
    """Of the transaction that recorded it: what is recorded later has a higher one, whichever process records it."""
    id: str
    """Tells events of one transaction apart."""


class Positions(NamedTuple):
    """Where the order of recording begins and ends."""

    oldest: int | None
    """Of the oldest event that is kept; None without events."""
    end: int
    """No event that was ever recorded here is above it."""


class PlacedEvent(NamedTuple):
    """An event, and where it stands."""

    place: Place
    event: Event


def again_key(event_id: str, reading: str = "") -> str:
    """Return the idempotency key of an event's callback that was read again; without the reading, what all of them begin with."""
    return f"again:{event_id}:{reading}"


class EventSearch(Struct, frozen=True, kw_only=True):
    """Which events to list in the order of recording.

    The oldest first, only those before which nothing can be recorded any more are listed: whoever goes on from the last place
    misses none.
    """

    source: str | None = None
    provider: str | None = None
    types: tuple[str, ...] | None = None
    """Any of these; None for all."""
    state: str | None = None
    """With a delivery in this state."""
    destination: str | None = None
    """With a delivery to this destination; with `state`, that delivery is in it."""
    job_id: str | None = None
    ref: str | None = None
    since: int | None = None
    """Recorded at or after this time."""
    until: int | None = None
    """Recorded before this time."""
    min_bytes: int | None = None
    max_bytes: int | None = None
    min_duration_ms: int | None = None
    max_duration_ms: int | None = None
    after: Place | None = None
    """The last place of the page before."""
    newest_first: bool = False
    limit: int = 50


# ---------------------------------------------------------------- the scope of idempotency keys

_OF_A_JOB = frozenset(("token", "job_secret", "digest"))
"""Proofs that the holder of one job's URL can make (anybody can make a digest); all others prove the provider's account."""
_SCOPE = re.compile(r"token:[0-9a-f]+:")
_LONGEST = 200
"""Characters of an idempotency key."""


def scope(callback: VerifiedCallback) -> str:
    """Return the prefix of a callback's idempotency keys: "" if a proof of the account holds, else one of its own URL.

    So one job's URL never takes a key of another job, and the account's callback about a job is no duplicate of it.
    """
    claims = callback.claims
    return f"{claims.expectation}:" if claims is not None and callback.proofs <= _OF_A_JOB else ""


def scope_of(key: str) -> str:
    """Return the scope that an idempotency key is in."""
    found = _SCOPE.match(key)
    return found[0] if found else ""


def within(scope: str, key: str) -> str:
    """Return an idempotency key in a scope; a key that is in it already stays as it is."""
    if key.startswith(scope):
        return key
    if len(scope) + len(key) > _LONGEST:
        key = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return scope + key


def scoped(scope: str, draft: EventDraft) -> EventDraft:
    """Return a draft with all its keys, that of a result to be fetched included, in a scope."""
    if not scope:
        return draft
    remote, second = draft.remote, draft.second_key
    return replace(
        draft,
        idempotency_key=within(scope, draft.idempotency_key),
        second_key=second and within(scope, second),
        remote=remote and replace(remote, key=within(scope, remote.key)),
    )
