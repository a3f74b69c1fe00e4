"""Erasing one subject: from the store and the blobs, and the journals of all processes."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from receiver.core.retention import subject_of
from receiver.engine.erasure import WORDS
from receiver.settings.model import ApiScope
from receiver.web.api.operation import Served, operation

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


class ErasureShown(Struct, frozen=True, kw_only=True):
    """What an erasure removed, or would remove."""

    events: int
    callbacks: int
    deliveries: int
    pickups: int
    blobs: int
    requests: int
    """Refused requests that were kept whole."""
    journal_entries: int
    """Of the machine that answered; the others drop theirs by themselves instead of recording them."""
    unreadable: list[str]
    """A sentence for each entry of that journal that may be the subject's, and cannot be read."""
    dry_run: bool


@operation("POST /erasures", ApiScope.ADMIN)
async def make(call: Served[None, NewErasure]) -> ErasureShown:
    """Erase all data of one subject, or count it."""
    wanted, eraser = call.body, call.receiver.eraser
    subject = subject_of(ref=wanted.ref, job_id=wanted.job_id, event_id=wanted.event_id, source=wanted.source)
    found = await eraser.look(subject)
    counts = found.counts if wanted.dry_run else await eraser.erase(subject, found, now=call.now)
    told = {name: getattr(counts, name) for name in WORDS}
    return ErasureShown(**told, unreadable=list(found.unreadable), dry_run=wanted.dry_run)
