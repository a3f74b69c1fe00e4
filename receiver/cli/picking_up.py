"""`pickup` and `pickups`: results brought home from a provider."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from receiver.cli.common import load, made_store, opened_store, pull_provider, source_named
from receiver.cli.inspect import AsJson, Limit
from receiver.cli.options import UsageError, job_format, option, seconds
from receiver.cli.output import print_fields, print_json, print_table, warn
from receiver.core.clock import wall_clock
from receiver.core.errors import NotFound
from receiver.core.pickup import Pickup, PickupAttempt, PickupState
from receiver.web.shown import pickup_attempt_fields, pickup_fields, time_of

if TYPE_CHECKING:
    from receiver.settings.model import Settings
    from receiver.storage.store.base import PickupFilter, Store

ENDED = (PickupState.COLLECTED, PickupState.GONE)
_LOOK_SECONDS = 1.0
"""Between two looks at a pickup that is waited for."""
_HINT = "a running `receiver serve` or `receiver work` picks it up"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(pickup)
    app.command()(pickups)


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
    as_json: Annotated[bool, option("--json", help="Print JSON.")] = False,
) -> None:
    """Pick up one result from a provider: it comes back as an event."""
    settings = load(ctx)
    made = ordered(
        settings,
        source,
        result,
        ref=ref,
        deadline_seconds=seconds(deadline) if deadline else None,
        format=job_format(format),
    )
    stands, new, event_type = asyncio.run(_add(settings, made, wait=wait))
    status = "added" if new else "known"
    if as_json:
        print_json(pickup_fields(stands) | {"status": status, "event_type": event_type})
    else:
        _tell(stands, status, event_type)
    if wait and stands.state is PickupState.GONE:
        raise typer.Exit(1)
    if wait and stands.state not in ENDED:
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
    """Add a pickup; return the one that stands, whether it is new, and the type of its event where there is one."""
    async with made_store(settings) as store:
        stands, new = await store.add_pickup(made)
        if wait:
            patience = 2 * settings.sources[made.source].attempt_seconds
            stands = await _until_ended(store, stands, patience)
        return stands, new, await event_type_of(store, stands.event_id)


async def _until_ended(store: Store, stands: Pickup, patience: float) -> Pickup:
    """Return the pickup once it has ended, or at its deadline and the time that its last attempt may take."""
    last = stands.deadline_at / 1000 + patience
    while stands.state not in ENDED and time.time() < last:
        await asyncio.sleep(_LOOK_SECONDS)
        stands = await store.pickup(stands.id)
    return stands


async def event_type_of(store: Store, event_id: str) -> str | None:
    """Return the type of an event; None while it is awaited."""
    try:
        return (await store.event(event_id)).type
    except NotFound:
        return None


def _tell(stands: Pickup, status: str, event_type: str | None) -> None:
    told = {"pickup": stands.id, "event": stands.event_id, "status": status, "state": stands.state.value}
    if event_type:
        told["type"] = event_type
    if stands.state not in ENDED:
        told["deadline"] = time_of(stands.deadline_at) or ""
    print_fields(told.items())
    if stands.state not in ENDED:
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
    """List pickups, or show one with its attempts."""
    from receiver.storage.store.base import PickupFilter

    settings = load(ctx)
    if pickup_id is not None:
        asyncio.run(_show(settings, pickup_id, as_json))
        return
    if source is not None:
        source_named(settings, source)
    wanted = PickupFilter(source=source, state=state, job_id=job, ref=ref, limit=limit)
    found = asyncio.run(_list(settings, wanted))
    if as_json:
        print_json([pickup_fields(one) for one in found])
        return
    print_table(
        ("id", "state", "attempts", "source", "kind", "job", "ref", "event", "due", "last outcome"),
        (
            (
                one.id,
                one.state,
                one.attempts,
                one.source,
                one.kind,
                one.job_id,
                one.ref,
                one.event_id,
                time_of(one.due_at),
                one.last_outcome,
            )
            for one in found
        ),
        empty="no pickup fits",
    )


async def _list(settings: Settings, wanted: PickupFilter) -> list[Pickup]:
    async with opened_store(settings) as store:
        return await store.pickups(wanted)


async def _show(settings: Settings, pickup_id: str, as_json: bool) -> None:
    async with opened_store(settings) as store:
        found = await store.pickup(pickup_id)
        attempts = await store.pickup_attempts(pickup_id)
        event_type = await event_type_of(store, found.event_id)
    fields = pickup_fields(found) | {"event_type": event_type}
    if as_json:
        print_json(fields | {"attempts_made": [pickup_attempt_fields(one) for one in attempts]})
        return
    fields["format"] = ",".join(f"{key}={value}" for key, value in found.format.items())
    print_fields(fields.items())
    print_attempts(attempts)


def print_attempts(attempts: list[PickupAttempt]) -> None:
    """Print the attempts of a pickup as a table."""
    print_table(
        ("attempt", "started", "took", "outcome", "status", "detail"),
        (
            (a.number, time_of(a.started_at), f"{a.duration_ms} ms", a.outcome, a.status, a.detail)
            for a in attempts
        ),
        empty="no attempt has been made yet",
    )
