"""`simulate deepdub` and `simulate playht`: providers that are asked, played offline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from receiver.cli.common import load, made_store, provider_settings, source_of
from receiver.cli.options import option, seconds
from receiver.cli.output import print_json, warn
from receiver.cli.picking_up import ENDED, event_type_of, ordered
from receiver.demo.playing_here import (
    HOST,
    LOOK_SECONDS,
    NOBODY,
    Heard,
    api_key,
    heard,
    need_result_host,
    own_port,
    refuse,
    saying,
    tell,
)
from receiver.web.shown import pickup_fields

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from receiver.core.pickup import Pickup
    from receiver.settings.model import Settings, SourceSettings

_NEVER_SECONDS = 5.0
"""The deadline of a pickup whose result never comes, unless another is given."""

Source = Annotated[str | None, option("--source", help="Which source, when several are of this provider.")]
Ref = Annotated[str | None, option("--ref", help="The caller's own id; comes back in the event.")]
NotReady = Annotated[
    int,
    option(
        "--not-ready",
        env="RECEIVER_SIMULATE_NOT_READY",
        help="So many questions find it not ready.",
        min=0,
        max=1000,
    ),
]
Never = Annotated[
    bool, option("--never", env="RECEIVER_SIMULATE_NEVER", help="It is never ready: the deadline ends it.")
]
Deadline = Annotated[
    str | None, option("--deadline", help="When to give up; the source's own if left out, 5s with --never.")
]
Timeout = Annotated[
    str,
    option("--timeout", env="RECEIVER_SIMULATE_TIMEOUT", help="How long to wait for the event, as 90s."),
]
AsJson = Annotated[bool, option("--json", help="Print JSON.")]


def register(simulate: typer.Typer) -> None:
    """Add the commands."""
    simulate.command(name="deepdub")(simulate_deepdub)
    simulate.command(name="playht")(simulate_playht)


def simulate_deepdub(
    ctx: typer.Context,
    source: Source = None,
    not_ready: NotReady = 2,
    no_content_type: Annotated[
        bool,
        option(
            "--no-content-type",
            env="RECEIVER_SIMULATE_NO_CONTENT_TYPE",
            help="Send the audio without saying its type.",
        ),
    ] = False,
    never: Never = False,
    ref: Ref = None,
    deadline: Deadline = None,
    timeout: Timeout = "60s",
    as_json: AsJson = False,
) -> None:
    """Be asked as Deepdub is: 404 until the audio is ready."""
    from receiver.demo.standins.deepdub import BASE_PATH, Deepdub

    settings = load(ctx)
    chosen = _source(settings, "deepdub", source, _deepdub_lines("deepdub"))
    options = provider_settings(chosen)
    port = own_port(chosen, "base_url", options.base, BASE_PATH, _deepdub_lines(chosen.name))
    standin = Deepdub(api_key(chosen, options.api_key), not_ready=not_ready)
    standin.manner = "never" if never else "ready"
    standin.content_type = None if no_content_type else "asked"
    handed = f"{options.base}/tts/retroactive/{standin.submit()}"
    made = _ordered(settings, chosen, handed, ref, deadline, never=never)
    _play(settings, standin.app, port, made, failure=never, timeout=seconds(timeout), as_json=as_json)


def simulate_playht(
    ctx: typer.Context,
    source: Source = None,
    not_ready: NotReady = 0,
    error: Annotated[bool, option("--error", env="RECEIVER_SIMULATE_ERROR", help="The job fails.")] = False,
    never: Never = False,
    ref: Ref = None,
    deadline: Deadline = None,
    timeout: Timeout = "60s",
    as_json: AsJson = False,
) -> None:
    """Be asked as PlayHT is: an event stream (or JSON, by the source's `mode`), then a link to the audio."""
    from receiver.demo.standins import playht

    settings = load(ctx)
    chosen = _source(settings, "playht", source, _playht_lines("playht"))
    options = provider_settings(chosen)
    lines = _playht_lines(chosen.name)
    port = own_port(chosen, "base_url", options.base_url, playht.API, lines)
    need_result_host(chosen, options.result_hosts, lines)
    standin = playht.Playht(api_key=api_key(chosen, options.api_key), user_id=options.user_id or "")
    under_way = [[playht.generating(0.1), playht.END]] * (1 if never else not_ready)
    streams = under_way if never else [*under_way, playht.STORY]
    job = standin.add(streams=streams, unfinished=10**9 if never else not_ready)
    if error:
        job.answers.append(playht.error(200, "the stand-in was asked to fail"))
    made = _ordered(settings, chosen, job.id, ref, deadline, never=never)
    failure = never or error
    _play(settings, standin.app, port, made, failure=failure, timeout=seconds(timeout), as_json=as_json)


# ---------------------------------------------------------------- what the settings must say


def _deepdub_lines(name: str) -> list[str]:
    return [
        f"[sources.{name}]",
        'provider = "deepdub"',
        'api_key = "any key will do"',
        f'base_url = "http://{HOST}:9901/api/v1"',
        'allow = ["127.0.0.0/8"]',
    ]


def _playht_lines(name: str) -> list[str]:
    return [
        f"[sources.{name}]",
        'provider = "playht"',
        'api_key = "any-key-will-do"',
        'user_id = "anybody"',
        f'base_url = "http://{HOST}:9902/api/v2"',
        f'result_hosts = ["{HOST}"]',
        'allow = ["127.0.0.0/8"]',
    ]


def _source(settings: Settings, provider: str, name: str | None, lines: list[str]) -> SourceSettings:
    if name is None and not any(source.provider == provider for source in settings.sources.values()):
        raise refuse(f'no source has provider = "{provider}"', lines)
    return source_of(settings, provider, name)


def _ordered(
    settings: Settings,
    source: SourceSettings,
    handed: str,
    ref: str | None,
    deadline: str | None,
    *,
    never: bool,
) -> Pickup:
    given = seconds(deadline) if deadline else None
    limit = _NEVER_SECONDS if never and given is None else given
    return ordered(settings, source.name, handed, ref=ref, deadline_seconds=limit, format={})


# ---------------------------------------------------------------- playing


def _play(
    settings: Settings,
    app: ASGIApp,
    port: int,
    made: Pickup,
    *,
    failure: bool,
    timeout: float,
    as_json: bool,
) -> None:
    requests: list[dict[str, Any]] = []
    with heard(app, port) as (hearing, _):
        ended, event_type = asyncio.run(
            _until_ended(settings, made, hearing, requests, saying(quiet=as_json), timeout)
        )
    if as_json:
        print_json({"requests": requests, "pickup": pickup_fields(ended), "event_type": event_type})
    wanted = "speech.failed" if failure else "speech.completed"
    if event_type is None:
        warn(NOBODY)
    if event_type != wanted:
        raise typer.Exit(1)


async def _until_ended(
    settings: Settings,
    made: Pickup,
    hearing: Heard,
    requests: list[dict[str, Any]],
    say: Callable[[str], None],
    within: float,
) -> tuple[Pickup, str | None]:
    async with made_store(settings) as store:
        stands, _ = await store.add_pickup(made)
        say(f"handed over: {stands.id}, to become {stands.event_id}")
        until = time.monotonic() + within
        while stands.state not in ENDED and time.monotonic() < until:
            await asyncio.sleep(LOOK_SECONDS)
            tell(hearing, requests, say)
            stands = await store.pickup(stands.id)
        tell(hearing, requests, say)
        event_type = await event_type_of(store, stands.event_id) if stands.state in ENDED else None
        if event_type:
            say(f"{stands.event_id}  {event_type}")
        return stands, event_type
