"""What every store must do with pickups: each sentence of the port, as a test. The fixture `store` is given elsewhere."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from msgspec.structs import replace

from receiver.core.errors import NotFound, StoreUnavailable
from receiver.core.event import (
    Answered,
    AudioDraft,
    EventDraft,
    Recorded,
    Recording,
    RecordStatus,
    RemoteResult,
    id_beside,
    new_id,
)
from receiver.core.work import (
    ClaimedPickup,
    Deferral,
    DeliveryFilter,
    Outcome,
    OutcomeKind,
    Pickup,
    PickupAttempt,
    PickupFilter,
    PickupKind,
    PickupSettled,
    PickupSettlement,
    PickupState,
)
from receiver.storage.store.store import Store
from tests.contract.store_suite import LEASE, T0, recording
from tests.support.kept_events import kept_events

_NUMBERS = itertools.count(1)
PENDING, COLLECTING = PickupState.PENDING, PickupState.COLLECTING
COLLECTED, GONE = PickupState.COLLECTED, PickupState.GONE
RECORDED, DUPLICATE = RecordStatus.RECORDED, RecordStatus.DUPLICATE


def pickup(
    key: str | None = None,
    *,
    source: str = "deapi",
    at: int = T0,
    due_at: int | None = None,
    job_id: str | None = None,
    ref: str | None = None,
    kind: PickupKind = PickupKind.RESULT,
    target: str | None = "https://results.example/one?signature=x",
    draft: EventDraft | None = None,
) -> Pickup:
    """A pickup that is like no other, but for what is given."""
    return Pickup(
        id=new_id("pku", at),
        source=source,
        kind=kind,
        key=key or f"result-{next(_NUMBERS)}",
        job_id=job_id,
        ref=ref,
        target=target,
        event_id=new_id("evt", at),
        draft=draft,
        format={"encoding": "linear16", "sample_rate": 8000},
        deadline_at=at + 3_600_000,
        due_at=at if due_at is None else due_at,
        created_at=at,
        updated_at=at,
    )


def expectation(which: str = "t", *, at: int = T0) -> Pickup:
    """A pickup that watches for a callback."""
    return pickup(f"token:{which}", at=at, due_at=at + 600_000, kind=PickupKind.EXPECTED, target=None)


def answering(
    *destinations: str,
    which: str = "t",
    final: bool = True,
    job_id: str | None = "job",
    key: str | None = None,
    at: int = T0 + 5,
) -> Recording:
    """The recording of a callback that was expected."""
    wanted = recording(*destinations, source="deapi", key=key, at=at)
    return replace(wanted, answered=Answered(key=f"token:{which}", final=final, job_id=job_id))


def draft_of(key: str, at: int = T0) -> EventDraft:
    """What a callback told of a result that is elsewhere."""
    return EventDraft(
        type="speech.completed",
        idempotency_key=f"callback of {key}",
        second_key=key,
        occurred_at=at,
        audio=AudioDraft(content_type="audio/mpeg", extension="mp3"),
        remote=RemoteResult(key=key, url="https://results.example/one", deadline_at=at + 1000),
        provider_data={"nested": {"list": [1, 2.5, None, "é"]}},
        document=b"\x00{}",
    )


def deferral(
    key: str | None = None,
    *,
    callback: str | None = None,
    second_key: str | None = None,
    at: int = T0,
    which: str | None = None,
) -> Deferral:
    """A callback whose result has the identity `key`; with `which`, one that was expected."""
    made = pickup(key, at=at, job_id="job")
    answered = Answered(key=f"token:{which}", final=True, job_id="job") if which else None
    row = recording(source="deapi", key=callback, second_key=second_key, at=at, body=b"told").callback
    return Deferral(callback=row, pickup=replace(made, draft=draft_of(made.key, at)), answered=answered)


def result_of(
    held: ClaimedPickup, *destinations: str, event_type: str = "speech.completed", key: str | None = None
) -> Recording:
    """The recording that ends a pickup: its keys are the result's identity."""
    event_id, identity = held.pickup.event_id, key or held.pickup.key
    made = recording(
        *destinations,
        source=held.pickup.source,
        event_type=event_type,
        key=identity,
        second_key=identity,
        at=held.pickup.created_at,
        body=b"fetched",
    )
    event = replace(made.event, id=event_id, recorded_at=T0 + 9)
    return replace(made, callback=replace(made.callback, id=id_beside("cb", event_id)), event=event)


