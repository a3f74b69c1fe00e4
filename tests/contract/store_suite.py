"""What every store must do: each sentence of the port, as a test. A store's own file gives the fixture `store`."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence

import msgspec
import pytest
from msgspec.structs import replace

from receiver.core.callback import Head
from receiver.core.destinations import SendingRules
from receiver.core.errors import NotFound, StoreUnavailable
from receiver.core.event import (
    CallbackRow,
    Event,
    EventSearch,
    PlacedEvent,
    Recording,
    RecordStatus,
    RejectedRequest,
    Rejection,
    Stage,
    new_id,
)
from receiver.core.observe import HOUR, MINUTE, Process, Tally, TallyBatch
from receiver.core.retention import Erasure, Prune, Subject, SubjectKind, Walk
from receiver.core.routing import Decision
from receiver.core.work import (
    Claimed,
    Delivery,
    DeliveryFilter,
    DeliveryState,
    HeldBy,
    Outcome,
    OutcomeKind,
    PickupFilter,
    Settlement,
)
from receiver.engine import holds
from receiver.settings.model import DestinationSettings
from receiver.storage.store.destinations import Change
from receiver.storage.store.events import REQUESTS, REQUESTS_OF_A_SOURCE
from receiver.storage.store.small_tables import everywhere
from receiver.storage.store.store import Store
from tests.support.kept_events import kept_events
from tests.support.patience import PATIENCE

T0 = 1_800_000_000_000
LEASE = 30_000
_NUMBERS = itertools.count(1)


def recording(
    *destinations: str,
    key: str | None = None,
    second_key: str | None = None,
    source: str = "deepgram",
    job_id: str | None = None,
    ref: str | None = None,
    stage: Stage = Stage.FINAL,
    event_type: str = "speech.completed",
    at: int = T0,
    body: bytes | None = b"\x00raw",
    made: int | None = None,
) -> Recording:
    """A recording that is like no other, but for what is given."""
    number = next(_NUMBERS)
    event = Event(
        id=new_id("evt", made or at),
        type=event_type,
        source=source,
        provider="deepgram",
        job_id=job_id,
        ref=ref,
        stage=stage,
        occurred_at=at - 5,
        recorded_at=at,
        data=b'{"n":%d}' % number,
        blob_key=f"{number:032x}.mp3",
    )
    callback = CallbackRow(
        id=new_id("cb", made or at),
        source=source,
        idempotency_key=key or f"key-{number}",
        second_key=second_key,
        method="POST",
        content_type="audio/mpeg",
        received_at=at,
        body_size=4,
        body_sha256="ab" * 32,
        body=body,
        proofs="basic",
        arrival=b'{"peer":"192.0.2.7","headers":[["accept","*/*"],["x-key",null]],"body_ms":7}',
    )
    return Recording(callback=callback, event=event, destinations=destinations)


def settlement(
    claim: Claimed,
    state: DeliveryState = DeliveryState.DELIVERED,
    *,
    due_at: int | None = None,
    at: int = T0,
    kind: OutcomeKind | None = None,
    status: int | None = 200,
) -> Settlement:
    """The consequence of one attempt."""
    usual = OutcomeKind.DELIVERED if state is DeliveryState.DELIVERED else OutcomeKind.REFUSED
    outcome = Outcome(kind=kind or usual, status=status, detail="said so", response=b"\xff\x00")
    return Settlement(claim=claim, started_at=at, seconds=0.007, outcome=outcome, state=state, due_at=due_at)


async def claim(store: Store, destination: str = "app", *, limit: int = 10, now: int = T0) -> list[Claimed]:
    """Claim as worker `w`."""
    return await store.claim(destination, worker="w", limit=limit, now=now, lease_until=now + LEASE)


async def one_delivery(store: Store, destination: str = "app", at: int = T0) -> str:
    """Record an event for one destination; return the delivery's id."""
    recorded = await store.record(recording(destination, at=at))
    (delivery,) = await store.deliveries(DeliveryFilter(event_id=recorded.event_id))
    return delivery.id


async def end(store: Store, state: DeliveryState = DeliveryState.DEAD, *, now: int = T0) -> Claimed:
    """Claim one delivery of `app` and end it."""
    (held,) = await claim(store, limit=1, now=now)
    assert await store.settle(settlement(held, state, at=now))
    return held


def rejection(
    source: str = "deepgram", at: int = T0, reason: str = "no proof", kind: str = "wrong"
) -> Rejection:
    """A callback that was not proved."""
    return Rejection(
        source=source,
        at=at,
        status=401,
        kind=kind,
        reason=reason,
        method="POST",
        peer=None,
        content_type="text/plain",
        user_agent="curl",
    )


def rejected(source: str, at: int = T0, body: bytes = b"\x00raw", ref: str = "order-1") -> Rejection:
    """One over a URL of ours, whose request is kept."""
    head = Head(source=source, method="POST", headers=(("x-key", "\xff"),), token="t", received_at=at)
    request = RejectedRequest(head=head, body=body)
    return replace(rejection(source, at), token_id="t1", ref=ref, request=request)


def nameless(kept: Sequence[Rejection]) -> list[Rejection]:
    """Rejections without the ids that the store gave them."""
    return [replace(one, id="") for one in kept]


