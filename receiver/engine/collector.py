"""Polls providers: each source has a lane that claims due pickups, collects their results and settles them. Sees ports only."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from receiver.core.clock import iso
from receiver.core.errors import Unavailable
from receiver.core.event import EventDraft, JobError, Recording, RecordStatus, Stage, scope_of, scoped, within
from receiver.core.fetch import Failed, Fetch
from receiver.core.observe import Observer, PickupReport
from receiver.core.retry import pickup_delay
from receiver.core.work import (
    ClaimedPickup,
    Outcome,
    OutcomeKind,
    Pickup,
    PickupKind,
    PickupSettled,
    PickupSettlement,
    PickupState,
)
from receiver.engine.gate import Gate
from receiver.engine.recorder import Recorder
from receiver.engine.worker import (
    LANE_TIMING,
    SLACK_SECONDS,
    Clock,
    LaneContext,
    Lanes,
    LaneTiming,
    LaneWork,
    QueuePort,
    StoreWatch,
)
from receiver.providers import PullProvider
from receiver.providers.pickups import Collected, Gone, NotYet, Result
from receiver.storage.store.store import Store

_FIRST_ASK_SECONDS = 10.0
"""How long the first question about an overdue callback may take, before the application is told that it is overdue."""


class PullSource(Struct, frozen=True, kw_only=True):
    """The settings and adapter by which one source's results are collected."""

    provider_name: str
    provider: PullProvider | None
    """None for a source that can only call back: its pickups are expectations."""
    fetch: Fetch | None
    concurrency: int
    attempt_seconds: float
    """The time limit of a collection; storing the result has the same limit again."""

    @property
    def needed(self) -> float:
        """Seconds that a lease must still hold for an attempt to begin."""
        return 2 * self.attempt_seconds + SLACK_SECONDS

    @property
    def lease(self) -> float:
        """Seconds that a claim holds."""
        return self.needed + 60


class _End(Struct, frozen=True, kw_only=True):
    """The outcome of an attempt."""

    outcome: Outcome
    state: PickupState = PickupState.PENDING
    due_at: int | None = None
    failures: int = 0
    recording: Recording | None = None


class Collector(Lanes[ClaimedPickup, PickupSettlement]):
    """All sources' lanes."""

    def __init__(
        self,
        store: Store,
        recorder: Recorder,
        sources: Mapping[str, PullSource],
        observer: Observer,
        clock: Clock,
        worker: str,
        timing: LaneTiming = LANE_TIMING,
    ) -> None:
        """`worker` names this process in claims; no two processes have the same."""
        context = LaneContext(observer, StoreWatch(observer, "pickup"), clock, worker, timing)
        super().__init__(
            Collecting(name, source, store, recorder, context) for name, source in sources.items()
        )


