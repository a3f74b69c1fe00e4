"""`init`, `check`, `migrate` and `callback-url`: what comes before running (floor 9)."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Annotated

import typer

from receiver.cli.common import load, newest, source_named, tokens_of
from receiver.cli.options import UsageError, job_format, option, seconds
from receiver.cli.output import print_json, print_table
from receiver.errors import ConfigError, ReceiverError

if TYPE_CHECKING:
    from receiver.config import Settings, SourceSettings

AsJson = Annotated[bool, option("--json", help="Print JSON.")]


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
    from receiver import urls
    from receiver.cli.template import APP_URL, fresh, settings_file

    for problem in urls.public_url_problems(public_url) if public_url else ():
        raise ConfigError(f"--public-url: {problem.message}; {problem.fix}")
    made = fresh()
    text = settings_file(made, public_url=public_url, app_url=app_url or APP_URL)
    _parsed(text)
    _write_new(path, text)
    flag = "" if path == "receiver.toml" else f"--config {path} "
    typer.echo(f"{path} is written, with fresh secrets; only you can read it.\n\nNext:")
    if public_url:
        url = urls.callback_url(public_url, "deepgram", provider="deepgram", basic=made.basic)
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
    from receiver.config import parse

    parse(text, {}, str)


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


def check(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Check the settings: status 0 when `serve` would start with them, 2 when not."""
    from receiver.check import check_file

    _, findings = check_file(ctx.obj, os.environ)
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
    """Bring the store's tables up to date (`serve` does so by itself)."""
    applied = asyncio.run(_migrate(load(ctx)))
    if as_json:
        print_json({"applied": applied})
    elif applied:
        typer.echo("\n".join(f"applied {name}" for name in applied))
    else:
        typer.echo("nothing to apply: the tables are up to date")


async def _migrate(settings: Settings) -> list[str]:
    from receiver.wiring import build_store

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
    job_secret: Annotated[
        bool,
        option("--job-secret", help="deAPI: give the job a webhook_secret of its own, and print it too."),
    ] = False,
    no_token: Annotated[
        bool, option("--no-token", help="One URL for all jobs, without a token; it carries no ref.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the callback URL to hand to a provider. It holds credentials: treat it as a secret."""
    from receiver import urls

    settings = load(ctx)
    chosen = source_named(settings, source)
    _refuse_contradictions(chosen, ref, expires, format, job_secret, no_token)
    basic = newest(chosen, "basic") if chosen.provider == "deepgram" else None
    urls.callback_url(settings.public_url, source, provider=chosen.provider, basic=basic)
    token, secret = None, None
    if not no_token:
        life = int(seconds(expires) * 1000) if expires else None
        tokens = tokens_of(settings)
        token = tokens.issue(
            source,
            ref=ref,
            format=job_format(format),
            expires_at=None if life is None else time.time_ns() // 1_000_000 + life,
            job_secret=job_secret,
        )
        secret = tokens.job_secrets(token)[0] if job_secret else None
    url = urls.callback_url(settings.public_url, source, provider=chosen.provider, token=token, basic=basic)
    if as_json:
        fields = {"url": url, "source": source, "token": token, "ref": ref}
        print_json(fields | ({"webhook_secret": secret} if secret else {}))
    elif secret:
        typer.echo(f"webhook_url: {url}\nwebhook_secret: {secret}")
    else:
        typer.echo(url)


def _refuse_contradictions(
    source: SourceSettings,
    ref: str | None,
    expires: str | None,
    format: str | None,
    job_secret: bool,
    no_token: bool,
) -> None:
    if no_token and (ref or expires or format or job_secret):
        raise UsageError(
            "--no-token leaves nothing to carry --ref, --expires, --format or --job-secret: drop it"
        )
    if no_token and source.options.get("require_token"):
        raise UsageError(
            f"sources.{source.name}.require_token is set, so a URL without a token would be refused: drop --no-token"
        )
    if job_secret and source.provider != "deapi":
        raise UsageError("--job-secret is for deAPI: it alone takes a webhook_secret with a job")
