"""What an application needs: `callback-url`, `submit-token` and `submit-urls`; and `submissions`, the jobs that it submitted."""

from __future__ import annotations

import asyncio
import secrets
import string
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import to_builtins

from receiver.cli.opening import acting, listed, load, load_to_look, made_store, pull_provider, tokens_of
from receiver.cli.options import (
    AsJson,
    ExpectWithin,
    Format,
    Limit,
    OfJob,
    OfRef,
    OfSource,
    Ref,
    SourceName,
    Wide,
    job_format,
    option,
    seconds,
)
from receiver.cli.output import Listing, print_json, print_list, warn
from receiver.core.clock import wall_clock
from receiver.core.errors import ConfigError, UsageError
from receiver.core.submission import SubmissionState, filled
from receiver.web.views import page, time_of

if TYPE_CHECKING:
    from receiver.engine.pickups import IssuedUrl
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
    from receiver.engine.pickups import issue_callback_url

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
        from receiver.web.api.pickups import issued_url

        print_json(to_builtins(issued_url(made)))
        return
    if made.webhook_secret:
        typer.echo(f"webhook_url: {made.url}\nwebhook_secret: {made.webhook_secret}")
    else:
        typer.echo(made.url)
    if made.expectation is not None:
        warn(f"expected by {time_of(made.expectation.due_at)}: {made.expectation.id}")


def _without_token(settings: Settings, source: SourceSettings) -> IssuedUrl:
    from receiver.engine.pickups import issue_callback_url_without_token

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


# ---------------------------------------------------------------- submissions

_SUBMISSIONS = Listing(
    short=("id", "state", "status", "application", "source", "job"),
    wide=("id", "state", "status", "application", "source", "request", "job", "ref", "created"),
    fields={"job": "job_id", "created": "created_at"},
    empty="no submission fits",
)


def submit_token(
    name: Annotated[str, typer.Argument(help="The application's name in log and lists.")],
    source: Annotated[
        list[str] | None, option("--source", help="A source that it may submit to; may be repeated.")
    ] = None,
) -> None:
    """Make a token for an application that submits. Prints the table for the settings; nothing is stored."""
    letters = string.ascii_letters + string.digits
    token = "rcvsub" + "".join(
        secrets.choice(letters) for _ in range(43)
    )  # as hard to guess as 32 random bytes
    sources = ", ".join(f'"{one}"' for one in source or ["deepgram"])
    typer.echo(f'[[submit.tokens]]\nname = "{name}"\nsecrets = ["{token}"]\nsources = [{sources}]')


def submit_urls(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Print the base URLs that applications set. One for each source with `submit = true`, with the line to write for each of the provider's packages."""
    settings = load(ctx)
    server, submit = settings.server, settings.submit
    base = submit.url or f"http://{submit.listen or f'{server.host}:{server.port}'}"
    found = [_row(f"{base}/submit/{one.name}", one) for one in settings.sources.values() if one.submit]
    if as_json:
        print_json(page(found))
        return
    for row in found:
        typer.echo(f"{row['source']}: {row['url']}   (the token in the header {row['header']})")
        if row["experimental"]:
            typer.echo(f"  experimental: {row['experimental']}")
        for package, text in row["packages"].items():
            typer.echo(f"  {package}: {text}")
    if not found:
        typer.echo(
            "no source takes submissions: set submit = true in [sources.NAME], and add what `receiver submit-token` prints"
        )


def submissions(
    ctx: typer.Context,
    application: Annotated[
        str | None, option("--application", help="Only of the application with this token's name.")
    ] = None,
    source: OfSource = None,
    state: Annotated[SubmissionState | None, option("--state", help="Only in this state.")] = None,
    job: OfJob = None,
    ref: OfRef = None,
    limit: Limit = 50,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """List jobs that applications submitted through receiver. The status is the provider's answer, or 424 where none is known."""
    from receiver.web.api import jobs as api

    wanted = {"application": application, "source": source, "state": state, "job_id": job, "ref": ref}
    found = listed(load_to_look(ctx), api.submissions, limit, **wanted)
    print_list(_SUBMISSIONS, found, wide=wide, as_json=as_json)


def _row(url: str, source: SourceSettings) -> dict[str, Any]:
    from receiver.core.tokens import CallbackTokens
    from receiver.providers import adapter_of

    api = adapter_of(source).create(source, CallbackTokens(["a" * 16])).submit_api()
    if api is None:
        raise ConfigError(f"sources.{source.name}.submit: nothing may be submitted to {source.provider}")
    packages = filled(api.table.packages, {"url": url, "path": api.table.folder})
    named = {"header": api.table.header, "experimental": api.table.experimental or None}
    return {"source": source.name, "url": url, **named, "packages": packages}
