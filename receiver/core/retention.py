"""Retention and erasure as values: how long each class is kept, and what is removed. Pure data, no I/O.

engine/janitor.py removes what is old, engine/erasure.py what a person asks for; storage/store/retention.py has their statements.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import StrEnum

from msgspec import Struct

from receiver.core.clock import DAY, duration
from receiver.core.errors import UsageError

KEYS_SECONDS = 30 * DAY
"""How long the keys of erased callbacks are kept, so that they do not come back: longer than any provider retries."""
REQUESTS_SECONDS = DAY
"""How long a refused request is kept whole: there may be secrets in it."""
REPEAT_SECONDS = 2 * DAY
"""Shortest age at which an event and its callback's keys go, so that a provider's retry makes no second event."""
ORPHAN_SECONDS = 2 * DAY
"""Age from which an object without an event is an orphan: longer than any recording takes."""


def age(text: str) -> int | None:
    """Return the seconds of `30d`, `12h`, `2w`, …; None for `never`. Raises `ValueError` with what to write."""
    if text == "never":
        return None
    seconds = 0.0
    with suppress(ValueError):
        seconds = duration(text)
    if seconds < 1:
        raise ValueError("write a number and a unit, like 30d, 12h or 2w, or never")
    return round(seconds)


class Retention(Struct, frozen=True, kw_only=True):
    """Seconds for which each class is kept; None is for ever. The defaults are those of the settings' `[retention]`."""

    bodies: int | None = 30 * DAY
    attempts: int | None = 30 * DAY
    audio: int | None = 90 * DAY
    """With None, objects without an event stay as well: then the blob store's own rules decide."""
    dead_letters: int | None = 90 * DAY
    events: int | None = 90 * DAY
    """An event stays at least as long as its audio and its dead letters do, and two days (`REPEAT_SECONDS`)."""
    sweep_seconds: float = 300.0


class Walk(StrEnum):
    """One walk of the janitor through one table, oldest first."""

    BODIES = "bodies"
    """Kept bodies of callbacks."""
    ATTEMPTS = "attempts"
    """Attempts of deliveries that were delivered; those of a dead letter stay with it."""
    PICKUP_ATTEMPTS = "pickup_attempts"
    AUDIO = "audio"
    """Objects that events link to: audio, other files, long documents."""
    DEAD_LETTERS = "dead_letters"
    EVENTS = "events"
    """Events with their callbacks, deliveries and attempts."""
    CALLBACKS = "callbacks"
    """Callbacks without an event of their own: another callback resolved their pickup."""
    PICKUPS = "pickups"
    KEYS = "keys"
    """Keys of erased callbacks."""
    TOKENS = "tokens"
    """What short callback tokens stand for that have expired."""
    SUBMISSIONS = "submissions"
    OPERATIONS = "operations"
    """Bulk operations that are done, stopped, or were never run."""
    REJECTED_REQUESTS = "rejected_requests"
    """Requests that were refused, kept whole to be verified again."""


class Prune(Struct, frozen=True, kw_only=True):
    """One batch: look at up to `limit` rows that follow `after` and remove those that may go."""

    walk: Walk
    before: int
    """Epoch milliseconds: what is younger stays."""
    after: str = ""
    """Where the previous batch ended; empty at the beginning of a walk."""
    limit: int = 500
    dead_before: int = 0
    """For `EVENTS`: an event stays while it has a dead letter that is younger than this."""


class Pruned(Struct, frozen=True, kw_only=True):
    """The result of one batch."""

    count: int
    after: str | None
    """Where the next batch begins; None when this was the last."""
    blob_keys: tuple[str, ...] = ()
    """Objects that no event links to any more: to be deleted now that this is committed."""


class SubjectKind(StrEnum):
    """How a subject of erasure is named."""

    REF = "ref"
    """All events and pickups with this ref, and those of the same jobs that have none."""
    JOB = "job"
    EVENT = "event"
    """One event, and what was made of its callback when that was read again."""
    JOB_OF_REF = "job_of_ref"
    """A job of one source that had callbacks with an erased ref: those of it that have none. Nobody asks for it."""


class Subject(Struct, frozen=True, kw_only=True):
    """Whose data is to be erased."""

    kind: SubjectKind
    key: str
    source: str | None = None
    """For a job: only this source's."""

    def digest(self, secret: str) -> str:
        """Return the subject's keyed hash for its tombstone: without the secret nobody can guess the subject from it."""
        name = "\0".join((self.kind.value, self.source or "", self.key))
        return hmac.new(secret.encode(), name.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def subject_of(
    *,
    ref: str | None,
    job_id: str | None,
    event_id: str | None,
    source: str | None,
    words: Sequence[str] = (),
) -> Subject:
    """Return the one subject that is named. Raises `UsageError` in these words for ref, job, event and source."""
    of_ref, of_job, of_event, of_source = words or ("ref", "job_id", "event_id", "source")
    named = {SubjectKind.REF: ref, SubjectKind.JOB: job_id, SubjectKind.EVENT: event_id}
    given = [(kind, key) for kind, key in named.items() if key]
    if len(given) != 1:
        raise UsageError(f"name one subject: {of_ref}, {of_job} or {of_event}")
    kind, key = given[0]
    if source is not None and kind is not SubjectKind.JOB:
        raise UsageError(f"{of_source} goes with {of_job} only")
    return Subject(kind=kind, key=key, source=source)


class CallbackKeys(Struct, frozen=True, kw_only=True):
    """The identity of one callback."""

    source: str
    idempotency_key: str
    second_key: str | None
    event_id: str


class Traces(Struct, frozen=True, kw_only=True):
    """The subject's rows in the store, up to a limit."""

    event_ids: tuple[str, ...] = ()
    callbacks: Mapping[str, CallbackKeys] = {}
    """By id."""
    deliveries: int = 0
    pickup_ids: tuple[str, ...] = ()
    blob_keys: tuple[str, ...] = ()
    """Objects that these events link to and no others do."""
    jobs: tuple[tuple[str, str], ...] = ()
    """(source, job id) of the events and pickups."""
    requests: tuple[str, ...] = ()
    """Rejections whose kept request names the subject."""

    def __bool__(self) -> bool:
        return bool(self.event_ids or self.callbacks or self.pickup_ids or self.requests)


class Tombstone(Struct, frozen=True, kw_only=True):
    """The record of an erasure: when, and how much; nothing of the data itself."""

    id: str
    kind: str
    digest: str
    erased_at: int
    events: int = 0
    callbacks: int = 0
    deliveries: int = 0
    pickups: int = 0
    blobs: int = 0
    journal_entries: int = 0


class Erasure(Struct, frozen=True, kw_only=True):
    """One batch of an erasure. The batches of one erasure share a tombstone, which sums up their counts."""

    subject: Subject
    tombstone_id: str
    digest: str
    now: int
    limit: int = 200
    journaled: tuple[CallbackKeys, ...] = ()
    """Callbacks in a journal that go with this batch: they must not be recorded when they are sent again."""
    of_jobs: tuple[str, ...] = ()
    """Digests of jobs whose callbacks without a ref are erased with the subject. By these, other processes find such
    callbacks in their journals.
    """
    noted: bool = False
    """Whether to write a tombstone even if no rows were found: by it, other processes drop the subject's callbacks from
    their journals.
    """


class Erased(Struct, frozen=True, kw_only=True):
    """What one batch removed; empty when nothing of the subject is left."""

    traces: Traces
    blob_keys: tuple[str, ...]
    """Objects that no event links to any more."""
