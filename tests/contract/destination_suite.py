"""What every destination must do: each sentence of the port, as a test. A destination's own file gives the fixture `place`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import pytest

from receiver.core.work import OutcomeKind
from receiver.outbound.destinations import Destination

T0 = 1_795_222_923_456


def event(number: int, **data: Any) -> bytes:
    """Return an event as the relay renders it."""
    about = {"event_id": f"evt_{number}", "source": "deepgram", "ref": "Straße ☃"} | data
    whole = {"type": "speech.completed", "timestamp": "2026-11-21T01:02:03.456Z", "data": about}
    return msgspec.json.encode(whole)


BODY = event(1)


class Place(Protocol):
    """A destination that is open and named `app`, and the far side that a test can steer."""

    destination: Destination
    secrets: Sequence[str]
    """Configured texts that no outcome may show."""
    once: bool
    """Of several messages with one id, the far side keeps the first."""

    async def arrived(self, count: int) -> list[tuple[str, bytes]]:
        """Return (event id, body) of everything that came, in order, once so many did."""

    async def refuse(self) -> None:
        """Refuse from now on."""

    def hang(self) -> None:
        """Answer nothing from now on; the destination's timeout is short."""

    async def vanish(self) -> None:
        """Stop listening, at once."""

    async def come_back(self) -> None:
        """Listen again, with what had arrived."""


class DestinationSuite:
    """Joined by subclassing it next to a fixture `place`."""

    async def test_it_has_its_configured_name(self, place: Place) -> None:
        assert place.destination.name == "app"

    async def test_an_event_arrives_byte_for_byte_under_its_id(self, place: Place) -> None:
        outcome = await place.destination.send("evt_1", BODY, timestamp=T0)
        assert outcome.kind is OutcomeKind.DELIVERED, outcome.detail
        assert outcome.retry_after is None
        assert await place.arrived(1) == [("evt_1", BODY)]

    async def test_another_attempt_keeps_the_id(self, place: Place) -> None:
        for seconds in (0, 30):
            await place.destination.send("evt_1", BODY, timestamp=T0 + seconds * 1000)
        count = 1 if place.once else 2
        assert await place.arrived(count) == [("evt_1", BODY)] * count

    async def test_a_refusal_is_an_outcome_and_shows_no_secret(self, place: Place) -> None:
        await place.refuse()
        outcome = await place.destination.send("evt_1", BODY, timestamp=T0)
        assert outcome.kind is OutcomeKind.REFUSED
        assert outcome.detail or outcome.status
        assert not [secret for secret in place.secrets if secret in outcome.detail]

    async def test_no_answer_is_a_timeout_and_a_cancelled_attempt_raises_that_and_nothing_else(
        self, place: Place
    ) -> None:
        place.hang()
        task = asyncio.create_task(place.destination.send("evt_1", BODY, timestamp=T0))
        outcome = await place.destination.send("evt_2", BODY, timestamp=T0)
        assert outcome.kind is OutcomeKind.TIMEOUT
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.result().kind is OutcomeKind.TIMEOUT
        later = asyncio.create_task(place.destination.send("evt_3", BODY, timestamp=T0))
        await asyncio.sleep(0)  # it is under way
        later.cancel()
        with pytest.raises(asyncio.CancelledError):
            await later

    async def test_many_at_once_all_arrive_though_it_was_killed_and_started_again_in_between(
        self, place: Place
    ) -> None:
        """Whatever counts as delivered has arrived; what does not is unreachable or had no answer, shows no secret, and arrives later."""
        sent = {f"evt_{number}": event(number) for number in range(48)}

        async def send(*ids: str) -> set[str]:
            sends = (place.destination.send(one, sent[one], timestamp=T0) for one in ids)
            outcomes = dict(zip(ids, await asyncio.gather(*sends), strict=True))
            failed = {one: outcome for one, outcome in outcomes.items() if outcome.kind != "delivered"}
            assert {outcome.kind for outcome in failed.values()} <= {
                OutcomeKind.UNREACHABLE,
                OutcomeKind.TIMEOUT,
            }
            said = " ".join(outcome.detail for outcome in failed.values())
            assert not [secret for secret in place.secrets if secret in said]
            return set(failed)

        ids = list(sent)
        under_way = asyncio.create_task(send(*ids[:16]))
        await asyncio.sleep(0)
        await place.vanish()
        late = await under_way | await send(*ids[16:32])
        assert late >= set(ids[16:32])
        await place.come_back()
        assert await send(*late, *ids[32:]) == set()
        assert set(await place.arrived(len(sent))) == set(sent.items())

    async def test_it_can_be_closed_and_opened_again(self, place: Place) -> None:
        await place.destination.close()
        await place.destination.open()
        outcome = await place.destination.send("evt_1", BODY, timestamp=T0)
        assert outcome.kind is OutcomeKind.DELIVERED
