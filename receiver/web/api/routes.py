"""Every operation of the API: those of these modules, in their order."""

from __future__ import annotations

from receiver.web.api import (
    acts,
    deliveries,
    erasures,
    events,
    jobs,
    operations,
    overview,
    rejections,
    requests,
    stream,
    tallies,
)
from receiver.web.api.operation import Operation

_MODULES = (
    *(events, stream, deliveries, requests, rejections, jobs, overview, tallies),
    *(operations, erasures, acts),
)
OPERATIONS = tuple(one for module in _MODULES for one in vars(module).values() if isinstance(one, Operation))
