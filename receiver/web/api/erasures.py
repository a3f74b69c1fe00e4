"""Erasing one subject: from the store and the blobs, and the journals of all processes."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from receiver.core.errors import UsageError
from receiver.core.retention import Subject, SubjectKind
from receiver.engine.erasure import Eraser
from receiver.settings.load import token_secrets
from receiver.web.api.call import Call
from receiver.web.views import ErasureShown

Name = Annotated[str, Meta(min_length=1, max_length=500)]


class NewErasure(Struct, forbid_unknown_fields=True, frozen=True):
    """Whose data to remove: one of ref, job_id and event_id."""

    ref: Name | None = None
    job_id: Name | None = None
    event_id: Name | None = None
    source: str | None = None
    """With job_id: only of this source."""
    dry_run: bool = False
    """Count, and erase nothing."""


async def make(call: Call[None, NewErasure]) -> ErasureShown:
    """Erase, or count what would be."""
    receiver, subject = call.receiver, _subject(call.body)
    eraser = Eraser(
        store=receiver.store,
        blobs=receiver.blobs,
        journal=receiver.journal,
        providers=receiver.ports.providers,
    )
    found = await eraser.look(subject)
    traces = found.traces
    counts = (len(traces.event_ids), len(traces.callbacks), traces.deliveries, len(traces.pickup_ids))
    blobs, entries = len(traces.blob_keys), len(found.journaled)
    if not call.body.dry_run:
        digest = subject.digest(token_secrets(receiver.settings)[-1])
        removed = await eraser.erase(subject, found, digest=digest, now=receiver.clock())
        counts = (removed.events, removed.callbacks, removed.deliveries, removed.pickups)
        blobs, entries = removed.blobs, removed.journal_entries
    return ErasureShown(
        events=counts[0],
        callbacks=counts[1],
        deliveries=counts[2],
        pickups=counts[3],
        blobs=blobs,
        journal_entries=entries,
        unreadable=list(found.unreadable),
        dry_run=call.body.dry_run,
    )


def _subject(wanted: NewErasure) -> Subject:
    named = {SubjectKind.REF: wanted.ref, SubjectKind.JOB: wanted.job_id, SubjectKind.EVENT: wanted.event_id}
    given = [(kind, key) for kind, key in named.items() if key is not None]
    if len(given) != 1:
        raise UsageError("name one subject: ref, job_id or event_id")
    kind, key = given[0]
    if wanted.source is not None and kind is not SubjectKind.JOB:
        raise UsageError("source goes with job_id only")
    return Subject(kind=kind, key=key, source=wanted.source)
