"""The pull road: each source has a lane of its own that claims pickups, collects and settles. Sees ports only."""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from receiver.core.envelope import iso
from receiver.core.errors import Unavailable
from receiver.core.event import EventDraft, JobError, Recording, RecordStatus, Stage
from receiver.core.fetch import Failed, Fetch
from receiver.core.observe import Observer, PickupReport
from receiver.core.retry import pickup_delay
from receiver.core.work import (
    ClaimedPickup,
    Found,
    Pickup,
    PickupKind,
    PickupOutcome,
    PickupSettled,
    PickupSettlement,
    PickupState,
)
from receiver.engine.recorder import Recorder
from receiver.engine.worker import SLACK_SECONDS, Clock, Runner, StoreWatch, insist
from receiver.providers.base import Collected, Gone, NotYet, PullProvider, Result
from receiver.storage.store.store import Store

_FIRST_ASK_SECONDS = 10.0
"""How long the first question about an overdue callback may take, before the application is told that it is overdue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarry:
    """How one source's results are collected, apart from all others."""

    provider_name: str
    provider: PullProvider | None
    """None for a source that can only call back: its pickups are expectations."""
    fetch: Fetch | None
    concurrency: int
    attempt_seconds: float
    """The longest that collecting takes, and again that storing takes."""

    @property
    def needed(self) -> float:
        """Seconds that a lease must still hold for an attempt to begin."""
        return 2 * self.attempt_seconds + SLACK_SECONDS

    @property
    def lease(self) -> float:
        """Seconds that a claim holds."""
        return self.needed + 60


@dataclass(frozen=True, slots=True)
class _Made:
    """An attempt, to be settled."""

    settlement: PickupSettlement
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """What an attempt comes to."""

    outcome: PickupOutcome
    state: PickupState = PickupState.PENDING
    due_at: int | None = None
    failures: int = 0
    recording: Recording | None = None


class Collector:
    """All lanes."""

    def __init__(
        self,
        store: Store,
        recorder: Recorder,
        sources: Mapping[str, Quarry],
        observer: Observer,
        clock: Clock,
        worker: str,
    ) -> None:
        """`worker` names this process in claims; no two processes have the same."""
        watch = StoreWatch(observer, "pickup")
        self._runners = {
            name: Runner(_Collecting(name, quarry, store, recorder, observer, watch, worker), watch, clock)
            for name, quarry in sources.items()
        }

    def start(self) -> None:
        """Begin to claim and collect, in tasks of the running loop. The fetchers are open."""
        for runner in self._runners.values():
            runner.start()

    def wake(self, source: str) -> None:
        """Tell the lane of `source` that there is a new pickup."""
        runner = self._runners.get(source)
        if runner is not None:
            runner.look.set()

    async def stop(self, grace_seconds: float) -> None:
        """Claim no more, give attempts under way `grace_seconds` to end, stop the rest; hand back what was not attempted."""
        await asyncio.gather(*(runner.stop(grace_seconds) for runner in self._runners.values()))

    async def step(self, now: int) -> int:
        """Claim everything due at `now`, attempt it once as of `now`, settle it; return how many. Not while started."""
        counts = await asyncio.gather(*(runner.step(now) for runner in self._runners.values()))
        return sum(counts)


