"""`submit-token` and `submit-urls`: what an application needs to submit jobs through receiver; `submissions` lists them."""

from __future__ import annotations

import secrets
import string
from typing import TYPE_CHECKING, Annotated, Any

import typer

from receiver.cli.asking import listed
from receiver.cli.opening import load, load_to_look
from receiver.cli.options import AsJson, Limit, OfJob, OfRef, OfSource, Wide, option
from receiver.cli.output import Listing, print_json, print_list
from receiver.core.errors import ConfigError
from receiver.core.submission import SubmissionState
from receiver.web.views import page

if TYPE_CHECKING:
    from receiver.settings.model import SourceSettings

_LETTERS = string.ascii_letters + string.digits
_LENGTH = 43
"""Letters and digits of a token, as hard to guess as 32 random bytes."""

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
    token = "rcvsub" + "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))
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
    print_list(
        _SUBMISSIONS, listed(load_to_look(ctx), api.submissions, limit, **wanted), wide=wide, as_json=as_json
    )


def _row(url: str, source: SourceSettings) -> dict[str, Any]:
    from receiver.core.tokens import CallbackTokens
    from receiver.providers import adapter_of

    api = adapter_of(source).create(source, CallbackTokens(["a" * 16])).submit_api()
    if api is None:
        raise ConfigError(f"sources.{source.name}.submit: nothing may be submitted to {source.provider}")
    table = api.table
    return {
        "source": source.name,
        "url": url,
        "header": table.header,
        "experimental": table.experimental or None,
        "packages": {
            package: text.replace("{url}", url).replace("{path}", table.folder)
            for package, text in table.packages.items()
        },
    }
