"""The event `submission.unknown`: a provider may have an application's job, and did not say so."""

from __future__ import annotations

from receiver.core.destination_events import Routed, own_recording
from receiver.core.event import EventDraft, JobError, Recording, Stage
from receiver.core.submission import Submission

UNKNOWN = "submission.unknown"
_SAID = (
    "the provider may have the job: it did not answer whole, or receiver ended meanwhile. "
    "If it has, its callback comes as an event of its own; submit the job again only if it may be done twice"
)


def unknown_event(submission: Submission, provider: str, *, now: int, routed: Routed) -> Recording:
    """Return the event for a submission with an unknown outcome. Each submission has at most one, whichever process makes it."""
    draft = EventDraft(
        type=UNKNOWN,
        idempotency_key=f"{UNKNOWN}:{submission.id}",
        ref=submission.ref,
        occurred_at=now,
        stage=Stage.OPEN,
        error=JobError(code="unknown", message=_SAID),
        provider_data={
            "submission": submission.id,
            "application": submission.application,
            "request": submission.request,
        },
    )
    wanted = routed(submission.source, UNKNOWN)
    return own_recording(draft, now, wanted, source=submission.source, provider=provider)
