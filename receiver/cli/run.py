"""`init`, `check` and `migrate`, which come before running; `serve` and `work`, which keep running; and `reload`, which has these read
their settings again.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from functools import partial
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
from receiver.core.errors import ConfigError, Problem, ReceiverError, SettingsError, Unavailable, UsageError
from receiver.core.urls import is_private
from receiver.core.webhook import new_webhook_secret
from receiver.system.files import write_file
from receiver.web.views import page

if TYPE_CHECKING:
    from collections.abc import Callable

    from receiver.settings.model import Settings
    from receiver.web.reloading import Reloaded


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
        typer.echo(
            f"  1. Before a provider calls, set public_url in {path}, then: receiver {flag}callback-url deepgram --ref YOUR-ID"
        )
    if app_url:
        typer.echo(f"  2. Give the secret of [destinations.app] to {app_url}: it stands in {path}.")
    else:
        typer.echo(
            f"  2. Set [destinations.app] url in {path} (now {APP_URL}), and give its secret to your application."
        )
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
        from receiver.app.check import reach

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


# ---------------------------------------------------------------- serve, work and reload

_RELOAD_SECONDS = 60.0
Host = Annotated[str | None, option("--host", help="Address to listen on; overrides server.host.")]
Port = Annotated[
    int | None,
    option("--port", help="Port to listen on; overrides server.port. 0 takes a free one.", min=0, max=65535),
]
ReadyFile = Annotated[
    str | None,
    option("--ready-file", help="Write pid, host, port and url to this file as JSON, once ready."),
]


def serve(
    ctx: typer.Context,
    host: Host = None,
    port: Port = None,
    no_work: Annotated[
        bool, option("--no-work", help="Take callbacks only; relay and pick up nothing.")
    ] = False,
    no_intake: Annotated[
        bool, option("--no-intake", help="Take no callbacks; relay, pick up, answer all else.")
    ] = False,
    processes: Annotated[
        int | None,
        option("--processes", help="Serve by so many processes on one port; needs PostgreSQL.", min=1),
    ] = None,
    ready_file: ReadyFile = None,
) -> None:
    """Take callbacks, poll results, relay events. Runs until it is stopped."""
    if no_work and no_intake:
        raise UsageError("--no-work and --no-intake together leave nothing to do")
    settings = _checked(ctx, host, port)
    if ctx.obj:
        os.environ["RECEIVER_CONFIG"] = ctx.obj  # for what this process starts, as a test callback
    intake, work = not no_intake, not no_work
    read = partial(_read, ctx.obj, host, port)
    if processes is not None:
        _run_several(settings, read, processes, intake=intake, work=work, ready_file=ready_file)
        return
    from receiver.web.server import Doing, run

    link = _tell_link if intake and _on_defaults(ctx.obj, settings) else None
    doing = Doing(intake=intake, work=work, ready_file=ready_file, read=read, tell_link=link)
    run(settings, doing, listen=True)


def work(
    ctx: typer.Context,
    host: Host = None,
    port: Annotated[
        int | None,
        option("--port", help="Serve probes, links and the API on this port too.", min=0, max=65535),
    ] = None,
    ready_file: ReadyFile = None,
) -> None:
    """Poll results and relay events only. Runs until it is stopped."""
    from receiver.settings.load import token_secrets

    settings = _checked(ctx, host, port)
    # One that is made here would sign links that `serve` on another machine does not take.
    token_secrets(settings)
    from receiver.web.server import Doing, run

    read = partial(_read, ctx.obj, host, port)
    doing = Doing(intake=False, work=True, ready_file=ready_file, read=read)
    run(settings, doing, listen=port is not None)


def reload(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Have the running receivers of this machine read their settings again. A file that cannot be used changes nothing."""
    from msgspec import json, to_builtins

    from receiver.settings.load import EXPORT, journal_folder, look
    from receiver.web.reloading import Reloaded, ask_all
    from receiver.web.views import page

    loaded = look(ctx.obj, os.environ)  # with secrets that this shell lacks: the processes judge of them
    if loaded.settings is None:
        raise SettingsError(loaded.problems)
    journal = journal_folder(loaded.settings)
    answers, silent = ask_all(journal, seconds=_RELOAD_SECONDS)
    found = [json.decode(answer, type=Reloaded) for answer in answers]
    if as_json:
        print_json(page(to_builtins(found)))
    else:
        for line in map(_sentence, found):
            typer.echo(line)
        if any(EXPORT in (one.error or "") for one in found):
            typer.echo("A running process cannot see a new variable: export it, then start receiver again.")
    if silent:
        raise Unavailable("; ".join(silent))
    if not found:
        raise UsageError(f"no receiver runs on this machine with the journal {journal}")
    if any(one.error for one in found):
        raise typer.Exit(2)


