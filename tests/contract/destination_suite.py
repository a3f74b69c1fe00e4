"""What every destination must do: each sentence of the port, as a test. A destination's own file gives the fixture `place`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import pytest

from receiver.core.work import OutcomeKind
from receiver.outbound.destinations import Destination

T0 = 1_795_222_923_456
BODY = '{"type":"speech.completed","data":{"ref":"Straße ☃"}}'.encode()


class Place(Protocol):
    """A destination that is open and named `app`, and the far side that a test can steer."""

    destination: Destination
    secrets: Sequence[str]
    """Configured texts that no outcome may show."""

    def arrived(self) -> list[tuple[str, bytes]]:
        """Return (event id, body) of everything that came, in order."""

    def refuse(self, reply: bytes) -> None:
        """Refuse from now on, with this reply."""

    def hang(self) -> None:
        """Take what comes and answer nothing from now on; the destination's timeout is then 0.2 s at most."""

    async def until(self, count: int) -> None:
        """Return when `count` events have come."""

    async def vanish(self) -> None:
        """Stop listening."""


class DestinationSuite:
    """Joined by subclassing it next to a fixture `place`."""

    async def test_it_has_its_configured_name(self, place: Place) -> None:
        assert place.destination.name == "app"

    async def test_an_event_arrives_byte_for_byte_under_its_id(self, place: Place) -> None:
        outcome = await place.destination.send("evt_1", BODY, timestamp=T0)
        assert outcome.kind is OutcomeKind.DELIVERED
        assert outcome.retry_after is None
        assert place.arrived() == [("evt_1", BODY)]

    async def test_another_attempt_keeps_the_id(self, place: Place) -> None:
        for seconds in (0, 30):
            await place.destination.send("evt_1", BODY, timestamp=T0 + seconds * 1000)
        assert place.arrived() == [("evt_1", BODY)] * 2

    async def test_many_at_once_all_arrive(self, place: Place) -> None:
        sent = [(f"evt_{number}", b'{"n":%d}' % number) for number in range(32)]
        outcomes = await asyncio.gather(
            *(place.destination.send(event_id, body, timestamp=T0) for event_id, body in sent)
        )
        assert {outcome.kind for outcome in outcomes} == {OutcomeKind.DELIVERED}
        assert sorted(place.arrived()) == sorted(sent)

    async def test_a_refusal_is_an_outcome_with_the_reply_and_no_secret(self, place: Place) -> None:
        place.refuse(b"no such tenant")
        outcome = await place.destination.send("evt_1", BODY, timestamp=T0)
        assert outcome.kind is OutcomeKind.REFUSED
        assert b"no such tenant" in outcome.response
        assert outcome.detail
        assert not [secret for secret in place.secrets if secret in outcome.detail]

    async def test_a_long_reply_is_cut_at_16_kib(self, place: Place) -> None:
        place.refuse(b"x" * 100_000)
        outcome = await place.destination.send("evt_1", BODY, timestamp=T0)
        assert outcome.kind is OutcomeKind.REFUSED
        assert len(outcome.response) == 16 * 1024

    async def test_no_answer_is_a_timeout(self, place: Place) -> None:
        place.hang()
        outcome = await place.destination.send("evt_1", BODY, timestamp=T0)
        assert outcome.kind is OutcomeKind.TIMEOUT

    async def test_nobody_there_is_unreachable_and_shows_no_secret(self, place: Place) -> None:
        await place.vanish()
        outcome = await place.destination.send("evt_1", BODY, timestamp=T0)
        assert outcome.kind is OutcomeKind.UNREACHABLE
        assert outcome.detail
        assert not [secret for secret in place.secrets if secret in outcome.detail]

    async def test_a_cancelled_attempt_raises_that_and_nothing_else(self, place: Place) -> None:
        place.hang()
        task = asyncio.create_task(place.destination.send("evt_1", BODY, timestamp=T0))
        await place.until(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_it_can_be_closed_and_opened_again(self, place: Place) -> None:
        await place.destination.close()
        await place.destination.open()
        outcome = await place.destination.send("evt_1", BODY, timestamp=T0)
        assert outcome.kind is OutcomeKind.DELIVERED
