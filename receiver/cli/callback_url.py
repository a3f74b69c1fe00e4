"""`callback-url`: the URL that a provider calls back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import to_builtins

from receiver.cli.opening import acting, load, made_store, pull_provider, tokens_of
from receiver.cli.options import AsJson, ExpectWithin, Format, Ref, SourceName, job_format, option, seconds
from receiver.cli.output import print_json, warn
from receiver.core.clock import wall_clock
from receiver.core.errors import UsageError
from receiver.web.views import time_of

if TYPE_CHECKING:
    from receiver.engine.callback_urls import IssuedUrl
    from receiver.settings.model import Settings, SourceSettings


Expires = Annotated[
    str | None,
    option("--expires", help="How long the URL is good: 90s, 15m, 2h, 1d. For ever if left out."),
]
JobSecret = Annotated[
    bool,
    option("--job-secret", help="deAPI: give the job a webhook_secret of its own, and print it too."),
]
Short = Annotated[
    bool, option("--short", help="A token of 40 characters; lasts 30d, unless --expires says otherwise.")
]
NoToken = Annotated[
    bool, option("--no-token", help="One URL for all jobs, without a token; it carries no ref.")
]


def callback_url(
    ctx: typer.Context,
    source: SourceName,
    ref: Ref = None,
    expires: Expires = None,
    format: Format = None,
    expect_within: ExpectWithin = None,
    job_secret: JobSecret = False,
    short: Short = False,
    no_token: NoToken = False,
    as_json: AsJson = False,
) -> None:
    """Print the callback URL for a provider. The URL holds credentials: treat it as a secret."""
    from receiver.engine.callback_urls import issue_callback_url

    settings = load(ctx)
    chosen = settings.source_named(source)
    if no_token:
        if ref or expires or format or expect_within or job_secret or short:
            raise UsageError(_NOTHING_TO_CARRY)
        made = _without_token(settings, chosen)
    else:
        made = issue_callback_url(
            settings.public_url,
            chosen,
            tokens_of(settings),
            provider=pull_provider(settings, chosen) if expect_within else None,
            ref=ref,
            format=job_format(format),
            expires_seconds=seconds(expires) if expires else None,
            expect_seconds=seconds(expect_within) if expect_within else None,
            job_secret=job_secret,
            short=short,
            now=wall_clock(),
        )
    _give_out(settings, made, as_json=as_json)


_NOTHING_TO_CARRY = (
    "--no-token leaves nothing to carry --ref, --expires, --format, --job-secret, --short or "
    "--expect-within: drop it"
)


def _give_out(settings: Settings, made: IssuedUrl, *, as_json: bool) -> None:
    if made.claims is not None or made.expectation is not None:
        asyncio.run(_keep(settings, made))  # before anybody can call the URL
    if as_json:
        from receiver.web.api.requests import issued_url

        print_json(to_builtins(issued_url(made)))
        return
    if made.webhook_secret:
        typer.echo(f"webhook_url: {made.url}\nwebhook_secret: {made.webhook_secret}")
    else:
        typer.echo(made.url)
    if made.expectation is not None:
        warn(f"expected by {time_of(made.expectation.due_at)}: {made.expectation.id}")


def _without_token(settings: Settings, source: SourceSettings) -> IssuedUrl:
    from receiver.engine.callback_urls import issue_callback_url_without_token

    if source.options.get("require_token"):
        raise UsageError(
            f"sources.{source.name}.require_token is set, so a URL without a token would be refused: drop --no-token"
        )
    return issue_callback_url_without_token(settings.public_url, source)


async def _keep(settings: Settings, made: IssuedUrl) -> None:
    async with made_store(settings) as store, acting(store, "callback-url", source=made.source):
        if made.claims is not None:
            await store.add_token(made.claims)
        if made.expectation is not None:
            await store.add_pickup(made.expectation)
