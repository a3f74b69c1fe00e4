"""Counts over all processes, and the processes that are alive."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import groupby
from typing import Literal

from msgspec import Struct

from receiver.core.event_json import iso
from receiver.core.tally import ACK, MINUTE, Tally, within
from receiver.engine.tallies import EVERY_SECONDS, KEPT_MS
from receiver.settings.model import ApiScope
from receiver.web.api.lists import Moment, millis
from receiver.web.api.operation import Call, operation
from receiver.web.api.problems import Refused
from receiver.web.views import Page, Time, shown

_HOUR = 60 * MINUTE
_STEPS = {"minute": MINUTE, "hour": _HOUR, "all": 1 << 62}
_BY_MINUTE_HOURS = 3


class TallyQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """Which time, and how finely."""

    since: Moment | None = None
    """An hour ago, where it is not given."""
    until: Moment | None = None
    by: Literal["minute", "hour", "all"] = "minute"
    """What one count covers; by the minute, of three hours at most."""


class TallyShown(Struct, frozen=True, kw_only=True):
    """How often something came out so, over all processes."""

    at: Time
    """When the time that is counted began."""
    kind: str
    """`callbacks` of a source by their answer; `deliveries`, each attempt to a destination by its outcome."""
    name: str
    outcome: str
    count: int


class AckShown(Struct, frozen=True, kw_only=True):
    """How long callbacks of a source waited for a 200, over all processes."""

    at: Time
    source: str
    count: int
    p50_ms: int | None
    """Half of them waited so many milliseconds at most: the upper bound of a range."""
    p99_ms: int | None


class TalliesShown(Struct, frozen=True, kw_only=True):
    """What was counted."""

    items: list[TallyShown]
    ack: list[AckShown]


class ProcessShown(Struct, frozen=True, kw_only=True):
    """A process that takes callbacks or works."""

    id: str
    host: str
    version: str
    role: str
    """`serve`, `intake` or `work`."""
    started_at: Time
    seen_at: Time
    alive: bool
    """Whether it was seen in the last 30 seconds."""


@operation("GET /tallies", ApiScope.READ)
async def listed(call: Call[TallyQuery, None]) -> TalliesShown:
    """Tell what came out how often, by the minute or hour, over all processes."""
    now, by = call.receiver.clock(), call.query.by
    until = millis(call.query.until) or now
    since = millis(call.query.since)
    since = max(until - _HOUR if since is None else since, now - KEPT_MS)
    if by == "minute" and until - since > _BY_MINUTE_HOURS * _HOUR:
        raise Refused(
            400, f"since: by the minute there are {_BY_MINUTE_HOURS} hours at once; ask with by=hour"
        )
    found = await call.receiver.store.tallies(since // MINUTE * MINUTE, until, _STEPS[by])
    # They may be tens of thousands: callbacks are not to wait for them.
    return await asyncio.to_thread(_shown, found, since)


def _shown(found: Sequence[Tally], since: int) -> TalliesShown:
    def at(one: Tally) -> Time:
        return iso(one.minute or since)  # one count of all has no beginning of its own

    items = [
        TallyShown(at=at(one), kind=one.kind, name=one.name, outcome=one.outcome, count=one.count)
        for one in found
        if one.kind != ACK
    ]
    waits = groupby((one for one in found if one.kind == ACK), lambda one: (at(one), one.name))
    return TalliesShown(items=items, ack=[_ack(*of, list(group)) for of, group in waits])


def _ack(at: Time, source: str, group: Sequence[Tally]) -> AckShown:
    count = sum(one.count for one in group)
    return AckShown(at=at, source=source, count=count, p50_ms=within(group, 0.5), p99_ms=within(group, 0.99))


@operation("GET /processes", ApiScope.READ)
async def processes(call: Call[None, None]) -> Page[ProcessShown]:
    """List the processes of the last 48 hours, those that began last first."""
    now = call.receiver.clock()
    items = [
        shown(one, ProcessShown, host=one.host, alive=now - one.seen_at < 3 * EVERY_SECONDS * 1000)
        for one in await call.receiver.store.processes()
    ]
    return Page(items=items, next=None)
