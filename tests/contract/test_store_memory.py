"""The store in memory keeps the port's promises."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from receiver.storage.store.store import Store
from tests.contract.bulk_suite import BulkSuite
from tests.contract.pickup_event_suite import PickupSuite
from tests.contract.retention_suite import RetentionSuite
from tests.contract.store_suite import StoreSuite
from tests.support.memory import MemoryStore


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    made = MemoryStore()
    await made.open()
    yield made
    await made.close()


class TestMemoryStore(StoreSuite):
    """The suite, over dictionaries."""


class TestMemoryBulk(BulkSuite):
    """The suite of operations on many rows."""


class TestMemoryPickups(PickupSuite):
    """The suite of pickups."""


class TestMemoryRetention(RetentionSuite):
    """The suite of age and erasure."""