class Collecting(LaneWork[ClaimedPickup, PickupSettlement]):
    """The pickups of one source."""

    part, lane_key, id_key = "pickup", "source", "pickup_id"

    def __init__(
        self, name: str, source: PullSource, store: Store, recorder: Recorder, context: LaneContext
    ) -> None:
        queue = QueuePort(
            store.claim_pickups, store.settle_pickup, store.release_pickups, store.next_due_pickup
        )
        super().__init__(name, source, queue, context, Gate(source.concurrency))
        self._source = source
        self._store = store
        self._recorder = recorder

    # ------------------------------------------------------------ one attempt

    async def make(self, claim: ClaimedPickup, now: int, clock: Clock) -> PickupSettlement:
        """Ask the provider once, and store its result."""
        began = time.perf_counter()
        pickup, progress = claim.pickup, list[Recording]()
        try:
            end = await self._end(pickup, clock, progress)
        except Unavailable as error:
            end = _again(pickup, Outcome(kind=OutcomeKind.NOT_STORED, detail=error.message), clock())
        except TimeoutError:
            detail = f"storing took over {self._source.attempt_seconds:g} s"
            end = _again(pickup, Outcome(kind=OutcomeKind.NOT_STORED, detail=detail), clock())
        except Exception as error:  # a bug of ours must not stop the lane
            self.note_bug(claim, error)
            end = _again(pickup, Outcome(kind=OutcomeKind.UNUSABLE, detail="internal error"), clock())
        return PickupSettlement(
            claim=claim,
            started_at=now,
            seconds=time.perf_counter() - began,
            outcome=end.outcome,
            state=end.state,
            due_at=end.due_at,
            failures=end.failures,
            recording=end.recording,
            progress=tuple(progress),
        )

    async def _end(self, pickup: Pickup, clock: Clock, progress: list[Recording]) -> _End:
        """Run the attempt. `progress` events go with the settlement, so only a worker that still holds the claim records them."""
        provider, fetch = self._source.provider, self._source.fetch
        expected = pickup.kind is PickupKind.EXPECTED
        if provider is None or fetch is None or (expected and not provider.can_ask(pickup)):
            return await self._overdue(pickup)
        first = expected and pickup.attempts == 0
        limit = (
            min(_FIRST_ASK_SECONDS, self._source.attempt_seconds) if first else self._source.attempt_seconds
        )
        result = await self._collect(provider, fetch, pickup, clock, limit)
        try:
            if first and not isinstance(result, Collected | Gone):
                # The application asked to be notified, and still waits; the provider goes on being polled.
                progress.append(await self._recorder.progress(provider, pickup, _overdue(pickup)))
            return await self._consequence(provider, pickup, result, clock, progress)
        finally:
            if isinstance(result, Collected) and result.body is not None:
                result.body.discard()

    async def _collect(
        self, provider: PullProvider, fetch: Fetch, pickup: Pickup, clock: Clock, limit: float
    ) -> Result:
        request, scope = pickup, scope_of(pickup.key)
        if pickup.kind is PickupKind.EXPECTED and pickup.job_id is not None:
            # What is collected is the job's result, whichever road brings it first; but where only the job's own URL told which
            # job it is, the result is that URL's alone.
            own = f"{pickup.key}:"
            scope = own if await self._store.has_scope(pickup.source, own) else ""
            request = replace(pickup, key=within(scope, provider.lookup(pickup.job_id, pickup.format).key))
        try:
            async with asyncio.timeout(limit):
                result = await provider.collect(request, fetch, now=clock())
        except TimeoutError:
            return Failed(kind=OutcomeKind.TIMEOUT, detail=f"collecting took over {limit:g} s")
        if isinstance(result, Collected):
            return replace(result, draft=scoped(scope, result.draft))
        if isinstance(result, NotYet) and result.progress:
            return replace(result, progress=scoped(scope, result.progress))
        return result

    async def _consequence(
        self, provider: PullProvider, pickup: Pickup, result: Result, clock: Clock, progress: list[Recording]
    ) -> _End:
        now = clock()
        match result:
            case Collected(draft=draft):
                async with asyncio.timeout(self._source.attempt_seconds):
                    recording = await self._recorder.result(provider, pickup, draft, result.body)
                if draft.error is None:
                    return _End(
                        outcome=Outcome(kind=OutcomeKind.COLLECTED),
                        state=PickupState.COLLECTED,
                        recording=recording,
                    )
                outcome = Outcome(kind=OutcomeKind.GONE, detail=draft.error.message[:500])
                return _End(outcome=outcome, state=PickupState.GONE, recording=recording)
            case NotYet():
                if result.progress is not None:
                    progress.append(await self._recorder.progress(provider, pickup, result.progress))
                outcome = Outcome(kind=OutcomeKind.NOT_YET, detail=result.detail)
                if now >= pickup.deadline_at:
                    late = JobError(code="timed_out", message=_TIMED_OUT, details=result.detail or None)
                    return await self._gone(provider, pickup, late, outcome, now)
                due_at = now + round(result.retry_in * random.uniform(0.9, 1.1) * 1000)
                return _End(outcome=outcome, due_at=min(due_at, pickup.deadline_at))
            case Gone():
                detail = result.error.message[:500]
                outcome = Outcome(kind=OutcomeKind.GONE, detail=detail)
                return await self._gone(provider, pickup, result.error, outcome, now)
            case Failed():
                return await self._failed(provider, pickup, result, now)

    async def _failed(self, provider: PullProvider, pickup: Pickup, result: Failed, now: int) -> _End:
        outcome = Outcome(
            kind=result.kind, status=result.status, detail=result.detail, retry_after=result.retry_after
        )
        if result.too_large:
            error = JobError(code="too_large", message=result.detail)
            return await self._gone(provider, pickup, error, outcome, now)
        if now >= pickup.deadline_at:
            error = JobError(code="unavailable", message=_UNAVAILABLE, details=result.detail)
            return await self._gone(provider, pickup, error, outcome, now)
        return _again(pickup, outcome, now)

    async def _gone(
        self, provider: PullProvider, pickup: Pickup, error: JobError, outcome: Outcome, now: int
    ) -> _End:
        known = pickup.draft
        draft = EventDraft(
            type=f"{provider.family(pickup)}.failed",
            idempotency_key=f"pickup:{pickup.id}",
            job_id=pickup.job_id,
            ref=pickup.ref,
            occurred_at=now,
            stage=Stage.FINAL,
            late=known.late if known else False,
            error=error,
            provider_data=known.provider_data if known else {},
        )
        recording = await self._recorder.result(provider, pickup, draft, None)
        return _End(outcome=outcome, state=PickupState.GONE, recording=recording)

    async def _overdue(self, pickup: Pickup) -> _End:
        recording = await self._recorder.overdue(self._source.provider_name, pickup, _overdue(pickup))
        outcome = Outcome(kind=OutcomeKind.GONE, detail=_OVERDUE)
        return _End(outcome=outcome, state=PickupState.GONE, recording=recording)

    # ------------------------------------------------------------ settling

    async def settle(self, settlement: PickupSettlement, clock: Clock) -> int | None:
        """Record the attempt and its events, for as long as the lease lasts if the store is out, and report it."""
        pickup, settled = settlement.claim.pickup, await self.insist(settlement, clock)
        held = settled is not None and settled.held
        recorded = settled.recorded if settled else None
        self._wake(settlement, settled)
        self.context.observer.pickup(
            PickupReport(
                source=pickup.source,
                provider=self._source.provider_name,
                pickup_id=pickup.id,
                job_id=pickup.job_id,
                ref=pickup.ref,
                number=pickup.attempts + 1,
                outcome=settlement.outcome,
                seconds=settlement.seconds,
                state=settlement.state.value if held else "lost",
                due_at=settlement.due_at if held else None,
                event_id=recorded.event_id if recorded else None,
                event_type=settlement.recording.event.type if recorded and settlement.recording else None,
            )
        )
        return settlement.due_at if held else None

    def _wake(self, settlement: PickupSettlement, settled: PickupSettled | None) -> None:
        """Wake the destinations of the recorded events. Late progress has no destination."""
        written = list(zip(settlement.progress, settled.progress, strict=False)) if settled else []
        if settled and settled.recorded and settlement.recording:
            written.append((settlement.recording, settled.recorded))
        for recording, recorded in written:
            if recorded.status is RecordStatus.RECORDED:
                self._recorder.wake(recording.destinations)


_TIMED_OUT = "the provider had not finished when the time for it was up; it may still have the result"
_UNAVAILABLE = "the result could not be fetched in its time"
_OVERDUE = "the callback did not come within the time in which it was expected"


def _again(pickup: Pickup, outcome: Outcome, now: int) -> _End:
    """Return the next state after a failed attempt: a retry after a longer wait."""
    failures = pickup.failures + 1
    due_at = now + round(pickup_delay(failures, outcome.retry_after) * 1000)
    if now < pickup.deadline_at:
        due_at = min(due_at, pickup.deadline_at)  # the last attempt is made when its time is up
    return _End(outcome=outcome, due_at=due_at, failures=failures)


def _overdue(pickup: Pickup) -> EventDraft:
    """Return the event `callback.overdue`. The callback may still come, and is recorded then."""
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
