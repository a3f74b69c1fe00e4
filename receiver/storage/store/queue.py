"""The two queues of the store, deliveries and pickups: claim, settle, release. `statements.sql` has the SQL (`due_…`,
`claim_…`).

A claim is a lease: it sets `due_at` to its own end, so a crashed worker's row becomes due again by itself. A settlement or
a release applies only while its claim is held: no two claims have the same token.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from operator import attrgetter, itemgetter
from typing import ClassVar, Generic, NamedTuple, TypeVar

import msgspec
from msgspec.structs import astuple, replace

from receiver.core.destinations import BEFORE_ALL, PLAIN, SendingRules, Walk
from receiver.core.event import Event, new_id
from receiver.core.page import Page
from receiver.core.work import (
    Attempt,
    Batch,
    BulkOperation,
    BulkState,
    Claimed,
    ClaimedPickup,
    Delivery,
    DeliveryFilter,
    DeliveryState,
    Due,
    PickupSettlement,
    Progress,
    Settlement,
)
from receiver.storage.store.listing import (
    LOOKED_AT,
    LOOKED_UP,
    OF_STATE,
    Listing,
    bound,
    named,
    newest_first,
    one,
    page,
)
from receiver.storage.store.statements import Each, Row, Session, Value, value_of

T = TypeVar("T")
C = TypeVar("C", Claimed, ClaimedPickup)
S = TypeVar("S", Settlement, PickupSettlement)


class ClaimRequest(NamedTuple):
    """A request to claim the due rows of one destination, or of one source."""

    queue: str
    token: str
    limit: int
    now: int
    lease_until: int
    rules: SendingRules = PLAIN
    """Rate, order and probing; for deliveries only."""


def token(worker: str, lock: str | None = None) -> str:
    """Return a claim's token, unique to each claim: a worker that claims a row again must not settle it with its expired claim."""
    made = f"{worker}:{os.urandom(6).hex()}"
    return made if lock is None else f"{made}:{lock}"


def lock_of(claimed_by: str) -> str | None:
    """Return the lock in a claim's token, which shows whether its process lives; None if only the lease can show it."""
    parts = claimed_by.split(":")
    return parts[2] if len(parts) == 3 else None


class Queue(ABC, Generic[C, S]):
    """One table of due rows. `statements.sql` has the same set of statements for each of the two."""

    table: ClassVar[str]

    @abstractmethod
    def claimed(self, row: Row, request: ClaimRequest) -> C:
        """Return the claim of a row of `due_…`."""

    def claim(self, session: Session, requests: Sequence[ClaimRequest]) -> list[list[C]]:
        """Take due rows for each request; all rows of one are marked by one statement."""
        results: list[list[C]] = []
        for request in requests:
            claims = self._due(session, request)
            if claims:  # marked before the next request looks, so that no two of one batch get the same rows
                rows = [(claim.id, request.token, request.lease_until, request.now) for claim in claims]
                session.run_rows(f"claim_{self.table}", rows)
            results.append(claims)
        return results

    def _due(self, session: Session, request: ClaimRequest) -> list[C]:
        """Return the rows that may be claimed."""
        params: dict[str, Value] = {"queue": request.queue, "now": request.now, "limit": request.limit}
        return [self.claimed(row, request) for row in session.run(f"due_{self.table}", params)]

    def settle(self, session: Session, settlements: Sequence[S]) -> list[bool]:
        """Write attempts and their consequences, each only while its claim is held; return which were (of others, nothing is written)."""
        held = [False] * len(settlements)
        attempts: list[tuple[Value, ...]] = []
        # Of two claims of one row, only the statement knows which is held: so one settlement of each row at a time.
        for batch in partition(settlements, attrgetter("claim.id")):
            settled, logged = zip(*map(self._rows, batch.values()), strict=True)
            ids = set(map(itemgetter(0), session.run_rows(f"settle_{self.table}", settled)))
            for number, attempt in zip(batch, logged, strict=True):
                if attempt[0] in ids:
                    held[number] = True
                    attempts.append(attempt)
        session.run_rows(f"log_{self.table}", attempts)
        return held

    def _rows(self, settlement: S) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        """Return the parameters of `settle_…` and those of `log_…`."""
        claim, outcome = settlement.claim, settlement.outcome
        row_id, attempts, kind = claim.id, claim.attempts, outcome.kind
        started_at, took = settlement.started_at, int(settlement.seconds * 1000)
        to_settle, to_log = self.also(settlement)
        ended_at = started_at + took
        settled = (row_id, claim.claimed_by, settlement.state, settlement.due_at, kind, ended_at)
        logged = (row_id, attempts + 1, started_at, took, kind, outcome.status, outcome.detail)
        return settled + to_settle, logged + to_log

    @abstractmethod
    def also(self, settlement: S) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        """Return the extra parameters of this table's `settle_…` and `log_…`."""

    def release(self, session: Session, claims: Sequence[C], *, now: int) -> int:
        """Hand claims back unattempted and uncounted, due at once; return how many were still held."""
        rows = [(claim.id, claim.claimed_by, now) for claim in claims]
        return len(session.run_rows(f"release_{self.table}", rows))

    def holders(self, session: Session) -> list[str]:
        """Return the tokens of all present claims."""
        return [row[0] for row in session.run(f"claims_of_{self.table}", {})]

    def take_over(self, session: Session, locks: Collection[str], now: int) -> list[str]:
        """Hand back the rows that processes with these locks had claimed, due at once; return the queue of each."""
        rows = [(claim, now) for claim in self.holders(session) if lock_of(claim) in locks]
        return [row[0] for row in session.run_rows(f"take_over_{self.table}", rows)]

    def next_due(self, session: Session, queue: str) -> int | None:
        """Return when the next row of a queue is due, leases included, or None."""
        due_at: int | None = session.run(f"next_due_{self.table}", {"queue": queue})[0][0]
        return due_at

    def due(self, session: Session, now: int) -> tuple[Due, ...]:
        """Return, for each queue with due rows, their number and the time of the oldest."""
        rows = session.run(f"count_due_{self.table}", {"now": now})
        return tuple(value_of(Due, row) for row in rows)


