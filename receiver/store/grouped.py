"""The store's port over a database that speaks SQL: writes go through the writer, reads through a second connection.

What differs between databases (connecting, locking, naming troubles) is behind `Backend` and `Readings` (floor 3).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, cast

from receiver.errors import StoreUnavailable
from receiver.model import (
    Attempt,
    Claimed,
    Delivery,
    Event,
    Recorded,
    Recording,
    Rejection,
    Settlement,
    StoreStats,
    new_id,
)
from receiver.store import reading, schema, sql
from receiver.store.base import DeliveryFilter, EventFilter
from receiver.store.sql import Session
from receiver.store.writer import Backend, Handler, Writer

T = TypeVar("T")

HANDLERS: Mapping[str, Handler] = {
    "migrate": lambda session, wanted: [schema.migrate(session, one) for one in wanted],
    "check": lambda session, wanted: [schema.check(session, one) for one in wanted],
    "settle": sql.settle,
    "release": sql.release,
    "replay": sql.replay,
    "record": sql.record,
    "claim": sql.claim,
    "reject": sql.reject,
    "ping": sql.ping,
}
"""Every operation that writes. Within one transaction they run in this order, so a claim sees what was recorded."""
