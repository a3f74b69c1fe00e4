"""The claims of short callback tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from receiver.core.callback import TokenClaims
from receiver.storage.store.statements import Session

_read_format = msgspec.json.Decoder(dict[str, Any]).decode


def add(session: Session, claims: Sequence[TokenClaims]) -> list[None]:
    """Write the claims of new short tokens, each with a time at which it expires."""
    rows = [
        (
            one.token_id,
            one.source,
            one.ref,
            msgspec.json.encode(one.format).decode(),
            one.expires_at,
            one.expect_by,
            one.issued_at,
        )
        for one in claims
    ]
    session.run_rows("insert_tokens", rows)
    return [None] * len(rows)


def claims(session: Session, token_id: str) -> TokenClaims | None:
    """Return the claims of a short token; None if it is unknown or expired and removed."""
    rows = session.run("token_claims", {"id": token_id})
    if not rows:
        return None
    source, ref, requested, expires_at, expect_by, issued_at = rows[0]
    return TokenClaims(
        source=source,
        token_id=token_id,
        ref=ref,
        format=_read_format(requested),
        issued_at=issued_at,
        expires_at=expires_at,
        expect_by=expect_by,
    )
