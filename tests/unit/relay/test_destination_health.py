"""A destination that fails is held and probed, one that answers 410 or is paused is held until a person says so."""

from __future__ import annotations

import asyncio
import json

import pytest
from msgspec.structs import replace

from receiver.core.destinations import DestinationState, DestinationStatus, asks_for_less, is_failure
from receiver.core.errors import NotFound
from receiver.core.observe import AttemptReport
from receiver.core.retry import fixed, policy
from receiver.core.routing import Route, Router
from receiver.core.work import DeliveryFilter, DeliveryState, Outcome, OutcomeKind
from receiver.engine.gate import DestinationGate
from receiver.engine.holds import act_on_destination, destination_states
from receiver.engine.relay import DeliveryTerms, Relay
from receiver.engine.worker import LaneTiming
from receiver.storage.store.store import Store
from tests.contract.store_suite import T0
from tests.support.kept_events import kept_events
from tests.support.relaying import (
    FaultyStore,
    Gated,
    Heard,
    Now,
    Scripted,
    deliveries,
    only,
    record,
    render,
    running,
)
from tests.support.stepping import step

DELIVERED = Outcome(kind=OutcomeKind.DELIVERED, status=200)
DOWN = Outcome(kind=OutcomeKind.REFUSED, status=500)
HOUR = 3600
ROUTED = Router([Route("ops", events=("destination.*",)), Route("app")]).destinations


class World:
    """A relay, a destination that answers what it is told to, and time in seconds since the first event."""

    def __init__(self, store: Store, *, limit: int = 10, retries: int = 10) -> None:
        self.store, self.heard, self.now, self.answer = store, Heard(), Now(T0), DOWN
        terms = DeliveryTerms(
            Scripted(lambda: self.answer), fixed("x", retries, 30), 4, 5, breaker_failures=limit, recover=True
        )
        ops = DeliveryTerms(Scripted(lambda: DELIVERED, "ops"), policy("deepgram"), 4, 5)
        lanes = {"app": terms, "ops": ops}
        self.relay = Relay(store, lanes, self.heard, render, self.now, "w", routed=ROUTED)

    async def at(self, seconds: float) -> int:
        """Do what is due at a time; return how many attempts at `app` that were."""
        before = len(self._of_app())
        self.now.value = T0 + round(seconds * 1000)
        await step(self.relay, self.now.value)
        return len(self._of_app()) - before

    async def until(self, start: int, end: int, step: int = 10) -> None:
        """Do what is due every `step` seconds of a time."""
        for second in range(start, end, step):
            await self.at(second)

    def attempts(self) -> list[float]:
        """Return when there were attempts."""
        return [(report.waited_seconds) for report in self._of_app()]

    def _of_app(self) -> list[AttemptReport]:
        return [report for report in self.heard.attempts if report.destination == "app"]

    async def status(self) -> DestinationStatus:
        (state,) = await destination_states(self.store, ["app"], now=self.now())
        return state.status

    async def told(self) -> list[str]:
        """Return the events about destinations, first to last."""
        events = await kept_events(self.store, source="receiver")
        return [event.type for event in reversed(events)]


async def test_an_outage_of_an_hour_costs_ten_attempts_and_then_only_probes(any_store: Store) -> None:
    world = World(any_store)
    await record(any_store)
    await world.until(0, 360)
    await world.until(360, HOUR, 60)
    counted = [30.0 * number for number in range(10)]
    probes = [300.0, 320.0, *range(360, HOUR, 60)]
    assert world.attempts() == counted + probes
    delivery = await only(any_store)
    assert (delivery.state, delivery.attempts) == (DeliveryState.PENDING, len(counted) + len(probes))
    assert delivery.attempts - delivery.round_start == 10, "probes are recorded and spend nothing"
    assert await world.status() is DestinationStatus.FAILING
    world.answer = DELIVERED
    await world.until(HOUR, HOUR + 60)
    assert (await only(any_store)).state is DeliveryState.DELIVERED
    assert await world.status() is DestinationStatus.ACTIVE
    assert await world.told() == ["destination.failing", "destination.recovered"]


async def test_what_comes_during_an_outage_is_attempted_only_as_a_probe(any_store: Store) -> None:
    world = World(any_store, limit=3)
    await record(any_store, count=3)
    await world.at(0)
    assert await world.status() is DestinationStatus.FAILING
    await record(any_store, count=5, at=T0 + 1000)
    assert await world.at(9) == 0
    assert await world.at(10) == 1, "one probe, and no other"
    assert await world.at(29) == 0
    world.answer = DELIVERED
    assert await world.at(30) == 1
    assert await world.at(31) == 7, "all that was held"
    spent = sorted(one.attempts - one.round_start for one in await deliveries(any_store))
    assert spent == [1, 1, 1, 1, 1, 2, 2, 2]


