"""What is wanted of a job: the callback URL that is issued for it, and the pickup of its result. The caller stores what goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from receiver.core import urls
from receiver.core.callback import TokenClaims
from receiver.core.errors import PickupRefused, UsageError
from receiver.core.event import new_id
from receiver.core.tokens import CallbackTokens
from receiver.core.work import Pickup, PickupKind
from receiver.providers import PullProvider, PushProvider, adapter_of
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


SHORT_SECONDS = 30 * 86400
"""How long a short token lasts by default."""


# ---------------------------------------------------------------- callback URLs: with a token for one job, or one without for all


class IssuedUrl(Struct, frozen=True, kw_only=True):
    """A callback URL and what goes with it. All of it is secret but the expectation."""

    source: str
    url: str
    token: str | None = None
    ref: str | None = None
    webhook_secret: str | None = None
    """The job's own, for deAPI."""
    claims: TokenClaims | None = None
    """The claims of a short token. Add them to the store before anybody gets the URL."""
    expectation: Pickup | None = None
    """The pickup that expects the callback; add it to the store before anybody gets the URL."""


def issue_callback_url(
    public_url: str | None,
    source: SourceSettings,
    tokens: CallbackTokens,
    *,
    provider: PullProvider | None = None,
    ref: str | None = None,
    format: Mapping[str, Any] | None = None,
    expires_seconds: float | None = None,
    expect_seconds: float | None = None,
    job_secret: bool = False,
    short: bool = False,
    now: int,
) -> IssuedUrl:
    """Return a callback URL with a fresh token, and the expectation if `expect_seconds` is given.

    A `short` token lasts `SHORT_SECONDS` unless `expires_seconds` says otherwise: what it stands for is kept as long.
    `provider` is the source's where it can be asked. Raises `UsageError`; `ConfigError` when the provider could not call the URL.
    """
    expires_seconds = SHORT_SECONDS if short and expires_seconds is None else expires_seconds
    _refuse_contradictions(source, expires_seconds, expect_seconds, job_secret=job_secret)
    said: dict[str, Any] = {"ref": ref, "format": dict(format or {}), "job_secret": job_secret, "now": now}
    said["expires_at"], said["expect_by"] = _after(now, expires_seconds), _after(now, expect_seconds)
    token, kept = (
        tokens.issue_short(source.name, **said) if short else (tokens.issue(source.name, **said), None)
    )
    expectation = None
    if expect_seconds is not None and (claims := kept or tokens.read(token)):
        expectation = new_expectation(source.name, claims, provider, now=now)
    return IssuedUrl(
        source=source.name,
        url=_url(public_url, source, token),
        token=token,
        ref=ref,
        webhook_secret=tokens.job_secrets(token)[0] if job_secret else None,
        claims=kept,
        expectation=expectation,
    )


def _after(now: int, seconds: float | None) -> int | None:
    return None if seconds is None else now + round(seconds * 1000)


def issue_callback_url_without_token(public_url: str | None, source: SourceSettings) -> IssuedUrl:
    """Return the one callback URL for all jobs. Raises `UsageError`, `ConfigError` when the provider could not call it."""
    _refuse_contradictions(source, None, None, job_secret=False)
    return IssuedUrl(source=source.name, url=_url(public_url, source, None))


def _url(public_url: str | None, source: SourceSettings, token: str | None) -> str:
    https_only, basic = adapter_of(source).https_only, newest_basic(source)
    deepgram = source.provider == "deepgram"
    return urls.callback_url(
        public_url, source.name, deepgram=deepgram, https_only=https_only, token=token, basic=basic
    )


def _refuse_contradictions(
    source: SourceSettings, expires: float | None, expect: float | None, *, job_secret: bool
) -> None:
    adapter = adapter_of(source)
    if not issubclass(adapter, PushProvider):
        of = f"{source.name} is of provider {source.provider}, which does not call back"
        raise UsageError(f"{of}: request its results by `receiver pickup {source.name}` or /api/v1/pickups")
    if job_secret and not adapter.job_secrets:
        raise UsageError("a job secret is for deAPI: it alone takes a webhook_secret with a job")
    if expect is not None and not 0 < expect <= MAX_SECONDS:
        raise UsageError("a callback can be expected within more than 0s and at most 30d")
    if expires is not None and expect is not None and expires < expect:
        raise UsageError(
            "the URL would expire before its callback is overdue: expires must be the longer time"
        )


def newest_basic(source: SourceSettings) -> str | None:
    """Return the `user:password` that a source's callback URLs carry: the last of its setting `basic`; None without one."""
    pairs = source.options.get("basic") or ()
    if isinstance(pairs, str):
        return pairs
    return str(pairs[-1]) if pairs else None
