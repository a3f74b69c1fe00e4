"""The scope of a callback's idempotency keys: the whole source, or only the job whose URL it came by."""

from __future__ import annotations

import hashlib
import re

from msgspec.structs import replace

from receiver.core.callback import VerifiedCallback
from receiver.core.event import EventDraft

_OF_A_JOB = frozenset(("token", "job_secret", "digest"))
"""Proofs that the holder of one job's URL can make (anybody can make a digest); all others prove the provider's account."""
_SCOPE = re.compile(r"token:[0-9a-f]+:")
_LONGEST = 200
"""Characters of an idempotency key."""


def scope(callback: VerifiedCallback) -> str:
    """Return the prefix of a callback's idempotency keys: "" if a proof of the account holds, else one of its own URL.

    So one job's URL never takes a key of another job, and the account's callback about a job is no duplicate of it.
    """
    claims = callback.claims
    return f"{claims.expectation}:" if claims is not None and callback.proofs <= _OF_A_JOB else ""


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
    """Return a draft with all its keys, that of a result to be fetched included, in a scope."""
    if not scope:
        return draft
    remote, second = draft.remote, draft.second_key
    return replace(
        draft,
        idempotency_key=within(scope, draft.idempotency_key),
        second_key=second and within(scope, second),
        remote=remote and replace(remote, key=within(scope, remote.key)),
    )
