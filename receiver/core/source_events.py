"""The events about a provider's own webhook: `source.failing` when it was switched off, `source.recovered` when it works again."""

from __future__ import annotations

from receiver.core.destination_events import Routed, own_recording
from receiver.core.event import EventDraft, JobError, Recording, Stage

FAILING, RECOVERED = "source.failing", "source.recovered"


def source_event(
    name: str, provider: str, *, failing: bool, detail: str, after: str, now: int, routed: Routed
) -> Recording:
    """Return the event for a change. `after` is the id of the last such event, "" for none.

    Processes that notice the same change make the same event.
    """
    type_ = FAILING if failing else RECOVERED
    said = f"the provider has switched off the webhook that calls {name} ({detail}): switch it on again there"
    draft = EventDraft(
        type=type_,
        idempotency_key=f"{type_}:{after}",
        occurred_at=now,
        stage=Stage.OPEN,
        error=JobError(code="failing", message=said) if failing else None,
        provider_data={"detail": detail},
    )
    return own_recording(draft, now, routed(name, type_), source=name, provider=provider)
