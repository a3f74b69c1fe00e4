"""Erasing one subject from the store, the blob store and this machine's journal. Sees ports only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from receiver.core.callback import VerifiedCallback
from receiver.core.errors import MalformedCallback
from receiver.core.event import EventDraft, new_id, scope, scoped
from receiver.core.retention import CallbackKeys, Erasure, Subject, SubjectKind, Traces
from receiver.core.submission import ENDED, Submission, SubmissionState, ended_in
from receiver.providers import PushProvider
from receiver.storage.blobs import Blobs
from receiver.storage.blobs.keys import with_outlines
from receiver.storage.journal import Journal
from receiver.storage.store.store import Store

LOOKED_AT = 1000
"""Events and pickups that are counted before a person confirms; more are erased all the same."""
_BATCH = 200


class Journaled(Struct, frozen=True, kw_only=True):
    """A callback of the subject in the journal, or what a submission of it came to."""

    stem: str
    keys: CallbackKeys
    submission: Submission | None = None


class Removed(Struct, kw_only=True):
    """Numbers of what an erasure removed, or would remove."""

    events: int = 0
    callbacks: int = 0
    deliveries: int = 0
    pickups: int = 0
    blobs: int = 0
    requests: int = 0
    """Rejected requests that were kept whole."""
    journal_entries: int = 0
    tombstone: str | None = None

    def add(self, traces: Traces, blob_keys: Sequence[str], journaled: int) -> None:
        """Count what a batch removed."""
        self.events += len(traces.event_ids)
        self.callbacks += len(traces.callbacks)
        self.deliveries += traces.deliveries
        self.pickups += len(traces.pickup_ids)
        self.blobs += len(blob_keys)
        self.requests += len(traces.requests)
        self.journal_entries += journaled


WORDS = {
    "events": ("event", "events"),
    "callbacks": ("callback", "callbacks"),
    "deliveries": ("delivery", "deliveries"),
    "pickups": ("pickup", "pickups"),
    "blobs": ("stored object", "stored objects"),
    "requests": ("refused request", "refused requests"),
    "journal_entries": ("entry of this machine's journal", "entries of this machine's journal"),
}
"""What a person calls one and many of what is counted."""


class FoundOf(Struct, frozen=True, kw_only=True):
    """A subject's data in the store and in the journal."""

    traces: Traces
    journaled: tuple[Journaled, ...]
    unreadable: tuple[str, ...] = ()
    """A sentence for each unreadable entry of the journal: it may be the subject's."""

    def __bool__(self) -> bool:
        return bool(self.traces or self.journaled)

    @property
    def counts(self) -> Removed:
        """The numbers that an erasure would remove."""
        counts = Removed()
        counts.add(self.traces, self.traces.blob_keys, len(self.journaled))
        return counts


async def drop_erased(
    store: Store, secrets: Sequence[str], callback: VerifiedCallback, draft: EventDraft
) -> str | None:
    """Reduce a journaled callback to its keys if it came before the erasure of its subject; return its event id, else None.

    So an erasure reaches the journals of all processes, whichever process ran it. `secrets` are the token secrets. Raises
    `StoreUnavailable`.
    """
    came_at, source = callback.head.received_at, callback.source
    newest = await store.tombstones(None, limit=1)
    if not newest or newest[0].erased_at < came_at:
        return None
    named = (
        (SubjectKind.REF, draft.ref, None),
        (SubjectKind.JOB, draft.job_id, None),
        (SubjectKind.JOB, draft.job_id, source),
        (SubjectKind.JOB_OF_REF, draft.job_id if draft.ref is None else None, source),
    )
    subjects = [Subject(kind=kind, key=key, source=of) for kind, key, of in named if key is not None]
    for digest in (subject.digest(secret) for subject in subjects for secret in secrets):
        for stone in await store.tombstones(digest, limit=1):
            if stone.erased_at >= came_at:
                keys = CallbackKeys(
                    source=source,
                    idempotency_key=draft.idempotency_key,
                    second_key=draft.second_key,
                    event_id=new_id("evt", came_at),
                )
                # Counted by the tombstone there is: a new one would drop what came since.
                await store.erase(
                    Erasure(
                        subject=Subject(kind=SubjectKind.EVENT, key=keys.event_id),
                        tombstone_id=stone.id.partition(".")[0],
                        digest=stone.digest,
                        now=stone.erased_at,
                        journaled=(keys,),
                    )
                )
                return keys.event_id
    return None


