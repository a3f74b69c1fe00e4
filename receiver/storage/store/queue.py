"""The two queues of the store, deliveries of destinations and pickups of sources: claimed, settled and released alike.

A claim is a lease: it sets `due_at` to its own end, so a crashed worker's row is simply due again. A settlement or a
release applies only while its claim is held: no two claims have one token.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from receiver.core.event import new_id
from receiver.core.work import Claimed, ClaimedPickup, PickupSettlement, Settlement
from receiver.storage.store.database import Row, Session, Value, clean
from receiver.storage.store.events import event_of

T = TypeVar("T")
C = TypeVar("C", Claimed, ClaimedPickup)
S = TypeVar("S", Settlement, PickupSettlement)


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A request for what is due in a lane."""

    lane: str
    token: str
    limit: int
    now: int
    lease_until: int


@dataclass(frozen=True, slots=True)
class ReleaseRequest(Generic[C]):
    """Claims to hand back."""

    claims: tuple[C, ...]
    now: int


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """Deliveries that shall have another round."""

    delivery_ids: tuple[str, ...]
    now: int


def token(worker: str) -> str:
    """Name one claim: a worker that gets what it had let expire again must not settle it by the old claim."""
    return f"{worker}:{os.urandom(6).hex()}"


@dataclass(frozen=True, slots=True)
class Queue(Generic[C, S]):
    """One table of due rows; its statements are the twins in `statements.sql`."""

    table: str
    claimed: Callable[[Row, ClaimRequest], C]
    """Makes the claim of a row of `due_…`."""
    settled_too: Callable[[S], tuple[Value, ...]]
    """Returns what settling writes beyond what both queues have."""
    logged_too: Callable[[S], tuple[Value, ...]]
    """Returns what an attempt's record holds beyond what both queues have."""

    def claim(self, session: Session, requests: Sequence[ClaimRequest]) -> list[list[C]]:
        """Take due rows for each request; all rows of one are marked by one statement."""
        results: list[list[C]] = []
        for request in requests:
            params: dict[str, Value] = {"lane": request.lane, "now": request.now, "limit": request.limit}
            claims = [self.claimed(row, request) for row in session.run(f"due_{self.table}", params)]
            # Marked before the next request looks, so that no two of one batch get the same rows.
            rows = [(claim.id, request.token, request.lease_until, request.now) for claim in claims]
            session.run_rows(f"claim_{self.table}", rows)
            results.append(claims)
        return results

    def settle(self, session: Session, settlements: Sequence[S]) -> list[bool]:
        """Write attempts and their consequences, each only while its claim is held; tell which were."""
        held: set[int] = set()
        # Of two claims of one row, only the statement can tell which is held: so one settlement of each row at a time.
        for batch in partition(settlements, lambda settlement: settlement.claim.id):
            rows = [self._settled_row(settlement) for settlement in batch.values()]
            kept = {row[0] for row in session.run_rows(f"settle_{self.table}", rows)}
            held |= {number for number, row in zip(batch, rows, strict=True) if row[0] in kept}
        attempts = [self._attempt_row(settlements[number]) for number in sorted(held)]
        session.run_rows(f"log_{self.table}", attempts)
        return [number in held for number in range(len(settlements))]

    def _settled_row(self, settlement: S) -> tuple[Value, ...]:
        claim = settlement.claim
        return (
            claim.id,
            claim.claimed_by,
            claim.attempts,
            settlement.state.value,
            settlement.due_at,
            settlement.outcome.kind.value,
            settlement.started_at + settlement.duration_ms,
            *self.settled_too(settlement),
        )

    def _attempt_row(self, settlement: S) -> tuple[Value, ...]:
        outcome = settlement.outcome
        return (
            settlement.claim.id,
            settlement.claim.attempts + 1,
            settlement.started_at,
            settlement.duration_ms,
            outcome.kind.value,
            outcome.status,
            clean(outcome.detail),
            *self.logged_too(settlement),
        )

    def release(self, session: Session, requests: Sequence[ReleaseRequest[C]]) -> list[int]:
        """Hand claims back, due at once; tell how many of each request were held."""
        return [self._release(session, request) for request in requests]

    def _release(self, session: Session, request: ReleaseRequest[C]) -> int:
        rows = [(claim.id, claim.claimed_by, claim.attempts, request.now) for claim in request.claims]
        return len(session.run_rows(f"release_{self.table}", rows))

    def next_due(self, session: Session, lane: str) -> int | None:
        """Return when the next row of a lane is due, leases included, or None."""
        due_at: int | None = session.run(f"next_due_{self.table}", {"lane": lane})[0][0]
        return due_at

    def count_due(self, session: Session, now: int) -> list[Row]:
        """Return lane, number of rows due and the oldest time, for each lane that has any."""
        return session.run(f"count_due_{self.table}", {"now": now})

    def attempts(self, session: Session, row_id: str) -> list[Row]:
        """Return the attempts of a row, first to last."""
        return session.run(f"attempts_of_{self.table}", {"id": row_id})


