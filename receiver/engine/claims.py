"""What a short token stands for: its URL names a row, and the store keeps the claims."""

from __future__ import annotations

from msgspec.structs import replace

from receiver.core.callback import TokenClaims
from receiver.storage.store.store import Store


async def claims_of(store: Store, bare: TokenClaims) -> TokenClaims | None:
    """Return the claims of a short token; None when the store has it no longer. Raises `StoreUnavailable`."""
    stored = await store.token_claims(bare.token_id)
    return stored and replace(stored, job_secret=bare.job_secret, secret=bare.secret)