async def test_an_event_that_is_too_large_is_dead_at_once_and_says_nothing_about_its_destination(
    any_store: Store,
) -> None:
    world = World(any_store, limit=2)
    await record(any_store)
    await world.at(0)
    await record(any_store, at=T0 + 1000)
    world.answer = Outcome(kind=OutcomeKind.TOO_LARGE)
    assert await world.at(1) == 1
    newest, oldest = await deliveries(any_store)
    assert (newest.state, newest.attempts, oldest.state) == (DeliveryState.DEAD, 1, DeliveryState.PENDING)
    world.answer = DOWN
    await world.at(30)
    assert await world.status() is DestinationStatus.FAILING, "the second failure in a row"


async def test_an_event_that_a_destination_chokes_on_does_not_keep_the_others_waiting(
    any_store: Store,
) -> None:
    world = World(any_store, limit=2)
    await record(any_store)
    await world.at(0)
    await world.at(30)
    assert await world.status() is DestinationStatus.FAILING
    await world.at(40)
    await record(any_store, at=T0 + 45_000)
    world.answer = DELIVERED
    assert await world.at(60) == 1
    newest, oldest = await deliveries(any_store)
    assert (newest.state, oldest.state) == (DeliveryState.DELIVERED, DeliveryState.PENDING)


async def test_dead_letters_of_an_outage_are_replayed_oldest_first(any_store: Store) -> None:
    world = World(any_store, limit=4, retries=0)
    world.answer = Outcome(kind=OutcomeKind.REFUSED, status=422)
    await record(any_store)
    await world.at(0)
    world.answer = DOWN
    for second in range(1, 6):
        await record(any_store, at=T0 + 1000 * second)
        await world.at(second)
    states = [one.state.value for one in await deliveries(any_store)]
    assert states == ["pending"] + ["dead"] * 5, "four opened the breaker, the first was no failure of its"
    world.answer = DELIVERED
    assert [await world.at(second) for second in (13, 14)] == [0, 1]
    assert await world.at(15) == 4
    states = [one.state.value for one in await deliveries(any_store)]
    assert states == ["delivered"] * 5 + ["dead"], "what had died before is no letter of the outage"
    assert await world.at(16) == 0


async def test_410_disables_until_a_person_enables_and_nothing_is_lost(any_store: Store) -> None:
    world = World(any_store)
    world.answer = Outcome(kind=OutcomeKind.GONE, status=410)
    await record(any_store)
    await world.at(0)
    await record(any_store, at=T0 + 1000)
    await world.until(10, 400)
    assert len(world.attempts()) == 1
    assert await world.status() is DestinationStatus.DISABLED
    assert await world.told() == ["destination.disabled"]
    world.answer = DELIVERED
    await act_on_destination(any_store, ["app"], "app", "enable", now=world.now())
    await world.at(400)
    found = [(one.state.value, one.attempts - one.round_start) for one in await deliveries(any_store)]
    assert found == [("delivered", 1), ("delivered", 1)], "410 spent no attempt"


async def test_a_pause_holds_everything_and_outlives_what_is_under_way(any_store: Store) -> None:
    world = World(any_store)
    world.answer = DELIVERED
    for _ in range(2):  # a second time changes nothing
        await act_on_destination(any_store, ["app"], "app", "pause", now=T0)
    await record(any_store, count=3)
    assert await world.at(0) == 0
    assert await any_store.claim("app", worker="w", limit=9, now=T0, lease_until=T0 + 1) == []
    await act_on_destination(any_store, ["app"], "app", "enable", now=T0)
    assert await world.at(1) == 0, "enabling ends no pause"
    await act_on_destination(any_store, ["app"], "app", "resume", now=T0)
    assert await world.at(2) == 3
    with pytest.raises(NotFound, match="there is: app"):
        await act_on_destination(any_store, ["app"], "apps", "pause", now=T0)


async def test_a_running_relay_obeys_a_pause_with_what_it_has_claimed(any_store: Store) -> None:
    gated = Gated()
    heard = Heard()
    terms = DeliveryTerms(gated, policy("deepgram"), 1, 5)
    await record(any_store, count=3)
    relay = Relay(any_store, {"app": terms}, heard, render, Now(T0), "w")
    async with running(relay):
        gated.permits.release()
        await gated.until(begun=2)
        await act_on_destination(any_store, ["app"], "app", "pause", now=T0)
        await relay._look(T0)
        gated.permits.release()  # the one under way ends
        await heard.until(attempts=2)
    states = sorted(one.state.value for one in await deliveries(any_store))
    assert states == ["delivered", "delivered", "pending"]
    assert gated.begun == 2, "what was claimed ahead is given back, and not attempted"


