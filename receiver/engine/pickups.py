"""Makes new pickups: of a result that somebody hands over, and of a callback that is expected.

The command line, the API and submissions all use it. It stores nothing: the caller does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from receiver.core.callback import TokenClaims
from receiver.core.errors import PickupRefused, UsageError
from receiver.core.event import new_id
from receiver.core.work import Pickup, PickupKind
from receiver.providers import PullProvider
from receiver.settings.model import SourceSettings

FORMAT_KEYS = ("product", "encoding", "container", "sample_rate", "channels", "bit_rate", "model")
"""The keys of a job's format; adapters read them."""
MAX_REF = 500
"""Characters of a ref: it travels in every event."""
MAX_TEXT = 8192
"""The most characters of a pickup's URL or job id; no provider's URL is longer."""
MAX_SECONDS = 30 * 86400
"""The longest deadline that a pickup can have, and the longest time in which a callback can be expected."""


def checked_format(format: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a job's format if all its keys are known. Raises `UsageError`."""
    unknown = sorted(set(format) - set(FORMAT_KEYS))
    if unknown:
        raise UsageError(f"format has no {unknown[0][:100]!r}; it has {', '.join(FORMAT_KEYS)}")
    return format


def pollable(source: SourceSettings, provider: PullProvider | None) -> PullProvider:
    """Return the adapter of a source that can be asked for results. Raises `UsageError` when it only calls back."""
    if provider is None:
        of = f"{source.name} is of provider {source.provider}"
        raise UsageError(f"{of}, which cannot be asked for a result: it calls back")
    return provider


def new_pickup(
    provider: PullProvider,
    text: str,
    *,
    ref: str | None = None,
    deadline_seconds: float | None = None,
    expect_seconds: float = 0,
    format: Mapping[str, Any] | None = None,
    now: int,
) -> Pickup:
    """Return the pickup for `text`, the provider's URL or its job id. `now` in epoch milliseconds.

    It is due at once, or `expect_seconds` later if the provider's callback has not come by then. The deadline counts from
    then; without `deadline_seconds` it is the source's own. Raises `PickupRefused`.
    """
    _refuse_beyond_bounds(text, ref, deadline_seconds, expect_seconds)
    due_at = now + round(expect_seconds * 1000)
    asked = provider.lookup(text, format or {})
    seconds = provider.deadline_seconds if deadline_seconds is None else deadline_seconds
    return Pickup(
        id=new_id("pku", now),
        source=provider.source,
        kind=PickupKind.RESULT,
        key=asked.key,
        job_id=asked.job_id,
        ref=ref,
        target=asked.target,
        event_id=new_id("evt", now),
        format=dict(format or {}),
        deadline_at=due_at + round(seconds * 1000),
        due_at=due_at,
        created_at=now,
        updated_at=now,
    )


def _refuse_beyond_bounds(text: str, ref: str | None, deadline: float | None, expect: float) -> None:
    if len(text) > MAX_TEXT:
        raise PickupRefused(f"that is longer than {MAX_TEXT} characters: hand over the URL or the job id")
    if ref is not None and len(ref) > MAX_REF:
        raise PickupRefused(f"the ref has {len(ref)} characters; {MAX_REF} is the most")
    if deadline is not None and not 0 < deadline <= MAX_SECONDS:
        raise PickupRefused(f"a deadline is above 0 and at most {MAX_SECONDS} seconds (30 days)")
    if not 0 <= expect <= MAX_SECONDS:
        raise PickupRefused("a callback can be expected within at most 30d")


def new_expectation(source: str, claims: TokenClaims, provider: PullProvider | None, *, now: int) -> Pickup:
    """Return the pickup that expects the callback of a token with `expect_by`; it is due at that time.

    `provider` is the source's adapter if it can be polled: then an overdue job is asked about, if its id is known.
    """
    by = claims.expect_by if claims.expect_by is not None else now
    more = round(provider.deadline_seconds * 1000) if provider is not None else 0
    return Pickup(
        id=new_id("pku", now),
        source=source,
        kind=PickupKind.EXPECTED,
        key=claims.expectation,
        ref=claims.ref,
        event_id=new_id("evt", now),
        format=claims.format,
        deadline_at=by + more,
        due_at=by,
        created_at=now,
        updated_at=now,
    )
