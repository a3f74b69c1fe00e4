"""Whose identities a callback may use: those of the whole source, or those of the one job that its URL was issued for."""

from __future__ import annotations

import hashlib
import re

from msgspec.structs import replace

from receiver.core.callback import TokenClaims, VerifiedCallback
from receiver.core.event import EventDraft

_OF_A_JOB = frozenset(("token", "job_secret", "digest"))
"""What whoever was given one job's URL can show (a digest anybody can); every other proof is the account's."""
_SCOPE = re.compile(r"token:[0-9a-f]+:")
_LONGEST = 200
"""Characters of an idempotency key."""


def scope(callback: VerifiedCallback) -> str:
    """Return what the identities of a callback begin with: "" where a proof of the account holds, else its URL's own start.

    So a job's URL never takes the identity of another job, and the account's callback about a job is no duplicate of it.
    """
    claims = callback.claims
    return own_scope(claims) if claims is not None and callback.proofs <= _OF_A_JOB else ""


def own_scope(claims: TokenClaims) -> str:
    """Return what the identities begin with that only the URL of these claims proves."""
    return f"{claims.expectation}:"


def scope_of(key: str) -> str:
    """Return the scope that an idempotency key is in."""
    found = _SCOPE.match(key)
    return found[0] if found else ""


def within(scope: str, key: str) -> str:
    """Return an idempotency key in a scope; a key that is in it already stays as it is."""
    if key.startswith(scope):
        return key
    if len(scope) + len(key) > _LONGEST:
        key = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return scope + key


def scoped(scope: str, draft: EventDraft) -> EventDraft:
    """Return a draft whose identities, that of a result to be fetched included, are in a scope."""
    if not scope:
        return draft
    remote, second = draft.remote, draft.second_key
    return replace(
        draft,
        idempotency_key=within(scope, draft.idempotency_key),
        second_key=second and within(scope, second),
        remote=remote and replace(remote, key=within(scope, remote.key)),
    )
