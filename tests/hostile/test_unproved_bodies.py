"""Bodies of callbacks that nothing proves yet take nothing from those that are proved."""

from __future__ import annotations

from pathlib import Path

from tests.hostile.attack import only_200, send_good, strangers, target, unproved


async def test_unproved_bodies_that_do_not_end_take_no_room_from_good_callbacks(tmp_path: Path) -> None:
    with target(tmp_path) as process:
        async with strangers(process, 1000, unproved(1000) + b"{"):
            statuses = await send_good(process)
    assert only_200(statuses), statuses


async def test_the_bound_on_callbacks_counts_those_that_are_proved(tmp_path: Path) -> None:
    with target(tmp_path, "[server]\nmax_callbacks = 4\n") as process:
        async with strangers(process, 20, unproved(1000) + b"{"):
            statuses = await send_good(process)
    assert only_200(statuses), statuses


async def test_unproved_bodies_that_trickle_take_no_room_from_good_callbacks(tmp_path: Path) -> None:
    with target(tmp_path) as process:
        async with strangers(process, 1000, unproved(1000) + b"{") as opened:
            for _ in range(3):
                for _, writer in opened:
                    writer.write(b" ")
                statuses = await send_good(process, 3)
                assert only_200(statuses), statuses
