"""Collects the data about one job: events, callbacks, pickups, deliveries, rejections. Sees ports only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from msgspec.structs import replace

from receiver.core.errors import NotFound
from receiver.core.event import Event, EventSearch
from receiver.core.explain import Job
from receiver.core.retention import Subject, SubjectKind
from receiver.core.submission import Submission, SubmissionFilter
from receiver.core.work import DeliveryFilter, Pickup, PickupFilter
from receiver.engine import holds
from receiver.settings.load import token_secrets
from receiver.settings.model import Settings
from receiver.storage.store.store import Store

_MOST = 200
"""Events, and pickups, that are looked at of one job: the newest."""


async def gather(
    store: Store, settings: Settings, name: str, source: str | None, *, now: int, journaled: int = 0
) -> Job:
    """Return the data about a ref, a job id or an event id. `journaled` counts its callbacks in the journal. Raises
    `StoreUnavailable`.
    """
    secrets = token_secrets(settings)  # by which a tombstone is found
    found, pickups = await _found(store, name, source)
    events = sorted(found.values(), key=lambda one: (one.recorded_at, one.id))
    digests = [subject.digest(secret) for subject in _subjects(name, source) for secret in secrets]
    stones = [stone for digest in digests for stone in await store.tombstones(digest, limit=1)]
    return replace(
        await gather_events(store, settings, events, pickups, now=now),
        name=name,
        submissions=await _submitted(store, name, source, events),
        rejections=tuple(await store.rejections(None, limit=_MOST, ref=name)),
        journaled=journaled,
        erased_at=max((stone.erased_at for stone in stones), default=None),
    )


async def gather_events(
    store: Store, settings: Settings, events: Sequence[Event], pickups: Mapping[str, Pickup], *, now: int
) -> Job:
    """Return the data about these events and pickups alone. Raises `StoreUnavailable`."""
    callbacks = [await store.callback(event.id) for event in events]
    owed = [
        one
        for event in events
        for one in await holds.deliveries(
            store, settings.destinations, DeliveryFilter(event_id=event.id, limit=_MOST), now=now
        )
    ]
    return Job(
        name=events[0].id if events else "",
        now=now,
        events=tuple(events),
        callbacks=tuple(one for one in callbacks if one is not None),
        pickups=tuple(pickups[key] for key in sorted(pickups)),
        pickup_attempts=tuple([a for key in sorted(pickups) for a in await store.pickup_attempts(key)]),
        deliveries=tuple(owed),
        attempts=tuple([attempt for d in owed for attempt in await store.attempts(d.id)]),
        allowed={one: destination.policy.attempts for one, destination in settings.destinations.items()},
        destinations=await store.destinations(now),
    )


async def _submitted(
    store: Store, name: str, source: str | None, events: Sequence[Event]
) -> tuple[Submission, ...]:
    """Return the submissions of a ref or a job id, and of the jobs of events, the oldest first."""
    named = [SubmissionFilter(ref=name, source=source), SubmissionFilter(job_id=name, source=source)]
    named += [SubmissionFilter(source=e.source, job_id=e.job_id) for e in events if e.job_id is not None]
    found = {one.id: one for wanted in named for one in await store.submissions(wanted)}
    return tuple(found[key] for key in sorted(found))


def _subjects(name: str, source: str | None) -> list[Subject]:
    """Return the subjects of erasure that may have covered the name's data."""
    if name.startswith("evt_"):
        return [Subject(kind=SubjectKind.EVENT, key=name)]
    jobs = [Subject(kind=SubjectKind.JOB, key=name, source=one) for one in {source, None}]
    return [Subject(kind=SubjectKind.REF, key=name), *jobs]


async def _found(store: Store, name: str, source: str | None) -> tuple[dict[str, Event], dict[str, Pickup]]:
    events: dict[str, Event] = {}
    pickups: dict[str, Pickup] = {}
    if name.startswith("evt_"):
        with suppress(NotFound):
            events[name] = await store.event(name)
        filters = [PickupFilter(event_id=name)]
        searches = [EventSearch(ref=one.ref) for one in events.values() if one.ref and one.job_id is None]
    else:
        searches = [EventSearch(ref=name, source=source), EventSearch(job_id=name, source=source)]
        filters = [PickupFilter(ref=name, source=source), PickupFilter(job_id=name, source=source)]
    await _search(store, searches, events)
    # Callbacks of the same job may have had no ref.
    jobs = {(one.source, one.job_id) for one in events.values() if one.job_id is not None}
    await _search(store, [EventSearch(source=of, job_id=job_id) for of, job_id in sorted(jobs)], events)
    filters += [PickupFilter(event_id=event_id) for event_id in events]
    for wanted in filters:
        pickups |= {one.id: one for one in await store.pickups(wanted)}
    return events, pickups


async def _search(store: Store, searches: Sequence[EventSearch], events: dict[str, Event]) -> None:
    for search in searches:
        found = await store.search(replace(search, newest_first=True, limit=_MOST))
        events |= {one.event.id: one.event for one in found}
