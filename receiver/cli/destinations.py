"""`destinations list`, `pause`, `resume` and `enable`: how destinations are, and what a person makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from receiver.cli.asking import asked
from receiver.cli.opening import acting, load_to_look, made_store
from receiver.cli.options import AsJson, Wide
from receiver.cli.output import Listing, print_json, print_list
from receiver.core.clock import wall_clock
from receiver.core.destinations import ACTIONS
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
    from receiver.engine.destination_actions import act_on_destination

    async with made_store(settings) as store, acting(store, f"destinations {action}", name):
        return await act_on_destination(store, settings.destinations, name, action, now=wall_clock())