def _delivery(row: Row, request: ClaimRequest) -> Claimed:
    return Claimed(
        delivery_id=row[0],
        destination=request.lane,
        event=event_of(row[3:]),
        attempts=row[1],
        round_start=row[2],
        claimed_by=request.token,
        lease_until=request.lease_until,
    )


DELIVERIES: Queue[Claimed, Settlement] = Queue(
    "deliveries", _delivery, lambda _: (), lambda settlement: (settlement.outcome.response,)
)


def replay(session: Session, requests: Sequence[ReplayRequest]) -> list[list[str]]:
    """Begin another round for deliveries that have ended; results keep the order of each request."""
    return [_replay(session, request) for request in requests]


def _replay(session: Session, request: ReplayRequest) -> list[str]:
    ids = list(dict.fromkeys(request.delivery_ids))
    rows = [(delivery_id, request.now) for delivery_id in ids]
    done = {row[0] for row in session.run_rows("replay_deliveries", rows)}
    return [delivery_id for delivery_id in ids if delivery_id in done]


@dataclass(frozen=True, slots=True)
class NewDeliveries:
    """Deliveries that shall be made: pairs of event and destination, each with the id that it would get."""

    wanted: Mapping[tuple[str, str], str]
    now: int

    @classmethod
    def of(cls, wanted: Sequence[tuple[str, str]], now: int) -> NewDeliveries:
        """Make the ids."""
        return cls({pair: new_id("dlv", now) for pair in wanted}, now)


def add(session: Session, requests: Sequence[NewDeliveries]) -> list[list[str]]:
    """Write the deliveries that are not there yet; return their ids."""
    return [_add(session, request) for request in requests]


def _add(session: Session, request: NewDeliveries) -> list[str]:
    asked = [(event_id,) for event_id in sorted({event_id for event_id, _ in request.wanted})]
    kept = {row[0] for row in session.run_rows("lock_events", asked)}
    there = {(row[1], row[2]) for row in session.run_rows("deliveries_of_events", asked)}
    made = {pair: new for pair, new in request.wanted.items() if pair[0] in kept and pair not in there}
    at = request.now
    session.run_rows("insert_deliveries", [(new, *pair, at, at, at) for pair, new in made.items()])
    return list(made.values())


def partition(requests: Sequence[T], key: Callable[[T], object]) -> list[dict[int, T]]:
    """Divide requests, by their number, into batches in which no key comes twice.

    Only the statement of the first batch can tell what the second meets.
    """
    batches: list[dict[int, T]] = []
    seen: dict[object, int] = {}
    for number, request in enumerate(requests):
        name = key(request)
        turn = seen.get(name, 0)
        seen[name] = turn + 1
        if turn == len(batches):
            batches.append({})
        batches[turn][number] = request
    return batches
