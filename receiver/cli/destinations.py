"""`destinations list`, `pause`, `resume` and `enable`; and `secret rotate`: a fresh signing secret beside the present ones, so that no
event goes unchecked.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from receiver.cli.opening import acting, asked, load_to_look, made_store
from receiver.cli.options import AsJson, Wide, option, seconds
from receiver.cli.output import Listing, print_json, print_list
from receiver.core.clock import wall_clock
from receiver.core.destinations import ACTIONS
from receiver.core.errors import NotFound, UsageError
from receiver.core.webhook import new_webhook_secret, public_key
from receiver.system.files import sync_folder, write_file
from receiver.web.views import view

if TYPE_CHECKING:
    from receiver.core.destinations import DestinationState
    from receiver.settings.model import Settings


destinations = typer.Typer(
    help="List destinations; pause, resume or enable one.", no_args_is_help=True, rich_markup_mode=None
)
Name = Annotated[str, typer.Argument(help="Name of the destination, as in [destinations.NAME].")]
_DESTINATIONS = Listing(
    short=("name", "state", "failures", "due", "dead"),
    wide=("name", "state", "failures", "due", "dead", "failing since", "held until"),
    fields={
        "state": "health.status",
        "failures": "health.failures",
        "failing since": "health.failing_since",
        "held until": "health.held_until",
    },
    empty="no destination is configured",
)


@destinations.command("list")
def list_(ctx: typer.Context, wide: Wide = False, as_json: AsJson = False) -> None:
    """List the destinations with their state. Also the failed attempts in a row, and the deliveries that are due or dead."""
    from receiver.web.api import overview as api

    found = asked(load_to_look(ctx), api.destinations).items
    print_list(_DESTINATIONS, found, wide=wide, as_json=as_json)


def _command(action: str) -> Callable[..., None]:
    """Return the command that does one of `ACTIONS`."""

    def act(ctx: typer.Context, name: Name, as_json: AsJson = False) -> None:
        state = asyncio.run(_done(load_to_look(ctx), name, action))
        if as_json:
            print_json(view(state))
            return
        waits = f": its deliveries wait until `receiver destinations resume {name}`"
        typer.echo(f"{name} is {state.status}{waits if state.paused_at else ''}")

    return act


for _name, _action in ACTIONS.items():
    destinations.command(_name, help=_action.does)(_command(_name))


async def _done(settings: Settings, name: str, action: str) -> DestinationState:
    from receiver.engine.holds import act_on_destination

    async with made_store(settings) as store, acting(store, f"destinations {action}", name):
        return await act_on_destination(store, settings.destinations, name, action, now=wall_clock())


# ---------------------------------------------------------------- secret rotate

secret = typer.Typer(
    help="Change what signs a destination's events.", no_args_is_help=True, rich_markup_mode=None
)


@secret.callback()
def _group() -> None:
    """Keep `rotate` a command of a group: alone, it would be the group itself."""


@secret.command()
def rotate(
    ctx: typer.Context,
    destination: Annotated[str, typer.Argument(help="Name of the destination, as in [destinations.NAME].")],
    overlap: Annotated[
        str,
        option("--overlap", help="How long the present secrets go on signing beside the new one: 24h, 7d."),
    ] = "24h",
    pair: Annotated[
        bool, option("--pair", help="Make an Ed25519 key pair: the application needs only the public key.")
    ] = False,
    only_print: Annotated[
        bool, option("--print", help="Change no file: print the setting to put in place.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Give a destination a fresh secret beside its present ones, which go on signing for a while, and print it.

    The settings file is changed, comments and order kept. Where secrets come from the environment, what to set is printed.
    """
    from receiver.settings.load import file_of

    _signing(ctx, destination)
    fresh = new_webhook_secret(pair=pair)
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds(overlap))
    rotation = Rotation(file_of(ctx.obj, os.environ), destination, fresh, until)
    written = rotation.write() if rotation.in_files and not only_print else []
    given = public_key(fresh) if pair else fresh
    if as_json:
        public = given if pair else None
        changed = {"changed": [str(path) for path in written], "variable": rotation.variable}
        about = {"secret": fresh, "public_key": public, "until": until.isoformat()}
        print_json(about | {"setting": rotation.setting} | changed)
        return
    _tell(rotation, written)
    typer.echo(f"# For the application, before {until:%Y-%m-%dT%H:%M:%SZ}:\n{given}")


def _tell(rotation: Rotation, written: list[Path]) -> None:
    """Say what was changed, or what a person has to change."""
    if written:
        places = " and ".join(str(path) for path in written)
        then = "Take the change to machines with files of their own; then `receiver reload` on each."
        typer.echo(f"# Changed {places}. {then}\n")
        return
    typer.echo(f"# In {rotation.place}, on every machine; then `receiver reload` on each:")
    typer.echo(f"{rotation.setting}\n")
    if rotation.variable:
        environment = "In receiver's environment, for which it has to be started again"
        typer.echo(f"# {environment}:\n{rotation.variable}={rotation.fresh}\n")
    if "…" in rotation.setting:
        typer.echo("# Where … stands, leave the secret that the file has.\n")


