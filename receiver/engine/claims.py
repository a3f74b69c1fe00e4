"""Looks up the claims of a short callback token. The URL holds only the row's id; the store holds the claims."""

from __future__ import annotations

from msgspec.structs import replace

from receiver.core.callback import TokenClaims
from receiver.storage.store.store import Store


async def claims_of(store: Store, bare: TokenClaims) -> TokenClaims | None:
    """Return the claims of a short token; None when the store has it no longer. Raises `StoreUnavailable`."""
    stored = await store.token_claims(bare.token_id)
    return stored and replace(stored, job_secret=bare.job_secret, secret=bare.secret)
