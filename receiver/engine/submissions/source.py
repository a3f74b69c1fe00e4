"""A source that may be submitted to: what of its provider's API is passed on, and how its callback URLs are issued."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from receiver.core.errors import ConfigError
from receiver.core.tokens import CallbackTokens
from receiver.engine.pickups import IssuedUrl, issue_callback_url
from receiver.outbound.client import CONNECT_SECONDS, Egress
from receiver.providers import Adapter, PullProvider
from receiver.settings.model import Settings, SourceSettings
from receiver.settings.submitting import TOKEN_SECONDS, ProviderApi


@dataclass(frozen=True, slots=True)
class SubmitSource:
    """A source that may be submitted to."""

    settings: SourceSettings
    api: ProviderApi
    pull: PullProvider | None
    """The adapter, if it can fetch results."""
    upstream: Egress
    issue: Callable[..., IssuedUrl] = field(repr=False)
    """Issues the callback URL of one job, from its `ref` and `format`, `now`."""

    @classmethod
    def create(
        cls, settings: Settings, source: SourceSettings, adapter: Adapter, tokens: CallbackTokens
    ) -> SubmitSource:
        """Return one whose settings are checked. Raises `ConfigError` when nothing could be submitted to it."""
        api, pull = adapter.submit_api(), adapter if isinstance(adapter, PullProvider) else None
        if api is None:
            raise ConfigError("nothing is known that this provider could be passed: leave submit out")
        issue = partial(
            issue_callback_url,
            settings.public_url,
            source,
            tokens,
            provider=pull,
            expires_seconds=TOKEN_SECONDS,
            expect_seconds=source.submit_expect_seconds or api.table.expect_seconds,
            job_secret=adapter.job_secrets,
            short=True,
        )
        longest = 0 if all(job.fetch for job in api.table.jobs) else len(issue(now=0).url)
        for message, is_so in _unusable(settings, source, api, longest).items():
            if is_so:
                raise ConfigError(message)
        # How many requests are under way at once has a limit of its own.
        upstream = Egress(
            timeout_seconds=CONNECT_SECONDS,
            connections=0,
            allow=source.allow,
            ca_file=source.ca_file,
            fresh=True,
        )
        return cls(source, api, pull, upstream, issue)


def _unusable(settings: Settings, source: SourceSettings, api: ProviderApi, longest: int) -> dict[str, bool]:
    """Return what would keep submissions from working, and whether it is so; `longest` is the length of a callback URL."""
    table, passed_on = api.table, source.own_callback == "pass"
    return {
        f"submissions need the provider's key: set sources.{source.name}.api_key": not api.auth,
        'callbacks carry the account\'s key: leave own_callback = "pass" out': table.callbacks_have_key
        and passed_on,
        "answers of this provider have URLs that are to lead back to receiver: set submit.url": any(
            job.rewrite for job in table.jobs
        )
        and settings.submit.url is None,
        f"public_url: {source.name} takes callback URLs of {table.max_url} characters at most": longest
        > table.max_url,
    }
