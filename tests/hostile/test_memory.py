"""Bodies that are nearly whole do not make the process grow without bound."""

from __future__ import annotations

from pathlib import Path

from tests.hostile.attack import MOST_GROWTH, Growth, only_200, send_good, strangers, target, unproved
from tests.support.raw import head
from tests.support.senders import basic

_LENGTH = 1024 * 1024


async def test_unproved_bodies_that_are_nearly_whole_do_not_fill_the_memory(tmp_path: Path) -> None:
    with target(tmp_path) as process, Growth(process) as growth:
        async with strangers(process, 240, unproved(_LENGTH) + b" " * (_LENGTH - 76)):
            statuses = await send_good(process)
    assert growth.bytes < MOST_GROWTH
    assert only_200(statuses), statuses


async def test_proved_bodies_that_are_nearly_whole_share_one_budget(tmp_path: Path) -> None:
    """Whoever has the URL's password, a provider that stalls included: what waits beyond the budget waits on the disk."""
    says = head(
        "/callbacks/deepgram",
        {"authorization": basic(), "content-type": "audio/mpeg", "content-length": str(_LENGTH)},
    )
    with target(tmp_path) as process, Growth(process) as growth:
        async with strangers(process, 240, says + b" " * (_LENGTH - 76)):
            statuses = await send_good(process, 3, seconds=30)  # behind 240 MB of the same sender's
    assert growth.bytes < MOST_GROWTH
    assert only_200(statuses), statuses