def partition(requests: Sequence[T], key: Callable[[T], object]) -> list[dict[int, T]]:
    """Divide requests, by their number, into batches in which no key comes twice.

    What the second batch meets depends on the statement of the first.
    """
    batches: list[dict[int, T]] = []
    seen: Counter[object] = Counter()
    for number, request in enumerate(requests):
        name = key(request)
        if seen[name] == len(batches):
            batches.append({})
        batches[seen[name]][number] = request
        seen[name] += 1
    return batches


# ---------------------------------------------------------------- deliveries


class Deliveries(Queue[Claimed, Settlement]):
    """Deliveries of events to destinations."""

    table = "deliveries"

    def claimed(self, row: Row, request: ClaimRequest) -> Claimed:
        """Return a delivery with its event."""
        return Claimed(
            id=row[0],
            destination=request.queue,
            event=value_of(Event, row[3:]),
            attempts=row[1],
            round_start=row[2],
            claimed_by=request.token,
            lease_until=request.lease_until,
            probe=request.rules.probing,
        )

    def _due(self, session: Session, request: ClaimRequest) -> list[Claimed]:
        name, now, rules = request.queue, request.now, request.rules
        rate, limit = rules.rate, 1 if rules.probing else request.limit
        params: dict[str, Value] = {"queue": name, "now": now, "limit": limit, "apart": 0, "full": 0}
        if rate is not None:
            session.run("lock_rate", {"name": name, "at": now})
            full = rate.burst * rate.apart_us
            params |= {"limit": min(limit, rate.burst), "apart": rate.apart_us, "full": full}
        params["held"] = "" if rules.probing else name
        statement = "due_deliveries"
        if rules.order is not None and rules.walk is not None:
            statement, params["ids"] = "due_deliveries_of_jobs", _first_of_jobs(session, request, rules.walk)
        elif rules.order is not None:
            statement, params["hold"] = "due_deliveries_in_order", int(rules.dead_block)
        rows = session.run(statement, params)
        if rows and rules.probing:
            wait = request.lease_until - now
            if not session.run("take_probe", {"name": name, "now": now, "wait": wait}):
                return []
        if rows and rate is not None:
            session.run("use_rate", {"name": name, "now": now, "used": len(rows) * rate.apart_us})
        return [self.claimed(row, request) for row in rows]

    def also(self, settlement: Settlement) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        """An attempt that spends no try moves the start of the round behind it; the log keeps the response."""
        return (settlement.claim.round_start + (not settlement.spent),), (settlement.outcome.response,)


DELIVERIES = Deliveries()
_CROWD = 256
"""Deliveries that are looked at to tell whether most of what is due waits for earlier ones."""
_STEPS, _ENOUGH = 16, 3
"""How often one claim looks at further jobs when nothing of the ones before is due, and when too little is."""


