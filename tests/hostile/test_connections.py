"""Connections that say nothing or do not end what they say, more than there may be."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.hostile.attack import only_200, send_good, strangers, target, unproved


@pytest.mark.parametrize("limits", [(1024, 4096), (1024, 1024)], ids=["soft-below-hard", "hard"])
@pytest.mark.parametrize("count", [1100, pytest.param(3000, marks=pytest.mark.soak)])
async def test_idle_connections_keep_nobody_out(tmp_path: Path, count: int, limits: tuple[int, int]) -> None:
    with target(tmp_path, descriptors=limits) as process:
        before, lines = psutil.Process(process.child.pid).cpu_times(), len(process.child.lines)
        async with strangers(process, count):
            statuses = await send_good(process, 1, seconds=3)
            after = psutil.Process(process.child.pid).cpu_times()
            logged = len(process.child.lines) - lines
    assert only_200(statuses), statuses
    # Beside a line for each good callback, what repeats is told once in a while.
    assert logged < 50
    assert after.user + after.system - before.user - before.system < 5


async def test_the_soft_limit_on_descriptors_is_raised_to_the_hard_one(tmp_path: Path) -> None:
    with target(tmp_path, descriptors=(256, 2048)) as process:
        soft, hard = psutil.Process(process.child.pid).rlimit(psutil.RLIMIT_NOFILE)
    assert (soft, hard) == (2048, 2048)


@pytest.mark.parametrize("body", [None, b"", b"{"], ids=["idle", "half-a-head", "half-a-body"])
async def test_connections_are_bounded_by_a_setting(tmp_path: Path, body: bytes | None) -> None:
    says = b"" if body is None else unproved(1000) + body if body else unproved(1000)[:-2]
    with target(tmp_path, "[server]\nmax_connections = 50\n") as process:
        async with strangers(process, 200, says):
            statuses = await send_good(process, 2)
            held = len(psutil.Process(process.child.pid).net_connections("tcp"))
    assert only_200(statuses), statuses
    # The listening socket, and one that is being closed, count as well.
    assert held <= 60
