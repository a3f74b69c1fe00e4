"""A page of a listing looks at a bounded number of rows: it may be short, says where the next begins, and none is missed."""

from __future__ import annotations

import itertools
from typing import Any

from receiver.core.event import EventSearch
from receiver.core.page import Page, filled, pages
from receiver.core.work import DeliveryFilter, DeliveryState
from receiver.storage.store import events, queue
from receiver.storage.store.listing import Listing, page
from receiver.storage.store.statements import Session
from receiver.storage.store.store import Store
from tests.contract.store_suite import T0, claim, recording, settlement

ROWS, LOOKED_AT = 12, 5
RARE = {2, 3, 4, 11}


async def fill(store: Store) -> None:
    """Record events, each with a delivery of its own kind: `RARE` ones to `app`, the others to `crm`."""
    for number in range(ROWS):
        rare = number in RARE
        name, kind = ("app", "speech.failed") if rare else ("crm", "speech.completed")
        await store.record(recording(name, at=T0 + number, event_type=kind, source="a" if rare else "b"))


class ListingSuite:
    """The promises."""

    async def test_short_pages_lead_to_all_that_is_there(self, store: Store) -> None:
        await fill(store)
        listings: tuple[tuple[Listing, str, int], ...] = (
            (events._BACK, "e.type || '' = 'speech.failed'", 9),
            (events._ONWARD, "e.source || '' = 'a'", 9),
            (queue._BACK, "d.destination || '' = 'app'", 9),
        )
        for (listing, condition, at), limit in itertools.product(listings, (1, 2, 50)):
            found = await self._walked(store, listing, condition, at, limit)
            assert found == sorted(RARE, reverse=not listing.onward), (condition, limit)

    async def _walked(self, store: Store, listing: Listing, condition: str, at: int, limit: int) -> list[int]:
        def ask(session: Session, after: tuple[Any, ...] | None) -> Page[Any]:
            others = {condition: "given"}
            return page(
                session, listing, {}, others, after=after, limit=limit, item=tuple, looked_at=LOOKED_AT
            )

        found: list[int] = []
        after: Any = None
        while True:
            one = await store.read(ask, after if after is None or isinstance(after, tuple) else (after,))
            found += [row[at] - T0 for row in one]
            after = one.after
            if after is None:
                return found

    async def test_deliveries_of_each_state_are_listed(self, store: Store) -> None:
        await fill(store)
        held = await claim(store, "app", limit=2, now=T0 + 99)
        await store.settle(settlement(held[0], DeliveryState.DEAD))
        (other,) = await claim(store, "crm", limit=1, now=T0 + 99)
        await store.settle(settlement(other))
        for state, count in (
            (DeliveryState.PENDING, ROWS - 3),
            (DeliveryState.DELIVERING, 1),
            (DeliveryState.DELIVERED, 1),
            (DeliveryState.DEAD, 1),
        ):
            found = await filled(store.deliveries, DeliveryFilter(state=state), 50)
            assert [one.state for one in found] == [state] * count
            of_app = DeliveryFilter(state=state, destination="app", types=("speech.failed",))
            assert len(await filled(store.deliveries, of_app, 50)) == {
                DeliveryState.PENDING: 2,
                DeliveryState.DELIVERED: 0,
            }.get(state, 1)

    async def test_in_a_name_a_star_stands_for_anything(self, store: Store) -> None:
        await fill(store)
        for name, count in (("a", len(RARE)), ("a*", len(RARE)), ("?", ROWS), ("%", 0), ("a!*", 0)):
            assert len(await filled(store.search, EventSearch(source=name), 50)) == count, name
            assert len(await filled(store.deliveries, DeliveryFilter(source=name), 50)) == count, name
        for name, count in (("*p", len(RARE)), ("*", ROWS), ("_pp", 0)):
            assert len(await filled(store.deliveries, DeliveryFilter(destination=name), 50)) == count, name
            assert len(await filled(store.search, EventSearch(destination=name), 50)) == count, name

    async def test_all_pages_are_all_rows(self, store: Store) -> None:
        await fill(store)
        ids = [one.id async for some in pages(store.deliveries, DeliveryFilter(limit=5)) for one in some]
        assert len(ids) == len(set(ids)) == ROWS
        assert ids == sorted(ids, reverse=True)