class RecordSuite:
    """`record`."""

    async def test_the_kept_body_is_found_by_its_event(self, store: Store) -> None:
        """Among others of the same millisecond; None where it is a blob; `NotFound` for an unknown event."""
        kept = [recording(body=b"one"), recording(body=None), recording(body=b"three"), recording(at=T0 + 1)]
        for one in kept:
            await store.record(one)
        assert [await store.body(one.event.id) for one in kept] == [b"one", None, b"three", b"\x00raw"]
        with pytest.raises(NotFound):
            await store.body("evt_00000000000000000000000000")

    async def test_a_body_that_its_event_holds_as_well_is_had_back_byte_by_byte(self, store: Store) -> None:
        spoken = {"text": "The order is ready. " * 40, "words": list(range(300)), "more": "ä\U0001f600"}
        bodies = [json.dumps(spoken, indent=2).encode(), b" " + msgspec.json.encode(spoken), b"{}", b""]
        for body in bodies:
            made = recording(body=body)
            event = replace(made.event, data=msgspec.json.encode({"provider_data": spoken}))
            await store.record(replace(made, event=event))
            assert await store.body(event.id) == body

    async def test_a_recording_writes_the_event_as_it_was_given(self, store: Store) -> None:
        wanted = recording("app", job_id="job", ref="ref-é")
        recorded = await store.record(wanted)
        assert (recorded.status, recorded.event_id) == (RecordStatus.RECORDED, wanted.event.id)
        assert await store.event(wanted.event.id) == wanted.event

    async def test_a_delivery_is_born_pending_and_due_when_recorded(self, store: Store) -> None:
        wanted = recording("app", "audit")
        await store.record(wanted)
        born = await store.deliveries(DeliveryFilter(event_id=wanted.event.id))
        assert {one.destination for one in born} == {"app", "audit"}
        for one in born:
            assert one == Delivery(
                id=one.id,
                event_id=wanted.event.id,
                event_type="speech.completed",
                destination=one.destination,
                state=DeliveryState.PENDING,
                attempts=0,
                round_start=0,
                due_at=T0,
                claimed_by=None,
                created_at=T0,
                updated_at=T0,
                last_outcome=None,
            )

    async def test_an_event_for_no_destination_is_recorded_all_the_same(self, store: Store) -> None:
        wanted = recording()
        await store.record(wanted)
        assert await store.event(wanted.event.id) == wanted.event
        assert await store.deliveries(DeliveryFilter()) == []

    async def test_the_same_idempotency_key_is_a_duplicate_and_writes_nothing(self, store: Store) -> None:
        first, again = recording("app", key="k"), recording("app", key="k")
        await store.record(first)
        answer = await store.record(again)
        assert (answer.status, answer.event_id) == (RecordStatus.DUPLICATE, first.event.id)
        assert await kept_events(store) == [first.event]
        assert len(await store.deliveries(DeliveryFilter())) == 1

    async def test_what_replaces_an_event_that_is_gone_writes_nothing(self, store: Store) -> None:
        old = recording("app")
        await store.record(old)
        again = [replace(recording("app"), replaces=replaced) for replaced in ("evt_gone", old.event.id)]
        results = await asyncio.gather(*map(store.record, again))
        assert [(one.status, one.event_id) for one in results] == [
            (RecordStatus.GONE, "evt_gone"),
            (RecordStatus.RECORDED, again[1].event.id),
        ]
        assert {one.id for one in await kept_events(store)} == {old.event.id, again[1].event.id}

    async def test_the_same_second_key_is_a_duplicate(self, store: Store) -> None:
        first, again = recording("app", second_key="s"), recording("app", second_key="s")
        await store.record(first)
        answer = await store.record(again)
        assert (answer.status, answer.event_id) == (RecordStatus.DUPLICATE, first.event.id)

    async def test_a_missing_second_key_equals_nothing(self, store: Store) -> None:
        for _ in range(2):
            assert (await store.record(recording(second_key=None))).status is RecordStatus.RECORDED

    async def test_a_key_is_that_of_one_source_only(self, store: Store) -> None:
        await store.record(recording(key="k", second_key="s"))
        other = await store.record(recording(key="k", second_key="s", source="deapi"))
        assert other.status is RecordStatus.RECORDED

    async def test_recording_the_very_same_again_is_a_duplicate_of_itself(self, store: Store) -> None:
        """The journal may bring back what had been recorded already."""
        wanted = recording("app")
        await store.record(wanted)
        answer = await store.record(wanted)
        assert (answer.status, answer.event_id) == (RecordStatus.DUPLICATE, wanted.event.id)

    async def test_of_many_at_once_with_one_key_exactly_one_is_recorded(self, store: Store) -> None:
        same = [recording("app", key="k") for _ in range(20)]
        answers = await asyncio.gather(*(store.record(one) for one in same))
        (first,) = [one for one in answers if one.status is RecordStatus.RECORDED]
        assert {one.event_id for one in answers} == {first.event_id}
        assert len(await store.deliveries(DeliveryFilter())) == 1

    async def test_of_two_at_once_with_one_second_key_one_is_recorded(self, store: Store) -> None:
        same = [recording(second_key="s") for _ in range(2)]
        answers = await asyncio.gather(*(store.record(one) for one in same))
        assert sorted(one.status for one in answers) == [RecordStatus.DUPLICATE, RecordStatus.RECORDED]

    async def test_one_that_cannot_be_written_leaves_nothing_and_harms_no_other(self, store: Store) -> None:
        first = recording("app", key="first")
        await store.record(first)
        bad = Recording(
            callback=recording(key="bad").callback, event=first.event, destinations=("app",)
        )  # the event's id is taken
        good = [recording("app") for _ in range(3)]
        answers = await asyncio.gather(*(store.record(one) for one in (*good, bad)), return_exceptions=True)
        assert isinstance(answers[-1], StoreUnavailable)
        assert len(await kept_events(store)) == 4
        assert len(await store.deliveries(DeliveryFilter())) == 4
        retried = recording("app", key="bad")
        assert (await store.record(retried)).status is RecordStatus.RECORDED

    async def test_progress_after_the_end_of_its_job_is_late(self, store: Store) -> None:
        await store.record(recording("app", job_id="j"))
        late = recording("app", job_id="j", stage=Stage.PROGRESS)
        assert (await store.record(late)).status is RecordStatus.LATE
        assert await store.event(late.event.id) == late.event
        assert await store.deliveries(DeliveryFilter(event_id=late.event.id)) == []

    async def test_progress_in_the_same_commit_as_the_end_is_late(self, store: Store) -> None:
        both = (recording("app", job_id="j"), recording("app", job_id="j", stage=Stage.PROGRESS))
        answers = await asyncio.gather(*(store.record(one) for one in both))
        assert [one.status for one in answers] == [RecordStatus.RECORDED, RecordStatus.LATE]

    @pytest.mark.parametrize(
        ("first", "then"),
        [
            (recording(job_id="j", stage=Stage.PROGRESS), recording(job_id="j", stage=Stage.PROGRESS)),
            (recording(job_id="j", stage=Stage.PROGRESS), recording(job_id="j")),
            (recording(job_id="j"), recording(job_id="j")),
            (recording(job_id="j"), recording(job_id="j", stage=Stage.OPEN)),
            (recording(job_id="j", stage=Stage.OPEN), recording(job_id="j", stage=Stage.PROGRESS)),
            (recording(job_id="j"), recording(job_id="other", stage=Stage.PROGRESS)),
            (recording(job_id="j"), recording(job_id="j", source="deapi", stage=Stage.PROGRESS)),
            (recording(job_id=None), recording(job_id=None, stage=Stage.PROGRESS)),
        ],
    )
    async def test_nothing_else_is_late(self, store: Store, first: Recording, then: Recording) -> None:
        await store.record(first)
        assert (await store.record(then)).status is RecordStatus.RECORDED

    async def test_what_was_decided_of_destinations_is_kept_but_for_late_events(self, store: Store) -> None:
        decided = msgspec.json.encode(
            [Decision("app", sent=True, rule="a"), Decision("crm", sent=False, rule="b")]
        )
        final = replace(recording("app", job_id="j"), routing=decided)
        late = replace(recording("app", job_id="j", stage=Stage.PROGRESS), routing=decided)
        await store.record(final)
        await store.record(late)
        assert [(one.destination, one.sent) for one in await store.routing(final.event.id)] == [
            ("app", True),
            ("crm", False),
        ]
        assert await store.routing(late.event.id) == await store.routing("evt_0") == []

    async def test_what_processes_count_is_added_up_and_forgotten_in_time(self, store: Store) -> None:
        first = Process(id="a", host="h", version="1", role="intake", started_at=T0, seen_at=T0)
        other = replace(first, id="b", role="work", started_at=T0 + 1, seen_at=T0 + MINUTE)
        tally = Tally(minute=T0 // MINUTE * MINUTE, kind="callbacks", name="app", outcome="recorded", count=2)
        parked, later = replace(tally, outcome="parked"), replace(tally, minute=tally.minute + MINUTE)
        await store.add_tallies(TallyBatch(first, (parked, tally), 0))
        await store.add_tallies(TallyBatch(replace(other, role="serve"), (tally, later), 0))
        await store.add_tallies(TallyBatch(other, (), 0))
        end_of = later.minute + 1
        assert await store.tallies(tally.minute, end_of, MINUTE) == [parked, replace(tally, count=4), later]
        assert await store.tallies(tally.minute, later.minute, MINUTE) == [parked, replace(tally, count=4)]
        whole = await store.tallies(tally.minute, end_of, 1 << 62)
        assert [(one.minute, one.outcome, one.count) for one in whole] == [
            (0, "parked", 2),
            (0, "recorded", 6),
        ]
        assert await store.processes() == [other, first]
        hour = T0 // HOUR * HOUR
        for _ in range(2):  # what was added to its hour is not added again
            await store.add_tallies(TallyBatch(other, (), later.minute))
            assert await store.tallies(0, end_of, MINUTE) == [
                replace(parked, minute=hour),
                replace(tally, minute=hour, count=4),
                later,
            ]
        await store.add_tallies(TallyBatch(other, (), later.minute, later.minute))
        assert await store.tallies(0, end_of, MINUTE) == [later]
        assert await store.processes() == [other]


class ClaimSuite:
    """`claim`, `settle`, `release`, `next_due`."""

    async def test_a_claim_brings_the_event_and_marks_the_delivery(self, store: Store) -> None:
        wanted = recording("app")
        await store.record(wanted)
        (held,) = await claim(store)
        assert (held.event, held.destination, held.attempts, held.round_start) == (wanted.event, "app", 0, 0)
        assert held.lease_until == T0 + LEASE
        shown = await store.delivery(held.id)
        assert (shown.state, shown.due_at, shown.claimed_by) == (
            DeliveryState.DELIVERING,
            T0 + LEASE,
            held.claimed_by,
        )
        assert held.claimed_by.startswith("w")

    async def test_the_oldest_are_claimed_first_and_no_more_than_asked(self, store: Store) -> None:
        for at in (T0 + 3, T0 + 1, T0 + 2):
            await store.record(recording("app", at=at))
        taken = await claim(store, limit=2, now=T0 + 9)
        assert [one.event.recorded_at for one in taken] == [T0 + 1, T0 + 2]
        assert [one.event.recorded_at for one in await claim(store, now=T0 + 9)] == [T0 + 3]

    async def test_what_is_not_due_or_not_for_this_destination_is_left(self, store: Store) -> None:
        await store.record(recording("app", at=T0 + 1))
        await store.record(recording("audit"))
        assert await claim(store, now=T0) == []
        assert len(await claim(store, now=T0 + 1)) == 1

    async def test_a_claimed_delivery_is_nobody_elses_until_its_lease_ends(self, store: Store) -> None:
        delivery_id = await one_delivery(store)
        await claim(store)
        assert await claim(store, now=T0 + LEASE - 1) == []
        (again,) = await claim(store, now=T0 + LEASE)
        assert (again.id, again.attempts) == (delivery_id, 0)

    async def test_claims_at_once_never_overlap(self, store: Store) -> None:
        await asyncio.gather(*(store.record(recording("app")) for _ in range(50)))
        taken = await asyncio.gather(*(claim(store, limit=7) for _ in range(10)))
        ids = [one.id for batch in taken for one in batch]
        assert len(ids) == len(set(ids)) == 50

    async def test_settling_writes_the_attempt_and_its_consequence(self, store: Store) -> None:
        await one_delivery(store)
        (held,) = await claim(store)
        retry_at = T0 + 60_000
        assert await store.settle(settlement(held, DeliveryState.PENDING, due_at=retry_at, status=503))
        shown = await store.delivery(held.id)
        assert (shown.state, shown.attempts, shown.due_at, shown.claimed_by, shown.last_outcome) == (
            DeliveryState.PENDING,
            1,
            retry_at,
            None,
            "refused",
        )
        assert shown.updated_at == T0 + 7
        (attempt,) = await store.attempts(held.id)
        assert (attempt.number, attempt.started_at, attempt.duration_ms) == (1, T0, 7)
        assert (attempt.outcome, attempt.status) == (OutcomeKind.REFUSED, 503)
        assert (attempt.detail, attempt.response) == ("said so", b"\xff\x00")

    @pytest.mark.parametrize("state", [DeliveryState.DELIVERED, DeliveryState.DEAD])
    async def test_an_ended_delivery_is_never_due_again(self, store: Store, state: DeliveryState) -> None:
        await one_delivery(store)
        held = await end(store, state)
        shown = await store.delivery(held.id)
        assert (shown.state, shown.due_at) == (state, None)
        assert await claim(store, now=T0 + 10**9) == []
        assert await store.next_due("app") is None

    async def test_attempts_are_numbered_from_one_without_gaps(self, store: Store) -> None:
        delivery_id = await one_delivery(store)
        for _ in range(3):
            (held,) = await claim(store)
            await store.settle(
                settlement(held, DeliveryState.PENDING, due_at=T0, kind=OutcomeKind.TIMEOUT, status=None)
            )
        assert [one.number for one in await store.attempts(delivery_id)] == [1, 2, 3]
        assert (await claim(store))[0].attempts == 3

    async def test_many_settled_at_once_are_all_written(self, store: Store) -> None:
        await asyncio.gather(*(store.record(recording("app")) for _ in range(40)))
        held = await claim(store, limit=40)
        assert all(await asyncio.gather(*(store.settle(settlement(one)) for one in held)))
        for one in held:
            assert len(await store.attempts(one.id)) == 1

    async def test_a_lost_claim_among_many_settled_at_once_is_the_only_one_refused(
        self, store: Store
    ) -> None:
        await asyncio.gather(*(store.record(recording("app")) for _ in range(3)))
        held = await claim(store)
        assert await store.release([held[1]], now=T0) == 1
        results = await asyncio.gather(*(store.settle(settlement(one)) for one in held))
        assert results == [True, False, True]
        assert [len(await store.attempts(one.id)) for one in held] == [1, 0, 1]

    async def test_a_zombie_cannot_settle_what_another_worker_has_claimed(self, store: Store) -> None:
        await one_delivery(store)
        (zombie,) = await claim(store)
        later = T0 + LEASE
        (heir,) = await store.claim("app", worker="v", limit=1, now=later, lease_until=later + LEASE)
        before = await store.delivery(heir.id)
        assert not await store.settle(settlement(zombie))
        assert await store.delivery(heir.id) == before
        assert await store.attempts(heir.id) == []
        assert await store.settle(settlement(heir))

    async def test_a_worker_that_claims_its_own_again_cannot_settle_by_the_old_claim(
        self, store: Store
    ) -> None:
        await one_delivery(store)
        (old,) = await claim(store)
        (new,) = await claim(store, now=T0 + LEASE)
        assert not await store.settle(settlement(old))
        assert await store.settle(settlement(new))

    async def test_zombie_and_heir_settling_at_once_leave_the_heirs_attempt(self, store: Store) -> None:
        await one_delivery(store)
        (old,) = await claim(store)
        (new,) = await claim(store, now=T0 + LEASE)
        both = (settlement(old, status=500), settlement(new))
        assert await asyncio.gather(*(store.settle(one) for one in both)) == [False, True]
        assert [one.status for one in await store.attempts(new.id)] == [200]

    async def test_a_claim_settles_once(self, store: Store) -> None:
        await one_delivery(store)
        (held,) = await claim(store)
        answers = await asyncio.gather(*(store.settle(settlement(held)) for _ in range(3)))
        assert sorted(answers) == [False, False, True]
        assert len(await store.attempts(held.id)) == 1

    async def test_an_expired_claim_that_nobody_took_can_still_be_settled(self, store: Store) -> None:
        await one_delivery(store)
        (held,) = await claim(store)
        assert await store.settle(settlement(held, at=T0 + 2 * LEASE))

    async def test_a_released_claim_is_due_at_once_and_not_counted(self, store: Store) -> None:
        await asyncio.gather(*(one_delivery(store) for _ in range(2)))
        held = await claim(store)
        assert await store.release(held, now=T0 + 5) == 2
        shown = await store.delivery(held[0].id)
        assert (shown.state, shown.attempts, shown.due_at, shown.claimed_by) == (
            DeliveryState.PENDING,
            0,
            T0 + 5,
            None,
        )
        assert await store.attempts(held[0].id) == []
        assert len(await claim(store, now=T0 + 5)) == 2

    async def test_release_counts_only_what_was_still_held(self, store: Store) -> None:
        await asyncio.gather(*(one_delivery(store) for _ in range(2)))
        held = await claim(store)
        await store.settle(settlement(held[0]))
        assert await store.release(held, now=T0) == 1
        assert await store.release(held, now=T0) == 0
        assert await store.release([], now=T0) == 0
        assert not await store.settle(settlement(held[1]))
        later = await claim(store, now=T0 + 1)
        assert await store.release(held, now=T0 + 1) == 0, "another claim holds the row"
        assert await store.settle(settlement(later[0]))

    async def test_next_due_is_the_earliest_of_waiting_and_leased(self, store: Store) -> None:
        assert await store.next_due("app") is None
        await one_delivery(store, at=T0 + 500)
        await one_delivery(store, at=T0)
        await one_delivery(store, "audit", at=T0 - 1)
        assert await store.next_due("app") == T0
        await claim(store, limit=1)
        assert await store.next_due("app") == T0 + 500
        await claim(store, limit=1, now=T0 + 500)
        assert await store.next_due("app") == T0 + LEASE


class ReadSuite:
    """Replay, listings, rejections, stats, and the store's own life."""

    @pytest.mark.parametrize("state", [DeliveryState.DELIVERED, DeliveryState.DEAD])
    async def test_a_replay_begins_a_round_and_keeps_the_attempts(
        self, store: Store, state: DeliveryState
    ) -> None:
        delivery_id = await one_delivery(store)
        await end(store, state)
        assert await store.replay([delivery_id], now=T0 + 9) == [delivery_id]
        (held,) = await claim(store, now=T0 + 9)
        assert (held.attempts, held.round_start) == (1, 1)
        assert await store.settle(settlement(held))
        assert [one.number for one in await store.attempts(delivery_id)] == [1, 2]

    async def test_a_replay_leaves_out_what_is_unknown_or_under_way(self, store: Store) -> None:
        dead = await one_delivery(store)
        await end(store)
        waiting = await one_delivery(store)
        assert await store.replay([waiting, "dlv_none", dead, dead], now=T0) == [dead]
        assert await store.replay([dead], now=T0) == []
        assert await store.replay([], now=T0) == []
        await claim(store)
        assert await store.replay([dead, waiting], now=T0) == []

    async def test_a_pending_delivery_says_what_holds_it_back(self, store: Store) -> None:
        """A delivery that waits for its own next attempt is held by none of these."""
        names = ("free", "paused", "disabled", "failing", "asked", "later")
        settings = {name: DestinationSettings(name=name) for name in names}
        settings["ordered"] = DestinationSettings(name="ordered", ordered=True, when_dead="hold")
        settings["slow"] = DestinationSettings(name="slow", rate="1/min")
        changes: dict[str, Change] = {
            "paused": lambda state: replace(state, paused_at=T0),
            "disabled": lambda state: replace(state, disabled_at=T0),
            "failing": lambda state: replace(state, opened_at=T0),
            "asked": lambda state: replace(state, held_until=T0 + 9),
        }
        for name in settings:
            await store.record(recording(name, job_id="j", ref="r", at=T0 - 1))
            await store.record(recording(name, job_id="j", ref="r"))
            if name in changes:
                await store.change_destination(name, changes[name], now=T0, tell=lambda *_: None)
        for name in ("later", "ordered", "slow"):
            rules, until = settings[name].rules, T0 + LEASE
            (first,) = await store.claim(name, worker="w", limit=1, now=T0, lease_until=until, rules=rules)
            if name != "slow":
                dead = name == "ordered"
                state = DeliveryState.DEAD if dead else DeliveryState.PENDING
                await store.settle(settlement(first, state, due_at=None if dead else T0 + 9))
        found = await holds.deliveries(store, settings, DeliveryFilter(limit=99), now=T0)
        assert {(one.job_id, one.ref) for one in found} == {("j", "r")}
        pending = [one for one in found if one.state is DeliveryState.PENDING]
        held = {name: {one.held_by for one in pending if one.destination == name} for name in settings}
        assert held == {
            "free": {None},
            "paused": {HeldBy.PAUSED},
            "disabled": {HeldBy.DISABLED},
            "failing": {HeldBy.FAILING},
            "asked": {HeldBy.RETRY_AFTER},
            "later": {None},
            "ordered": {HeldBy.ORDER},
            "slow": {HeldBy.RATE},
        }
        behind = next(one for one in pending if one.destination == "ordered")
        assert await store.behind([behind.id], SendingRules(order="ref")) == set(), (
            "a dead one may be skipped"
        )

    async def test_the_progress_of_events_is_that_of_each_of_their_deliveries(self, store: Store) -> None:
        sent, unsent = recording("app", "crm"), recording()
        for one in (sent, unsent):
            await store.record(one)
        dead = (await claim(store, "crm"))[0]
        await store.settle(settlement(dead, DeliveryState.DEAD))
        found = await store.progress_of([sent.event.id, unsent.event.id, "evt_none"])
        states = {(one.event_id, one.destination): (one.state, one.attempts) for one in found}
        assert states == {
            (sent.event.id, "app"): (DeliveryState.PENDING, 0),
            (sent.event.id, "crm"): (DeliveryState.DEAD, 1),
        }

    async def test_the_callback_behind_an_event_comes_without_its_body(self, store: Store) -> None:
        one = recording()
        await store.record(one)
        found = await store.callback(one.event.id)
        assert found is not None
        assert (found.id, found.proofs) == (one.callback.id, one.callback.proofs)
        assert await store.callback("evt_none") is None

    async def test_a_login_ends_by_itself_or_with_all_of_its_token(self, store: Store) -> None:
        await store.end_login("one", now=T0)
        await store.end_login(everywhere("ops"), now=T0)
        assert await store.login_ended("one", "app", T0 + 9)
        assert await store.login_ended("two", "ops", T0)
        assert not await store.login_ended("two", "ops", T0 + 1)
        assert not await store.login_ended("two", "app", T0)

    async def test_a_delivery_that_is_missing_is_made_once_and_due_at_once(self, store: Store) -> None:
        """Also where two ask at once; what is there already stays as it is."""
        has, has_not = recording("app"), recording()
        for one in (has, has_not):
            await store.record(one)
        wanted = [(one.event.id, to) for one in (has, has_not) for to in ("app", "crm")]
        both = await asyncio.gather(*(store.add_deliveries(wanted, now=T0 + 9) for _ in range(2)))
        made = [new for one in both for new in one]
        assert len(made) == 3
        there = await store.progress_of([has.event.id, has_not.event.id])
        assert sorted((one.event_id, one.destination) for one in there) == sorted(wanted)
        assert {one.id for one in there} > set(made)
        due = [*await claim(store, now=T0 + 9), *await claim(store, "crm", now=T0 + 9)]
        assert {one.id for one in due} > set(made)
        assert {one.event.id for one in due if one.destination == "crm"} == {has.event.id, has_not.event.id}
        assert await store.add_deliveries([("evt_none", "app")], now=T0) == []

    async def test_an_unknown_id_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFound):
            await store.event("evt_none")
        with pytest.raises(NotFound):
            await store.delivery("dlv_none")
        assert await store.attempts("dlv_none") == []

    async def test_events_are_searched_in_the_order_of_recording(self, store: Store) -> None:
        for one in (
            recording("app", at=T0),
            recording(at=T0 + 1, source="deapi", ref="r1"),
            recording("app", at=T0 + 2, event_type="speech.failed"),
            recording(at=T0 + 3, job_id="j3"),
        ):
            sizes = {1: (10, 100), 2: (20, 50)}.get(one.event.recorded_at - T0, (None, None))
            event = replace(one.event, size=sizes[0], duration_ms=sizes[1])
            await store.record(replace(one, event=event))

        async def offsets(asked: EventSearch) -> list[int]:
            return [one.event.recorded_at - T0 for one in await store.search(asked)]

        wanted: tuple[tuple[EventSearch, list[int]], ...] = (
            (EventSearch(), [0, 1, 2, 3]),
            (EventSearch(newest_first=True), [3, 2, 1, 0]),
            (EventSearch(limit=2), [0, 1]),
            (EventSearch(source="deapi"), [1]),
            (EventSearch(provider="deepgram", since=T0 + 1, until=T0 + 3), [1, 2]),
            (EventSearch(types=("speech.failed", "speech.completed"), newest_first=True), [3, 2, 1, 0]),
            (EventSearch(types=("speech.failed",)), [2]),
            (EventSearch(types=()), []),
            (EventSearch(job_id="j3"), [3]),
            (EventSearch(ref="r1"), [1]),
            (EventSearch(state="pending"), [0, 2]),
            (EventSearch(state="dead"), []),
            (EventSearch(state="pending", destination="app"), [0, 2]),
            (EventSearch(destination="audit"), []),
            (EventSearch(state="delivered", destination="audit"), []),
            (EventSearch(min_bytes=20), [2]),
            (EventSearch(max_bytes=20, min_duration_ms=100), [1]),
            (EventSearch(max_duration_ms=99), [2]),
            (EventSearch(source="' OR 1=1 --"), []),
            (EventSearch(ref="\0"), []),
        )
        async with asyncio.timeout(PATIENCE):
            # Until other databases of the server have no older transaction under way.
            while await offsets(wanted[0][0]) != wanted[0][1]:
                await asyncio.sleep(0)
        for asked, found in wanted:
            assert await offsets(asked) == found, asked

    @pytest.mark.parametrize("newest_first", [False, True])
    async def test_a_search_goes_on_where_the_page_before_ended(
        self, store: Store, newest_first: bool
    ) -> None:
        """An event that was awaited is as old as its pickup by its id; its place is that of its recording."""
        rows = [recording(at=T0 + 5), recording(at=T0 + 2), recording(at=T0 + 9, made=T0)]
        for one in rows:
            await store.record(one)
        found: list[PlacedEvent] = []
        async with asyncio.timeout(PATIENCE):
            while len(found) < len(rows):
                after = found[-1].place if found else None
                found += await store.search(EventSearch(limit=1, newest_first=newest_first, after=after))
        ids = [one.event.id for one in (reversed(rows) if newest_first else rows)]
        assert [one.event.id for one in found] == ids
        positions = [one.place.position for one in found]
        assert (await store.positions()).oldest == min(positions)
        assert (await store.positions()).end >= max(positions)

    async def test_deliveries_are_filtered_and_paged(self, store: Store) -> None:
        dead = await one_delivery(store, at=T0)
        await end(store)
        waiting = await one_delivery(store, at=T0 + 1)
        audit = await one_delivery(store, "audit", at=T0 + 2)

        async def ids(wanted: DeliveryFilter) -> list[str]:
            return [one.id for one in await store.deliveries(wanted)]

        assert await ids(DeliveryFilter()) == [audit, waiting, dead]
        assert await ids(DeliveryFilter(limit=1, after=audit)) == [waiting]
        assert await ids(DeliveryFilter(destination="app")) == [waiting, dead]
        assert await ids(DeliveryFilter(state=DeliveryState.DEAD)) == [dead]
        assert await ids(DeliveryFilter(state=DeliveryState.PENDING, destination="app")) == [waiting]
        assert await ids(DeliveryFilter(since=T0 + 1)) == [audit, waiting]

    async def test_only_the_newest_rejections_of_each_source_are_kept(self, store: Store) -> None:
        await store.reject([rejection("deapi", at=T0 - 9)], keep=2)
        await store.reject([rejection(at=T0 + number) for number in range(3)], keep=2)
        await store.reject([rejection(at=T0 + 3)], keep=2)
        kept = await store.rejections(None, limit=10)
        assert [one.at - T0 for one in kept] == [3, 2, -9]
        assert [replace(one, id="") for one in await store.rejections("deapi", limit=10)] == [
            rejection("deapi", at=T0 - 9)
        ]
        assert len(await store.rejections("deepgram", limit=1)) == 1
        await store.reject([], keep=2)

    async def test_rejections_of_one_kind_push_out_none_of_another(self, store: Store) -> None:
        await store.reject([rejection(kind="wrong", reason="the provider's own")], keep=2)
        await store.reject([rejection(at=T0 + n, kind="missing") for n in range(5)], keep=2)
        kept = await store.rejections("deepgram", limit=9)
        assert [one.kind for one in kept] == ["missing", "missing", "wrong"]
        assert kept[-1].reason == "the provider's own"

    async def test_rejections_of_issued_urls_are_kept_apart_from_the_rest(self, store: Store) -> None:
        ours = replace(rejection(), token_id="t1", ref="order-1", headers=("host", "x-signature"))
        await store.reject([ours], keep=2)
        await store.reject([rejection(at=T0 + n) for n in range(5)], keep=2)
        assert ours in nameless(await store.rejections("deepgram", limit=9))
        kept = await store.rejections(None, limit=9, ref="order-1")
        assert nameless(kept) == [ours]
        assert await store.rejections("deepgram", limit=9, one=kept[0].id) == kept
        assert await store.rejections("deapi", limit=9, one=kept[0].id) == []
        subject = Subject(kind=SubjectKind.REF, key="order-1")
        await store.erase(Erasure(subject=subject, tombstone_id="tmb_1", digest="d", now=T0, limit=9))
        assert await store.rejections(None, limit=9, ref="order-1") == []

    async def test_requests_of_rejections_are_kept_few_and_for_a_day(self, store: Store) -> None:
        """The newest of each source, and in all; listings tell of them and never show them."""
        for at in range(REQUESTS_OF_A_SOURCE + 1):
            await store.reject([rejected("a", at=T0 + at)], keep=50)
        *newest, oldest = await store.rejections("a", limit=50)
        assert [one.request_kept for one in newest] == [True] * REQUESTS_OF_A_SOURCE
        assert not oldest.request_kept
        assert {one.request for one in newest} == {None}
        kept = await store.rejected_request(newest[-1].id)
        assert kept == rejected("a", at=T0 + 1).request
        for missing in (oldest.id, "rej_none"):
            with pytest.raises(NotFound):
                await store.rejected_request(missing)
        sources = [f"s{number}" for number in range(REQUESTS // REQUESTS_OF_A_SOURCE)]
        for name in sources:
            await store.reject([rejected(name, at=T0 + 99)] * REQUESTS_OF_A_SOURCE, keep=50)
        assert not any(one.request_kept for one in await store.rejections("a", limit=50))
        pruned = await store.prune(Prune(walk=Walk.REJECTED_REQUESTS, before=T0 + 99))
        assert pruned.count == 0
        pruned = await store.prune(Prune(walk=Walk.REJECTED_REQUESTS, before=T0 + 100))
        assert pruned.count == REQUESTS
        assert not any(one.request_kept for one in await store.rejections(None, limit=REQUESTS))

    async def test_a_request_goes_with_its_rejection(self, store: Store) -> None:
        await store.reject([rejected("a")], keep=1)
        (first,) = await store.rejections("a", limit=9)
        await store.reject([replace(rejected("a", at=T0 + 1), request=None)], keep=1)
        with pytest.raises(NotFound):
            await store.rejected_request(first.id)

    @pytest.mark.parametrize(
        ("kind", "key", "body"),
        [
            (SubjectKind.REF, "order-1", b"{}"),
            (SubjectKind.REF, "order-é", '{"of": "order-é"}'.encode()),
            (SubjectKind.REF, "order-é", b'{"of": "order-\\u00e9"}'),
            (SubjectKind.JOB, "job-1", b'{"job": "job-1"}'),
        ],
    )
    async def test_an_erasure_takes_the_requests_that_name_its_subject(
        self, store: Store, kind: SubjectKind, key: str, body: bytes
    ) -> None:
        await store.reject([rejected("a", body=body), rejected("b", body=b"other", ref="2")], keep=9)
        subject = Subject(kind=kind, key=key)
        await store.erase(Erasure(subject=subject, tombstone_id="tmb_1", digest="d", now=T0, limit=9))
        kept = {one.source: one.request_kept for one in await store.rejections(None, limit=9)}
        assert kept.pop("b")
        assert not any(kept.values())

    async def test_rejections_of_one_moment_keep_their_order(self, store: Store) -> None:
        await store.reject([rejection(reason=str(number)) for number in range(4)], keep=3)
        assert [one.reason for one in await store.rejections("deepgram", limit=9)] == ["3", "2", "1"]

    async def test_stats_count_what_is_due_and_what_is_dead(self, store: Store) -> None:
        assert (await store.stats(T0)).due == ()
        for _ in range(2):
            await one_delivery(store)
        await end(store)
        await end(store, DeliveryState.DELIVERED)
        await one_delivery(store, at=T0 + 100)
        await one_delivery(store, at=T0 + 50)
        await one_delivery(store, at=T0 + 101)
        await one_delivery(store, "audit", at=T0 + 7)
        stats = await store.stats(T0 + 100)
        assert [(one.name, one.depth, one.oldest_due_at) for one in stats.due] == [
            ("app", 2, T0 + 50),
            ("audit", 1, T0 + 7),
        ]
        assert dict(stats.dead) == {"app": 1}

    async def test_a_store_that_is_not_open_says_so(self, store: Store) -> None:
        await store.ping()
        await store.close()
        await store.close()
        with pytest.raises(StoreUnavailable, match="not open"):
            await store.ping()
        with pytest.raises(StoreUnavailable, match="not open"):
            await kept_events(store)

    async def test_what_no_database_can_hold_is_simply_not_found(self, store: Store) -> None:
        """Ids and names come from whoever asks, as a URL or a shell lets them be written."""
        await store.record(recording("app"))
        for asked in ("\0", "evt_\0", "\udcff", "a\ud800b"):
            for found in (store.event, store.delivery, store.pickup, store.body):
                with pytest.raises(NotFound):
                    await found(asked)
            assert await kept_events(store, source=asked) == []
            assert await kept_events(store, types=(asked,)) == []
            assert await store.deliveries(DeliveryFilter(destination=asked)) == []
            assert await store.deliveries(DeliveryFilter(event_id=asked)) == []
            assert await store.pickups(PickupFilter(source=asked)) == []
            assert await store.rejections(asked, limit=5) == []
            assert await store.attempts(asked) == []
            assert await store.pickup_attempts(asked) == []
            assert await store.replay([asked], now=T0) == []
            assert await store.known_blobs([asked]) == set()
            assert await store.next_due(asked) is None
            await kept_events(store, after=(T0, asked))
            assert await store.add_deliveries([(asked, "app")], now=T0) == []
            await store.deliveries(DeliveryFilter(after=asked))
            await store.pickups(PickupFilter(after=asked))

    async def test_migrating_again_changes_nothing(self, store: Store) -> None:
        wanted = recording("app")
        await store.record(wanted)
        assert await store.migrate() == []
        assert await store.event(wanted.event.id) == wanted.event

    async def test_a_closed_store_can_be_opened_again(self, store: Store) -> None:
        wanted = recording("app")
        await store.record(wanted)
        await store.close()
        await store.open()
        assert await store.event(wanted.event.id) == wanted.event


class StoreSuite(RecordSuite, ClaimSuite, ReadSuite):
    """All of it."""

    async def test_a_walk_while_many_record_misses_nothing_and_repeats_nothing(self, store: Store) -> None:
        await walk_while_recording([store] * 16)


async def walk_while_recording(stores: list[Store]) -> None:
    """Walk along the first store in pages of three, while each records events whose times are mixed."""
    made = [[recording("app", at=T0 + (7 * n) % 40) for n in range(5)] for _ in stores]

    async def write(store: Store, rows: list[Recording]) -> None:
        for one in rows:
            await store.record(one)

    writing = asyncio.gather(*(write(store, rows) for store, rows in zip(stores, made, strict=True)))
    found: list[PlacedEvent] = []
    async with asyncio.timeout(PATIENCE):
        while not writing.done() or len(found) < 5 * len(stores):
            await asyncio.sleep(0)
            found += await stores[0].search(EventSearch(after=found[-1].place if found else None, limit=3))
    await writing
    ids = [one.event.id for one in found]
    assert len(ids) == len(set(ids))
    assert set(ids) == {one.event.id for rows in made for one in rows}
    assert [one.place for one in found] == sorted(one.place for one in found)