def _first_of_jobs(session: Session, request: ClaimRequest, walk: Walk) -> str:
    """Return as JSON the ids of deliveries that are due and are the first of their jobs, from where the walk has come to."""
    count, began = max(32, request.limit), walk.after
    params: dict[str, Value] = {"queue": request.queue, "now": request.now, "limit": count}
    params["hold"] = int(request.rules.dead_block)
    due: list[Row] = []
    for step in range(_STEPS):
        found = session.run("first_of_jobs", {**params, "after": walk.after})
        due = [*due, *(row for row in found if row[2])][: request.limit]
        at_end, full = len(found) < count, len(due) == request.limit
        if full:
            walk.after = due[-1][0]
        else:
            walk.after = BEFORE_ALL if at_end else found[-1][0]
        if full or (due and (at_end or step >= _ENOUGH)) or (at_end and began == BEFORE_ALL):
            break
        began = BEFORE_ALL if at_end else began
    return json.dumps([row[1] for row in due])


@Each
def keep_order(session: Session, name: str, order: str, now: int) -> None:
    """Have the deliveries of a destination carry what they are ordered by (`job` or `ref`), also those that are there."""
    known = session.run("order_of_destination", {"name": name})
    if not known or known[0][0] != order:
        session.lock_deliveries()  # or one that is being recorded would go by the order before
        session.run("set_order", {"name": name, "order": order, "at": now})
        ids = sorted(row[0] for row in session.run("deliveries_to_order", {"name": name}))
        session.run_rows("order_deliveries", [(row_id,) for row_id in ids])


def crowded(session: Session, name: str, rules: SendingRules, now: int) -> bool:
    """Tell whether most of what is due to a destination waits for earlier deliveries."""
    params: dict[str, Value] = {"queue": name, "now": now, "limit": _CROWD, "hold": int(rules.dead_block)}
    count: int = session.run("count_behind", params)[0][0]
    return count > _CROWD // 2


@Each
def replay(session: Session, delivery_ids: Sequence[str], *, now: int) -> list[str]:
    """Begin another round for each delivery that has ended: due now, attempts kept, `round_start = attempts`.

    Returns the ids that were replayed; unknown ids and deliveries still under way are left out.
    """
    ids = list(dict.fromkeys(delivery_ids))
    replayed = {row[0] for row in session.run_rows("replay_deliveries", [(row_id, now) for row_id in ids])}
    session.run_rows("order_deliveries", sorted((row_id,) for row_id in replayed))
    return [row_id for row_id in ids if row_id in replayed]


@Each
def add(session: Session, wanted: Sequence[tuple[str, str]], *, now: int) -> list[str]:
    """Make a delivery, due now, for each pair of event and destination that has none; return the new ids.

    An event that is not there (any more) gets none.
    """
    event_ids = [(event_id,) for event_id in sorted({event_id for event_id, _ in wanted})]
    kept = {row[0] for row in session.run_rows("lock_events", event_ids)}
    there = {(row[1], row[2]) for row in session.run_rows("deliveries_of_events", event_ids)}
    new = [pair for pair in dict.fromkeys(wanted) if pair[0] in kept and pair not in there]
    rows = [(new_id("dlv", now), *pair, now, now, now, None, None) for pair in new]
    session.run_rows("insert_deliveries", rows)
    session.run_rows("order_deliveries", sorted((row[0],) for row in rows))
    return [row[0] for row in rows]


def progress_of(session: Session, event_ids: Sequence[str]) -> list[Progress]:
    """Return state and attempts of each delivery of these events."""
    rows = session.run_rows("deliveries_of_events", [(event_id,) for event_id in event_ids])
    return [
        Progress(id=row[0], event_id=row[1], destination=row[2], state=DeliveryState(row[3]), attempts=row[4])
        for row in rows
    ]


def delivery(session: Session, delivery_id: str) -> Delivery:
    """Return one delivery. Raises `NotFound`."""
    return value_of(Delivery, one(session, "delivery", "list_deliveries", delivery_id, "d.id"))


_OF_EVENT = "SELECT o.{} FROM events AS o WHERE o.id = d.event_id"
"""A subquery and no join: with a rare value, PostgreSQL would read all matching events first."""
_BACK = Listing("list_deliveries", "place_of_deliveries", "d.id", (0,))
_ONWARD = Listing("list_deliveries_onward", "place_of_deliveries_onward", "d.id", (0,), onward=True)


