"""The store: callbacks, events, deliveries and pickups, in one database.

Every method is one transaction; a method that only forwards is documented at its function. Writes go through the writer,
which groups concurrent calls into one commit; each caller returns after that commit. Reads use a second connection. Every
database error is raised as `StoreUnavailable`. Time is a parameter (epoch milliseconds).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from receiver.core.clock import wall_clock
from receiver.core.destinations import PLAIN, SendingRules
from receiver.core.errors import StoreUnavailable
from receiver.core.work import BulkOperation, Claimed, ClaimedPickup, StoreStats, TakenOver
from receiver.storage.store import destinations as destination_rows
from receiver.storage.store import events as event_rows
from receiver.storage.store import pickups as pickup_rows
from receiver.storage.store import queue, retention, small_tables
from receiver.storage.store import submissions as submission_rows
from receiver.storage.store.destinations import Change, Changed, ChangeRequest, Tell
from receiver.storage.store.pickups import PICKUPS
from receiver.storage.store.queue import DELIVERIES, ClaimRequest
from receiver.storage.store.statements import Each, Session, check, migrate
from receiver.storage.store.writer import WAITS, Backend, Operation, Waits, Writer
from receiver.system.background import OwnThread

Q = TypeVar("Q")
R = TypeVar("R")
P = ParamSpec("P")
Notified = Callable[[Iterable[str], Iterable[str]], None]
"""Called with destinations and sources for which another process recorded something."""


@Each
def _ping(session: Session, number: int) -> None:
    session.run("ping", {"id": number})  # the commit that follows is the proof


def _free_locks(session: Session, own: str) -> set[str] | None:
    """Return the locks that claims name and no process holds; None where that is not known."""
    claims = [*DELIVERIES.holders(session), *PICKUPS.holders(session)]
    named = {lock for lock in map(queue.lock_of, claims) if lock is not None}
    return session.free_locks(own, named - {own})


@Each
def _take_over(session: Session, locks: Collection[str], now: int) -> TakenOver:
    return TakenOver(
        destinations=tuple(DELIVERIES.take_over(session, locks, now)),
        sources=tuple(PICKUPS.take_over(session, locks, now)),
    )


_release = Each(DELIVERIES.release)
_release_pickups = Each(PICKUPS.release)
OPERATIONS: Sequence[Operation] = (
    migrate,
    check,
    queue.keep_order,
    DELIVERIES.settle,
    pickup_rows.settle,
    _release,
    _release_pickups,
    _take_over,
    queue.replay,
    queue.add,
    pickup_rows.add,
    small_tables.add_tokens,
    submission_rows.count,
    submission_rows.delivered,
    submission_rows.end,
    submission_rows.begin,
    submission_rows.fingerprinted,
    submission_rows.forget,
    event_rows.record,
    pickup_rows.defer,
    destination_rows.change,
    destination_rows.recover,
    queue.begin_operation,
    queue.change_operation,
    queue.claim_operation,
    queue.advance_operation,
    small_tables.add_tallies,
    DELIVERIES.claim,
    PICKUPS.claim,
    event_rows.reject,
    small_tables.begin_act,
    small_tables.end_act,
    _ping,
    retention.prune,
    retention.erase,
    small_tables.end_login,
)
"""Every operation that writes. Within one transaction they run in this order, so a claim sees what was recorded, and who waits for a lock on a table holds no row."""
URGENT = (event_rows.record, pickup_rows.defer)
"""Operations that a provider waits for."""


def _stats(session: Session, now: int) -> StoreStats:
    """Count the due rows (number, oldest) and the dead letters. The cost grows with pending rows, never with delivered ones."""
    return StoreStats(
        due=DELIVERIES.due(session, now), dead=queue.dead(session), pickups=PICKUPS.due(session, now)
    )


def _writes(
    operation: Callable[[Session, Sequence[Q]], Sequence[R]],
) -> Callable[[Store, Q], Coroutine[Any, Any, R]]:
    """Return the method that has the writer do an operation for one request."""

    async def write(store: Store, request: Q) -> R:
        return await store.write(operation, request)

    return write


def _writes_each(operation: Each[P, R]) -> Callable[Concatenate[Store, P], Coroutine[Any, Any, R]]:
    """Return the method that has the writer call an operation's function."""

    async def write(store: Store, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await store.write(operation, operation.request(*args, **kwargs))

    return write


def _reads(
    function: Callable[Concatenate[Session, P], R],
) -> Callable[Concatenate[Store, P], Coroutine[Any, Any, R]]:
    """Return the method that calls a function over the connection that reads."""

    async def read(store: Store, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await store.read(function, *args, **kwargs)

    return read


class Store:
    """The database of all recorded data. Methods raise `StoreUnavailable` when it cannot be used."""

    shared = False
    """Whether processes of many machines use the database. A person migrates it, as older programs may be running on it."""
    close_seconds: float | None = None
    """How long closing waits for what is under way on a connection; None where no wait is long."""

    takeover_seconds = 0.0
    """How long the lock of another process has to be free until that process counts as ended."""

    def __init__(self, migrations: Mapping[str, str], waits: Waits = WAITS) -> None:
        """`migrations` are those of this program for this database, name to text."""
        self._migrations = migrations
        self._waits = waits
        self._writer: Writer | None = None
        self._reader = self._backend(writes=False)
        self._reading: OwnThread | None = None
        self._notified: Notified | None = None
        self._lock = secrets.token_hex(4)
        """Names the lock that this process holds for as long as it lives."""
        self._claim_lock: str | None = None
        """The lock's name while this process holds it; claims carry it."""
        self._ordered: dict[str, str] = {}
        """The order that deliveries of a destination are known to carry."""
        self._free_since: dict[str, float] = {}
        """Locks of others that were seen free, and since when."""
        self._ping_number = int.from_bytes(os.urandom(2))
        """The row that its pings change: processes share none, but by a chance that does no harm."""

    def _backend(self, *, writes: bool) -> Backend:
        """Return a connection that writes, or one that only reads: what a kind of store has to define."""
        raise NotImplementedError

    # ------------------------------------------------------------ its life

    @property
    def skew_ms(self) -> int | None:
        """Milliseconds by which the database's clock is ahead of ours, as last measured; None where it has no clock."""
        return None

    def listen(self, notified: Notified) -> None:
        """Have `notified(destinations, sources)` called in the event loop when another process recorded something for them.

        Call it before `open`; a later call takes the place of the one before. A notification is a hint: some may be missed, so workers poll as well.
        """
        self._notified = notified

    async def open(self) -> None:
        """Connect and check the schema. Raises `ConfigError` when it is not for this program, `StoreUnavailable`."""
        if self._writer is not None:
            return
        self._start_writer()
        try:
            await self.write(check, check.request(self._migrations, self.shared))
        except BaseException:
            await self.close()
            raise

    def _start_writer(self) -> None:
        self._writer = Writer(self._backend(writes=True), OPERATIONS, URGENT, self._waits)

    async def migrate(self) -> list[str]:
        """Bring the schema up to date; return the names of the migrations applied. Safe to run at any time.

        The store need not be open; it is left as it was.
        """
        was_open = self._writer is not None
        if not was_open:
            self._start_writer()
        try:
            return await self.write(migrate, migrate.request(self._migrations, wall_clock()))
        finally:
            if not was_open:
                await self.close()

    async def prepare(self) -> None:
        """Open the store; a database of this machine alone is made and migrated first. Raises as `open` does."""
        if not self.shared:
            await self.migrate()
        await self.open()

    async def close(self) -> None:
        """Finish what is queued, then disconnect."""
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        reading, self._reading = self._reading, None
        if self.close_seconds is None:  # not both at once: the last connection that closes tidies up
            await writer.close()
            await self._close_reader(reading)
        else:
            await asyncio.gather(writer.close(self.close_seconds), self._close_reader(reading))

    async def _close_reader(self, reading: OwnThread | None) -> None:
        if reading is not None and not await reading.end(self._reader.close, self.close_seconds):
            self._reader.abandon()
            self._reader = self._backend(writes=False)

    async def ping(self) -> None:
        """Prove that it can be written."""
        await self.write(_ping, _ping.request(self._ping_number))

    # ------------------------------------------------------------ callbacks and events

    record = _writes(event_rows.record)
    defer = _writes(pickup_rows.defer)
    event = _reads(event_rows.event)
    search = _reads(event_rows.search)
    positions = _reads(event_rows.positions)
    body = _reads(event_rows.body)
    callback = _reads(event_rows.callback)
    routing = _reads(event_rows.routing)
    has_scope = _reads(event_rows.has_scope)

    reject = _writes_each(event_rows.reject)
    rejections = _reads(event_rows.rejections)
    rejected_request = _reads(event_rows.rejected_request)

    # ------------------------------------------------------------ deliveries

    settle = _writes(DELIVERIES.settle)
    next_due = _reads(DELIVERIES.next_due)
    delivery = _reads(queue.delivery)
    deliveries = _reads(queue.deliveries)
    progress_of = _reads(queue.progress_of)
    behind = _reads(queue.behind)
    crowded = _reads(queue.crowded)
    attempts = _reads(queue.attempts)
    stats = _reads(_stats)

    def claim(
        self,
        destination: str,
        *,
        worker: str,
        limit: int,
        now: int,
        lease_until: int,
        rules: SendingRules = PLAIN,
    ) -> Awaitable[list[Claimed]]:
        """Claim up to `limit` due deliveries (`due_at <= now`), oldest first, until `lease_until`.

        Returns none while the destination is held, except for a due probe; `rules` may allow fewer.

        The call itself queues the request, before any await: an event recorded right after it is in the same transaction,
        and its delivery can be claimed by it.
        """
        request = ClaimRequest(
            destination, queue.token(worker, self._claim_lock), limit, now, lease_until, rules
        )
        if rules.order is None or self._ordered.get(destination) == rules.order:
            return self.write(DELIVERIES.claim, request)
        return self._claim_first(request, rules.order)

    async def _claim_first(self, request: ClaimRequest, order: str) -> list[Claimed]:
        """Claim once deliveries of the destination carry what they are ordered by."""
        await self.write(queue.keep_order, queue.keep_order.request(request.queue, order, request.now))
        self._ordered[request.queue] = order
        return await self.write(DELIVERIES.claim, request)

    release = _writes_each(_release)
    replay = _writes_each(queue.replay)
    add_deliveries = _writes_each(queue.add)

    # ------------------------------------------------------------ destinations

    destinations = _reads(destination_rows.states)

    async def change_destination(self, name: str, change: Change, *, now: int, tell: Tell) -> Changed:
        """Apply `change` to a destination's state, under a lock against other processes.

        `tell(before, after)` may return an event, which is recorded in the same transaction.
        """
        return await self.write(destination_rows.change, ChangeRequest(name, change, tell, now))

    recover = _writes_each(destination_rows.recover)

    # ------------------------------------------------------------ pickups

    add_pickup = _writes(pickup_rows.add)
    settle_pickup = _writes(pickup_rows.settle)
    next_due_pickup = _reads(PICKUPS.next_due)
    pickup = _reads(pickup_rows.pickup)
    pickups = _reads(pickup_rows.pickups)
    pickup_attempts = _reads(pickup_rows.attempts)

    async def claim_pickups(
        self, source: str, *, worker: str, limit: int, now: int, lease_until: int
    ) -> list[ClaimedPickup]:
        """Take up to `limit` pickups of `source` that are due (`due_at <= now`), oldest first, until `lease_until`."""
        request = ClaimRequest(source, queue.token(worker, self._claim_lock), limit, now, lease_until)
        return await self.write(PICKUPS.claim, request)

    release_pickups = _writes_each(_release_pickups)

    # ------------------------------------------------------------ short callback tokens

    add_token = _writes(small_tables.add_tokens)
    token_claims = _reads(small_tables.token_claims)

    # ------------------------------------------------------------ claims of processes that have ended

    async def take_over(self, *, now: int) -> TakenOver:
        """Release the claims of ended processes, due at once. Call it again and again.

        From the first call on, claims carry a lock that ends with their process. Without such locks the leases decide. A
        process that is only disconnected also loses its claims, and cannot settle them.
        """
        before, self._free_since = self._free_since, {}
        try:
            free = await self.read(_free_locks, self._lock)
        except StoreUnavailable:
            self._claim_lock = None
            raise
        self._claim_lock = None if free is None else self._lock
        at = time.monotonic()
        self._free_since = {lock: before.get(lock, at) for lock in free or ()}
        ended = frozenset(
            lock for lock, since in self._free_since.items() if at - since >= self.takeover_seconds
        )
        return await self.write(_take_over, _take_over.request(ended, now)) if ended else TakenOver()

    # ------------------------------------------------------------ submissions

    submissions = _reads(submission_rows.submissions)
    count_usage = _writes(submission_rows.count)

    begin_submission = _writes_each(submission_rows.begin)
    fingerprint_submission = _writes_each(submission_rows.fingerprinted)
    end_submission = _writes_each(submission_rows.end)
    deliver_submission = _writes_each(submission_rows.delivered)
    forget_answers = _writes_each(submission_rows.forget)

    # ------------------------------------------------------------ acts

    begin_act = _writes_each(small_tables.begin_act)
    end_act = _writes_each(small_tables.end_act)
    acts = _reads(small_tables.acts)

    # ------------------------------------------------------------ operations on many rows

    operation = _reads(queue.operation)
    operations = _reads(queue.operations)
    has_due_operation = _reads(queue.has_due_operation)

    begin_operation = _writes_each(queue.begin_operation)
    claim_operation = _writes_each(queue.claim_operation)
    advance_operation = _writes_each(queue.advance_operation)

    async def change_operation(
        self, operation_id: str, *, running: bool, rate: int | None = None, now: int
    ) -> BulkOperation:
        """Run or stop an operation, at a new rate if one is given. An operation that is done stays done. Raises `NotFound`."""
        await self.write(
            queue.change_operation,
            queue.change_operation.request(operation_id, running=running, rate=rate, now=now),
        )
        return await self.operation(operation_id)

    # ------------------------------------------------------------ counts by the minute, and processes

    add_tallies = _writes_each(small_tables.add_tallies)
    tallies = _reads(small_tables.tallies)
    processes = _reads(small_tables.processes)

    # ------------------------------------------------------------ retention

    prune = _writes_each(retention.prune)
    erase = _writes_each(retention.erase)
    known_blobs = _reads(retention.known_blobs)
    traces = _reads(retention.traces)
    tombstones = _reads(retention.tombstones)

    # ------------------------------------------------------------ logins of the console

    login_ended = _reads(small_tables.login_ended)
    end_login = _writes_each(small_tables.end_login)

    # ------------------------------------------------------------ transactions

    def write(
        self, operation: Callable[[Session, Sequence[Q]], Sequence[R]], request: Q
    ) -> asyncio.Future[R]:
        """Queue an operation for the next transaction; its result comes after the commit. Raises `StoreUnavailable`."""
        if self._writer is None:
            raise StoreUnavailable("the store is not open")
        return self._writer.submit(operation, request)

    async def read(
        self, function: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call a function in the thread that reads; return its result."""
        if self._writer is None:
            raise StoreUnavailable("the store is not open")
        if self._reading is None:
            self._reading = OwnThread("store-reader")
        reader = self._reader  # the thread may be abandoned, and another reader made, before the call begins
        return await self._reading.call(
            lambda: _read_now(reader, lambda session: function(session, *args, **kwargs))
        )


def _read_now(reader: Backend, work: Callable[[Session], R]) -> R:
    tried = False
    while True:
        try:
            return work(reader.begin())
        except Exception as error:
            trouble = reader.trouble(error)
            if tried or not trouble.again:
                raise trouble.error from error
            tried = True