def settlement(
    held: ClaimedPickup,
    state: PickupState = COLLECTED,
    found: OutcomeKind = OutcomeKind.COLLECTED,
    *,
    due_at: int | None = None,
    failures: int = 0,
    recording: Recording | None = None,
    progress: tuple[Recording, ...] = (),
    at: int = T0,
) -> PickupSettlement:
    """The consequence of one attempt."""
    outcome = Outcome(kind=found, status=200, detail="said so")
    return PickupSettlement(
        claim=held,
        started_at=at,
        seconds=0.007,
        outcome=outcome,
        state=state,
        due_at=due_at,
        failures=failures,
        recording=recording,
        progress=progress,
    )


async def claim(
    store: Store, source: str = "deapi", *, limit: int = 10, now: int = T0
) -> list[ClaimedPickup]:
    """Claim as worker `w`."""
    return await store.claim_pickups(source, worker="w", limit=limit, now=now, lease_until=now + LEASE)


async def held_pickup(store: Store, wanted: Pickup | None = None, *, now: int = T0) -> ClaimedPickup:
    """Add a pickup and claim it."""
    await store.add_pickup(wanted or pickup())
    (held,) = await claim(store, limit=1, now=now)
    return held


async def ended(store: Store, wanted: Pickup, state: PickupState, event_type: str) -> Recorded | None:
    """Add a pickup, claim it, and end it with an event."""
    held = await held_pickup(store, wanted, now=T0 + 10)
    done = await store.settle_pickup(
        settlement(held, state, recording=result_of(held, "app", event_type=event_type))
    )
    return done.recorded


class AddSuite:
    """`add_pickup` and the listings."""

    async def test_a_pickup_is_kept_as_it_was_given(self, store: Store) -> None:
        wanted = pickup(job_id="job-é", ref="ref", draft=draft_of("k"))
        assert await store.add_pickup(wanted) == (wanted, True)
        assert await store.pickup(wanted.id) == wanted
        bare = replace(pickup(), target=None, format={}, due_at=None)
        await store.add_pickup(bare)
        assert await store.pickup(bare.id) == bare

    @pytest.mark.parametrize("state", [PENDING, COLLECTING, COLLECTED])
    async def test_a_key_that_stands_is_answered_with_the_pickup_that_stands(
        self, store: Store, state: PickupState
    ) -> None:
        first = pickup("k")
        await store.add_pickup(first)
        if state is not PENDING:
            (held,) = await claim(store)
            if state is COLLECTED:
                await store.settle_pickup(settlement(held))
        standing, new = await store.add_pickup(pickup("k"))
        assert (standing, new) == (await store.pickup(first.id), False)
        assert standing.state is state
        assert len(await store.pickups(PickupFilter())) == 1

    async def test_one_that_is_gone_may_be_asked_for_again(self, store: Store) -> None:
        await store.settle_pickup(settlement(await held_pickup(store, pickup("k")), GONE))
        again = pickup("k", at=T0 + 1)
        assert await store.add_pickup(again) == (again, True)

    async def test_a_key_is_that_of_one_source_only(self, store: Store) -> None:
        await store.add_pickup(pickup("k"))
        assert (await store.add_pickup(pickup("k", source="playht")))[1]

    async def test_of_many_at_once_with_one_key_the_first_is_new(self, store: Store) -> None:
        same = [pickup("k") for _ in range(5)]
        answers = await asyncio.gather(*(store.add_pickup(one) for one in same))
        assert answers == [(same[0], True)] + [(same[0], False)] * 4

    async def test_an_id_that_is_taken_is_refused(self, store: Store) -> None:
        first = pickup()
        await store.add_pickup(first)
        with pytest.raises(StoreUnavailable, match="id is already there"):
            await store.add_pickup(replace(first, key="another"))

    async def test_an_unknown_id_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFound, match="no pickup has the id pku_none"):
            await store.pickup("pku_none")
        assert await store.pickup_attempts("pku_none") == []

    async def test_pickups_are_filtered_and_paged_newest_first(self, store: Store) -> None:
        one = pickup(at=T0, job_id="j1")
        two = pickup(at=T0 + 1, source="playht", ref="r2")
        three = pickup(at=T0 + 2)
        for wanted in (one, two, three):
            await store.add_pickup(wanted)
        await claim(store, limit=1)

        async def ids(**wanted: object) -> list[str]:
            return [found.id for found in await store.pickups(PickupFilter(**wanted))]  # type: ignore[arg-type]

        assert await ids() == [three.id, two.id, one.id]
        assert await ids(limit=1, after=three.id) == [two.id]
        assert await ids(source="deapi") == [three.id, one.id]
        assert await ids(state=PENDING) == [three.id, two.id]
        assert await ids(state=COLLECTING, source="deapi") == [one.id]
        assert await ids(job_id="j1") == [one.id]
        assert await ids(ref="r2") == [two.id]
        assert await ids(source="' OR 1=1 --") == []

    async def test_stats_count_the_pickups_that_are_due_by_source(self, store: Store) -> None:
        assert (await store.stats(T0)).pickups == ()
        for wanted in (
            pickup(due_at=T0 + 5),
            pickup(due_at=T0 + 3),
            pickup(due_at=T0 + 11),
            pickup(source="playht", due_at=T0 + 10),
            pickup(source="deepdub", due_at=T0 + 11),
        ):
            await store.add_pickup(wanted)
        found = (await store.stats(T0 + 10)).pickups
        assert [(one.name, one.depth, one.oldest_due_at) for one in found] == [
            ("deapi", 2, T0 + 3),
            ("playht", 1, T0 + 10),
        ]


