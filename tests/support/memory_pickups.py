"""The pickups of the store in plain dictionaries, and that store's own life (floor 3)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from receiver.core.errors import NotFound, StoreUnavailable
from receiver.core.event import Answered
from receiver.core.work import ClaimedPickup, Pickup, PickupAttempt, PickupsDue, PickupSettlement, PickupState
from receiver.storage.store.base import PickupFilter


class MemoryPickups:
    """What concerns pickups alone."""

    def __init__(self) -> None:
        self._pickups: dict[str, Pickup] = {}
        self._pickup_attempts: dict[str, list[PickupAttempt]] = {}
        self._open = False

    async def open(self) -> None:
        """Make it usable; what was recorded before a close is still there."""
        self._open = True

    async def migrate(self) -> list[str]:
        """Nothing to bring up to date."""
        return []

    async def close(self) -> None:
        """Refuse everything from now on."""
        self._open = False

    async def ping(self) -> None:
        """Prove that it can be written. Raises `StoreUnavailable`."""
        if not self._open:
            msg = "the store is not open"
            raise StoreUnavailable(msg)

    # ------------------------------------------------------------ in

    async def add_pickup(self, pickup: Pickup) -> tuple[Pickup, bool]:
        """Write a pickup, unless one of its key stands; return the one that stands, and whether it is new."""
        await self.ping()
        standing = self._standing(pickup.source, pickup.key)
        if standing is not None:
            return standing, False
        self._add(pickup)
        return pickup, True

    def _standing(self, source: str, key: str) -> Pickup | None:
        return next((one for one in self._of(source, key) if one.state is not PickupState.GONE), None)

    def _of(self, source: str, key: str) -> list[Pickup]:
        return [one for one in self._pickups.values() if (one.source, one.key) == (source, key)]

    def _add(self, pickup: Pickup) -> None:
        if pickup.id in self._pickups:
            msg = "store: the database refused a row: its id is already there"
            raise StoreUnavailable(msg)
        self._pickups[pickup.id] = pickup
        self._pickup_attempts[pickup.id] = []

    def _hasten(self, standing: Pickup, news: Pickup) -> None:
        """Let a pickup that has not ended know what a callback told of its result."""
        if standing.state in (PickupState.PENDING, PickupState.COLLECTING):
            self._change_pickup(
                standing.id,
                target=standing.target if news.target is None else news.target,
                draft=standing.draft if news.draft is None else news.draft,
                job_id=news.job_id if standing.job_id is None else standing.job_id,
                ref=news.ref if standing.ref is None else standing.ref,
                format=standing.format or news.format,
                state=PickupState.PENDING,
                claimed_by=None,
                deadline_at=max(standing.deadline_at, news.deadline_at),
                due_at=news.created_at,
                updated_at=news.created_at,
            )

    def _answer(self, source: str, answered: Answered, event_id: str, at: int) -> None:
        """Tell the pickup that watches for a callback: the one that stands, else the last that is gone."""
        watching = self._standing(source, answered.key) or max(
            self._of(source, answered.key), key=lambda one: one.id, default=None
        )
        if watching is None or watching.state is PickupState.COLLECTED:
            return
        job_id = answered.job_id if watching.job_id is None else watching.job_id
        if answered.final:
            self._change_pickup(
                watching.id,
                state=PickupState.COLLECTED,
                event_id=event_id,
                job_id=job_id,
                due_at=None,
                claimed_by=None,
                last_outcome="late" if watching.state is PickupState.GONE else "answered",
                updated_at=at,
            )
        elif answered.job_id:
            self._change_pickup(watching.id, job_id=job_id, updated_at=at)

    # ------------------------------------------------------------ attempts

    async def claim_pickups(
        self, source: str, *, worker: str, limit: int, now: int, lease_until: int
    ) -> list[ClaimedPickup]:
        """Take up to `limit` pickups of `source` that are due (`due_at <= now`), oldest first, until `lease_until`."""
        await self.ping()
        token = f"{worker}:{os.urandom(6).hex()}"
        due = sorted((at, one.id) for one, at in self._waiting_pickups(source) if at <= now)
        taken = [self._pickups[pickup_id] for _, pickup_id in due[:limit]]
        for one in taken:
            self._change_pickup(
                one.id,
                state=PickupState.COLLECTING,
                claimed_by=token,
                due_at=lease_until,
                updated_at=now,
            )
        return [ClaimedPickup(pickup=one, claimed_by=token, lease_until=lease_until) for one in taken]

    def _waiting_pickups(self, source: str | None = None) -> Iterable[tuple[Pickup, int]]:
        for one in self._pickups.values():
            if one.due_at is not None and source in (None, one.source):
                yield one, one.due_at

    def _holds_pickup(self, claim: ClaimedPickup) -> bool:
        one = self._pickups.get(claim.pickup.id)
        return (
            one is not None
            and one.state is PickupState.COLLECTING
            and (one.claimed_by, one.attempts) == (claim.claimed_by, claim.pickup.attempts)
        )

    def _settle(self, settlement: PickupSettlement) -> None:
        pickup_id, outcome = settlement.claim.pickup.id, settlement.outcome
        attempt = PickupAttempt(
            pickup_id=pickup_id,
            number=settlement.claim.pickup.attempts + 1,
            started_at=settlement.started_at,
            duration_ms=settlement.duration_ms,
            outcome=outcome.kind,
            status=outcome.status,
            detail=outcome.detail,
        )
        self._pickup_attempts[pickup_id].append(attempt)
        self._change_pickup(
            pickup_id,
            state=settlement.state,
            attempts=attempt.number,
            failures=settlement.failures,
            due_at=settlement.due_at,
            claimed_by=None,
            last_outcome=outcome.kind.value,
            last_detail=outcome.detail,
            updated_at=settlement.started_at + settlement.duration_ms,
        )

    def _yield(self, pickup_id: str, event_id: str, state: PickupState) -> None:
        """End a pickup with another's event."""
        self._change_pickup(pickup_id, state=state, event_id=event_id, due_at=None)

    def _change_pickup(self, pickup_id: str, **changes: object) -> None:
        self._pickups[pickup_id] = replace(self._pickups[pickup_id], **changes)

    async def release_pickups(self, claims: Sequence[ClaimedPickup], *, now: int) -> int:
        """Hand claims back unattempted and uncounted, due at once; return how many were still held."""
        await self.ping()
        held = {claim.pickup.id for claim in claims if self._holds_pickup(claim)}
        for pickup_id in held:
            self._change_pickup(
                pickup_id, state=PickupState.PENDING, claimed_by=None, due_at=now, updated_at=now
            )
        return len(held)

    # ------------------------------------------------------------ reading

    async def next_due_pickup(self, source: str) -> int | None:
        """Return when the next pickup of `source` is due (leases included), or None."""
        await self.ping()
        return min((at for _, at in self._waiting_pickups(source)), default=None)

    async def pickup(self, pickup_id: str) -> Pickup:
        """Return one pickup. Raises `NotFound`."""
        await self.ping()
        if pickup_id not in self._pickups:
            msg = f"no pickup has the id {pickup_id}"
            raise NotFound(msg)
        return self._pickups[pickup_id]

    async def pickups(self, wanted: PickupFilter) -> list[Pickup]:
        """List pickups, newest first."""
        await self.ping()
        found = [
            one
            for one in self._pickups.values()
            if wanted.source in (None, one.source)
            and wanted.state in (None, one.state)
            and wanted.job_id in (None, one.job_id)
            and wanted.ref in (None, one.ref)
            and (wanted.after is None or one.id < wanted.after)
        ]
        return sorted(found, key=lambda one: one.id, reverse=True)[: wanted.limit]

    async def pickup_attempts(self, pickup_id: str) -> list[PickupAttempt]:
        """Return the attempts of a pickup, first to last."""
        await self.ping()
        return list(self._pickup_attempts.get(pickup_id, ()))

    def _pickups_due(self, now: int) -> tuple[PickupsDue, ...]:
        due: dict[str, list[int]] = {}
        for one, at in self._waiting_pickups():
            if at <= now:
                due.setdefault(one.source, []).append(at)
        return tuple(
            PickupsDue(source=source, depth=len(ats), oldest_due_at=min(ats))
            for source, ats in sorted(due.items())
        )
