"""`pickup` and `pickups`: results that receiver polls providers for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from receiver.cli.opening import acting, ask, asked, listed, load, load_to_look, made_store, pull_provider
from receiver.cli.options import (
    AsJson,
    ExpectWithin,
    Format,
    Limit,
    OfJob,
    OfRef,
    OfSource,
    Ref,
    SourceName,
    Wide,
    job_format,
    option,
    seconds,
)
from receiver.cli.output import Listing, print_attempts, print_fields, print_json, print_list, warn
from receiver.core.clock import wall_clock
from receiver.core.errors import NotFound
from receiver.core.work import Pickup, PickupState
from receiver.web.views import time_of, view

if TYPE_CHECKING:
    from receiver.settings.model import Settings
    from receiver.storage.store.store import Store

ENDED = (PickupState.COLLECTED, PickupState.GONE)
_POLL_SECONDS = 1.0
"""Between two looks at a pickup that is waited for."""
_PICKUPS = Listing(
    short=("id", "state", "attempts", "source", "outcome"),
    wide=("id", "state", "attempts", "source", "kind", "job", "ref", "event", "due", "outcome"),
    fields={"job": "job_id", "event": "event_id", "due": "due_at", "outcome": "last_outcome"},
    empty="no pickup fits",
)
Deadline = Annotated[
    str | None,
    option("--deadline", help="When to give up: 90s, 15m, 2h from now. The source's own if left out."),
]
Wait = Annotated[bool, option("--wait", help="Stay until it has ended; status 1 when it is gone.")]
_HINT = "a running `receiver serve` or `receiver work` picks it up"


def pickup(
    ctx: typer.Context,
    source: SourceName,
    result: Annotated[str, typer.Argument(help="The URL or the job id that the provider gave.")],
    ref: Ref = None,
    deadline: Deadline = None,
    expect_within: ExpectWithin = None,
    format: Format = None,
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Poll a provider for one result. The result comes back as an event."""
    settings = load(ctx)
    limit = seconds(deadline) if deadline else None
    expected = seconds(expect_within) if expect_within else 0
    made = ordered(
        settings,
        source,
        result,
        ref=ref,
        deadline_seconds=limit,
        expect_seconds=expected,
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
    expect_seconds: float = 0,
    format: Mapping[str, Any],
) -> Pickup:
    """Return the pickup of what was handed over, due now or when the callback is overdue. Raises `UsageError`, `ConfigError`."""
    from receiver.engine.pickups import new_pickup, pollable

    chosen = settings.source_named(source)
    provider = pollable(chosen, pull_provider(settings, chosen))
    return new_pickup(
        provider,
        text,
        ref=ref,
        deadline_seconds=deadline_seconds,
        expect_seconds=expect_seconds,
        format=format,
        now=wall_clock(),
    )


async def _add(settings: Settings, made: Pickup, *, wait: bool) -> tuple[Pickup, bool, str | None]:
    """Add a pickup; return the active pickup of the job, whether it is new, and the type of its event where there is one."""
    async with made_store(settings) as store:
        async with acting(store, "pickup", source=made.source):
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


# ---------------------------------------------------------------- pickups


def pickups(
    ctx: typer.Context,
    pickup_id: Annotated[str | None, typer.Argument(help="Show this one pickup with its attempts.")] = None,
    source: OfSource = None,
    state: Annotated[PickupState | None, option("--state", help="Only in this state.")] = None,
    job: OfJob = None,
    ref: OfRef = None,
    limit: Limit = 50,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """List pickups, or show one. One pickup comes with its attempts."""
    from receiver.web.api import pickups as api

    settings = load_to_look(ctx)
    if pickup_id is None:
        found = listed(settings, api.listed, limit, source=source, state=state, job_id=job, ref=ref)
        print_list(_PICKUPS, found, wide=wide, as_json=as_json)
        return
    one = asked(settings, api.one, pickup_id=pickup_id)
    fields = view(one) | {"event_type": ask(settings, lambda store: event_type_of(store, one.event_id))}
    if as_json:
        print_json(fields)
        return
    fields["format"] = ",".join(f"{key}={value}" for key, value in one.format.items())
    print_fields((name, value) for name, value in fields.items() if name != "attempts_made")
    print_attempts(one.attempts_made, wide=wide)
