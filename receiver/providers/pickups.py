"""What comes of asking a provider for a result: it is here, not yet, or never."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from receiver.core.callback import HeldBody
from receiver.core.event import EventDraft, JobError, Stage
from receiver.core.fetch import Failed
from receiver.core.work import Pickup
from receiver.providers.results import parts_of


class Lookup(Struct, frozen=True, kw_only=True):
    """What a person or an application asked to have picked up, understood."""

    key: str
    """The result's identity: the same for the same job, whichever road it comes by."""
    job_id: str | None
    target: str | None = None
    """The URL to begin with, where one was given."""


class Collected(Struct, frozen=True, kw_only=True):
    """The result is here, or the provider's word that the job failed."""

    draft: EventDraft
    """Its `idempotency_key` and `second_key` are both the pickup's key."""
    body: HeldBody | None = None
    """The bytes of `draft.audio` or `draft.file`. Whoever is given it discards it."""


class NotYet(Struct, frozen=True, kw_only=True):
    """The provider has not finished."""

    retry_in: float
    """Seconds until it is worth asking again; the engine spreads it a little."""
    detail: str = ""
    progress: EventDraft | None = None
    """A `….processing` event, when there is news of it worth telling."""


class Gone(Struct, frozen=True, kw_only=True):
    """There is no result, and asking again would not change that."""

    error: JobError


Result = Collected | NotYet | Gone | Failed


def collected_draft(pickup: Pickup, family: str, now: int, **parts: Any) -> EventDraft:
    """Return the draft that ends a pickup: what a callback told of the job, if one did, and `parts`."""
    draft = pickup.draft or EventDraft(
        type=f"{family}.completed", idempotency_key=pickup.key, job_id=pickup.job_id, occurred_at=now
    )
    ref = draft.ref if pickup.ref is None else pickup.ref
    ends = {"idempotency_key": pickup.key, "second_key": pickup.key, "ref": ref}
    return replace(draft, **(ends | {"stage": Stage.FINAL, "remote": None} | parts))


def collected(
    pickup: Pickup,
    family: str | None,
    body: HeldBody,
    content_type: str,
    now: int,
    *,
    format: Mapping[str, Any] | None = None,
    **parts: Any,
) -> Collected | Failed:
    """Return a download as the result of a pickup; what is no result of its family is discarded.

    Without a family the bytes decide. `format` is what the job asked for, where that is more than the pickup knows.
    """
    asked = pickup.format if format is None else format
    found = parts_of(body, content_type=content_type, format=asked, family=family)
    if isinstance(found, Failed):
        body.discard()
        return found
    if family is None:
        family = "speech" if "audio" in found else "transcript" if "transcript" in found else "media"
        parts["type"] = f"{family}.completed"
    return Collected(draft=collected_draft(pickup, family, now, **parts, **found), body=body)
