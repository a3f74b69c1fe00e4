"""Public keys that providers publish. The modules load a cryptography library, so adapters import them where they need them."""

from __future__ import annotations

import asyncio

from receiver.core.fetch import Failed, Fetch

FETCH_SECONDS = 5.0
"""How long a fetch may take: a callback waits for it, and its sender for the answer (10 s with most providers)."""


async def published(url: str, fetch: Fetch) -> bytes | None:
    """Return the document at a provider's URL, None when it cannot be had in time."""
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            answer = await fetch.ask(url, headers={"accept": "*/*"})
    except TimeoutError:
        return None
    return None if isinstance(answer, Failed) or answer.status != 200 else answer.body
