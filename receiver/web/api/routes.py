"""Every operation of the API: those of these modules, in their order."""

from __future__ import annotations

from receiver.web.api import (
    acts,
    callback_urls,
    deliveries,
    destinations,
    erasures,
    events,
    jobs,
    operations,
    overview,
    pickups,
    rejections,
    replays,
    stream,
    submissions,
    tallies,
)
from receiver.web.api.operation import Operation

_MODULES = (
    *(events, stream, deliveries, pickups, callback_urls, rejections, submissions, jobs, overview, tallies),
    *(replays, operations, destinations, erasures, acts),
)
OPERATIONS = tuple(one for module in _MODULES for one in vars(module).values() if isinstance(one, Operation))
