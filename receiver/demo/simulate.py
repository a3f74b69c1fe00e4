"""`simulate` and `demo`: their commands and options."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from receiver.cli.opening import newest, provider_settings, read_file
from receiver.cli.options import AsJson, Ref, job_format, option
from receiver.core.clock import wall_clock
from receiver.core.errors import UsageError
from receiver.demo.simulation import Simulation, Tries

if TYPE_CHECKING:
    from receiver.demo.deapi import Job

simulate = typer.Typer(
    help="Play a provider, offline. It calls a running receiver.", no_args_is_help=True, rich_markup_mode=None
)


def own(*names: str, help: str, **more: Any) -> Any:
    """Return an option whose environment variable begins with RECEIVER_SIMULATE_."""
    flag = names[0].split("/")[0].removeprefix("--").replace("-", "_").upper()
    return option(*names, env=f"RECEIVER_SIMULATE_{flag}", help=help, **more)


# ---------------------------------------------------------------- options

Url = Annotated[
    str | None,
    own("--url", help="Where receiver listens, or a whole callback URL; by default from the settings."),
]
Source = Annotated[str | None, option("--source", help="Which source, when several are of this provider.")]
Scale = Annotated[
    float, option("--time-scale", help="1 waits between tries as the provider does; 0 not at all.", min=0)
]
CaFile = Annotated[
    str | None, own("--ca-file", help="More certificate authorities to trust (PEM), for an https:// URL.")
]
Wrong = Annotated[bool, option("--wrong-credentials", help="Be somebody else: success is a refusal.")]
Duplicate = Annotated[bool, option("--duplicate", help="Send everything twice.")]
Attempts = Annotated[
    int | None,
    own("--attempts", help="Most tries; as the provider, or 1 with --wrong-credentials.", min=1, max=100),
]
Error = Annotated[bool, own("--error", help="Have the job fail.")]
NotReady = Annotated[int, own("--not-ready", help="So many polls find it not ready.", min=0, max=1000)]
Never = Annotated[bool, own("--never", help="It is never ready: the deadline ends it.")]
Deadline = Annotated[
    str | None, option("--deadline", help="When to give up; the source's own if left out, 5s with --never.")
]
Timeout = Annotated[str, own("--timeout", help="How long to wait for the event, as 90s.")]

Product = Annotated[str, own("--product", help="speak (audio), listen or read (JSON).")]
File = Annotated[Path | None, own("--file", help="Audio to send; built-in speech if left out.")]
JsonResult = Annotated[Path | None, own("--json-result", help="Send this JSON document.")]
ContentType = Annotated[str | None, own("--content-type", help="Say this of the audio.")]
Format = Annotated[
    str | None,
    option("--format", help="What the job asked for: encoding=mulaw,container=none,sample_rate=8000."),
]
Method = Annotated[str, own("--method", help="post or put, as callback_method.")]
Chunked = Annotated[bool, own("--chunked", help="Send without a Content-Length.")]

Event = Annotated[str, own("--event", help="processing, completed, failed, or all (the first two).")]
JobType = Annotated[str, own("--job-type", help="As deAPI names it.")]
ResultUrl = Annotated[
    str | None, own("--result-url", help="Where the result lies; served on this machine if left out.")
]
ExpiredLink = Annotated[
    bool,
    own("--expired-link", help="The link is dead on arrival; polled, deAPI gives a fresh one."),
]
JobSecret = Annotated[
    bool,
    option("--job-secret", help="Sign with a webhook_secret of the job's own, as callback-url hands out."),
]
OutOfOrder = Annotated[bool, own("--out-of-order", help="Send the last event first.")]
RequestFile = Annotated[
    Path | None,
    own(
        "--request",
        help="A request as it is sent: line, headers, empty line, body. The recipe's if left out.",
    ),
]
Untyped = Annotated[bool, own("--no-content-type", help="Send the audio without saying its type.")]

_FOR_EVER = 10**9
"""Polls that find a result not ready: more than anybody makes."""


# ---------------------------------------------------------------- commands


@simulate.command("deepgram")
def simulate_deepgram(
    ctx: typer.Context,
    url: Url = None,
    source: Source = None,
    product: Product = "speak",
    file: File = None,
    json_result: JsonResult = None,
    content_type: ContentType = None,
    format: Format = None,
    method: Method = "post",
    chunked: Chunked = False,
    error: Error = False,
    attempts: Attempts = None,
    ca_file: CaFile = None,
    ref: Ref = None,
    time_scale: Scale = 0.01,
    wrong_credentials: Wrong = False,
    duplicate: Duplicate = False,
    as_json: AsJson = False,
) -> None:
    """Call back as Deepgram does: Basic credentials, POST or PUT, up to ten more tries."""
    from receiver.demo import deepgram

    if product not in deepgram.PRODUCTS:
        raise UsageError(f"--product is one of {', '.join(deepgram.PRODUCTS)}")
    if method.lower() not in ("post", "put"):
        raise UsageError("--method is post or put")
    job, run = job_format(format), Simulation.of(ctx, "deepgram", source, as_json=as_json)
    target = run.callback_url(url, {"product": product} | job, ref=ref, wrong=wrong_credentials)
    if error or json_result or product != "speak":
        document = deepgram.failure() if error else run.document(product, json_result)
        dg_token = newest(run.source, "dg_token")
        callback = deepgram.document(target, document, method=method, dg_token=dg_token)
    else:
        audio, kind = _audio(file, content_type or deepgram.media_type(job))
        callback = deepgram.speech(target, audio, content_type=kind, method=method, chunked=chunked)
    label = "failure" if error else deepgram.PRODUCTS[product]
    tries = Tries(deepgram.WAITS, attempts, time_scale)
    run.send([(label, lambda: callback)] * (1 + duplicate), tries, ca_file, refused=wrong_credentials)


@simulate.command("deapi")
def simulate_deapi(
    ctx: typer.Context,
    url: Url = None,
    source: Source = None,
    event: Event = "all",
    job_type: JobType = "txt2audio",
    result_url: ResultUrl = None,
    expired_link: ExpiredLink = False,
    timeout: Timeout = "60s",
    job_secret: JobSecret = False,
    out_of_order: OutOfOrder = False,
    attempts: Attempts = None,
    ca_file: CaFile = None,
    ref: Ref = None,
    time_scale: Scale = 0.0001,
    wrong_credentials: Wrong = False,
    duplicate: Duplicate = False,
    as_json: AsJson = False,
) -> None:
    """Call back as deAPI does: three events, each try signed afresh, ten tries; and have the result fetched."""
    from receiver.demo import deapi

    if event not in (*deapi.EVENTS, "all"):
        raise UsageError(f"--event is one of {', '.join(deapi.EVENTS)} or all")
    run = Simulation.of(ctx, "deapi", source, timeout=timeout, as_json=as_json)
    target = run.callback_url(url, {}, ref=ref, job_secret=job_secret)
    secret = run.deapi_secret(target, job_secret=job_secret, wrong=wrong_credentials)
    events = deapi.event_order(event, out_of_order=out_of_order, duplicate=duplicate)
    has_result = "completed" in events and result_url is None
    if expired_link and not has_result:
        raise UsageError("--expired-link is for a completed job whose result lies on this machine")
    job = deapi.Job(target, secret, kind=job_type, result_url=result_url)
    fetched = has_result and not wrong_credentials
    with _result(run, job, expired=expired_link) if fetched else contextlib.nullcontext(job) as job:
        events_of = ("job.completed",) if fetched else ()
        tries = Tries(deapi.WAITS, attempts, time_scale)
        run.send(job.callbacks(events), tries, ca_file, refused=wrong_credentials, events_of=events_of)


@contextlib.contextmanager
def _result(run: Simulation, job: Job, *, expired: bool) -> Iterator[Job]:
    """Serve the result of a job, with a link that is dead where it is `expired`; then deAPI is polled for a fresh one."""
    from receiver.demo.deapi import Deapi

    port, key = run.port_and_key(Deapi, polled=expired)
    provider = Deapi(key)
    with run.served(provider, port) as base:
        job_id, link = provider.finished(base, job.kind, expired=expired)
        yield replace(job, id=job_id, result_url=link)


@simulate.command("deepdub")
def simulate_deepdub(
    ctx: typer.Context,
    source: Source = None,
    not_ready: NotReady = 2,
    no_content_type: Untyped = False,
    never: Never = False,
    ref: Ref = None,
    deadline: Deadline = None,
    timeout: Timeout = "60s",
    as_json: AsJson = False,
) -> None:
    """Be polled as Deepdub is: 404 until the audio is ready."""
    from receiver.demo.deepdub import Deepdub

    run = Simulation.of(ctx, "deepdub", source, Deepdub, timeout=timeout, as_json=as_json)
    port, key = run.port_and_key(Deepdub)
    provider = Deepdub(key, not_ready=_FOR_EVER if never else not_ready)
    provider.content_type = None if no_content_type else "asked"
    pickup = run.pickup(provider.submit(), ref, deadline, never=never)
    run.pick_up(provider, port, pickup, failure=never)


@simulate.command("playht")
def simulate_playht(
    ctx: typer.Context,
    source: Source = None,
    not_ready: NotReady = 0,
    error: Error = False,
    never: Never = False,
    ref: Ref = None,
    deadline: Deadline = None,
    timeout: Timeout = "60s",
    as_json: AsJson = False,
) -> None:
    """Be polled as PlayHT is: an event stream (or JSON, by the source's `mode`), then a link to the audio."""
    from receiver.demo import playht

    run = Simulation.of(ctx, "playht", source, playht.Playht, timeout=timeout, as_json=as_json)
    port, key = run.port_and_key(playht.Playht)
    provider = playht.Playht(api_key=key, user_id=provider_settings(run.source).user_id or "")
    under_way = [[playht.generating(0.1), playht.END]] * (1 if never else not_ready)
    streams = under_way if never else [*under_way, playht.WHOLE_STREAM]
    job = provider.add(streams=streams, unfinished=_FOR_EVER if never else not_ready)
    if error:
        job.answers.append(playht.error(200, "the simulated provider was asked to fail"))
    pickup = run.pickup(job.id, ref, deadline, never=never)
    run.pick_up(provider, port, pickup, failure=never or error)


@simulate.command("custom")
def simulate_custom(
    ctx: typer.Context,
    url: Url = None,
    source: Source = None,
    request: RequestFile = None,
    attempts: Attempts = None,
    ca_file: CaFile = None,
    ref: Ref = None,
    wrong_credentials: Wrong = False,
    duplicate: Duplicate = False,
    as_json: AsJson = False,
) -> None:
    """Call back as the provider of a recipe does: its example, or a request of yours, proved with the source's own secret."""
    from receiver.demo.custom import Player, request_of
    from receiver.demo.serving import Callback
    from receiver.providers.custom.language import recipe_example, recipe_of
    from receiver.settings.load import public_base

    run = Simulation.of(ctx, "custom", source, as_json=as_json)
    options = provider_settings(run.source)
    if request is not None:
        example = read_file(request)
    elif (recipe := recipe_of(options)) is not None:
        example = recipe_example(recipe)
    else:
        raise UsageError(f"[sources.{run.source.name}] has no recipe with an example: give --request FILE")
    target = run.callback_url(url, {}, ref=ref, wrong=wrong_credentials and not options.proof)
    known = public_base(run.settings) + urlsplit(target).path
    if wrong_credentials:
        from pydantic import SecretStr

        options = options.model_copy(update={"secrets": (SecretStr(secrets.token_hex(16)),)})
    sent = Player(options).play(request_of(example, run.source.name, known, options.body, wall_clock()))
    whole = f"{target}{'?' if sent.head.query else ''}{sent.head.query}"
    callback = Callback(sent.head.method, whole, dict(sent.head.headers), sent.body)
    tries = Tries((1.0,), attempts or 1)
    run.send([("callback", lambda: callback)] * (1 + duplicate), tries, ca_file, refused=wrong_credentials)


def demo(
    folder: Annotated[
        Path,
        option(
            "--folder", env="RECEIVER_DEMO_FOLDER", help="Made afresh each time; left for looking further."
        ),
    ] = Path("receiver-demo"),
    stay: Annotated[
        bool | None,
        option(
            "--stay/--no-stay",
            env="RECEIVER_DEMO_STAY",
            help="Stay up afterwards, with the console; the default in a terminal.",
        ),
    ] = None,
) -> None:
    """Show the main job on this machine. It takes less than a minute, and says each step."""
    from receiver.demo.demo import show

    raise typer.Exit(show(folder, stay=stay))


def _audio(file: Path | None, content_type: str | None) -> tuple[bytes, str]:
    """Return audio and its type: the file's, or a short spoken sentence."""
    from receiver.demo import deepgram, serving

    audio, name = (read_file(file), file.name) if file else (serving.sample_audio(), "speech.mp3")
    return audio, content_type or deepgram.media_type_of(audio, name)
