"""`renormalize`: today's code reads kept callbacks again; what it reads otherwise becomes an event of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

import typer

from receiver.cli.asking import called
from receiver.cli.opening import acting, load
from receiver.cli.operations import carried_on
from receiver.cli.options import AsJson, Yes, given, moment
from receiver.cli.output import counted, print_json, warn
from receiver.core.bulk import BulkState
from receiver.core.errors import UsageError
from receiver.web.views import view

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver
    from receiver.settings.model import Settings
    from receiver.web.api.operations import NewRenormalization


def renormalize(
    ctx: typer.Context,
    event_id: Annotated[str | None, typer.Argument(help="The event (evt_…).")] = None,
    parked: Annotated[bool, given("--parked", help="All callbacks that were not understood.")] = False,
    source: Annotated[str | None, given("--source", help="With --parked: only of this source.")] = None,
    since_: Annotated[
        str | None, given("--since", help="With --parked: only since then, 2h (ago) or 2026-11-21T10:00Z.")
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Read kept callbacks again by today's code. What differs becomes a new event, which names the old one."""
    from receiver.web.api.operations import NewRenormalization

    if parked is (event_id is not None):
        raise UsageError("name one event, or give --parked")
    if event_id is not None and (source or since_):
        raise UsageError("--source and --since go with --parked")
    settings = load(ctx)
    if event_id is not None:
        _one(settings, event_id, as_json=as_json)
    else:
        wanted = NewRenormalization(source=source, since=moment(since_), dry_run=True)
        asyncio.run(_all(settings, wanted, yes=yes, as_json=as_json))


def _one(settings: Settings, event_id: str, *, as_json: bool) -> None:
    async def read() -> str | None:
        async with _opened(settings) as receiver, acting(receiver.store, "renormalize", event_id):
            made = await receiver.renormalizer.again(await receiver.store.event(event_id))
            return made.event_id if made else None

    new = asyncio.run(read())
    if as_json:
        print_json({"replaces": event_id, "event_id": new})
    elif new:
        typer.echo(f"{new} says what the callback of {event_id} is read as now")
    else:
        warn(f"nothing was made: today's code makes no more of the callback of {event_id}")
    if new is None:
        raise typer.Exit(1)


async def _all(settings: Settings, wanted: NewRenormalization, *, yes: bool, as_json: bool) -> None:
    from receiver.web.api import operations as api

    async with _opened(settings) as receiver:
        planned = await called(receiver.store, settings, api.renormalize, body=wanted)
        callbacks = counted(planned.found, "parked callback", "parked callbacks")
        done = planned.operation
        if done:
            would = f"{callbacks} would be read again"
            done = await carried_on(
                receiver.store, receiver.bulk, done, "renormalize", would, doing="Reading", yes=yes
            )
    if as_json:
        print_json(view(done or planned))
    else:
        made = counted(done.changed if done else 0, "event", "events")
        typer.echo(f"{callbacks} read again, {made} made")
    if done and done.state is BulkState.STOPPED:
        warn(f"{done.id} was stopped after {done.done} of {done.total}")


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Receiver]:
    from receiver.app.wiring import build, open_receiver

    async with open_receiver(build(settings, observers=[]), intake=False, work=False) as receiver:
        yield receiver
