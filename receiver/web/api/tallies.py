"""Counts over all processes, and the processes that are alive."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from receiver.core.event_json import iso
from receiver.core.tally import ACK, MINUTE, Tally, within
from receiver.engine.tallies import EVERY_SECONDS, KEPT_MS
from receiver.web.api.call import Call
from receiver.web.api.lists import Moment, millis
from receiver.web.views import AckShown, Page, ProcessShown, TalliesShown, TallyShown

_HOUR = 60 * MINUTE
_STEPS = {"minute": MINUTE, "hour": _HOUR}


class TallyQuery(Struct, forbid_unknown_fields=True, frozen=True):
    """Which time, and how finely."""

    since: Moment | None = None
    """An hour ago, where it is not given."""
    until: Moment | None = None
    by: Literal["minute", "hour", "all"] = "minute"
    """What one count covers."""


async def listed(call: Call[TallyQuery, None]) -> TalliesShown:
    """Tell what came out how often."""
    now = call.receiver.clock()
    until = millis(call.query.until) or now
    since = millis(call.query.since)
    since = until - _HOUR if since is None else since
    oldest = now - KEPT_MS
    found = await call.receiver.store.tallies(max(since // MINUTE * MINUTE, oldest), until)
    # Of two days by the minute they are very many: callbacks are not to wait for them.
    return await asyncio.to_thread(_told, found, _STEPS.get(call.query.by), max(since, oldest))


def _told(found: Iterable[Tally], step: int | None, since: int) -> TalliesShown:
    """Return counts by steps of some milliseconds; None is one for all, as of `since`."""
    counts: Counter[tuple[int, str, str, str]] = Counter()
    for one in found:
        at = one.minute // step * step if step else since
        counts[at, one.kind, one.name, one.outcome] += one.count
    items = [
        TallyShown(at=iso(at), kind=kind, name=name, outcome=outcome, count=count)
        for (at, kind, name, outcome), count in sorted(counts.items())
        if kind != ACK
    ]
    return TalliesShown(items=items, ack=_ack(counts))


def _ack(counts: Counter[tuple[int, str, str, str]]) -> list[AckShown]:
    groups: dict[tuple[int, str], list[Tally]] = {}
    for (at, kind, name, outcome), count in sorted(counts.items()):
        if kind == ACK:
            one = Tally(minute=at, kind=kind, name=name, outcome=outcome, count=count)
            groups.setdefault((at, name), []).append(one)
    return [
        AckShown(
            at=iso(at),
            source=name,
            count=sum(one.count for one in group),
            p50_ms=within(group, 0.5),
            p99_ms=within(group, 0.99),
        )
        for (at, name), group in groups.items()
    ]


async def processes(call: Call[None, None]) -> Page[ProcessShown]:
    """List processes."""
    now = call.receiver.clock()
    found = await call.receiver.store.processes()
    items = [
        ProcessShown(
            id=one.id,
            host=one.host,
            version=one.version,
            role=one.role,
            started_at=iso(one.started_at),
            seen_at=iso(one.seen_at),
            alive=now - one.seen_at < 3 * EVERY_SECONDS * 1000,
        )
        for one in found
    ]
    return Page(items=items, next=None)
