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
    pickups,
    rejections,
    stream,
)
from receiver.web.api.operation import Operation

_MODULES = (events, stream, deliveries, pickups, rejections, jobs, overview, operations, erasures, acts)
OPERATIONS = tuple(one for module in _MODULES for one in vars(module).values() if isinstance(one, Operation))
