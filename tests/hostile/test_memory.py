"""Bodies that are nearly whole do not make the process grow without bound."""

from __future__ import annotations

from pathlib import Path

from tests.hostile.attack import MOST_GROWTH, Growth, only_200, send_good, strangers, target, unproved

_LENGTH = 1024 * 1024


async def test_unproved_bodies_that_are_nearly_whole_do_not_fill_the_memory(tmp_path: Path) -> None:
    with target(tmp_path) as process, Growth(process) as growth:
        async with strangers(process, 400, unproved(_LENGTH) + b" " * (_LENGTH - 76)):
            statuses = await send_good(process)
    assert growth.bytes < MOST_GROWTH
    assert only_200(statuses), statuses
