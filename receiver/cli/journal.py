"""`journal list` and `journal drain`: what waits on this machine's disk because store or blobs were out."""

from __future__ import annotations

import asyncio
import os
import pwd
import time
from typing import TYPE_CHECKING, Annotated

import typer

from receiver.cli.opening import existing_journal, load, load_to_look, opened_receiver
from receiver.cli.options import AsJson, Wide, option
from receiver.cli.output import print_fields, print_json, print_table, warn
from receiver.core.clock import wall_clock
from receiver.core.errors import JournalUnavailable, NotFound, Unavailable
from receiver.web.views import page, time_of

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver
    from receiver.core.callback import VerifiedCallback
    from receiver.settings.model import Settings
    from receiver.storage.journal import Able, Handle, Journal

Folder = Annotated[
    str | None,
    option(
        "--folder",
        env="RECEIVER_JOURNAL_FOLDER",
        help="Another journal's folder in place of this machine's.",
    ),
]
_BUSY_SECONDS = 30.0
"""How long another process may go on draining before we say so and leave it to that."""
_LOOK_SECONDS = 0.2

journal = typer.Typer(
    help="Show or drain this machine's journal. It holds callbacks that came during an outage of the store or of S3.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@journal.command("list")
def list_(ctx: typer.Context, folder: Folder = None, wide: Wide = False, as_json: AsJson = False) -> None:
    """List the callbacks that wait in this machine's journal, oldest first. Changes nothing, and needs no store."""
    from receiver.storage.journal import look

    _, folder = _chosen(load_to_look(ctx), folder)
    _readable(folder)
    now = wall_clock()
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
        print_json(page(shown))
        return
    if shown:
        warn(f"in the journal at {folder}:")
    columns = {"source": "source", "age (s)": "age_seconds", "bytes": "bytes", "reason": "reason"}
    if wide:
        columns = {"entry": "entry", "received": "received_at", **columns}
    rows = [[one[name] for name in columns.values()] for one in shown]
    empty = f"nothing waits in the journal at {folder}"
    print_table([*columns], rows, empty=empty, wide=wide)


def _chosen(settings: Settings, folder: str | None) -> tuple[Settings, str]:
    """Return the settings, and the whole path of the journal that they or `folder` name. Raises `NotFound`."""
    if folder is not None:
        path = _named(folder)
        journal = settings.journal.model_copy(update={"path": path})
        return settings.model_copy(update={"journal": journal}), path
    return settings, existing_journal(settings, otherwise=", which makes it (or name its --config)")


def _named(folder: str) -> str:
    path = os.path.abspath(folder)
    if not os.path.isdir(path):
        raise NotFound(
            f"there is no folder {path} that this user can see: copy the journal of the other machine's data folder there, "
            "or name with --folder where it lies"
        )
    inner = os.path.join(path, "journal")
    if os.path.isdir(inner):  # nothing would be found, and a person take that for nothing left
        raise NotFound(f"{path} is a data folder and no journal: write --folder {inner}")
    return path


def _readable(folder: str) -> None:
    """Raise `JournalUnavailable` where this user may not read all that waits: part of it would pass for the whole."""
    try:
        names = [name for name in os.listdir(folder) if name.endswith((".json", ".body"))]
    except OSError as error:
        raise _closed(folder, f"cannot be read ({error.strerror})") from None
    paths = [os.path.join(folder, name) for name in names]
    closed = [path for path in paths if not os.access(path, os.R_OK) and os.path.lexists(path)]
    if closed:
        raise _closed(
            folder,
            f"holds what this user may not read ({len(closed)} files, {os.path.basename(closed[0])} among them)",
        )


def _removable(folder: str) -> None:
    """Raise `JournalUnavailable` where this user may not remove what is recorded: it would be left, and nobody know why."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _closed(folder, "lies where this user may remove nothing")


def _closed(folder: str, what: str) -> JournalUnavailable:
    user = os.geteuid()
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:  # a container's number without a name
        name = str(user)
    return JournalUnavailable(
        f"the journal at {folder} {what}: run this as the user to whom it belongs, or give it to this one "
        f"(chown -R {name} {folder}), on a file system that can be written"
    )


@journal.command()
def drain(ctx: typer.Context, folder: Folder = None, as_json: AsJson = False) -> None:
    """Record what waits in this machine's journal, now; status 1 when some of it is left.

    `serve` does so by itself: this is for a machine on which it does not run, or, with --folder, for the journal of one that
    does not come back. Both may do it at once.
    """
    settings, folder = _chosen(load(ctx), folder)
    _readable(folder)
    _removable(folder)
    counts, reason = asyncio.run(_drain(settings, folder))
    if as_json:
        print_json({**counts, "reason": reason, "journal": folder})
    else:
        rows = [("known already" if name == "known" else name, count) for name, count in counts.items()]
        print_fields([*rows, ("journal", folder)])
    if counts["left"]:
        if not as_json:
            warn(reason)
        raise typer.Exit(1)


async def _drain(settings: Settings, folder: str) -> tuple[dict[str, int], str]:
    """Return how many callbacks were recorded, were known before, and are left; and why some are."""
    from receiver.settings.load import token_secrets

    token_secrets(settings)  # one that is made here would prove nothing
    async with opened_receiver(settings) as receiver:
        return await _empty(receiver, folder)


async def _empty(receiver: Receiver, folder: str) -> tuple[dict[str, int], str]:
    """Take back what waits; what a process beside us is at is its own, and waited for."""
    from receiver.storage.journal import look

    counts = {"recorded": 0, "known": 0, "left": 0}
    journal = receiver.journal

    async def take(callback: VerifiedCallback) -> None:
        recorded = await receiver.journal_drain.take_back(callback)
        counts["known" if recorded and recorded.status.value == "duplicate" else "recorded"] += 1

    reason = ""
    try:
        await _turns(journal, take, receiver.journal_drain.able)
    except Unavailable as error:
        reason = error.message
    counts["left"] = len(look(folder))
    if counts["left"] and not reason:
        reason = journal.refused or "another process is draining the journal"
    return counts, reason


async def _turns(journal: Journal, take: Handle, able: Able) -> None:
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        await journal.open()
        await journal.drain(take, able)
        if not journal.depth or not journal.being_drained() or time.monotonic() > deadline:
            return
        await asyncio.sleep(_LOOK_SECONDS)