class Eraser(Struct, kw_only=True, eq=False):
    """Finds and removes a subject's data. All its parts must be open. With the journal None, it leaves journals out."""

    store: Store
    blobs: Blobs
    journal: Journal | None
    providers: Mapping[str, PushProvider]
    secrets: Sequence[str]
    """The token secrets, oldest first: by the last of them tombstones name their subjects."""

    async def look(self, subject: Subject) -> FoundOf:
        """Return the data of a subject. Raises `StoreUnavailable`, `JournalUnavailable`."""
        traces = await self.store.traces(subject, limit=LOOKED_AT)
        journaled: list[Journaled] = []
        unreadable: list[str] = []

        def look_at(stem: str, callback: VerifiedCallback) -> None:
            entry = self._journaled(subject, traces, stem, callback)
            if entry is not None:
                journaled.append(entry)

        if self.journal is not None:
            await self.journal.read(look_at, unreadable=unreadable.append)
        return FoundOf(traces=traces, journaled=tuple(journaled), unreadable=tuple(unreadable))

    async def erase(self, subject: Subject, found: FoundOf, *, now: int) -> Removed:
        """Remove a subject's data, with rows that came after `look`; harmless to repeat after a failure.

        Raises `StoreUnavailable`, `BlobsUnavailable`, `JournalUnavailable`: then some of the data may be left.
        """
        tombstone_id, digest = new_id("tmb", now), subject.digest(self.secrets[-1])
        removed = Removed()
        journaled = found.journaled
        while True:
            # Objects go first: if that fails, their events still name them, and the erasure can be repeated.
            before = await self.store.traces(subject, limit=_BATCH)
            gone = before.blob_keys
            await self._delete(gone)
            erased = await self.store.erase(
                Erasure(
                    subject=subject,
                    tombstone_id=tombstone_id,
                    digest=digest,
                    now=now,
                    limit=_BATCH,
                    journaled=tuple(entry.keys for entry in journaled),
                    of_jobs=self._of_jobs(subject, before),
                    noted=not removed.tombstone,
                )
            )
            for submission in [entry.submission for entry in journaled if entry.submission]:
                # The store does not know its job. One that is open was not sent, and is removed.
                await self.store.end_submission(replace(submission, state=SubmissionState.OPEN))
            # The keys are kept from now on: neither the journal nor the provider can bring the data back.
            dropped = 0
            if self.journal is not None:
                dropped = await self.journal.remove([entry.stem for entry in journaled])
            # A journaled callback may have been recorded after the batch looked and before it wrote the keys: look again.
            again, journaled = bool(journaled), ()
            await self._delete([key for key in erased.blob_keys if key not in gone])
            removed.tombstone = tombstone_id
            removed.add(erased.traces, erased.blob_keys, dropped)
            if not erased.traces and not again:
                return removed

    def _of_jobs(self, subject: Subject, traces: Traces) -> tuple[str, ...]:
        if subject.kind is not SubjectKind.REF:
            return ()
        jobs = (Subject(kind=SubjectKind.JOB_OF_REF, key=job, source=of) for of, job in traces.jobs)
        return tuple(job.digest(self.secrets[-1]) for job in jobs)

    async def erased_before(self, subject: Subject) -> int | None:
        """Return when a subject was last erased, None when it never was."""
        digests = [subject.digest(secret) for secret in self.secrets]
        stones = [stone for digest in digests for stone in await self.store.tombstones(digest, limit=1)]
        return max((stone.erased_at for stone in stones), default=None)

    async def _delete(self, keys: Sequence[str]) -> None:
        if keys:
            await self.blobs.delete(with_outlines(keys))

    def _journaled(
        self, subject: Subject, traces: Traces, stem: str, callback: VerifiedCallback
    ) -> Journaled | None:
        """Return a journaled callback if its provider's adapter reads the subject in it, else None."""
        submission = ended_in(callback)[0] if ENDED in callback.proofs else None
        draft = submission.draft if submission else self._draft(callback)
        if draft is None:
            mine = subject.kind is SubjectKind.REF and callback.ref == subject.key
            key, second_key = f"journal:{stem}", None
        else:
            mine = _is_of(subject, traces, callback.source, draft)
            key, second_key = draft.idempotency_key, draft.second_key
        keys = CallbackKeys(
            source=callback.source,
            idempotency_key=key,
            second_key=second_key,
            event_id=new_id("evt", callback.head.received_at),
        )
        return Journaled(stem=stem, keys=keys, submission=submission) if mine else None

    def _draft(self, callback: VerifiedCallback) -> EventDraft | None:
        provider = self.providers.get(callback.source)
        if provider is None:
            return None
        try:
            draft = provider.normalize(callback)
        except MalformedCallback:
            # The intake would park it under this key.
            draft = EventDraft(
                type="callback.parked",
                idempotency_key=provider.fallback_key(callback),
                ref=callback.ref,
                occurred_at=callback.head.received_at,
            )
        except Exception:  # a bug of an adapter's must not keep the rest from being erased
            return None
        return scoped(scope(callback), draft)


def _is_of(subject: Subject, traces: Traces, source: str, draft: EventDraft) -> bool:
    keys = {(known.source, known.idempotency_key) for known in traces.callbacks.values()}
    if (source, draft.idempotency_key) in keys:
        return True
    match subject.kind:
        case SubjectKind.REF:
            return draft.ref == subject.key or (draft.ref is None and (source, draft.job_id) in traces.jobs)
        case SubjectKind.JOB:
            return draft.job_id == subject.key and subject.source in (None, source)
        case SubjectKind.EVENT | SubjectKind.JOB_OF_REF:
            return False
