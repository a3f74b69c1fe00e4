"""The command line: `receiver …`. Heavy parts are imported by the command that needs them."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from keyword import iskeyword
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from receiver import __version__
from receiver.cli.options import option
from receiver.cli.output import tell_errors_as, tell_failure
from receiver.core.errors import ConfigError, ReceiverError, StoreUnusable, UsageError

GROUPS: Mapping[str, Mapping[str, str]] = {
    "Run": {
        "init": "cli.run",
        "check": "cli.run",
        "migrate": "cli.run",
        "serve": "cli.run",
        "work": "cli.run",
        "reload": "cli.run",
    },
    "Look": {
        "events": "cli.inspect",
        "deliveries": "cli.inspect",
        "pickups": "cli.pickups",
        "submissions": "cli.applications",
        "rejections": "cli.inspect",
        "operations": "cli.replay",
        "destinations": "cli.destinations",
        "trace": "cli.inspect",
        "route": "cli.inspect",
        "tail": "cli.tail",
        "audio": "cli.inspect",
        "journal": "cli.journal",
    },
    "Act": {
        "callback-url": "cli.applications",
        "submit-token": "cli.applications",
        "submit-urls": "cli.applications",
        "pickup": "cli.pickups",
        "replay": "cli.replay",
        "renormalize": "cli.replay",
        "secret": "cli.destinations",
        "erase": "cli.erase",
        "sweep": "cli.erase",
    },
    "Try": {
        "demo": "demo.simulate",
        "simulate": "demo.simulate",
        "recipes": "cli.sources",
        "try": "cli.sources",
    },
}
"""The commands as `receiver --help` lists them, each with the module that has it. Only that of the command given is imported."""
_MODULES = {name: module for group in GROUPS.values() for name, module in group.items()}


@cache
def _command(name: str) -> Any:
    """Return a command: the function, or the group of them, that its module has by its name."""
    module = import_module(f"receiver.{_MODULES[name]}")
    found = getattr(module, name.replace("-", "_") + "_" * iskeyword(name))
    alone = typer.Typer(rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        alone.add_typer(found, name=name)
    else:
        alone.command(name)(found)
    return get_group(alone).commands[name]


class _Commands(Mapping[str, Any]):
    """Every command, made when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        return _command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


class _Grouped(TyperGroup):
    """Lists the commands in groups."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"commands": _Commands()})

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(50)) for name in names])


app = typer.Typer(
    cls=_Grouped,
    name="receiver",
    help="The callback URL for speech providers: proves who called, keeps the bytes, relays one event.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help folds on narrow terminals, where rich's cuts
    context_settings={"help_option_names": ["-h", "--help"]},
)
_REFUSED = (ConfigError, StoreUnusable, UsageError)
"""What trying again does not mend."""


_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    config: Annotated[
        str | None, option("--config", help="The settings file; ./receiver.toml when it is there.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    ctx.obj = config


def main() -> None:
    """Run the command line. Whatever goes wrong is one line on stderr: status 2 for settings and usage, else 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a terminal that cannot show a character is no reason to fail
    tell_errors_as("text")  # tests run many commands in one process
    # Beside a Service named `receiver` Kubernetes sets RECEIVER_PORT=tcp://10.96.0.7:8080 in every pod: no wish for a port.
    if _SERVICE_LINK.match(os.environ.get("RECEIVER_PORT", "")):
        del os.environ["RECEIVER_PORT"]
    try:
        _leave(app(standalone_mode=False) or 0)
    except typer.TyperException as error:
        _refuse_words(error)
    except ReceiverError as error:
        _fail(error.message, 2 if isinstance(error, _REFUSED) else 1)
    except KeyboardInterrupt:
        _leave(130)
    except (BrokenPipeError, typer.Abort):
        _leave(1)
    except Exception as error:  # a bug of ours: no traceback for a user, unless asked for
        if os.environ.get("RECEIVER_DEBUG"):
            raise
        _fail(
            f"an internal error ({type(error).__name__}); RECEIVER_DEBUG=1 shows where, please report it", 1
        )
    finally:
        _flush()


def _refuse_words(error: Any) -> None:
    """Tell what is wrong with the words of the command line, which may be why `--json` among them was not read."""
    if "--json" in sys.argv:
        tell_errors_as("json")
        _fail(error.format_message(), error.exit_code)
    error.show()
    _leave(error.exit_code)


def _fail(message: str, status: int) -> None:
    tell_failure(message, status)
    _leave(status)


def _leave(status: int) -> None:
    _flush()
    sys.exit(status)


def _flush() -> None:
    """Write out what is buffered; a reader that went away is no trouble worth telling."""
    try:
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    main()
