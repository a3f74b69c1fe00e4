"""The commands that change something: `pickup` (and `pickups`, which lists), `erase` and `sweep`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from receiver.cli.options import (
    AsJson,
    Limit,
    UsageError,
    ask,
    existing_journal,
    job_format,
    load,
    made_store,
    opened_store,
    option,
    pull_provider,
    seconds,
    source_named,
    tokens_of,
)
from receiver.cli.output import print_attempts, print_fields, print_json, print_views, warn
from receiver.core.clock import wall_clock
from receiver.core.errors import NotFound
from receiver.core.work import Pickup, PickupState
from receiver.web.views import time_of, view

if TYPE_CHECKING:
    from receiver.core.retention import Subject
    from receiver.engine.erasure import Eraser, FoundOf, Removed
    from receiver.settings.model import Settings
    from receiver.storage.blobs import Blobs
    from receiver.storage.store.store import Store

ENDED = (PickupState.COLLECTED, PickupState.GONE)
_POLL_SECONDS = 1.0
"""Between two looks at a pickup that is waited for."""
_HINT = "a running `receiver serve` or `receiver work` picks it up"


def pickup(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="Name of the source, as in [sources.NAME].")],
    result: Annotated[str, typer.Argument(help="The URL or the job id that the provider gave.")],
    ref: Annotated[
        str | None, option("--ref", help="Your own id for the job; comes back in the event.")
    ] = None,
    deadline: Annotated[
        str | None,
        option(
            "--deadline", help="When to give up: 90s, 15m, 2h, 1d from now. The source's own if left out."
        ),
    ] = None,
    format: Annotated[
        str | None,
        option(
            "--format", help="What the job asked for: encoding=linear16,container=none,sample_rate=24000."
        ),
    ] = None,
    wait: Annotated[
        bool, option("--wait", help="Stay until it has ended; status 1 when it is gone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Poll a provider for one result. The result comes back as an event."""
    settings = load(ctx)
    made = ordered(
        settings,
        source,
        result,
        ref=ref,
        deadline_seconds=seconds(deadline) if deadline else None,
        format=job_format(format),
    )
    added, new, event_type = asyncio.run(_add(settings, made, wait=wait))
    status = "added" if new else "known"
    if as_json:
        print_json(view(added) | {"status": status, "event_type": event_type})
    else:
        _print_added(added, status, event_type)
    if wait and added.state is PickupState.GONE:
        raise typer.Exit(1)
    if wait and added.state not in ENDED:
        warn(f"it has not ended, and its time is up: is a worker running? {_HINT}")
        raise typer.Exit(1)


def ordered(
    settings: Settings,
    source: str,
    text: str,
    *,
    ref: str | None,
    deadline_seconds: float | None,
    format: Mapping[str, Any],
) -> Pickup:
    """Return the pickup of what was handed over, due now. Raises `UsageError`, `ConfigError`, `PickupRefused`."""
    from receiver.engine.requests import order

    chosen = source_named(settings, source)
    provider = pull_provider(settings, chosen)
    if provider is None:
        raise UsageError(
            f"{source} is of provider {chosen.provider}, which cannot be asked for a result: it calls back"
        )
    return order(
        provider,
        text,
        ref=ref,
        deadline_seconds=deadline_seconds,
        format=format,
        now=wall_clock(),
    )


async def _add(settings: Settings, made: Pickup, *, wait: bool) -> tuple[Pickup, bool, str | None]:
    """Add a pickup; return the active pickup of the job, whether it is new, and the type of its event where there is one."""
    async with made_store(settings) as store:
        added, new = await store.add_pickup(made)
        if wait:
            patience = 2 * settings.sources[made.source].attempt_seconds
            added = await _until_ended(store, added, patience)
        return added, new, await event_type_of(store, added.event_id)


async def _until_ended(store: Store, added: Pickup, patience: float) -> Pickup:
    """Return the pickup once it has ended, or at its deadline and the time that its last attempt may take."""
    last = added.deadline_at / 1000 + patience
    while added.state not in ENDED and time.time() < last:
        await asyncio.sleep(_POLL_SECONDS)
        added = await store.pickup(added.id)
    return added


