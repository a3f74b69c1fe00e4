"""How long things are kept, and what is removed. Pure data, no I/O."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

DAY = 86_400
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": DAY, "w": 7 * DAY}
_AGE = re.compile(r"(\d{1,6})([smhdw])")
KEYS_SECONDS = 30 * DAY
"""How long the keys of what was erased are kept, so that it does not come back: longer than any provider tries again."""
REPEAT_SECONDS = 2 * DAY
"""How long an event is kept at least, with its callback's keys: a provider that sends it again makes no second one."""
ORPHAN_SECONDS = 2 * DAY
"""How old an object without an event must be before it is removed: longer than one that is being recorded can be."""


def age(text: str) -> int | None:
    """Return the seconds of `30d`, `12h`, `2w`, …; None for `never`. Raises `ValueError` that says what to write."""
    if text == "never":
        return None
    found = _AGE.fullmatch(text)
    if not found or not int(found[1]):
        raise ValueError("write a number and a unit, like 30d, 12h or 2w, or never")
    return int(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Seconds for which each class is kept; None is for ever. The defaults are those of `[retention]`."""

    bodies: int | None = 30 * DAY
    attempts: int | None = 30 * DAY
    audio: int | None = 90 * DAY
    """None also leaves alone what has no event: then the blob store's own rules decide."""
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
    """What events link to: audio, other files, long documents."""
    DEAD_LETTERS = "dead_letters"
    EVENTS = "events"
    """Events with their callbacks, deliveries and attempts."""
    CALLBACKS = "callbacks"
    """Callbacks that led to no event of their own: their pickup was answered by another."""
    PICKUPS = "pickups"
    KEYS = "keys"
    """Keys of what was erased."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """One batch: look at up to `limit` rows that follow `after` and remove those that may go."""

    walk: Walk
    before: int
    """Epoch milliseconds: what is younger stays."""
    after: str = ""
    """Where the batch before ended; empty at the beginning of a walk."""
    limit: int = 500
    dead_before: int = 0
    """For `EVENTS`: an event stays while it has a dead letter that is younger than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What one batch did."""

    count: int
    after: str | None
    """Where the next batch begins; None when this was the last."""
    blob_keys: tuple[str, ...] = ()
    """Objects that no event links to any more: to be deleted now that this is committed."""


class SubjectKind(StrEnum):
    """By what a subject of erasure is named."""

    REF = "ref"
    """All events and pickups with this ref, and those of the same jobs that have none."""
    JOB = "job"
    EVENT = "event"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whose data is to be erased."""

    kind: SubjectKind
    key: str
    source: str | None = None
    """For a job: only this source's."""

    def digest(self, secret: str) -> str:
        """Return what a tombstone keeps of it: nobody without the secret can tell, or find by guessing, who it was."""
        told = "\0".join((self.kind.value, self.source or "", self.key))
        return hmac.new(secret.encode(), told.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackKeys:
    """The identity of one callback."""

    source: str
    idempotency_key: str
    second_key: str | None
    event_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """What the store has of a subject, up to a limit."""

    event_ids: tuple[str, ...] = ()
    callbacks: Mapping[str, CallbackKeys] = field(default_factory=dict)
    """By id."""
    deliveries: int = 0
    pickup_ids: tuple[str, ...] = ()
    blob_keys: tuple[str, ...] = ()
    """Objects that these events link to and no others do."""
    jobs: tuple[tuple[str, str], ...] = ()
    """(source, job id) of the events and pickups."""

    def __bool__(self) -> bool:
        return bool(self.event_ids or self.callbacks or self.pickup_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """That something was erased, and how much; nothing of what it was."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """One batch of an erasure; batches of one erasure have one tombstone, which adds up what they did."""

    subject: Subject
    tombstone_id: str
    digest: str
    now: int
    limit: int = 200
    journaled: tuple[CallbackKeys, ...] = ()
    """Callbacks that lie in a journal and go with this batch: they must not be recorded when they are sent again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """What one batch removed. Nothing of the subject is left when it was nothing."""

    traces: Traces
    blob_keys: tuple[str, ...]
    """Objects that no event links to any more."""
