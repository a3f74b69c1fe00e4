"""The claims of short callback tokens."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import msgspec

from receiver.core.callback import TokenClaims
from receiver.storage.store.statements import Session

_COLUMNS = ("source", "token_id", "ref", "format", "issued_at", "expires_at", "expect_by")
_values = attrgetter(*_COLUMNS)


def add(session: Session, claims: Sequence[TokenClaims]) -> list[None]:
    """Write the claims of new short tokens, each with a time at which it expires."""
    rows = [_values(one) for one in claims]
    session.run_rows(
        "insert_tokens", [(*row[:3], msgspec.json.encode(row[3]).decode(), *row[4:]) for row in rows]
    )
    return [None] * len(rows)


def claims(session: Session, bare: TokenClaims) -> TokenClaims | None:
    """Return the claims of a short token, whose URL holds only the row's id; None if it is unknown or expired and removed."""
    rows = session.run("token_claims", {"id": bare.token_id})
    if not rows:
        return None
    found = dict(zip(_COLUMNS, rows[0], strict=True))
    found["format"] = msgspec.json.decode(found["format"])
    return TokenClaims(**found, job_secret=bare.job_secret, secret=bare.secret)
