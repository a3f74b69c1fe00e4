"""What the relay's tests are given."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from receiver.core.work import DeliveryState
from receiver.storage.store.postgres import PostgresStore
from receiver.storage.store.sqlite import SqliteStore
from receiver.storage.store.store import Store
from tests.contract.store_suite import T0
from tests.support.embedded import migrated
from tests.support.postgres import database
from tests.support.relaying import FaultyStore, Heard, Now
from tests.support.sink import Sink

PENDING, DELIVERED, DEAD = DeliveryState.PENDING, DeliveryState.DELIVERED, DeliveryState.DEAD


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as running:
        yield running


@pytest.fixture
async def store() -> AsyncIterator[FaultyStore]:
    made = FaultyStore()
    await made.open()
    yield made
    await made.close()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    with contextlib.ExitStack() as stack:
        made: Store
        if request.param == "postgres":
            made = PostgresStore(stack.enter_context(database()))
        elif request.param == "sqlite":
            made = SqliteStore(migrated(tmp_path / "r.db"))
        else:
            made = FaultyStore()
        await made.open()
        await made.migrate()
        yield made
        await made.close()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def now() -> Now:
    return Now(T0)
