"""Runs a module of receiver in a process of its own, for a bounded time."""

from __future__ import annotations

import asyncio
import sys


async def printed_by(module: str, *args: str, seconds: float) -> tuple[int | None, bytes]:
    """Return its exit status and what it printed, its errors too. Raises `TimeoutError`; the process has ended then as well."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *args),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(seconds):
            printed, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return child.returncode, printed
