"""Operations on many rows, over any store: what was counted is done once, whoever does it and whenever they are ended."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from receiver.core.errors import NotFound
from receiver.core.observe import Observers
from receiver.core.retention import Prune, Walk
from receiver.core.routing import Route, Router
from receiver.core.work import (
    Batch,
    BulkKind,
    BulkOperation,
    BulkState,
    DeliveryFilter,
    DeliveryState,
    Selection,
)
from receiver.engine import bulk
from receiver.engine.bulk import BulkWorker, Plan, plan
from receiver.storage.store.store import Store
from tests.contract.store_suite import T0, end, recording

ROUTER = Router([Route("app"), Route("new", events=("speech.*",))])
DEAD = Selection(state=DeliveryState.DEAD)
NOW = T0 + 1000


async def deaths(store: Store, count: int, at: int = T0) -> set[str]:
    """Make dead letters; return their ids."""
    made = set()
    for number in range(count):
        await store.record(recording("app", at=at + number))
        made.add((await end(store, now=at + number)).id)
    return made


async def planned(
    store: Store, selection: Selection = DEAD, kind: BulkKind = BulkKind.REPLAY, rate: int | None = None
) -> Plan:
    return await plan(store, ROUTER, kind, selection, rate=rate, by="ops", now=NOW)


def worker(store: Store, now: int = NOW + 10) -> BulkWorker:
    return BulkWorker(store, ROUTER, wake=frozenset, observer=Observers([]), clock=lambda: now)


async def replayed(store: Store) -> set[str]:
    found = await store.deliveries(DeliveryFilter(limit=500))
    return {one.id for one in found if one.due_at is not None and one.round_start == one.attempts > 0}


async def carry_on(store: Store, operation: BulkOperation, *, now: int = NOW + 10) -> BulkOperation:
    """Run an operation to its end."""
    await store.change_operation(operation.id, running=True, now=now)
    while await worker(store, now).step():
        pass
    return await store.operation(operation.id)


class BulkSuite:
    """Operations on many rows."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bulk, "BATCH", 2)

    async def test_what_was_counted_is_done_and_what_died_later_is_not(self, store: Store) -> None:
        counted = await deaths(store, 3)
        made = (await planned(store)).operation
        assert (made.total, made.state) == (3, BulkState.PLANNED)
        assert not await store.has_due_operation(NOW + 10), "nothing is done before it is run"
        await deaths(store, 2, at=NOW + 1)
        done = await carry_on(store, made)
        assert (done.state, done.done, done.changed, done.due_at) == (BulkState.DONE, 3, 3, None)
        assert await replayed(store) == counted
        assert (await store.change_operation(made.id, running=True, now=NOW)).state is BulkState.DONE

    async def test_a_delivery_is_replayed_once_by_several_processes(self, store: Store) -> None:
        """Each takes the operation although another has it, as after a lease that ran out."""
        counted = await deaths(store, 7)
        made = (await planned(store)).operation
        await store.change_operation(made.id, running=True, now=NOW)
        rounds = 0
        while (await store.operation(made.id)).state is BulkState.RUNNING:
            rounds += 1
            taken = await store.operation(made.id)
            await store.change_operation(made.id, running=True, now=NOW)
            await asyncio.gather(*(worker(store).step() for _ in range(3)), _advance(store, taken))
        done = await store.operation(made.id)
        assert (done.done, done.changed) == (7, 7)
        assert await replayed(store) == counted
        assert rounds <= 5

    async def test_what_a_process_had_taken_when_it_was_killed_is_done_by_another(self, store: Store) -> None:
        counted = await deaths(store, 3)
        made = (await planned(store)).operation
        await store.change_operation(made.id, running=True, now=NOW)
        await worker(store).step()
        assert await store.claim_operation(now=NOW + 10, lease_until=NOW + 5000)
        assert not await worker(store).step()
        assert await worker(store, NOW + 5000).step()
        assert (await store.operation(made.id)).changed == 3
        assert await replayed(store) == counted

    async def test_a_batch_of_an_operation_that_was_stopped_is_not_done(self, store: Store) -> None:
        await deaths(store, 3)
        made = (await planned(store)).operation
        await store.change_operation(made.id, running=True, now=NOW)
        taken = await store.claim_operation(now=NOW, lease_until=NOW + 5000)
        assert taken
        stopped = await store.change_operation(made.id, running=False, now=NOW)
        assert (stopped.state, stopped.due_at) == (BulkState.STOPPED, None)
        batch = Batch(place="x", finished=False, rows=2, wait=0)
        assert await store.advance_operation(taken, batch, now=NOW) is None
        assert not await worker(store).step()
        assert await store.operation(made.id) == stopped
        assert (await carry_on(store, made)).changed == 3

    async def test_a_rate_makes_the_next_batch_wait(self, store: Store) -> None:
        await deaths(store, 3)
        made = (await planned(store, rate=1)).operation
        await store.change_operation(made.id, running=True, now=NOW)
        assert await worker(store).step()
        assert not await worker(store, NOW + 1009).step()
        assert await worker(store, NOW + 1010).step()
        faster = await store.change_operation(made.id, running=True, rate=50, now=NOW + 1010)
        assert (faster.rate, faster.done) == (50, 2)
        assert await worker(store, NOW + 1010).step()

    async def test_what_is_under_way_is_told_and_left_alone(self, store: Store) -> None:
        (dead,) = await deaths(store, 1)
        await store.record(recording("app", at=T0))
        found = await planned(store, Selection(destination="app"))
        assert (found.operation.total, found.left_alone, found.destinations) == (1, 1, {"app": 1})
        await carry_on(store, found.operation)
        assert await replayed(store) == {dead}

    async def test_events_get_the_deliveries_that_todays_settings_make(self, store: Store) -> None:
        wanted = [recording("app", at=T0 + n) for n in range(3)]
        for one in (*wanted, recording("app", event_type="transcript.completed"), recording("app", "new")):
            await store.record(one)
        found = await planned(store, Selection(destination="new"), BulkKind.BACKFILL)
        assert (found.operation.total, found.oldest_at, found.newest_at) == (3, T0, T0 + 2)
        done = await carry_on(store, found.operation)
        assert (done.state, done.changed) == (BulkState.DONE, 3)
        made = await store.progress_of([one.event.id for one in wanted])
        assert {one.event_id for one in made if one.destination == "new"} == {one.event.id for one in wanted}

    async def test_operations_are_listed_newest_first_as_they_were_written(self, store: Store) -> None:
        await deaths(store, 1)
        first = (await planned(store)).operation
        chosen = Selection(destination="app", source="deepgram", type="speech.*", since=T0, until=NOW)
        second = (await planned(store, chosen, rate=5)).operation
        page = await store.operations(None, 1)
        assert [*page] == [max(first, second, key=lambda one: one.id)]
        assert [*await store.operations(page.after, 5)] == [min(first, second, key=lambda one: one.id)]
        assert await store.operation(second.id) == second
        with pytest.raises(NotFound):
            await store.operation("op_nothing")

    async def test_what_is_done_is_forgotten_in_time_and_what_runs_is_not(self, store: Store) -> None:
        await deaths(store, 2)
        done, running = await planned(store), await planned(store)
        await carry_on(store, done.operation)
        await store.change_operation(running.operation.id, running=True, now=NOW)
        for before, gone in ((NOW + 10, 0), (NOW + 11, 1), (NOW + 99, 0)):
            assert (await store.prune(Prune(walk=Walk.OPERATIONS, before=before))).count == gone
        assert [one.id for one in await store.operations(None, 9)] == [running.operation.id]

    async def test_where_nothing_fits_nothing_is_written(self, store: Store) -> None:
        assert (await planned(store)).operation.total == 0
        assert not await store.operations(None, 5)


async def _advance(store: Store, taken: BulkOperation) -> None:
    """Do the next batch as a process does that took the operation before all others."""
    page = await store.deliveries(
        DeliveryFilter(state=DeliveryState.DEAD, ended_before=NOW, oldest_first=True, limit=2)
    )
    batch = Batch(
        place=f'"{page.after}"' if page.after else taken.place,
        finished=page.after is None,
        replays=tuple(one.id for one in page),
        rows=len(page),
        wait=0,
    )
    await store.advance_operation(replace(taken), batch, now=NOW + 10)
