"""The events that receiver itself makes: about destinations, a provider's webhook, and submissions.

`destination.failing`, `.recovered` and `.disabled` go to destinations that ask for them, `destination.test` to one alone.
`source.failing` tells that a provider switched its webhook off, `source.recovered` that it works again. `submission.unknown`
tells that a provider may have an application's job, and did not say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from receiver.core.clock import iso
from receiver.core.destinations import DestinationState
from receiver.core.event import CallbackRow, Event, EventDraft, JobError, Recording, Stage, new_id
from receiver.core.event_json import compose
from receiver.core.submission import Submission

RECEIVER = "receiver"
"""The source and provider of events about destinations."""
SOURCE_FAILING, SOURCE_RECOVERED = "source.failing", "source.recovered"
SUBMISSION_UNKNOWN = "submission.unknown"
Routed = Callable[[str, str], tuple[str, ...]]
"""Which destinations want an event of this source and type."""

_SAYS = {
    "failing": "{name} failed {failures} times in a row: its deliveries are held, and spend no attempts",
    "recovered": "{name} works again: its deliveries are sent",
    "disabled": "{name} answered 410: its deliveries are held until a person enables it",
}
_UNKNOWN = (
    "the provider may have the job: it did not answer whole, or receiver ended meanwhile. "
    "If it has, its callback comes as an event of its own; submit the job again only if it may be done twice"
)


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
    wanted = () if kind is None else routed(RECEIVER, f"destination.{kind}")
    if kind is None or not wanted:
        return None
    state = before if kind == "recovered" else after
    since = state.failing_since if state.failing_since is not None else now
    said = _SAYS[kind].format(name=state.name, failures=state.failures)
    error = JobError(code="disabled" if kind == "disabled" else "failing", message=said)
    return _recording(
        f"destination.{kind}",
        f"destination:{kind}:{state.name}:{since}:{now}",
        wanted,
        now=now,
        data={"destination": state.name, "failures": state.failures, "since": iso(since)},
        error=None if kind == "recovered" else error,
    )


def destination_test(name: str, *, by: str, now: int) -> Recording:
    """Return the event that a person sends to one destination to see whether it arrives; it goes there alone."""
    data = {"destination": name, "sent_by": by}
    return _recording("destination.test", new_id("test", now), (name,), now=now, data=data)


def source_event(
    name: str, provider: str, *, failing: bool, detail: str, after: str, now: int, routed: Routed
) -> Recording:
    """Return the event for a change of a provider's webhook. `after` is the id of the last such event, "" for none.

    Processes that notice the same change make the same event.
    """
    type_ = SOURCE_FAILING if failing else SOURCE_RECOVERED
    said = f"the provider has switched off the webhook that calls {name} ({detail}): switch it on again there"
    return _recording(
        type_,
        f"{type_}:{after}",
        routed(name, type_),
        now=now,
        data={"detail": detail},
        error=JobError(code="failing", message=said) if failing else None,
        source=name,
        provider=provider,
    )


def unknown_event(submission: Submission, provider: str, *, now: int, routed: Routed) -> Recording:
    """Return the event for a submission with an unknown outcome. Each submission has at most one, whichever process makes it."""
    return _recording(
        SUBMISSION_UNKNOWN,
        f"{SUBMISSION_UNKNOWN}:{submission.id}",
        routed(submission.source, SUBMISSION_UNKNOWN),
        now=now,
        data={
            "submission": submission.id,
            "application": submission.application,
            "request": submission.request,
        },
        error=JobError(code="unknown", message=_UNKNOWN),
        ref=submission.ref,
        source=submission.source,
        provider=provider,
    )


def _recording(
    type_: str,
    key: str,
    destinations: tuple[str, ...],
    *,
    now: int,
    data: Mapping[str, object],
    error: JobError | None = None,
    ref: str | None = None,
    source: str = RECEIVER,
    provider: str = RECEIVER,
) -> Recording:
    """Return the recording of an event with neither a callback nor a fetch behind it; `key` makes it one of its kind."""
    event_id = new_id("evt", now)
    draft = EventDraft(
        type=type_,
        idempotency_key=key,
        ref=ref,
        occurred_at=now,
        stage=Stage.OPEN,
        error=error,
        provider_data=data,
    )
    event = Event(
        id=event_id,
        type=type_,
        source=source,
        provider=provider,
        job_id=None,
        ref=ref,
        stage=draft.stage,
        occurred_at=now,
        recorded_at=now,
        data=compose(draft, event_id=event_id, source=source, provider=provider),
    )
    row = CallbackRow(
        id=new_id("cb", now), source=source, idempotency_key=key, method="NONE", received_at=now
    )
    return Recording(callback=row, event=event, destinations=destinations)
