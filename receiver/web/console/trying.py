"""Plays a provider that calls back, as `receiver simulate` does, with the secrets of the settings: for the button of a source's page."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence

_SECONDS = 15.0
PLAYED: Mapping[str, Sequence[str]] = {
    "deepgram": ("--attempts", "1"),
    "deapi": ("--attempts", "1", "--event", "failed"),  # its result would have to be fetched from somewhere
    "custom": ("--attempts", "1"),
}
"""Providers that can be played with the source's own secret, and how."""


async def play(provider: str, source: str, *, url: str, ref: str) -> str:
    """Send one proved callback to receiver itself, in a process of its own; return what went wrong, empty when nothing did."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "receiver", "simulate", provider, "--source", source),
        *("--url", url, "--ref", ref, *PLAYED[provider]),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_SECONDS):
            printed, _ = await child.communicate()
    except TimeoutError:
        return f"the callback was not answered within {_SECONDS:.0f} s"
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return printed.decode("utf-8", "replace").strip() if child.returncode else ""
