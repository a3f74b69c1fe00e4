"""`destinations list`, `pause`, `resume` and `enable`: how destinations are, and what a person makes of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from receiver.cli.acting import acting
from receiver.cli.options import AsJson, Wide, ask, load_to_look, made_store
from receiver.cli.output import Listing, print_json, print_list
from receiver.core.clock import wall_clock
from receiver.web.views import page, view

if TYPE_CHECKING:
    from receiver.core.destination_health import DestinationState
    from receiver.settings.model import Settings

group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
Name = Annotated[str, typer.Argument(help="Name of the destination, as in [destinations.NAME].")]
_SAID = {
    "pause": "{name} is paused: its deliveries wait until `receiver destinations resume {name}`",
    "resume": "{name} is {state}",
    "enable": "{name} is {state}",
}
_DESTINATIONS = Listing(
    short=("name", "state", "failures", "due", "dead"),
    wide=("name", "state", "failures", "due", "dead", "failing since", "held until"),
    fields={"state": "status", "failing since": "failing_since", "held until": "held_until"},
    empty="no destination is configured",
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group.command(name="list")(list_)
    for command in (pause, resume, enable):
        group.command()(command)
    app.add_typer(group, name="destinations", help="List destinations; pause, resume or enable one.")


def list_(ctx: typer.Context, wide: Wide = False, as_json: AsJson = False) -> None:
    """List the destinations with their state. Also the failed attempts in a row, and the deliveries that are due or dead."""
    from receiver.engine.destination_actions import standings

    settings = load_to_look(ctx)
    found = ask(settings, lambda store: standings(store, settings.destinations, now=wall_clock()))
    if as_json:
        print_json(page([view(one.state) | {"due": one.due, "dead": one.dead} for one in found]))
        return
    by_name = {one.name: one for one in found}
    counts = {"due": lambda state: by_name[state.name].due, "dead": lambda state: by_name[state.name].dead}
    print_list(_DESTINATIONS, [one.state for one in found], wide=wide, as_json=False, more=counts)


def pause(ctx: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Hold a destination's deliveries. They spend no attempts; running processes obey within a second."""
    _act(ctx, name, "pause", as_json=as_json)


def resume(ctx: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Send a paused destination's deliveries again."""
    _act(ctx, name, "resume", as_json=as_json)


def enable(ctx: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Send again to a disabled or failing destination. Its failures are forgotten."""
    _act(ctx, name, "enable", as_json=as_json)


def _act(ctx: typer.Context, name: str, action: str, *, as_json: bool) -> None:
    state = asyncio.run(_done(load_to_look(ctx), name, action))
    if as_json:
        print_json(view(state))
    else:
        typer.echo(_SAID[action].format(name=name, state=state.status.value))


async def _done(settings: Settings, name: str, action: str) -> DestinationState:
    from receiver.engine.destination_actions import act_on_destination

    async with made_store(settings) as store, acting(store, f"destinations {action}", name):
        return await act_on_destination(store, settings.destinations, name, action, now=wall_clock())
