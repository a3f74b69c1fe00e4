"""`route`: where an event goes by today's settings, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from receiver.cli.opening import ask, load_to_look
from receiver.cli.options import AsJson, Wide
from receiver.cli.output import print_json, print_table
from receiver.core.work import DeliveryFilter

if TYPE_CHECKING:
    from receiver.core.event import Event
    from receiver.core.routing import Decision
    from receiver.core.work import Delivery
    from receiver.storage.store.store import Store


def route(
    ctx: typer.Context,
    event_id: Annotated[str, typer.Argument(help="The event (evt_…).")],
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Show where an event goes, by which rule, and with which of its data. Also what was decided when it was recorded."""
    from receiver.app.wiring import build_router
    from receiver.web.views import page, view

    settings = load_to_look(ctx)

    async def look(store: Store) -> tuple[Event, list[Delivery], list[Decision]]:
        event = await store.event(event_id)
        deliveries = await store.deliveries(DeliveryFilter(event_id=event_id, limit=1000))
        return event, deliveries, await store.routing(event_id)

    event, deliveries, recorded = ask(settings, look)
    before = {one.destination: one for one in recorded}
    states = {one.destination: one.state.value for one in deliveries}
    decisions = build_router(settings).decisions(event.source, event.type, event.data)
    rows = [
        {
            "destination": one.destination,
            "sent": one.sent,
            "rule": one.rule,
            "data": settings.destinations[one.destination].data,
            "delivery": states.get(one.destination),
            "recorded": view(before[one.destination]) if one.destination in before else None,
        }
        for one in decisions
    ]
    if as_json:
        print_json(page(rows))
    else:
        names = ("destination", "sent", "when recorded", "delivery", "data", "rule")
        print_table(names, map(_cells, rows), empty="no destination is configured", wide=wide)


def _cells(row: Mapping[str, Any]) -> list[str | None]:
    was = row["recorded"]
    sent, then = _yes(row["sent"]), _yes(was["sent"] if was else None)
    return [row["destination"], sent, then, row["delivery"], _fields(row["data"]), row["rule"]]


def _yes(sent: bool | None) -> str | None:
    return None if sent is None else "yes" if sent else "no"


def _fields(data: tuple[str, ...] | None) -> str:
    return "all" if data is None else ", ".join(data) or "ids only"