class PickupClaimSuite:
    """`claim_pickups`, `settle_pickup` without an event, `release_pickups`, `next_due_pickup`."""

    async def test_a_claim_brings_the_pickup_as_it_was_and_marks_it(self, store: Store) -> None:
        wanted = pickup(draft=draft_of("k"))
        held = await held_pickup(store, wanted)
        assert (held.pickup, held.lease_until) == (wanted, T0 + LEASE)
        assert held.claimed_by.startswith("w:")
        shown = await store.pickup(wanted.id)
        assert shown == replace(
            wanted, state=COLLECTING, due_at=T0 + LEASE, claimed_by=held.claimed_by, updated_at=T0
        )

    async def test_the_oldest_due_of_the_source_are_claimed_first_and_no_more_than_asked(
        self, store: Store
    ) -> None:
        for late in (3, 1, 2, 20):
            await store.add_pickup(pickup(due_at=T0 + late))
        await store.add_pickup(pickup(source="playht"))
        taken = await claim(store, limit=2, now=T0 + 9)
        assert [one.pickup.due_at for one in taken] == [T0 + 1, T0 + 2]
        assert [one.pickup.due_at for one in await claim(store, now=T0 + 9)] == [T0 + 3]

    async def test_claims_at_once_never_overlap(self, store: Store) -> None:
        await asyncio.gather(*(store.add_pickup(pickup()) for _ in range(40)))
        taken = await asyncio.gather(*(claim(store, limit=7) for _ in range(8)))
        ids = [one.pickup.id for batch in taken for one in batch]
        assert len(ids) == len(set(ids)) == 40

    async def test_a_claimed_pickup_is_nobody_elses_until_its_lease_ends(self, store: Store) -> None:
        held = await held_pickup(store)
        assert await claim(store, now=T0 + LEASE - 1) == []
        (again,) = await claim(store, now=T0 + LEASE)
        assert again.pickup.id == held.pickup.id
        assert again.claimed_by != held.claimed_by

    async def test_settling_writes_the_attempt_and_its_consequence(self, store: Store) -> None:
        held = await held_pickup(store)
        wanted = settlement(held, PENDING, OutcomeKind.REFUSED, due_at=T0 + 60_000, failures=3)
        assert await store.settle_pickup(wanted) == PickupSettled(held=True)
        assert await store.pickup(held.pickup.id) == replace(
            held.pickup,
            attempts=1,
            failures=3,
            due_at=T0 + 60_000,
            updated_at=T0 + 7,
            last_outcome="refused",
            last_detail="said so",
        )
        assert await store.pickup_attempts(held.pickup.id) == [
            PickupAttempt(
                pickup_id=held.pickup.id,
                number=1,
                started_at=T0,
                duration_ms=7,
                outcome=OutcomeKind.REFUSED,
                status=200,
                detail="said so",
            )
        ]

    async def test_attempts_are_numbered_from_one_without_gaps(self, store: Store) -> None:
        held = await held_pickup(store)
        for _ in range(3):
            await store.settle_pickup(settlement(held, PENDING, OutcomeKind.NOT_YET, due_at=T0))
            (held,) = await claim(store)
        assert [one.number for one in await store.pickup_attempts(held.pickup.id)] == [1, 2, 3]
        assert held.pickup.attempts == 3

    @pytest.mark.parametrize("state", [COLLECTED, GONE])
    async def test_an_ended_pickup_is_never_due_again(self, store: Store, state: PickupState) -> None:
        held = await held_pickup(store)
        await store.settle_pickup(settlement(held, state))
        shown = await store.pickup(held.pickup.id)
        assert (shown.state, shown.due_at, shown.claimed_by) == (state, None, None)
        assert await claim(store, now=T0 + 10**9) == []
        assert await store.next_due_pickup("deapi") is None

    async def test_a_zombie_settles_nothing_and_records_nothing(self, store: Store) -> None:
        zombie = await held_pickup(store)
        (heir,) = await claim(store, now=T0 + LEASE)
        before = await store.pickup(heir.pickup.id)
        lost = settlement(zombie, recording=result_of(zombie, "app"))
        assert await store.settle_pickup(lost) == PickupSettled(held=False)
        assert await store.pickup(heir.pickup.id) == before
        assert await store.pickup_attempts(heir.pickup.id) == []
        assert await kept_events(store) == []
        assert await store.deliveries(DeliveryFilter()) == []
        assert (await store.settle_pickup(settlement(heir, recording=result_of(heir)))).held

    async def test_a_claim_settles_once(self, store: Store) -> None:
        held = await held_pickup(store)
        wanted = settlement(held, recording=result_of(held, "app"))
        answers = await asyncio.gather(*(store.settle_pickup(wanted) for _ in range(3)))
        assert [one.held for one in answers] == [True, False, False]
        assert len(await store.pickup_attempts(held.pickup.id)) == 1
        assert len(await store.deliveries(DeliveryFilter())) == 1

    async def test_a_released_claim_is_due_at_once_and_not_counted(self, store: Store) -> None:
        await asyncio.gather(*(store.add_pickup(pickup()) for _ in range(2)))
        held = await claim(store)
        await store.settle_pickup(settlement(held[0]))
        assert await store.release_pickups(held, now=T0 + 5) == 1
        assert await store.release_pickups(held, now=T0 + 5) == 0
        assert await store.release_pickups([], now=T0 + 5) == 0
        shown = await store.pickup(held[1].pickup.id)
        assert shown == replace(held[1].pickup, due_at=T0 + 5, updated_at=T0 + 5)
        assert not (await store.settle_pickup(settlement(held[1]))).held
        later = await claim(store, now=T0 + 5)
        assert await store.release_pickups(held, now=T0 + 5) == 0, "another claim holds the row"
        assert (await store.settle_pickup(settlement(later[0]))).held

    async def test_next_due_is_the_earliest_of_waiting_and_leased(self, store: Store) -> None:
        assert await store.next_due_pickup("deapi") is None
        for wanted in (pickup(due_at=T0 + 500), pickup(), pickup(source="playht", due_at=T0 - 1)):
            await store.add_pickup(wanted)
        assert await store.next_due_pickup("deapi") == T0
        await claim(store, limit=1)
        assert await store.next_due_pickup("deapi") == T0 + 500
        await claim(store, limit=1, now=T0 + 500)
        assert await store.next_due_pickup("deapi") == T0 + LEASE
