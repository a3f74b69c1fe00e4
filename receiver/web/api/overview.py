"""Sources, rejections, and how much waits."""

from __future__ import annotations

from msgspec import Struct

from receiver.core.work import Due
from receiver.web.api.call import Call
from receiver.web.api.lists import Limit
from receiver.web.views import (
    Page,
    RejectionShown,
    SourceShown,
    Stats,
    shown,
    time_of,
)


async def sources(call: Call[None, None]) -> Page[SourceShown]:
    """List the sources of the settings."""
    receiver = call.receiver
    due = _by_name((await receiver.store.stats(receiver.clock())).pickups)
    items = [
        SourceShown(
            name=name,
            provider=source.provider,
            calls_back=name in receiver.ports.providers,
            polled=name in receiver.ports.pulls,
            pickups_due=due[name].depth if name in due else 0,
            oldest_pickup_due_at=time_of(due[name].oldest_due_at) if name in due else None,
        )
        for name, source in receiver.settings.sources.items()
    ]
    return Page(items=items, next=None)


def _by_name(due: tuple[Due, ...]) -> dict[str, Due]:
    return {one.name: one for one in due}


async def stats(call: Call[None, None]) -> Stats:
    """Tell how much waits."""
    receiver = call.receiver
    found = await receiver.store.stats(receiver.clock())
    return Stats(
        due_deliveries={one.name: one.depth for one in found.due},
        dead_deliveries=dict(found.dead),
        due_pickups={one.name: one.depth for one in found.pickups},
        journal=receiver.journal.depth,
        oldest_journaled_seconds=receiver.journal.oldest_age_seconds,
    )


class RejectionQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """Which rejections to list, newest first."""

    source: str | None = None
    ref: str | None = None
    limit: Limit = 50


async def rejections(call: Call[RejectionQuery, None]) -> Page[RejectionShown]:
    """List callbacks that were refused; the last 100 of each source and kind are kept."""
    found = await call.receiver.store.rejections(
        call.query.source, limit=call.query.limit, ref=call.query.ref
    )
    return Page(items=[shown(one, RejectionShown) for one in found], next=None)