def _sentence(one: Reloaded) -> str:
    changed = "; ".join(
        f"{what.replace('_', ' ')}: {', '.join(names)}" for what, names in one.changes.items()
    )
    return f"process {one.pid}: " + (
        f"nothing is taken: {one.error}" if one.error else changed or "nothing changed"
    )


def _checked(ctx: typer.Context, host: str | None, port: int | None) -> Settings:
    """Return the settings to run with; fatal findings are printed and end the program.

    With status 2; but 1 when only an outage is in the way, so that starting again may help.
    """
    from receiver.app.check import check_file, reach, unreached
    from receiver.cli.output import tell_errors_as, tell_finding
    from receiver.settings.load import wanted_log

    settings, findings = check_file(ctx.obj, os.environ)
    log = wanted_log(ctx.obj, os.environ) if settings is None else settings.server.log
    tell_errors_as("log" if log == "json" else "text")
    if settings is not None and not any(finding.fatal for finding in findings):
        findings = reach(settings) + findings
    for finding in findings:
        tell_finding(finding)
    if settings is None or any(finding.fatal for finding in findings):
        raise typer.Exit(1 if unreached(findings) else 2)
    return _with_flags(settings, host, port)


def _with_flags(settings: Settings, host: str | None, port: int | None) -> Settings:
    given = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    server = settings.server.model_copy(update=given)
    return settings.model_copy(update={"server": server})


def _read(path: str | None, host: str | None, port: int | None) -> Settings:
    """Return the settings as a running process reads them again. Raises `SettingsError` with all that stops `serve`."""
    from receiver.app.check import check_file

    settings, findings = check_file(path, os.environ)
    fatal = [Problem(one.where, one.message, one.fix) for one in findings if one.fatal]
    if settings is None or fatal:
        raise SettingsError(fatal)
    return _with_flags(settings, host, port)


def _on_defaults(path: str | None, settings: Settings) -> bool:
    """Tell whether there is no settings file and no token, and only this machine can connect."""
    file = path or os.environ.get("RECEIVER_CONFIG") or os.path.exists("receiver.toml")
    return not file and not settings.api.tokens and settings.server.host in ("127.0.0.1", "::1", "localhost")


def _tell_link(link: str) -> None:
    """Print the link that logs in to the console; it is a secret, so it does not go into the log."""
    typer.echo(
        f"The console, for a first look (the link works once, within ten minutes, on this machine):\n  {link}"
    )


def _run_several(
    settings: Settings,
    read: Callable[[], Settings],
    count: int,
    *,
    intake: bool,
    work: bool,
    ready_file: str | None,
) -> None:
    from receiver.settings.load import postgres_url
    from receiver.web.reloading import taken
    from receiver.web.server import Doing, run
    from receiver.web.supervisor import supervise

    if postgres_url(settings) is None:
        raise UsageError(
            "--processes needs PostgreSQL (store.url): an SQLite file has one writer at a time, so one process is faster"
        )

    def serve(bound: Settings, tell_ready: Callable[[], None]) -> None:
        def read_bound() -> Settings:
            found = read()
            same = found.server == settings.server  # but for a port 0, for which they share one that was free
            return found.model_copy(update={"server": bound.server}) if same else found

        doing = Doing(intake=intake, work=work, ready_file=None, read=read_bound, tell_ready=tell_ready)
        # One that takes the place of another has what was reloaded since; a file that cannot be used stops it as any start: what
        # the first ones began with may be long out of date.
        bound, _ = taken(bound, read_bound())
        run(bound, doing, listen=True)

    status = supervise(settings, count, serve, ready_file=ready_file)
    if status:
        raise typer.Exit(status)
