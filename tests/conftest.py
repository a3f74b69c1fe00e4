"""What every test run shares."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
from hypothesis import settings

from tests.support.processes import end_all

# The same examples in every run, so that a red build is about the change; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("steady", derandomize=True, database=None)
settings.register_profile("explore", max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


@pytest.fixture
async def nothing_left_running() -> AsyncIterator[None]:
    """No process outlives its test."""
    yield
    await end_all()
