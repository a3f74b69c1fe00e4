"""`secret rotate`: a fresh signing secret for a destination, and the setting with which none of its events goes unchecked."""

from __future__ import annotations

import os
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from receiver.cli.options import AsJson, load_to_look, option, seconds
from receiver.cli.output import print_json
from receiver.core.errors import NotFound, UsageError
from receiver.core.webhook import new_webhook_secret, public_key
from receiver.settings.rotation import rotated

group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the command."""
    group.callback()(_group)
    group.command()(rotate)
    app.add_typer(group, name="secret", help="Change what signs a destination's events.")


def _group() -> None:
    """Keep `rotate` a command of a group: alone, it would be the group itself."""


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
    as_json: AsJson = False,
) -> None:
    """Print a fresh secret for a destination. Also the setting by which the present ones go on signing for a while; changes nothing."""
    settings = load_to_look(ctx)
    if destination not in settings.destinations:
        known = ", ".join(sorted(settings.destinations)) or "none"
        raise NotFound(f"no destination is named {destination}; there is: {known}")
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds(overlap))
    fresh = new_webhook_secret(pair=pair)
    setting = rotated(_present(ctx, destination), fresh, until)
    public = public_key(fresh) if pair else None
    if as_json:
        print_json({"secret": fresh, "public_key": public, "until": until.isoformat(), "setting": setting})
        return
    typer.echo(
        f"# In [destinations.{destination}], on every machine; then restart one after another:\n{setting}\n"
    )
    if "…" in setting:
        typer.echo("# Where … stands, leave the secret that the file has.\n")
    typer.echo(f"# For the application, before {until:%Y-%m-%dT%H:%M:%SZ}:\n{public or fresh}")


def _present(ctx: typer.Context, destination: str) -> list[Any]:
    """Return the present entries as the settings file writes them: what stands elsewhere cannot be written for a person."""
    path = Path(ctx.obj or os.environ.get("RECEIVER_CONFIG") or "receiver.toml")
    try:
        table = tomllib.loads(path.read_text("utf-8"))["destinations"][destination]
    except (OSError, ValueError, KeyError):
        raise UsageError(
            f"the destination {destination} is not in {path}: add a secret where it is set"
        ) from None
    return list(table.get("secrets", ()))
