"""`journal list` and `journal drain`: what waits on this machine's disk because store or blobs were out (floor 9)."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from receiver.cli.common import existing_journal, load
from receiver.cli.options import option
from receiver.cli.output import print_fields, print_json, print_table, warn
from receiver.errors import Unavailable
from receiver.web.shown import time_of

if TYPE_CHECKING:
    from receiver.callback import VerifiedCallback
    from receiver.config import Settings
    from receiver.journal import Handle, Journal
    from receiver.wiring import Receiver

AsJson = Annotated[bool, option("--json", help="Print JSON.")]
_BUSY_SECONDS = 30.0
"""How long another process may go on draining before we say so and leave it to that."""
_LOOK_SECONDS = 0.2

group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group.command(name="list")(list_)
    group.command()(drain)
    app.add_typer(
        group, name="journal", help="The callbacks that wait on this machine because store or blobs were out."
    )


def list_(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the callbacks that wait in this machine's journal, oldest first. Changes nothing, and needs no store."""
    from receiver.journal import look

    folder = _folder(load(ctx))
    now = time.time_ns() // 1_000_000
    shown = [
        {
            "entry": entry.stem,
            "source": entry.source or None,
            "received_at": time_of(entry.received_at),
            "age_seconds": max(0, now - entry.received_at) // 1000,
            "bytes": entry.size,
            "reason": entry.reason,
        }
        for entry in look(folder)
    ]
    if as_json:
        print_json(shown)
        return
    if shown:
        warn(f"in the journal at {folder}:")
    columns = ("entry", "source", "received_at", "age_seconds", "bytes", "reason")
    print_table(
        ("entry", "source", "received", "age (s)", "bytes", "reason"),
        ([one[name] for name in columns] for one in shown),
        empty=f"nothing waits in the journal at {folder}",
    )


def _folder(settings: Settings) -> str:
    return existing_journal(settings, otherwise=", which makes it (or name its --config)")


@dataclass(frozen=True, slots=True)
class _Drained:
    recorded: int
    """New events, and pickups."""
    known: int
    """Callbacks that were recorded before: the provider had sent them again."""
    left: int
    reason: str
    """Why some are left."""


def drain(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Record what waits in this machine's journal, now; status 1 when some of it is left.

    `serve` does so by itself: this is for a machine on which it does not run. Both may do it at once.
    """
    settings = load(ctx)
    folder = _folder(settings)
    done = asyncio.run(_drain(settings, folder))
    if as_json:
        counts = {"recorded": done.recorded, "known": done.known, "left": done.left}
        print_json(counts | {"reason": done.reason, "journal": folder})
    else:
        told = [("recorded", done.recorded), ("known already", done.known), ("left", done.left)]
        print_fields([*told, ("journal", folder)])
    if done.left:
        if not as_json:
            warn(done.reason)
        raise typer.Exit(1)


async def _drain(settings: Settings, folder: str) -> _Drained:
    from receiver.places import postgres_url
    from receiver.wiring import build

    receiver = build(settings, observers=[])
    try:
        if postgres_url(settings) is None:
            await receiver.store.migrate()
        await receiver.store.open()
        await receiver.blobs.open()
        receiver.intake.open()
        return await _empty(receiver, folder)
    finally:
        await receiver.blobs.close()
        await receiver.store.close()


async def _empty(receiver: Receiver, folder: str) -> _Drained:
    """Take back what waits; what a process beside us is at is its own, and waited for."""
    from receiver.journal import look

    counts: Counter[str] = Counter()
    journal = receiver.journal

    async def take(callback: VerifiedCallback) -> None:
        recorded = await receiver.intake.take_back(callback)
        counts["known" if recorded.status.value == "duplicate" else "recorded"] += 1

    reason = ""
    try:
        await _turns(journal, take)
    except Unavailable as error:
        reason = error.message
    left = len(look(folder))
    if left and not reason:
        reason = journal.refused or (
            "another process is draining the journal"
            if journal.being_drained()
            else "they cannot be taken, for a reason of their own: the log of `receiver serve` tells more"
        )
    return _Drained(counts["recorded"], counts["known"], left, reason)


async def _turns(journal: Journal, take: Handle) -> None:
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        await journal.open()
        await journal.drain(take)
        if not journal.depth or not journal.being_drained() or time.monotonic() > deadline:
            return
        await asyncio.sleep(_LOOK_SECONDS)
