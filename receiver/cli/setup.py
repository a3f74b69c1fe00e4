"""`init`, `check` and `migrate`: what comes before running."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct
from msgspec.structs import asdict

from receiver.cli.opening import load
from receiver.cli.options import AsJson, option
from receiver.cli.output import counted, print_json, print_table
from receiver.core import urls
from receiver.core.errors import ConfigError, ReceiverError
from receiver.core.urls import is_private
from receiver.core.webhook import new_webhook_secret
from receiver.system.files import write_file
from receiver.web.views import page

if TYPE_CHECKING:
    from receiver.settings.model import Settings


def init(
    path: Annotated[str, option("--path", help="The file to write.")] = "receiver.toml",
    public_url: Annotated[
        str | None, option("--public-url", help="Where providers reach this machine: https://…")
    ] = None,
    app_url: Annotated[str | None, option("--app-url", help="Where your application takes events.")] = None,
) -> None:
    """Write a settings file with fresh secrets."""
    for problem in urls.public_url_problems(public_url) if public_url else ():
        raise ConfigError(f"--public-url: {problem.message}; {problem.fix}")
    made = fresh()
    text = settings_file(made, public_url=public_url, app_url=app_url or APP_URL)
    _parsed(text)
    _write_new(path, text)
    flag = "" if path == "receiver.toml" else f"--config {path} "
    typer.echo(f"{path} is written, with fresh secrets; only you can read it.\n\nNext:")
    if public_url:
        url = urls.callback_url(public_url, "deepgram", basic=made.basic)
        typer.echo(f"  1. Give Deepgram this callback URL:\n     {url}")
        typer.echo(f"     or one for each job: receiver {flag}callback-url deepgram --ref YOUR-ID")
    else:
        typer.echo(f"  1. Set public_url in {path}, then: receiver {flag}callback-url deepgram --ref YOUR-ID")
    if app_url:
        typer.echo(f"  2. Give the secret of [destinations.app] to {app_url}: it stands in {path}.")
    else:
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
        write_file(Path(path), text.encode())
    except FileExistsError:
        raise ReceiverError(
            f"{path} is there already, and was left as it is: name another with --path, or remove it"
        ) from None
    except OSError as error:
        raise ReceiverError(f"{path} cannot be written: {error.strerror}") from None


def check(
    ctx: typer.Context,
    offline: Annotated[
        bool, option("--offline", help="Check the settings alone: ask no database, bucket or queue.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the settings, PostgreSQL, S3 and queues. Status 0 if `serve` would start, 2 if not."""
    from receiver.app.check import check_file

    settings, findings = check_file(ctx.obj, os.environ)
    if settings is not None and not offline and not any(finding.fatal for finding in findings):
        from receiver.app.reach import reach

        findings = sorted(reach(settings) + findings, key=lambda finding: not finding.fatal)
    fatal = sum(finding.fatal for finding in findings)
    if as_json:
        print_json(page([asdict(finding) | {"fatal": finding.fatal} for finding in findings]))
    elif findings:
        rows = [(found.code, found.where, found.message, found.fix) for found in findings]
        print_table(("code", "setting", "finding", "what to do"), rows, empty="", wide=True)
        counts = f"{counted(fatal, 'error', 'errors')}, {counted(len(rows) - fatal, 'warning', 'warnings')}"
        verdict = "will not start" if fatal else "starts"
        typer.echo(f"\n{counts}: receiver {verdict} with these settings")
    else:
        typer.echo("The settings are good.")
    if fatal:
        raise typer.Exit(2)


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


_ALPHABET = "abcdefghjkmnpqrstuvwxyzABCDEFGHJKMNPQRSTUVWXYZ23456789"
APP_URL = "http://127.0.0.1:3000/hooks"


class Fresh(Struct, frozen=True):
    """Secrets made for one file."""

    basic: str
    app_secret: str
    token_secret: str


def fresh() -> Fresh:
    """Return new secrets; the Deepgram pair holds letters and digits only, so it needs no encoding in a URL."""
    password = "".join(secrets.choice(_ALPHABET) for _ in range(32))
    return Fresh(f"deepgram:{password}", new_webhook_secret(), secrets.token_hex(32))


def settings_file(made: Fresh, *, public_url: str | None, app_url: str) -> str:
    """Return the commented text of a settings file: cli/init.toml with what is particular to this one."""
    shown = f"public_url = {json.dumps(public_url or 'https://hooks.example.com')}"
    allow = '# allow = ["10.0.0.0/8"]    # private addresses it may have; none unless written here'
    if is_private(app_url):
        networks = '["127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]'
        allow = f"allow = {networks}    # private addresses it may have"
    return Template(files(__package__).joinpath("init.toml").read_text("utf-8")).substitute(
        asdict(made),
        public_url=shown if public_url else f"# {shown}",
        app_url=json.dumps(app_url),
        allow=allow,
    )
