"""The states of destinations, shared by all processes: one row each. Functions of core/destinations.py change them
under a lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec.structs import asdict, replace

from receiver.core.destinations import DestinationState, DestinationStatus
from receiver.core.event import Recording
from receiver.storage.store.events import record
from receiver.storage.store.queue import replay
from receiver.storage.store.statements import Each, Row, Session, Value, value_of

Change = Callable[[DestinationState], DestinationState]
Tell = Callable[[DestinationState, DestinationState], Recording | None]


class Changed(NamedTuple):
    """A destination's state before and after a change."""

    before: DestinationState
    after: DestinationState
    event: Recording | None
    """The event that was recorded with it."""


class ChangeRequest(NamedTuple):
    """A function that changes a destination's state, and one that makes the event to record with the change."""

    name: str
    change: Change
    tell: Tell
    now: int


def change(session: Session, requests: Sequence[ChangeRequest]) -> list[Changed]:
    """Change destinations one by one. All processes lock rows in the same order, so that no two deadlock."""
    results: dict[int, Changed] = {}
    for number in sorted(range(len(requests)), key=lambda number: requests[number].name):
        name, new_state, tell, now = requests[number]
        before = _state(_locked(session, name, now), now)
        after, event = new_state(before), None
        if after != before:
            session.run("update_destination", _params(after, now))
            event = tell(before, after)
            if event is not None:
                record(session, [event])
        results[number] = Changed(before, after, event)
    return [results[number] for number in range(len(requests))]


def states(session: Session, now: int) -> dict[str, DestinationState]:
    """Return the stored states of destinations, by name. A destination without a row is absent."""
    found = [_state(row, now) for row in session.run("list_destinations", {"now": now})]
    return {state.name: state for state in found}


@Each
def recover(session: Session, name: str, *, limit: int, now: int, again_at: int) -> int:
    """Replay up to `limit` of the deliveries that died in a destination's outage, oldest first; return how many.

    No process replays more before `again_at`. When none is left, the outage is forgotten.
    """
    state = _state(_locked(session, name, now), now)
    if state.recover_from is None or state.status is not DestinationStatus.ACTIVE or state.recover_at > now:
        return 0
    bounds: dict[str, Value] = {
        "name": name,
        "first": state.recover_from,
        "last": state.recover_until,
        "limit": limit,
    }
    ids = [row[0] for row in session.run("outage_letters", bounds)]
    left = replace(state, recover_at=again_at)
    if len(ids) < limit:
        left = replace(state, recover_from=None, recover_until=None, recover_at=0)
    session.run("update_destination", _params(left, now))
    return len(replay.one(session, ids, now=now))


def _locked(session: Session, name: str, now: int) -> Row:
    return session.run("lock_destination", {"name": name, "now": now, "at": now})[0]


def _state(row: Row, now: int) -> DestinationState:
    """Return the state of a row, in which `held_until` and `rate_until` count from `now`: the database may have another clock."""
    state = value_of(DestinationState, row)
    held_until, rate_until = max(0, now + state.held_until), max(0, now + state.rate_until)
    return replace(state, held_until=held_until, rate_until=rate_until)


def _params(state: DestinationState, now: int) -> dict[str, Value]:
    return asdict(state) | {"now": now, "at": now, "held_for": state.held_until - now}