def deliveries(session: Session, filter: DeliveryFilter) -> Page[Delivery]:
    """List deliveries, a page at a time."""
    indexed: dict[str, Value] = {
        "d.event_id = :event_id": filter.event_id,
        "d.id >= :since": None if filter.since is None else bound("dlv", filter.since),
        "d.id < :until": None if filter.until is None else bound("dlv", filter.until),
    }
    others: dict[str, Value | tuple[str, ...]] = {
        **named("d.destination || ''", filter.destination, "destination"),
        **named(f"({_OF_EVENT.format('source')})", filter.source, "source"),
        f"({_OF_EVENT.format('type')}) IN :type": filter.types,
        "d.due_at IS NULL AND d.updated_at < :ended_before": filter.ended_before,
    }
    if filter.state is not None and filter.state in OF_STATE:
        indexed[OF_STATE[filter.state]] = filter.state
    else:
        others["d.state = :state"] = filter.state
    joined = filter.source is not None or filter.types is not None
    looked_at = LOOKED_UP if joined else LOOKED_AT
    listing = _ONWARD if filter.oldest_first else _BACK
    return page(
        session,
        listing,
        indexed,
        others,
        after=filter.after,
        limit=filter.limit,
        item=partial(value_of, Delivery),
        looked_at=looked_at,
    )


def behind(session: Session, delivery_ids: Sequence[str], rules: SendingRules) -> set[str]:
    """Return those of these deliveries that wait for an earlier one in the order of `rules`."""
    rows = [(delivery_id, int(rules.dead_block)) for delivery_id in delivery_ids]
    return {row[0] for row in session.run_rows("deliveries_behind", rows)}


def attempts(session: Session, delivery_id: str) -> list[Attempt]:
    """Return the attempts of a delivery, first to last."""
    return [value_of(Attempt, row) for row in session.run("attempts_of_deliveries", {"id": delivery_id})]


def dead(session: Session) -> dict[str, int]:
    """Return how many dead letters each destination has, of those that have any."""
    return {row[0]: row[1] for row in session.run("count_dead", {})}


# ---------------------------------------------------------------- bulk operations
# One row each, claimed by one process at a time. One transaction holds a batch and the new position.


@Each
def begin_operation(session: Session, wanted: BulkOperation) -> None:
    """Write an operation."""
    row = astuple(replace(wanted, selection=msgspec.json.encode(wanted.selection).decode()))
    session.run_rows("insert_operations", [row])


@Each
def claim_operation(
    session: Session, *, now: int, lease_until: int, only: str | None = None
) -> BulkOperation | None:
    """Claim the operation that has been due longest, or the given one, until `lease_until`."""
    params: dict[str, Value] = {"now": now, "at": now, "wait": lease_until - now}
    chosen = "TRUE"
    if only is not None:
        params["only"], chosen = only, "d.id = :only"
    rows = session.run("claim_operation", params, chosen)
    return _operation(rows[0]) if rows else None


@Each
def advance_operation(session: Session, claimed: BulkOperation, batch: Batch, *, now: int) -> int | None:
    """Do a batch; return how many rows it changed.

    None, and nothing is done, when the operation was stopped or another process did this batch: no row is gone through
    twice, and none is left out.
    """
    came: dict[str, Value] = {
        "id": claimed.id,
        "before": claimed.place,
        "place": batch.place,
        "rows": batch.rows,
        "state": BulkState.DONE if batch.finished else BulkState.RUNNING,
        "wait": None if batch.finished else batch.wait,
        "now": now,
        "at": now,
    }
    if not session.run("advance_operation", came):
        return None
    changed = batch.changed + len(replay.one(session, batch.replays, now=now))
    changed += len(add.one(session, batch.additions, now=now))
    session.run("count_operation", {"id": claimed.id, "changed": changed})
    return changed


@Each
def change_operation(
    session: Session, operation_id: str, *, running: bool, rate: int | None, now: int
) -> None:
    """Run or stop an operation, at a new rate if one is given. An operation that is done stays done."""
    params: dict[str, Value] = {
        "id": operation_id,
        "state": BulkState.RUNNING if running else BulkState.STOPPED,
        "wait": 0 if running else None,
        "rate": rate,
        "now": now,
        "at": now,
    }
    session.run("change_operation", params)


def has_due_operation(session: Session, now: int) -> bool:
    """Tell whether an operation may be taken."""
    return bool(session.run("due_operations", {"now": now}))


def operation(session: Session, operation_id: str) -> BulkOperation:
    """Return one operation. Raises `NotFound`."""
    return _operation(one(session, "operation", "list_operations", operation_id))


def operations(session: Session, after: str | None, limit: int) -> Page[BulkOperation]:
    """List operations, newest first."""
    return page(session, newest_first("operations"), {}, {}, after=after, limit=limit, item=_operation)


def _operation(row: Row) -> BulkOperation:
    place = BulkOperation.__struct_fields__.index("selection")
    values: Sequence[object] = [*row[:place], msgspec.json.decode(row[place]), *row[place + 1 :]]
    return value_of(BulkOperation, values)
