"""Sources, and how much waits."""

from __future__ import annotations

from receiver.core.work import Due
from receiver.web.api.call import Call
from receiver.web.views import Page, SourceShown, Stats, time_of


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
