"""`replay`: another round for deliveries that have ended."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from receiver.cli.common import load, opened_store
from receiver.cli.inspect import Since
from receiver.cli.options import UsageError, option, since
from receiver.cli.output import print_json, warn
from receiver.core.clock import wall_clock
from receiver.core.work import DeliveryState

if TYPE_CHECKING:
    from receiver.settings.model import Settings
    from receiver.storage.store.base import DeliveryFilter, Store

_PAGE = 500
_ENDED = (DeliveryState.DEAD, DeliveryState.DELIVERED)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(replay)


def replay(
    ctx: typer.Context,
    ids: Annotated[
        list[str] | None, typer.Argument(help="Deliveries (dlv_…) or events (evt_…: all their deliveries).")
    ] = None,
    dead: Annotated[bool, option("--dead", help="Dead letters only.")] = False,
    destination: Annotated[str | None, option("--destination", help="Only to this destination.")] = None,
    since_: Since = None,
    dry_run: Annotated[bool, option("--dry-run", help="Count, and replay nothing.")] = False,
    yes: Annotated[bool, option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, option("--json", help="Print JSON.")] = False,
) -> None:
    """Send again: begin another round for the deliveries named, or for all that fit the filters."""
    from receiver.storage.store.base import DeliveryFilter

    filtered = dead or destination is not None or since_ is not None
    if ids and filtered:
        raise UsageError("name ids, or filter with --dead, --destination and --since; not both")
    if not ids and not filtered:
        raise UsageError("name deliveries or events, or filter with --dead, --destination and --since")
    settings = load(ctx)
    wanted = DeliveryFilter(
        destination=destination, state=DeliveryState.DEAD if dead else None, since=since(since_), limit=_PAGE
    )
    found, busy = asyncio.run(_find(settings, ids or [], wanted))
    if dry_run or not found:
        _tell(0, found, busy, dry_run=dry_run, as_json=as_json)
        return
    if not ids and not yes:
        _ask(len(found))
    done = asyncio.run(_replay(settings, found))
    _tell(done, found, busy + len(found) - done, dry_run=False, as_json=as_json)


async def _find(settings: Settings, ids: Sequence[str], wanted: DeliveryFilter) -> tuple[list[str], int]:
    """Return the deliveries that have ended, oldest first, and how many are still under way."""
    found: dict[str, bool] = {}
    async with opened_store(settings) as store:
        if ids:
            for one in ids:
                found |= await _named(store, one)
        else:
            async for page in _pages(store, wanted):
                found |= page
    ended = [delivery_id for delivery_id, has_ended in found.items() if has_ended]
    return sorted(ended), len(found) - len(ended)


async def _named(store: Store, one: str) -> dict[str, bool]:
    from receiver.storage.store.base import DeliveryFilter

    if one.startswith("evt_"):
        await store.event(one)
        owed: dict[str, bool] = {}
        async for page in _pages(store, DeliveryFilter(event_id=one, limit=_PAGE)):
            owed |= page
        return owed
    delivery = await store.delivery(one)
    return {delivery.id: delivery.state in _ENDED}


async def _pages(store: Store, wanted: DeliveryFilter) -> AsyncIterator[dict[str, bool]]:
    from dataclasses import replace

    while True:
        page = await store.deliveries(wanted)
        if page:
            yield {delivery.id: delivery.state in _ENDED for delivery in page}
        if len(page) < wanted.limit:
            return
        wanted = replace(wanted, after=page[-1].id)


def _ask(count: int) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"{_count(count)} would be replayed: add --yes (or look first with --dry-run)")
    if not typer.confirm(f"Replay {_count(count)}?"):
        raise typer.Exit(1)


async def _replay(settings: Settings, ids: Sequence[str]) -> int:
    from rich.console import Console
    from rich.progress import Progress

    done = 0
    out = Console(stderr=True)
    async with opened_store(settings) as store:
        with Progress(console=out, transient=True, disable=not out.is_terminal) as progress:
            bar = progress.add_task("Replaying", total=len(ids))
            for start in range(0, len(ids), _PAGE):
                page = ids[start : start + _PAGE]
                done += len(await store.replay(page, now=wall_clock()))
                progress.advance(bar, len(page))
    return done


def _tell(done: int, found: Sequence[str], busy: int, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({"found": len(found), "replayed": done, "left_alone": busy, "dry_run": dry_run})
        return
    if dry_run:
        typer.echo(f"{_count(len(found))} would be replayed")
    elif found:
        typer.echo(f"{_count(done)} replayed; a running relay takes them up within a second")
    else:
        warn("no delivery that has ended fits")
    if busy:
        warn(f"{_count(busy)} still under way, left alone")


def _count(number: int) -> str:
    return f"{number} delivery" if number == 1 else f"{number} deliveries"