async def test_a_lane_goes_on_once_another_process_has_resumed_its_destination(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the store was out. By itself the lane would look an hour later."""
    monkeypatch.setattr("receiver.engine.relay.LOOK_SECONDS", 0.0)
    heard = Heard()
    terms = DeliveryTerms(Scripted(lambda: DELIVERED), policy("deepgram"), 1, 5)
    await act_on_destination(store, ["app"], "app", "pause", now=T0)
    store.out["destinations"], store.looks = 1, 0
    relay = Relay(store, {"app": terms}, heard, render, Now(T0), "w", LaneTiming(poll=3600.0))
    async with running(relay):
        while store.looks < 3:
            await asyncio.sleep(0)
        await record(store)
        await act_on_destination(store, ["app"], "app", "resume", now=T0)
        await heard.until(attempts=1)


async def test_two_processes_make_one_probe(any_store: Store) -> None:
    first, second = World(any_store, limit=1), World(any_store, limit=1)
    await record(any_store)
    await first.at(0)
    await record(any_store, count=4, at=T0 + 1000)
    assert [await world.at(10) for world in (first, second)] == [1, 0]
    assert await first.told() == ["destination.failing"]


async def test_retry_after_holds_the_other_deliveries_for_five_minutes_at_most(any_store: Store) -> None:
    world = World(any_store)
    await record(any_store)
    world.answer = Outcome(kind=OutcomeKind.REFUSED, status=429, retry_after=86_400.0)
    await world.at(0)
    await record(any_store, at=T0 + 1000)
    world.answer = DELIVERED
    assert [await world.at(second) for second in (1, 299, 300)] == [0, 0, 1]
    assert (await deliveries(any_store))[1].due_at == T0 + 86_400_000


async def test_an_event_about_a_destination_says_which_and_why(any_store: Store) -> None:
    world = World(any_store, limit=1)
    await record(any_store)
    await world.at(0)
    (event,) = await kept_events(any_store, types=("destination.failing",))
    data = json.loads(event.data)
    assert data["provider_data"] == {"destination": "app", "failures": 1, "since": "2027-01-15T08:00:00.000Z"}
    assert data["error"]["code"] == "failing"
    told = await any_store.deliveries(DeliveryFilter(event_id=event.id))
    assert [one.destination for one in told] == ["ops"]


@pytest.mark.parametrize(
    ("kind", "status", "failure", "less"),
    [
        (OutcomeKind.DELIVERED, 200, False, False),
        (OutcomeKind.REFUSED, 500, True, False),
        (OutcomeKind.REFUSED, 401, True, False),
        (OutcomeKind.REFUSED, 422, False, False),
        (OutcomeKind.REFUSED, 429, True, True),
        (OutcomeKind.REFUSED, 502, True, True),
        (OutcomeKind.REFUSED, 503, True, True),
        (OutcomeKind.REFUSED, 504, True, True),
        (OutcomeKind.TIMEOUT, None, True, True),
        (OutcomeKind.UNREACHABLE, None, True, True),
        (OutcomeKind.BLOCKED, None, True, False),
    ],
)
def test_what_speaks_against_a_destination(
    kind: OutcomeKind, status: int | None, failure: bool, less: bool
) -> None:
    outcome = Outcome(kind=kind, status=status)
    assert (is_failure(outcome), asks_for_less(outcome)) == (failure, less)


async def test_a_claimed_delivery_begins_only_while_its_destination_takes_it(store: FaultyStore) -> None:
    await record(store)
    (claim,) = await store.claim("app", worker="w", limit=1, now=T0, lease_until=T0 + 1)
    gate, state = DestinationGate("app", 4), DestinationState(name="app")
    gate.note(Outcome(kind=OutcomeKind.REFUSED, status=503))
    assert [gate.lets(claim, busy, T0) for busy in (1, 2)] == [True, False], "half as many at once"
    for held, begins, probe_begins in (
        (replace(state, paused_at=T0), False, False),
        (replace(state, disabled_at=T0), False, False),
        (replace(state, opened_at=T0), False, True),
        (replace(state, held_until=T0 + 1), False, True),
        (replace(state, held_until=T0), True, True),
    ):
        gate.learn(held)
        assert gate.lets(claim, 0, T0) is begins
        assert gate.lets(replace(claim, probe=True), 0, T0) is probe_begins


def test_attempts_at_once_are_halved_by_a_busy_answer_and_grow_back_one_by_one() -> None:
    gate = DestinationGate("app", 16)
    assert gate.room(ahead=4, busy=16) == 12, "a batch ahead"
    for width in (8, 4, 2, 1, 1):
        gate.note(Outcome(kind=OutcomeKind.REFUSED, status=503))
        assert gate.width == width
    assert gate.room(ahead=0, busy=1) == 0, "nothing ahead while it is slowed"
    for _ in range(20):
        gate.note(DELIVERED)
    assert gate.width == 16