class _Collecting:
    """The work of one source's lane."""

    def __init__(
        self,
        name: str,
        quarry: Quarry,
        store: Store,
        recorder: Recorder,
        observer: Observer,
        watch: StoreWatch,
        worker: str,
    ) -> None:
        self.name = name
        self.concurrency = quarry.concurrency
        self._quarry = quarry
        self._store = store
        self._recorder = recorder
        self._observer = observer
        self._watch = watch
        self._worker = worker

    # ------------------------------------------------------------ claims

    async def claim(self, now: int, limit: int) -> list[ClaimedPickup]:
        lease_until = now + round(self._quarry.lease * 1000)
        return await self._store.claim_pickups(
            self.name, worker=self._worker, limit=limit, now=now, lease_until=lease_until
        )

    async def next_due(self) -> int | None:
        return await self._store.next_due_pickup(self.name)

    async def hand_back(self, claims: list[ClaimedPickup], now: int) -> None:
        await self._store.release_pickups(claims, now=now)

    def covered(self, claim: ClaimedPickup, now: int) -> bool:
        return claim.lease_until - now >= self._quarry.needed * 1000

    # ------------------------------------------------------------ one attempt

    async def make(self, claim: ClaimedPickup, clock: Clock) -> _Made:
        started_at, began = clock(), time.perf_counter()
        told: list[Recording] = []
        try:
            end = await self._end(claim.pickup, clock, told)
        except Unavailable as error:
            end = self._again(
                claim.pickup, PickupOutcome(kind=Found.NOT_STORED, detail=error.message), clock()
            )
        except Exception as error:  # a bug of ours must not stop the lane
            end = self._again(claim.pickup, self._bug_outcome(claim.pickup, error), clock())
        seconds = time.perf_counter() - began
        settlement = PickupSettlement(
            claim=claim,
            started_at=started_at,
            duration_ms=int(seconds * 1000),
            outcome=end.outcome,
            state=end.state,
            due_at=end.due_at,
            failures=end.failures,
            recording=end.recording,
            progress=tuple(told),
        )
        return _Made(settlement, seconds)

    async def _end(self, pickup: Pickup, clock: Clock, told: list[Recording]) -> _End:
        """Attempt it. What is to be `told` meanwhile goes with the settlement: only who still holds the claim tells it."""
        provider, fetch = self._quarry.provider, self._quarry.fetch
        expected = pickup.kind is PickupKind.EXPECTED
        if provider is None or fetch is None or (expected and not provider.can_ask(pickup)):
            return await self._overdue(pickup)
        first = expected and pickup.attempts == 0
        limit = (
            min(_FIRST_ASK_SECONDS, self._quarry.attempt_seconds) if first else self._quarry.attempt_seconds
        )
        result = await self._collect(provider, fetch, pickup, clock, limit)
        try:
            if first and not isinstance(result, Collected | Gone):
                # The application asked to be told, and still waits; the provider goes on being asked.
                told.append(await self._recorder.progress(provider, pickup, _overdue(pickup)))
            return await self._consequence(provider, pickup, result, clock, told)
        finally:
            if isinstance(result, Collected) and result.body is not None:
                result.body.discard()

    async def _collect(
        self, provider: PullProvider, fetch: Fetch, pickup: Pickup, clock: Clock, limit: float
    ) -> Result:
        asked = pickup
        if pickup.kind is PickupKind.EXPECTED and pickup.job_id is not None:
            # What is found is the job's result, whichever road brings it first.
            asked = replace(pickup, key=provider.order(pickup.job_id, pickup.format).key)
        try:
            async with asyncio.timeout(limit):
                return await provider.collect(asked, fetch, now=clock())
        except TimeoutError:
            return Failed(kind=Found.TIMEOUT, detail=f"collecting took over {limit:g} s")

    async def _consequence(
        self, provider: PullProvider, pickup: Pickup, result: Result, clock: Clock, told: list[Recording]
    ) -> _End:
        now = clock()
        match result:
            case Collected(draft=draft):
                async with asyncio.timeout(self._quarry.attempt_seconds):
                    recording = await self._recorder.result(provider, pickup, draft, result.body)
                if draft.error is None:
                    return _End(
                        outcome=PickupOutcome(kind=Found.COLLECTED),
                        state=PickupState.COLLECTED,
                        recording=recording,
                    )
                outcome = PickupOutcome(kind=Found.GONE, detail=draft.error.message[:500])
                return _End(outcome=outcome, state=PickupState.GONE, recording=recording)
            case NotYet():
                if result.progress is not None:
                    told.append(await self._recorder.progress(provider, pickup, result.progress))
                outcome = PickupOutcome(kind=Found.NOT_YET, detail=result.detail)
                if now >= pickup.deadline_at:
                    late = JobError(code="timed_out", message=_TIMED_OUT, details=result.detail or None)
                    return await self._gone(provider, pickup, late, outcome, now)
                due_at = now + round(result.retry_in * random.uniform(0.9, 1.1) * 1000)
                return _End(outcome=outcome, due_at=min(due_at, pickup.deadline_at))
            case Gone():
                detail = result.error.message[:500]
                outcome = PickupOutcome(kind=Found.GONE, detail=detail)
                return await self._gone(provider, pickup, result.error, outcome, now)
            case Failed():
                return await self._failed(provider, pickup, result, now)

    async def _failed(self, provider: PullProvider, pickup: Pickup, result: Failed, now: int) -> _End:
        outcome = PickupOutcome(
            kind=result.kind, status=result.status, detail=result.detail, retry_after=result.retry_after
        )
        if result.too_large:
            error = JobError(code="too_large", message=result.detail)
            return await self._gone(provider, pickup, error, outcome, now)
        if now >= pickup.deadline_at:
            error = JobError(code="unavailable", message=_UNAVAILABLE, details=result.detail)
            return await self._gone(provider, pickup, error, outcome, now)
        return self._again(pickup, outcome, now)

    def _again(self, pickup: Pickup, outcome: PickupOutcome, now: int) -> _End:
        failures = pickup.failures + 1
        due_at = now + round(pickup_delay(failures, outcome.retry_after) * 1000)
        if now < pickup.deadline_at:
            due_at = min(due_at, pickup.deadline_at)  # the last attempt is made when its time is up
        return _End(outcome=outcome, due_at=due_at, failures=failures)

    async def _gone(
        self, provider: PullProvider, pickup: Pickup, error: JobError, outcome: PickupOutcome, now: int
    ) -> _End:
        told = pickup.draft
        draft = EventDraft(
            type=f"{provider.family(pickup)}.failed",
            idempotency_key=f"pickup:{pickup.id}",
            job_id=pickup.job_id,
            ref=pickup.ref,
            occurred_at=now,
            stage=Stage.FINAL,
            late=told.late if told else False,
            error=error,
            provider_data=told.provider_data if told else {},
        )
        recording = await self._recorder.result(provider, pickup, draft, None)
        return _End(outcome=outcome, state=PickupState.GONE, recording=recording)

    async def _overdue(self, pickup: Pickup) -> _End:
        recording = await self._recorder.overdue(self._quarry.provider_name, pickup, _overdue(pickup))
        outcome = PickupOutcome(kind=Found.GONE, detail=_OVERDUE)
        return _End(outcome=outcome, state=PickupState.GONE, recording=recording)

    def _bug_outcome(self, pickup: Pickup, error: Exception) -> PickupOutcome:
        if isinstance(error, TimeoutError):
            limit = self._quarry.attempt_seconds
            return PickupOutcome(kind=Found.NOT_STORED, detail=f"storing took over {limit:g} s")
        frames = traceback.extract_tb(error.__traceback__)
        self._observer.note(
            "error",
            "pickup.internal_error",
            source=pickup.source,
            pickup_id=pickup.id,
            error=type(error).__name__,  # its text may hold what must not be logged
            at=f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "",
        )
        return PickupOutcome(kind=Found.UNUSABLE, detail="internal error")

    # ------------------------------------------------------------ settling

    async def settle(self, made: _Made, clock: Clock) -> int | None:
        settlement = made.settlement
        pickup = settlement.claim.pickup
        left = (settlement.claim.lease_until - clock()) / 1000
        settled = await insist(lambda: self._store.settle_pickup(settlement), self._watch, left)
        if settled is None:
            self._observer.note(
                "error",
                "pickup.settle_given_up",
                source=pickup.source,
                pickup_id=pickup.id,
                outcome=settlement.outcome.kind.value,
            )
        held = settled is not None and settled.held
        recorded = settled.recorded if settled else None
        self._wake(settlement, settled)
        self._observer.pickup(
            PickupReport(
                source=pickup.source,
                provider=self._quarry.provider_name,
                pickup_id=pickup.id,
                job_id=pickup.job_id,
                ref=pickup.ref,
                number=pickup.attempts + 1,
                outcome=settlement.outcome,
                seconds=made.seconds,
                state=settlement.state.value if held else "lost",
                due_at=settlement.due_at if held else None,
                event_id=recorded.event_id if recorded else None,
                event_type=settlement.recording.event.type if recorded and settlement.recording else None,
            )
        )
        return settlement.due_at if held else None

    def _wake(self, settlement: PickupSettlement, settled: PickupSettled | None) -> None:
        """Tell the destinations of what was recorded; late progress is for none of them."""
        written = list(zip(settlement.progress, settled.progress, strict=False)) if settled else []
        if settled and settled.recorded and settlement.recording:
            written.append((settlement.recording, settled.recorded))
        for recording, recorded in written:
            if recorded.status is RecordStatus.RECORDED:
                self._recorder.wake(recording.destinations)

    def put_off(self, claim: ClaimedPickup, error: Unavailable) -> None:
        self._observer.note(
            "warning", "pickup.put_off", source=self.name, pickup_id=claim.pickup.id, error=error.message
        )

    def bug(self, step: str, error: Exception) -> None:
        names = {"claim": "pickup.claim_failed", "work": "pickup.worker_failed"}
        self._observer.note("error", names[step], source=self.name, error=type(error).__name__)


_TIMED_OUT = "the provider had not finished when the time for it was up; it may still have the result"
_UNAVAILABLE = "the result could not be fetched in its time"
_OVERDUE = "the callback did not come within the time in which it was expected"


def _overdue(pickup: Pickup) -> EventDraft:
    """The event that says a callback has not come; it may still come, and counts then."""
    return EventDraft(
        type="callback.overdue",
        idempotency_key=f"overdue:{pickup.id}",
        job_id=pickup.job_id,
        ref=pickup.ref,
        occurred_at=pickup.due_at or pickup.deadline_at,
        stage=Stage.OPEN,
        error=JobError(code="overdue", message=_OVERDUE),
        provider_data={"expected_by": iso(pickup.due_at or pickup.deadline_at)},
    )
