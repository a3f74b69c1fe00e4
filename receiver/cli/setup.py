"""`init`, `check`, `migrate` and `callback-url`: what comes before running."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from receiver.cli.options import (
    AsJson,
    UsageError,
    job_format,
    load,
    made_store,
    option,
    pull_provider,
    seconds,
    source_named,
    tokens_of,
)
from receiver.cli.output import print_json, print_table, warn
from receiver.core import callback_urls
from receiver.core.clock import wall_clock
from receiver.core.errors import ConfigError, ReceiverError
from receiver.core.urls import is_private
from receiver.core.webhook import new_webhook_secret
from receiver.web.views import time_of

if TYPE_CHECKING:
    from receiver.core.work import Pickup
    from receiver.engine.requests import HandedOut
    from receiver.settings.model import Settings, SourceSettings


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(init)
    app.command()(check)
    app.command()(migrate)
    app.command(name="callback-url")(callback_url)


def init(
    path: Annotated[str, option("--path", help="The file to write.")] = "receiver.toml",
    public_url: Annotated[
        str | None, option("--public-url", help="Where providers reach this machine: https://…")
    ] = None,
    app_url: Annotated[str | None, option("--app-url", help="Where your application takes events.")] = None,
) -> None:
    """Write a settings file with fresh secrets."""
    for problem in callback_urls.public_url_problems(public_url) if public_url else ():
        raise ConfigError(f"--public-url: {problem.message}; {problem.fix}")
    made = fresh()
    text = settings_file(made, public_url=public_url, app_url=app_url or APP_URL)
    _parsed(text)
    _write_new(path, text)
    flag = "" if path == "receiver.toml" else f"--config {path} "
    typer.echo(f"{path} is written, with fresh secrets; only you can read it.\n\nNext:")
    if public_url:
        url = callback_urls.callback_url(public_url, "deepgram", basic=made.basic)
        typer.echo(f"  1. Give Deepgram this callback URL:\n     {url}")
        typer.echo(f"     or one for each job: receiver {flag}callback-url deepgram --ref YOUR-ID")
    else:
        typer.echo(f"  1. Set public_url in {path}, then: receiver {flag}callback-url deepgram --ref YOUR-ID")
    typer.echo(f"  2. Set [destinations.app] url in {path}, and give its secret to your application.")
    typer.echo(f"  3. receiver {flag}check")
    typer.echo(f"  4. receiver {flag}serve")
    typer.echo(f"     and in another terminal: receiver {flag}simulate deepgram")


def _parsed(text: str) -> None:
    """Refuse what would not pass as settings, before anything is written. Raises `ConfigError`."""
    from receiver.outbound.destinations import kind_of
    from receiver.settings.load import own_settings, parse

    for destination in parse(text, {}, str).destinations.values():
        own_settings(kind_of(destination).Settings, destination)


def _write_new(path: str, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ReceiverError(
            f"{path} is there already, and was left as it is: name another with --path, or remove it"
        ) from None
    except OSError as error:
        raise ReceiverError(f"{path} cannot be written: {error.strerror}") from None
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)


def check(
    ctx: typer.Context,
    offline: Annotated[
        bool, option("--offline", help="Check the settings alone: ask no database and no bucket.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the settings, PostgreSQL and S3. Status 0 if `serve` would start, 2 if not."""
    from receiver.app.check import check_file

    settings, findings = check_file(ctx.obj, os.environ)
    if settings is not None and not offline and not any(finding.fatal for finding in findings):
        from receiver.app.check import reach

        findings = sorted(reach(settings) + findings, key=lambda finding: not finding.fatal)
    fatal = sum(finding.fatal for finding in findings)
    if as_json:
        print_json(
            [
                {"code": f.code, "fatal": f.fatal, "where": f.where, "message": f.message, "fix": f.fix}
                for f in findings
            ]
        )
    elif findings:
        print_table(
            ("code", "setting", "finding", "what to do"),
            ((f.code, f.where, f.message, f.fix) for f in findings),
            empty="",
        )
        warnings = len(findings) - fatal
        typer.echo(f"\n{_number(fatal, 'error')}, {_number(warnings, 'warning')}: {_verdict(fatal)}")
    else:
        typer.echo("The settings are good.")
    if fatal:
        raise typer.Exit(2)


