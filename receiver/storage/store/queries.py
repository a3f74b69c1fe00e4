"""What is read from the store without changing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from receiver.core.errors import NotFound
from receiver.core.event import TIME_CHARS, Event, EventFilter, Rejection
from receiver.core.work import (
    Attempt,
    Delivery,
    DeliveryFilter,
    DeliveryState,
    Due,
    Pickup,
    PickupAttempt,
    PickupFilter,
    PickupsDue,
    StoreStats,
)
from receiver.storage.store.database import Row, Session, Value, clean, value_of
from receiver.storage.store.events import event_of
from receiver.storage.store.pickups import PICKUPS, pickup_of
from receiver.storage.store.queue import DELIVERIES


def event(session: Session, event_id: str) -> Event:
    """Return one event. Raises `NotFound`."""
    rows = session.run("list_events", {"id": event_id, "limit": 1}, "id = :id")
    if not rows:
        raise NotFound(f"no event has the id {event_id}")
    return event_of(rows[0])


def body(session: Session, event_id: str) -> bytes | None:
    """Return the kept body of the callback behind an event, None when it is kept as a blob. Raises `NotFound`."""
    # Callback and event are made in the same millisecond, so the event's id says where among the callbacks to look.
    moment = event_id.partition("_")[2][:TIME_CHARS]
    bounds = {"first": f"cb_{moment}", "beyond": f"cb_{moment}~", "event_id": event_id}
    rows = session.run("callback_body", bounds)
    if not rows:
        raise NotFound(f"no event has the id {event_id}")
    return None if rows[0][0] is None else bytes(rows[0][0])


def has_scope(session: Session, source: str, scope: str) -> bool:
    """Tell whether a callback was recorded whose identity begins with `scope`."""
    bounds: dict[str, Value] = {"source": source, "first": scope, "beyond": f"{scope}~"}
    return bool(session.run("callback_between_keys", bounds))


def events(session: Session, filter: EventFilter) -> list[Event]:
    """List events, newest first."""
    conditions: dict[str, Value] = {
        "source = :source": filter.source,
        "type = :type": filter.type,
        "job_id = :job_id": clean(filter.job_id),
        "ref = :ref": clean(filter.ref),
        "recorded_at >= :since": filter.since,
        "recorded_at < :until": filter.until,
    }
    before: dict[str, Value] = {}
    if filter.after is not None:
        before = {"at": filter.after[0], "id": clean(filter.after[1])}
    fixed = "(recorded_at, id) < (:at, :id)" if before else ""
    return [event_of(row) for row in _listed(session, "list_events", conditions, filter.limit, fixed, before)]


def deliveries_of(session: Session, event_ids: Sequence[str]) -> set[tuple[str, str]]:
    """Return event and destination of each delivery of these events."""
    rows = session.run_rows("deliveries_of_events", [(event_id,) for event_id in event_ids])
    return {(row[1], row[2]) for row in rows}


def delivery(session: Session, delivery_id: str) -> Delivery:
    """Return one delivery. Raises `NotFound`."""
    rows = session.run("list_deliveries", {"id": delivery_id, "limit": 1}, "d.id = :id")
    if not rows:
        raise NotFound(f"no delivery has the id {delivery_id}")
    return value_of(Delivery, rows[0])


def deliveries(session: Session, filter: DeliveryFilter) -> list[Delivery]:
    """List deliveries, newest first."""
    conditions: dict[str, Value] = {
        "d.destination = :destination": filter.destination,
        "d.event_id = :event_id": filter.event_id,
        "d.created_at >= :since": filter.since,
        "d.created_at < :until": filter.until,
        "e.source = :source": filter.source,
        "e.type = :type": filter.event_type,
        "d.id < :after": filter.after,
    }
    # The state is written out, not a parameter: only then may the index of the dead be used.
    fixed = f"d.state = '{DeliveryState(filter.state).value}'" if filter.state else ""
    return [
        value_of(Delivery, row)
        for row in _listed(session, "list_deliveries", conditions, filter.limit, fixed)
    ]


def attempts(session: Session, delivery_id: str) -> list[Attempt]:
    """Return the attempts of a delivery, first to last."""
    return [value_of(Attempt, row) for row in DELIVERIES.attempts(session, delivery_id)]


def pickup(session: Session, pickup_id: str) -> Pickup:
    """Return one pickup. Raises `NotFound`."""
    rows = session.run("list_pickups", {"id": pickup_id, "limit": 1}, "id = :id")
    if not rows:
        raise NotFound(f"no pickup has the id {pickup_id}")
    return pickup_of(rows[0])


def pickups(session: Session, filter: PickupFilter) -> list[Pickup]:
    """List pickups, newest first."""
    conditions: dict[str, Value] = {
        "source = :source": filter.source,
        "state = :state": filter.state and filter.state.value,
        "job_id = :job_id": clean(filter.job_id),
        "ref = :ref": clean(filter.ref),
        "id < :after": filter.after,
    }
    return [pickup_of(row) for row in _listed(session, "list_pickups", conditions, filter.limit)]


def pickup_attempts(session: Session, pickup_id: str) -> list[PickupAttempt]:
    """Return the attempts of a pickup, first to last."""
    return [value_of(PickupAttempt, row) for row in PICKUPS.attempts(session, pickup_id)]


def rejections(session: Session, source: str | None, limit: int) -> list[Rejection]:
    """List rejections, newest first."""
    rows = _listed(session, "list_rejections", {"source = :source": source}, limit)
    return [value_of(Rejection, row) for row in rows]


def stats(session: Session, now: int) -> StoreStats:
    """Count what is due and what is dead, per destination, and the pickups due, per source."""
    due = tuple(value_of(Due, row) for row in DELIVERIES.count_due(session, now))
    pickups_due = tuple(value_of(PickupsDue, row) for row in PICKUPS.count_due(session, now))
    dead = {row[0]: row[1] for row in session.run("count_dead", {})}
    return StoreStats(due=due, dead=dead, pickups=pickups_due)


def _listed(
    session: Session,
    name: str,
    conditions: Mapping[str, Value],
    limit: int,
    fixed: str = "",
    more: Mapping[str, Value] = MappingProxyType({}),
) -> list[Row]:
    """Run a listing under those conditions that have a value, and under `fixed`, whose parameters are `more`."""
    asked = {condition: value for condition, value in conditions.items() if value is not None}
    params = {condition.partition(":")[2].split()[0]: value for condition, value in asked.items()}
    texts = [*asked, fixed] if fixed else list(asked)
    return session.run(name, {**params, **more, "limit": limit}, " AND ".join(texts) or "TRUE")