def _signing(ctx: typer.Context, destination: str) -> None:
    """Raise `NotFound` or `UsageError` unless there is such a destination, and it signs."""
    from receiver.outbound.destinations import kind_of

    settings = load_to_look(ctx)
    if destination not in settings.destinations:
        known = ", ".join(sorted(settings.destinations)) or "none"
        raise NotFound(f"no destination is named {destination}; there is: {known}")
    kind = kind_of(settings.destinations[destination])
    if "secrets" not in kind.Settings.model_fields:
        raise UsageError(f"a destination of kind {kind.kind} signs nothing")


_DATE = re.compile(r"[-_][0-9]{8}(t[0-9]{12})?$", re.IGNORECASE)
"""What an earlier rotation ended a name with."""


@dataclass
class Rotation:
    """One destination's `secrets` with a fresh one: as it stands in the settings file, and as it may be shown."""

    path: Path
    destination: str
    fresh: str
    until: datetime

    def __post_init__(self) -> None:
        """Raises `UsageError` when the destination is not in the file."""
        import tomlkit

        try:
            self._document = tomlkit.parse(self.path.read_text("utf-8"))
            table: Any = self._document["destinations"][self.destination]
        except (OSError, ValueError, KeyError):
            raise UsageError(
                f"the destination {self.destination} is not in {self.path}: add a secret where it is set"
            ) from None
        self._anew = "secrets" not in table
        self._entries: Any = table.setdefault("secrets", tomlkit.array())
        named = [_secret_of(entry) for entry in self._entries]
        self._file = next((one for one in reversed(named) if one.startswith("file:")), None)
        variable = next((one for one in reversed(named) if one.startswith("env:")), None)
        stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        self.variable = None if variable is None else f"{_DATE.sub('', variable[4:])}_{stamp[:8]}"
        """The variable that has to hold the fresh secret; None where files can."""
        if self.variable is not None:
            self._entry = f"env:{self.variable}"
        else:
            self._entry = self.fresh if self._file is None else f"{_DATE.sub('', self._file)}-{stamp}"
        self._end_present()
        self._entries.append(self._entry)

    @property
    def place(self) -> str:
        """Where the setting is written: a variable of its own goes before the file."""
        own = f"RECEIVER__DESTINATIONS__{self.destination.upper()}__SECRETS"
        return own if own in os.environ else f"[destinations.{self.destination}]"

    @property
    def in_files(self) -> bool:
        """Whether files can be changed so that receiver finds the fresh secret."""
        return self.variable is None and self.place.startswith("[")

    @property
    def setting(self) -> str:
        """The setting, as a person may see it: a secret that stands in the file, other than the fresh one, is named by its end."""
        import tomlkit

        lines = []
        for entry in self._entries:
            secret, line = _secret_of(entry), tomlkit.item(entry).as_string()
            kept = secret == self.fresh or secret.startswith(("env:", "file:"))
            lines.append(f"  {line if kept else line.replace(secret, f'…{secret[-4:]}')},\n")
        return f"secrets = [\n{''.join(lines)}]"

    def _end_present(self) -> None:
        """Have each present entry end, and leave out those that have ended."""
        import tomlkit

        for number in reversed(range(len(self._entries))):
            entry = self._entries[number]
            if not isinstance(entry, dict):
                timed = tomlkit.inline_table()
                timed.update({"secret": str(entry), "until": self.until})
                self._entries[number] = timed
            elif "until" not in entry:
                entry["until"] = self.until
            elif datetime.fromisoformat(str(entry["until"])) <= datetime.now(UTC):
                del self._entries[number]

    def write(self) -> list[Path]:
        """Put the fresh secret in place and return what was changed. Raises `UsageError` when that cannot be done."""
        import tomlkit

        from receiver.settings.load import parse

        text, folder = tomlkit.dumps(self._document), self.path.parent
        if self._anew:  # at the end of its table it would come after what is said of the next one
            header = re.compile(rf"^\[destinations\.{self.destination}\][^\n]*\n", re.MULTILINE)
            added = f'secrets = ["{self._entry}"]\n'
            below, found = header.subn(lambda one: one[0] + added, self.path.read_text("utf-8"), count=1)
            text = below if found else text
        made: list[Path] = []
        try:
            if self._file is not None:
                made.append(_beside(folder / self._file[5:], folder / self._entry[5:], f"{self.fresh}\n"))
            parse(text, os.environ, lambda name: (folder / name).read_text("utf-8"))
            real = Path(os.path.realpath(self.path))
            made.append(_beside(real, real.with_name(f".{real.name}.{os.getpid()}"), text))
            os.replace(made[-1], real)
            made.pop()
            sync_folder(real.parent)
        except BaseException as error:
            for path in made:
                path.unlink()
            if isinstance(error, OSError):
                message = f"{self.path} cannot be changed: {error.strerror}; --print tells what to write"
                raise UsageError(message) from None
            raise
        return [self.path, *made]


def _secret_of(entry: Any) -> str:
    return str(entry["secret"] if isinstance(entry, dict) else entry)


def _beside(old: Path, new: Path, text: str) -> Path:
    """Make a file that whoever may read `old` may read. Raises `OSError`."""
    kept = old.stat()
    write_file(new, text.encode())
    try:
        os.chown(new, kept.st_uid, kept.st_gid)
        new.chmod(kept.st_mode & 0o777)
    except OSError:  # as where another user owns `old`: no secret is left behind
        new.unlink()
        raise
    return new