def _number(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _verdict(fatal: int) -> str:
    return "receiver will not start with these settings" if fatal else "receiver starts with these settings"


def migrate(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Bring the store's tables up to date. PostgreSQL needs it; SQLite is brought up to date by `serve`."""
    applied = asyncio.run(_migrate(load(ctx)))
    if as_json:
        print_json({"applied": applied})
    elif applied:
        typer.echo("\n".join(f"applied {name}" for name in applied))
    else:
        typer.echo("nothing to apply: the tables are up to date")


async def _migrate(settings: Settings) -> list[str]:
    from receiver.app.wiring import build_store

    store = build_store(settings)
    try:
        return await store.migrate()
    finally:
        await store.close()


def callback_url(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="Name of the source, as in [sources.NAME].")],
    ref: Annotated[
        str | None, option("--ref", help="Your own id for the job; comes back in the event.")
    ] = None,
    expires: Annotated[
        str | None,
        option("--expires", help="How long the URL is good: 90s, 15m, 2h, 1d. For ever if left out."),
    ] = None,
    format: Annotated[
        str | None,
        option("--format", help="What the job asks for: encoding=linear16,container=none,sample_rate=24000."),
    ] = None,
    expect_within: Annotated[
        str | None,
        option(
            "--expect-within", help="Tell the application when nothing has come by then: 90s, 15m, 2h, 1d."
        ),
    ] = None,
    job_secret: Annotated[
        bool,
        option("--job-secret", help="deAPI: give the job a webhook_secret of its own, and print it too."),
    ] = False,
    no_token: Annotated[
        bool, option("--no-token", help="One URL for all jobs, without a token; it carries no ref.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the callback URL for a provider. The URL holds credentials: treat it as a secret."""
    settings = load(ctx)
    chosen = source_named(settings, source)
    _refuse_contradictions(chosen, ref, expires, format, job_secret, no_token, expect_within)
    if no_token:
        _print_without_token(settings, chosen, as_json)
        return
    made = _handed_out(settings, chosen, ref, expires, format, job_secret, expect_within)
    if made.expectation is not None:
        asyncio.run(_expect(settings, made.expectation))  # before anybody can call the URL
    if as_json:
        fields: dict[str, Any] = {"url": made.url, "source": source, "token": made.token, "ref": ref}
        print_json(fields | _extras(made))
    elif made.webhook_secret:
        typer.echo(f"webhook_url: {made.url}\nwebhook_secret: {made.webhook_secret}")
    else:
        typer.echo(made.url)
    if made.expectation is not None and not as_json:
        warn(f"expected by {time_of(made.expectation.due_at)}: {made.expectation.id}")


def _print_without_token(settings: Settings, source: SourceSettings, as_json: bool) -> None:
    from receiver.engine.requests import newest_basic
    from receiver.providers import adapter_of

    basic = newest_basic(source)
    url = callback_urls.callback_url(
        settings.public_url, source.name, https_only=adapter_of(source).https_only, basic=basic
    )
    if as_json:
        print_json({"url": url, "source": source.name, "token": None, "ref": None})
    else:
        typer.echo(url)


def _handed_out(
    settings: Settings,
    source: SourceSettings,
    ref: str | None,
    expires: str | None,
    format: str | None,
    job_secret: bool,
    expect_within: str | None,
) -> HandedOut:
    from receiver.engine.requests import hand_out

    return hand_out(
        settings.public_url,
        source,
        tokens_of(settings),
        provider=pull_provider(settings, source) if expect_within else None,
        ref=ref,
        format=job_format(format),
        expires_seconds=seconds(expires) if expires else None,
        expect_seconds=seconds(expect_within) if expect_within else None,
        job_secret=job_secret,
        now=wall_clock(),
    )


async def _expect(settings: Settings, expectation: Pickup) -> None:
    async with made_store(settings) as store:
        await store.add_pickup(expectation)


def _extras(made: HandedOut) -> dict[str, Any]:
    found: dict[str, Any] = {"webhook_secret": made.webhook_secret} if made.webhook_secret else {}
    if made.expectation is not None:
        found |= {"expect_by": time_of(made.expectation.due_at), "pickup_id": made.expectation.id}
    return found


def _refuse_contradictions(
    source: SourceSettings,
    ref: str | None,
    expires: str | None,
    format: str | None,
    job_secret: bool,
    no_token: bool,
    expect_within: str | None,
) -> None:
    from receiver.engine.requests import MAX_SECONDS
    from receiver.providers import adapter_of

    if not adapter_of(source).calls_back:
        raise UsageError(
            f"{source.name} is of provider {source.provider}, which does not call back: hand its results over with "
            f"`receiver pickup {source.name}`"
        )
    if no_token and (ref or expires or format or job_secret or expect_within):
        raise UsageError(
            "--no-token leaves nothing to carry --ref, --expires, --format, --job-secret or --expect-within: drop it"
        )
    if no_token and source.options.get("require_token"):
        raise UsageError(
            f"sources.{source.name}.require_token is set, so a URL without a token would be refused: drop --no-token"
        )
    if job_secret and not adapter_of(source).job_secrets:
        raise UsageError("--job-secret is for deAPI: it alone takes a webhook_secret with a job")
    if expect_within and not 0 < seconds(expect_within) <= MAX_SECONDS:
        raise UsageError("--expect-within is more than 0s and at most 30d")
    if expect_within and expires and seconds(expires) < seconds(expect_within):
        raise UsageError("the URL would expire before its callback is overdue: make --expires the longer one")


_ALPHABET = "abcdefghjkmnpqrstuvwxyzABCDEFGHJKMNPQRSTUVWXYZ23456789"
APP_URL = "http://127.0.0.1:3000/hooks"


@dataclass(frozen=True, slots=True)
class Fresh:
    """Secrets made for one file."""

    basic: str
    app_secret: str
    token_secret: str


def fresh() -> Fresh:
    """Return new secrets; the Deepgram pair holds letters and digits only, so it needs no encoding in a URL."""
    password = "".join(secrets.choice(_ALPHABET) for _ in range(32))
    return Fresh(f"deepgram:{password}", new_webhook_secret(), secrets.token_hex(32))


def settings_file(made: Fresh, *, public_url: str | None, app_url: str) -> str:
    """Return the commented text of a settings file."""
    public = (
        f"public_url = {_quoted(public_url)}" if public_url else '# public_url = "https://hooks.example.com"'
    )
    allow = (
        'allow = ["127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]'
        "    # private addresses it may have"
        if is_private(app_url)
        else '# allow = ["10.0.0.0/8"]    # private addresses it may have; none unless written here'
    )
    return f"""\
# receiver's settings. `receiver check` tells what is wrong with them; docs/configuration.md lists them all.
# Any value may be "env:NAME" or "file:PATH" instead, and RECEIVER__SECTION__KEY in the environment overrides it.

# Where the providers reach this machine. The port is 80, 443, 8080 or 8443, and there is no underscore in it.
{public}

# Everything that is kept lies here, relative to the folder that receiver is started in.
data = "receiver-data"

[server]
host = "127.0.0.1"    # 0.0.0.0 behind a proxy on another machine
port = 8080
# admin_tokens = ["env:RECEIVER_ADMIN_TOKEN"]    # opens the admin API under /api/v1/; keep it from the public

# Signs callback tokens and audio links. To rotate: add a new one at the end, and remove the old one when
# no callback URL made with it is in use any more (audio links last a week at most).
[tokens]
secrets = [{_quoted(made.token_secret)}]

# Deepgram sends user:password from the callback URL as Basic credentials: the proof that it recommends.
# To rotate: add a new pair at the end; URLs are made with the last, and any is accepted.
[sources.deepgram]
provider = "deepgram"
basic = [{_quoted(made.basic)}]
# require_token = true    # take only URLs made by `receiver callback-url`

# deAPI signs its callbacks. Copy the secret from its webhook settings into DEAPI_WEBHOOK_SECRET, then uncomment.
# [sources.deapi]
# provider = "deapi"
# secrets = ["env:DEAPI_WEBHOOK_SECRET"]
# api_key = "env:DEAPI_API_KEY"    # asks for a fresh link when one has expired, and for jobs that were handed over

# Deepdub does not call back: hand over the URL that it answers with, by `receiver pickup deepdub URL`.
# [sources.deepdub]
# provider = "deepdub"
# api_key = "env:DEEPDUB_API_KEY"
# region = "us"    # or "eu": where the jobs are submitted

# PlayHT, or what serves its API: asked for jobs that were handed over, and called back by.
# [sources.playht]
# provider = "playht"
# api_key = "env:PLAYHT_API_KEY"
# user_id = "env:PLAYHT_USER_ID"

# Your application. It checks each event with this secret, by Standard Webhooks.
[destinations.app]
url = {_quoted(app_url)}
secrets = [{_quoted(made.app_secret)}]
sources = ["*"]
events = ["*"]
retry = "deepgram"    # 10 retries, 30 s apart; or "standard"; or {{schedule = [5, 300, 3600]}} in seconds
{allow}
"""


def _quoted(text: str) -> str:
    return json.dumps(text)