async def event_type_of(store: Store, event_id: str) -> str | None:
    """Return the type of an event; None while it is awaited."""
    try:
        return (await store.event(event_id)).type
    except NotFound:
        return None


def _print_added(added: Pickup, status: str, event_type: str | None) -> None:
    fields = {"pickup": added.id, "event": added.event_id, "status": status, "state": added.state.value}
    if event_type:
        fields["type"] = event_type
    if added.state not in ENDED:
        fields["deadline"] = time_of(added.deadline_at) or ""
    print_fields(fields.items())
    if added.state not in ENDED:
        warn(_HINT if status == "added" else f"this result is being picked up already; {_HINT}")
    elif status == "known":
        warn("this result was picked up before; the event is there")


# ---------------------------------------------------------------- looking


def pickups(
    ctx: typer.Context,
    pickup_id: Annotated[str | None, typer.Argument(help="Show this one pickup with its attempts.")] = None,
    source: Annotated[str | None, option("--source", help="Only of this source.")] = None,
    state: Annotated[PickupState | None, option("--state", help="Only in this state.")] = None,
    job: Annotated[str | None, option("--job", help="Only of this job of the provider's.")] = None,
    ref: Annotated[str | None, option("--ref", help="Only with this ref.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List pickups, or show one. One pickup comes with its attempts."""
    from receiver.core.work import PickupFilter

    settings = load(ctx)
    if pickup_id is not None:
        asyncio.run(_show(settings, pickup_id, as_json))
        return
    if source is not None:
        source_named(settings, source)
    filters = PickupFilter(source=source, state=state, job_id=job, ref=ref, limit=limit)
    found = ask(settings, lambda store: store.pickups(filters))
    if as_json:
        print_json([view(pickup) for pickup in found])
        return
    columns = {"job": "job_id", "event": "event_id", "due": "due_at", "last outcome": "last_outcome"}
    names = ("id", "state", "attempts", "source", "kind", "job", "ref", "event", "due", "last outcome")
    print_views(names, found, columns, empty="no pickup fits")


async def _show(settings: Settings, pickup_id: str, as_json: bool) -> None:
    async with opened_store(settings) as store:
        found = await store.pickup(pickup_id)
        attempts = await store.pickup_attempts(pickup_id)
        event_type = await event_type_of(store, found.event_id)
    fields = view(found) | {"event_type": event_type}
    if as_json:
        print_json(fields | {"attempts_made": [view(attempt) for attempt in attempts]})
        return
    fields["format"] = ",".join(f"{key}={value}" for key, value in found.format.items())
    print_fields(fields.items())
    print_attempts(attempts)


def erase(
    ctx: typer.Context,
    ref: Annotated[str | None, option("--ref", help="Everything with this ref.")] = None,
    job: Annotated[str | None, option("--job", help="Everything of this job (the provider's id).")] = None,
    event: Annotated[str | None, option("--event", help="One event (evt_…).")] = None,
    source: Annotated[str | None, option("--source", help="With --job: only of this source.")] = None,
    no_journal: Annotated[
        bool,
        option(
            "--no-journal", help="Leave this machine's journal out: it has none, or it is done elsewhere."
        ),
    ] = False,
    yes: Annotated[bool, option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase all data of one subject. That is its events, bodies, audio, attempts, dead letters, pickups and journal entries."""
    subject = _subject(ref, job, event, source)
    settings = load(ctx)
    journal = None if no_journal else existing_journal(settings, otherwise=_OR_LEAVE_OUT)
    asyncio.run(_erase(settings, subject, journal, yes=yes, as_json=as_json))


_OR_LEAVE_OUT = "; or add --no-journal to leave it out. Nothing was erased"


def _subject(ref: str | None, job: str | None, event: str | None, source: str | None) -> Subject:
    from receiver.core.retention import Subject, SubjectKind

    named = {SubjectKind.REF: ref, SubjectKind.JOB: job, SubjectKind.EVENT: event}
    given = [(kind, key) for kind, key in named.items() if key]
    if len(given) != 1:
        raise UsageError("name one subject: --ref, --job or --event")
    kind, key = given[0]
    if source is not None and kind is not SubjectKind.JOB:
        raise UsageError("--source goes with --job only")
    return Subject(kind=kind, key=key, source=source)


async def _erase(
    settings: Settings, subject: Subject, journal: str | None, *, yes: bool, as_json: bool
) -> None:
    from receiver.settings.load import token_secrets

    async with _opened(settings, journal) as eraser:
        secrets = token_secrets(settings)
        found = await eraser.look(subject)
        if not found:
            before = await eraser.erased_before([subject.digest(secret) for secret in secrets])
            _tell_nothing(before, journal, as_json=as_json)
            _tell_unreadable(found)
            return
        if not yes:
            _confirm_erasing(found)
        removed = await eraser.erase(subject, found, digest=subject.digest(secrets[-1]), now=wall_clock())
    _tell_erased(removed, journal, as_json=as_json)
    _tell_unreadable(found)


@asynccontextmanager
async def _opened(settings: Settings, folder: str | None) -> AsyncIterator[Eraser]:
    from receiver.app.wiring import build_providers
    from receiver.core.observe import Observers
    from receiver.engine.erasure import Eraser
    from receiver.providers import PushProvider
    from receiver.storage.journal import Journal

    journal = None
    if folder is not None:
        kept = settings.journal.max_bytes
        journal = Journal(folder, max_bytes=kept, observer=Observers([]), clock=wall_clock)
    async with opened_store(settings) as store, _opened_blobs(settings) as blobs:
        if journal is not None:
            await journal.open()
        adapters = build_providers(settings, tokens_of(settings))
        providers = {name: adapter for name, adapter in adapters.items() if isinstance(adapter, PushProvider)}
        yield Eraser(store=store, blobs=blobs, journal=journal, providers=providers)


@asynccontextmanager
async def _opened_blobs(settings: Settings) -> AsyncIterator[Blobs]:
    from receiver.app.wiring import build_blobs

    blobs = build_blobs(settings)
    await blobs.open()
    try:
        yield blobs
    finally:
        await blobs.close()


def _confirm_erasing(found: FoundOf) -> None:
    traces = found.traces
    counts = (
        ("event", "events", len(traces.event_ids)),
        ("callback", "callbacks", len(traces.callbacks)),
        ("delivery", "deliveries", traces.deliveries),
        ("pickup", "pickups", len(traces.pickup_ids)),
        ("stored object", "stored objects", len(traces.blob_keys)),
        (
            "entry of this machine's journal",
            "entries of this machine's journal",
            len(found.journaled),
        ),
    )
    amounts = ", ".join(
        f"{count} {single if count == 1 else many}" for single, many, count in counts if count
    )
    if not sys.stdin.isatty():
        raise UsageError(f"{amounts} would be erased for good: add --yes")
    if not typer.confirm(f"Erase {amounts} for good?"):
        raise typer.Exit(1)


def _tell_nothing(before: int | None, journal: str | None, *, as_json: bool) -> None:
    from receiver.core.envelope import iso

    if as_json:
        shown = None if before is None else iso(before)
        print_json({"found": False, "erased_before": shown, "journal": journal})
    elif before is not None:
        typer.echo(f"nothing of it is left; it was erased at {iso(before)}")
    else:
        here = "" if journal is None else f" (here: {journal})"
        warn(
            "there is nothing of it: look at the spelling, and ask each machine that has a journal of its own"
            f"{here}"
        )


def _tell_erased(removed: Removed, journal: str | None, *, as_json: bool) -> None:
    from dataclasses import asdict

    counts = asdict(removed)
    if as_json:
        print_json({"found": True, **counts, "journal": journal})
        return
    rows = [(name.replace("_", " "), count) for name, count in counts.items()]
    print_fields([*rows, ("journal", journal or "left out")])
    warn("each machine has a journal of its own: run the same on every machine that takes callbacks")


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

    from receiver.app.observers import LogObserver
    from receiver.core.observe import Observers
    from receiver.engine.janitor import Janitor, Limits

    counts: Counter[str] = Counter()
    async with opened_store(settings) as store, _opened_blobs(settings) as blobs:
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


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (pickup, pickups, erase, sweep):
        app.command()(command)
