"""`operations list`, `resume` and `stop`: replays of many deliveries, how far they are, and what a person makes of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from receiver.cli.asking import listed
from receiver.cli.opening import acting, ask, load_to_look
from receiver.cli.options import AsJson, Limit, Wide, confirm, option
from receiver.cli.output import Listing, print_json, print_list
from receiver.core.bulk import BulkOperation, BulkState
from receiver.core.clock import wall_clock
from receiver.web.views import view

if TYPE_CHECKING:
    from receiver.engine.bulk import BulkWorker
    from receiver.storage.store.store import Store

WATCH_SECONDS = 0.2
"""How often an operation is looked at while another process carries it on, or its rate makes it wait."""

operations = typer.Typer(
    help="List replays of many deliveries; stop or resume one.", no_args_is_help=True, rich_markup_mode=None
)
Id = Annotated[
    str, typer.Argument(help="Id of the operation, as `receiver operations list --wide` shows it.")
]
Rate = Annotated[int | None, option("--rate", help="From now on at most so many in a second.", min=1)]
_OPERATIONS = Listing(
    short=("id", "kind", "state", "total", "done", "changed"),
    wide=("id", "kind", "state", "total", "done", "changed", "rate", "by", "created", "updated"),
    fields={"by": "requested_by", "created": "created_at", "updated": "updated_at"},
    empty="no operation was ever planned",
)


@operations.command("list")
def list_(ctx: typer.Context, limit: Limit = 50, wide: Wide = False, as_json: AsJson = False) -> None:
    """List operations with their state, and how far each has come."""
    from receiver.web.api import operations as api

    print_list(_OPERATIONS, listed(load_to_look(ctx), api.listed, limit), wide=wide, as_json=as_json)


@operations.command()
def resume(ctx: typer.Context, operation: Id, rate: Rate = None, as_json: AsJson = False) -> None:
    """Run an operation that was planned or stopped. Running processes take it up within a second."""
    _act(ctx, operation, running=True, rate=rate, as_json=as_json)


@operations.command()
def stop(ctx: typer.Context, operation: Id, as_json: AsJson = False) -> None:
    """Stop an operation. What it has done stays done, and `resume` goes on from there."""
    _act(ctx, operation, running=False, rate=None, as_json=as_json)


def _act(ctx: typer.Context, operation: str, *, running: bool, rate: int | None, as_json: bool) -> None:
    async def change(store: Store) -> BulkOperation:
        async with acting(store, f"operations {'resume' if running else 'stop'}", operation, rate=rate):
            return await store.change_operation(operation, running=running, rate=rate, now=wall_clock())

    now = ask(load_to_look(ctx), change)
    if as_json:
        print_json(view(now))
    else:
        typer.echo(f"{now.id} is {now.state}, {now.done} of {now.total} done")


async def carried_on(
    store: Store,
    worker: BulkWorker,
    planned: BulkOperation,
    command: str,
    would: str,
    *,
    doing: str,
    yes: bool,
) -> BulkOperation:
    """Run an operation here, beside whatever process else takes it up, until it is done or somebody stops it.

    A person is asked first: `would` says what it would do. Raises `UsageError`, `typer.Exit`, `StoreUnavailable`.
    """
    from rich.console import Console
    from rich.progress import Progress

    if not yes:
        confirm(f"{would}. Go on?", would, instead=" (or look first with --dry-run)" * (command == "replay"))
    out = Console(stderr=True)
    async with acting(store, command, planned.id, **view(planned.selection)):
        with Progress(console=out, transient=True, disable=not out.is_terminal) as progress:
            bar = progress.add_task(doing, total=planned.total)
            now = await store.change_operation(planned.id, running=True, now=wall_clock())
            while now.state is BulkState.RUNNING:
                if not await worker.step(only=now.id):
                    await asyncio.sleep(WATCH_SECONDS)
                now = await store.operation(now.id)
                progress.update(bar, completed=now.done)
    return now
