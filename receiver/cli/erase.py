"""`erase` and `sweep`: what removes data."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from receiver.cli.opening import acting, existing_journal, load, opened_blobs, opened_store, tokens_of
from receiver.cli.options import AsJson, Yes, confirm, given
from receiver.cli.output import counted, print_fields, print_json, warn
from receiver.core.clock import wall_clock

if TYPE_CHECKING:
    from receiver.core.retention import Subject
    from receiver.engine.erasure import Eraser, FoundOf, Removed
    from receiver.settings.model import Settings


def erase(
    ctx: typer.Context,
    ref: Annotated[str | None, given("--ref", help="Everything with this ref.")] = None,
    job: Annotated[str | None, given("--job", help="Everything of this job (the provider's id).")] = None,
    event: Annotated[str | None, given("--event", help="One event (evt_…).")] = None,
    source: Annotated[str | None, given("--source", help="With --job: only of this source.")] = None,
    no_journal: Annotated[
        bool,
        given("--no-journal", help="Leave this machine's journal out: it has none, or it is done elsewhere."),
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Erase all data of one subject. That is its events, bodies, audio, attempts, dead letters, pickups and journal entries."""
    from receiver.core.retention import subject_of

    words = ("--ref", "--job", "--event", "--source")
    subject = subject_of(ref=ref, job_id=job, event_id=event, source=source, words=words)
    settings = load(ctx)
    journal = None if no_journal else existing_journal(settings, otherwise=_OR_LEAVE_OUT)
    asyncio.run(_erase(settings, subject, journal, yes=yes, as_json=as_json))


_OR_LEAVE_OUT = "; or add --no-journal to leave it out. Nothing was erased"


async def _erase(
    settings: Settings, subject: Subject, journal: str | None, *, yes: bool, as_json: bool
) -> None:
    async with _opened(settings, journal) as eraser:
        found = await eraser.look(subject)
        if not found:
            before = await eraser.erased_before(subject)
            if yes:  # for the journals of other machines
                async with acting(eraser.store, "erase", kind=subject.kind, source=subject.source):
                    await eraser.erase(subject, found, now=wall_clock())
            _tell_nothing(before, journal, as_json=as_json)
            _tell_unreadable(found)
            return
        if not yes:
            amounts = _amounts(found)
            confirm(f"Erase {amounts} for good?", f"{amounts} would be erased for good")
        async with acting(eraser.store, "erase", kind=subject.kind, source=subject.source):
            removed = await eraser.erase(subject, found, now=wall_clock())
    _tell_erased(removed, journal, as_json=as_json)
    _tell_unreadable(found)


@asynccontextmanager
async def _opened(settings: Settings, folder: str | None) -> AsyncIterator[Eraser]:
    from receiver.app.wiring import build_providers
    from receiver.core.observe import Observers
    from receiver.engine.erasure import Eraser
    from receiver.providers import PushProvider
    from receiver.settings.load import token_secrets
    from receiver.storage.journal import Journal

    journal = None
    if folder is not None:
        kept = settings.journal.max_bytes
        journal = Journal(folder, max_bytes=kept, observer=Observers([]), clock=wall_clock)
    async with opened_store(settings) as store, opened_blobs(settings) as blobs:
        if journal is not None:
            await journal.open()
        adapters = build_providers(settings, tokens_of(settings))
        providers = {name: adapter for name, adapter in adapters.items() if isinstance(adapter, PushProvider)}
        secrets = token_secrets(settings)
        yield Eraser(store=store, blobs=blobs, journal=journal, providers=providers, secrets=secrets)


def _amounts(found: FoundOf) -> str:
    from receiver.engine.erasure import WORDS

    counts = ((getattr(found.counts, name), words) for name, words in WORDS.items())
    return ", ".join(counted(count, *words) for count, words in counts if count)


def _tell_nothing(before: int | None, journal: str | None, *, as_json: bool) -> None:
    from receiver.core.clock import iso

    if as_json:
        shown = None if before is None else iso(before)
        print_json({"found": False, "erased_before": shown, "journal": journal})
    elif before is not None:
        typer.echo(f"no data of it is left: it was erased at {iso(before)}")
    else:
        here = "" if journal is None else f" (here: {journal})"
        warn(
            "there is nothing of it: look at the spelling; with --yes other machines drop what their journals have of it"
            f"{here}"
        )


def _tell_erased(removed: Removed, journal: str | None, *, as_json: bool) -> None:
    from msgspec.structs import asdict

    counts = asdict(removed)
    if as_json:
        print_json({"found": True, **counts, "journal": journal})
        return
    rows = [(name.replace("_", " "), count) for name, count in counts.items()]
    print_fields([*rows, ("journal", journal or "left out")])
    warn("other machines drop its callbacks from their journals when they drain them")


def _tell_unreadable(found: FoundOf) -> None:
    """What could not be looked at may be the subject's: status 1."""
    for sentence in found.unreadable:
        warn(f"not looked at, so it may be left: {sentence}")
    if found.unreadable:
        raise typer.Exit(1)


def sweep(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Remove expired data now. `serve` and `work` do so by themselves, as `[retention]` says."""
    counts = asyncio.run(_sweep(load(ctx)))
    if as_json:
        print_json(dict(counts))
    elif counts:
        print_fields([(name.replace("_", " "), count) for name, count in counts.items()])
    else:
        typer.echo("nothing is older than it is kept")


async def _sweep(settings: Settings) -> Counter[str]:
    import math

    from receiver.app.log import LogObserver
    from receiver.core.observe import Observers
    from receiver.engine.janitor import Janitor, Limits

    counts: Counter[str] = Counter()
    async with opened_store(settings) as store, opened_blobs(settings) as blobs:
        observer = Observers([LogObserver(style="console", level="warning")])
        janitor = Janitor(
            store,
            blobs,
            settings.retention.kept,
            observer,
            wall_clock,
            limits=Limits(budget_seconds=math.inf),
        )
        while True:
            counts.update(await janitor.step(wall_clock()))
            if not janitor.behind:
                return counts
