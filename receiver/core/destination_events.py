"""The events about destinations: `destination.failing`, `.recovered`, `.disabled` for those that ask for them, and `.test`."""

from __future__ import annotations

from collections.abc import Callable

from receiver.core.destination_health import DestinationState
from receiver.core.event import CallbackRow, Event, EventDraft, JobError, Recording, Stage, new_id
from receiver.core.event_json import compose, iso

SOURCE = "receiver"
"""What stands in these events as source and provider."""
Routed = Callable[[str, str], tuple[str, ...]]
"""Which destinations want an event of this source and type."""

_SAYS = {
    "failing": "{name} failed {failures} times in a row: its deliveries are held, and spend no attempts",
    "recovered": "{name} works again: its deliveries are sent",
    "disabled": "{name} answered 410: its deliveries are held until a person enables it",
}


def transition(before: DestinationState, after: DestinationState) -> str | None:
    """Return `failing`, `recovered` or `disabled` if the change of state has one of these names, else None."""
    if after.disabled_at is not None:
        return None if before.disabled_at is not None else "disabled"
    if before.opened_at is None:
        return None if after.opened_at is None else "failing"
    worked = after.opened_at is None and before.disabled_at is None
    return "recovered" if worked else None


def destination_event(
    before: DestinationState, after: DestinationState, *, now: int, routed: Routed
) -> Recording | None:
    """Return the event for a change of state, to record in the same transaction. None if the change needs no event, or no
    destination subscribes to it.
    """
    kind = transition(before, after)
    wanted = () if kind is None else routed(SOURCE, f"destination.{kind}")
    if kind is None or not wanted:
        return None
    state = before if kind == "recovered" else after
    said = _SAYS[kind].format(name=state.name, failures=state.failures)
    facts = {"destination": state.name, "failures": state.failures}
    since = state.failing_since if state.failing_since is not None else now
    draft = EventDraft(
        type=f"destination.{kind}",
        idempotency_key=f"destination:{kind}:{state.name}:{since}:{now}",
        occurred_at=now,
        stage=Stage.OPEN,
        error=None
        if kind == "recovered"
        else JobError(code="disabled" if kind == "disabled" else "failing", message=said),
        provider_data={**facts, "since": iso(since)},
    )
    return own_recording(draft, now, wanted)


def destination_test(name: str, *, by: str, now: int) -> Recording:
    """Return the event that a person sends to one destination to see whether it arrives; it goes there alone."""
    draft = EventDraft(
        type="destination.test",
        idempotency_key=new_id("test", now),
        occurred_at=now,
        stage=Stage.OPEN,
        provider_data={"destination": name, "sent_by": by},
    )
    return own_recording(draft, now, (name,))


def own_recording(
    draft: EventDraft,
    now: int,
    destinations: tuple[str, ...],
    *,
    source: str = SOURCE,
    provider: str = SOURCE,
) -> Recording:
    """Return the recording of an event that receiver itself makes, with neither a callback nor a fetch behind it."""
    event_id = new_id("evt", now)
    event = Event(
        id=event_id,
        type=draft.type,
        source=source,
        provider=provider,
        job_id=draft.job_id,
        ref=draft.ref,
        stage=draft.stage,
        occurred_at=now,
        recorded_at=now,
        data=compose(draft, event_id=event_id, source=source, provider=provider),
    )
    row = CallbackRow(
        id=new_id("cb", now),
        source=source,
        idempotency_key=draft.idempotency_key,
        second_key=None,
        method="NONE",
        content_type="",
        received_at=now,
        body_size=0,
        body_sha256="",
        body=None,
        proofs="",
    )
    return Recording(callback=row, event=event, destinations=destinations)
