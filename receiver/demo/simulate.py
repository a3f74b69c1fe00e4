"""`simulate` and `demo`: their commands and options."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from msgspec import Struct

from receiver.cli.opening import load, made_store, newest, provider_settings, read_file, source_of, tokens_of
from receiver.cli.options import AsJson, Ref, job_format, option, seconds
from receiver.cli.output import clean, print_json, warn
from receiver.cli.pickups import event_type_of, ordered
from receiver.core.clock import wall_clock
from receiver.core.errors import UsageError
from receiver.web.views import view

if TYPE_CHECKING:
    from receiver.core.work import Pickup
    from receiver.demo.deapi import Job
    from receiver.demo.serving import Callback, CallbackAttempt, Provider, RequestRecord
    from receiver.settings.model import Settings, SourceSettings
    from receiver.storage.store.store import Store


_LOCAL = ("127.0.0.1", "localhost")
_POLL_SECONDS = 0.2
"""Between two looks into the store."""
_NEVER_SECONDS = 5.0
"""The deadline of a pickup whose result never comes, unless another is given."""
_NO_EVENT = "no event came: is `receiver serve` or `receiver work` running, with these settings?"


class Simulation(Struct):
    """One run of `simulate`: which source is played, how long, and how it is printed."""

    settings: Settings
    source: SourceSettings
    timeout: float
    as_json: bool
    requests: list[dict[str, Any]] = []
    """The printed requests: method, path and status; never a query or a header."""

    @classmethod
    def of(
        cls,
        ctx: typer.Context,
        provider: str,
        name: str | None,
        polled: type[Provider] | None = None,
        *,
        timeout: str = "60s",
        as_json: bool,
    ) -> Simulation:
        """Return the run for a source of this provider: the one of this name, or the only one.

        Without any, the command ends; of a provider that is `polled` it shows the settings that are missing.
        """
        settings = load(ctx)
        known = any(source.provider == provider for source in settings.sources.values())
        if polled is not None and name is None and not known:
            raise _refuse(f'no source has provider = "{provider}"', polled, provider)
        return cls(settings, source_of(settings, provider, name), seconds(timeout), as_json)

    def say(self, text: str) -> None:
        """Print a line, unless JSON is to be printed."""
        if not self.as_json:
            typer.echo(clean(text))

    # ------------------------------------------------------------ calling back

    def callback_url(
        self,
        url: str | None,
        format: dict[str, Any],
        *,
        ref: str | None,
        wrong: bool = False,
        job_secret: bool = False,
    ) -> str:
        """Return the callback URL to call: `url` as it is if it is one, else made as `callback-url` does."""
        from receiver.core import urls
        from receiver.settings.load import public_base

        if url is not None and "/callbacks/" in url:
            return url
        base = url or public_base(self.settings.model_copy(update={"public_url": None}))
        basic = newest(self.source, "basic") if self.source.provider == "deepgram" else None
        issue = tokens_of(self.settings).issue
        token = issue(self.source.name, ref=ref, format=format, job_secret=job_secret)
        if wrong and basic:
            basic = f"somebody:{secrets.token_hex(8)}"
        elif wrong:
            token = token[::-1]
        return urls.compose(base, self.source.name, token=token, basic=basic)

    def document(self, product: str, file: Path | None) -> dict[str, Any]:
        """Return the document that Deepgram sends: the one in the file, or the product's result."""
        from receiver.demo import deepgram

        if file is None:
            secret = newest(self.source, "callback_secrets")
            return deepgram.result(product, now=wall_clock(), callback_secret=secret)
        try:
            document = json.loads(read_file(file))
        except ValueError:
            raise UsageError(f"{file} is not JSON") from None
        if not isinstance(document, dict):
            raise UsageError(f"{file} is not a JSON object")
        return document

    def deapi_secret(self, url: str, *, job_secret: bool, wrong: bool) -> str:
        """Return what deAPI signs with. Raises `UsageError` when the source has no secret."""
        if wrong:
            return secrets.token_hex(32)
        if job_secret:
            return tokens_of(self.settings).job_secrets(urlsplit(url).path.rpartition("/")[2])[0]
        secret = newest(self.source, "secrets")
        if secret is None:
            raise UsageError(f"sources.{self.source.name}.secrets is empty: add one, or use --job-secret")
        return secret

    def send(
        self,
        callbacks: Iterable[tuple[str, Callable[[], Callback]]],
        waits: Sequence[float],
        ca_file: str | None,
        *,
        refused: bool,
        events_of: Sequence[str] = (),
    ) -> None:
        """Send each callback until it is taken, `waits` (seconds) apart, and print each try as it is made.

        Ends with status 0 when the last try of each label was taken, or `refused`, as it should be; and when the events
        came that the answers to `events_of` (labels) name.
        """
        from receiver.demo.serving import open_client, send_until_accepted

        last: dict[str, CallbackAttempt] = {}
        lines, came = [], True
        with open_client(ca_file) as client:
            for label, make in callbacks:
                for attempt in send_until_accepted(client, make, label=label, waits=waits):
                    last[label] = attempt
                    lines.append({"label": label, "try": attempt.number, "status": attempt.status})
                    lines[-1] |= {"answer": attempt.answer, "seconds": round(attempt.seconds, 3)}
                    status, took = attempt.status or "---", f"{attempt.seconds * 1000:.0f} ms"
                    self.say(f"{label}  try {attempt.number}  {status}  {took}  {attempt.answer}")
                    if label in events_of and attempt.accepted:
                        came &= self._came(attempt)
        if self.as_json:
            print_json(lines)
        if not all(
            attempt.status in (401, 403) if refused else attempt.accepted for attempt in last.values()
        ):
            raise typer.Exit(1)
        if not came:
            warn(_NO_EVENT)
            raise typer.Exit(1)

    def _came(self, attempt: CallbackAttempt) -> bool:
        """Tell whether the event came that an answer names; one that the journal keeps has no name yet."""
        from receiver.demo.stage import answer_of

        event_id = answer_of(attempt).get("event_id")

        async def wait(event_id: str) -> bool:
            async with made_store(self.settings) as store:
                return await self._event_type(store, event_id) is not None

        return event_id is None or asyncio.run(wait(event_id))

    async def _event_type(self, store: Store, event_id: str) -> str | None:
        """Wait for an event, print it and return its type; None when it does not come in time."""
        until = time.monotonic() + self.timeout
        while True:
            event_type = await event_type_of(store, event_id)
            if event_type is not None:
                self.say(f"{event_id}  {event_type}")
            if event_type is not None or time.monotonic() >= until:
                return event_type
            await asyncio.sleep(_POLL_SECONDS)

    # ------------------------------------------------------------ being polled

    def port_and_key(self, provider: type[Provider], *, polled: bool = True) -> tuple[int, str]:
        """Return the port of this machine at which a source looks for the provider, and the key that it sends.

        Where nothing is `polled`, the port may be any (0) and there may be no key (""). Ends the command when the settings
        lead elsewhere; raises `UsageError` without a key.
        """
        from receiver.core.errors import AddressBlocked
        from receiver.outbound.guard import Guard, listed

        options, (setting, path) = provider_settings(self.source), provider.address
        where, parts = f"sources.{self.source.name}", urlsplit(getattr(options, setting) or "")
        local = parts.hostname in _LOCAL
        if (polled or local) and not (
            local and parts.scheme == "http" and parts.port and parts.path.rstrip("/") == path
        ):
            reason = f"{where}.{setting} is not this machine's http://127.0.0.1:PORT{path}"
            raise _refuse(reason, provider, self.source.name)
        try:
            Guard(self.source.allow).check("127.0.0.1", "127.0.0.1")
        except AddressBlocked:
            raise _refuse(f"{where}.allow does not have 127.0.0.1", provider, self.source.name) from None
        if not listed("127.0.0.1", getattr(options, "result_hosts", ("*",))):
            raise _refuse(f"{where}.result_hosts does not have 127.0.0.1", provider, self.source.name)
        if polled and options.api_key is None:
            raise UsageError(f"{where}.api_key is not set: the simulated provider takes any")
        key = options.api_key.get_secret_value() if options.api_key else ""
        return (parts.port or 0) if local else 0, key

    def pickup(self, job_id: str, ref: str | None, deadline: str | None, *, never: bool) -> Pickup:
        """Return the pickup of a job, as `receiver pickup` makes it."""
        limit = seconds(deadline) if deadline else (_NEVER_SECONDS if never else None)
        return ordered(self.settings, self.source.name, job_id, ref=ref, deadline_seconds=limit, format={})

    def pick_up(self, provider: Provider, port: int, pickup: Pickup, *, failure: bool) -> None:
        """Hand a pickup over, answer receiver's requests, and end with status 0 when its event is as it should be."""
        with self.served(provider, port):
            ended, event_type = asyncio.run(self._added(pickup))
        if self.as_json:
            print_json({"requests": self.requests, "pickup": view(ended), "event_type": event_type})
        if event_type is None:
            warn(_NO_EVENT)
        if event_type != ("speech.failed" if failure else "speech.completed"):
            raise typer.Exit(1)

    async def _added(self, pickup: Pickup) -> tuple[Pickup, str | None]:
        """Add a pickup; return how it ended, and the type of its event: None when that does not come in time."""
        async with made_store(self.settings) as store:
            added, _ = await store.add_pickup(pickup)
            self.say(f"handed over: {added.id}, to become {added.event_id}")
            event_type = await self._event_type(store, added.event_id)
            return await store.pickup(added.id), event_type

    @contextlib.contextmanager
    def served(self, provider: Provider, port: int) -> Iterator[str]:
        """Serve a provider on a port of this machine (0: a free one), and print each request that it answers.

        Raises `UsageError` when the port is taken.
        """
        from receiver.demo.serving import served

        provider.on_answer = self._print_request
        with contextlib.ExitStack() as stack:
            try:
                base = stack.enter_context(served(provider.app, port=port))
            except OSError:
                taken = f"port {port} is taken by another program, perhaps another simulate: end it"
                raise UsageError(taken) from None
            yield base

    def _print_request(self, request: RequestRecord) -> None:
        self.requests.append({"method": request.method, "path": request.path, "status": request.status})
        self.say(f"{request.method} {request.path}  {request.status}")


def _refuse(reason: str, provider: type[Provider], name: str) -> typer.Exit:
    """Print what is missing in the settings and return the end of the command, to be raised."""
    warn(f"receiver: {reason}. With these settings it can be played, once `receiver reload` has taken them:")
    warn(f"[sources.{name}]")
    for setting, value in provider.settings().items():
        warn(f"{setting} = {json.dumps(value)}")
    return typer.Exit(2)


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
    waits = _waits(deepgram.WAITS, attempts, time_scale, refused=wrong_credentials)
    run.send([(label, lambda: callback)] * (1 + duplicate), waits, ca_file, refused=wrong_credentials)


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
        waits = _waits(deapi.WAITS, attempts, time_scale, refused=wrong_credentials)
        run.send(job.callbacks(events), waits, ca_file, refused=wrong_credentials, events_of=events_of)


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
    waits = _waits((1.0,), attempts or 1)
    run.send([("callback", lambda: callback)] * (1 + duplicate), waits, ca_file, refused=wrong_credentials)


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


def _waits(
    real: Sequence[float], attempts: int | None, scale: float = 1.0, *, refused: bool = False
) -> list[float]:
    """Return the seconds between the tries: as many as the provider makes, or only one where a refusal is wanted."""
    from receiver.demo.serving import waits_of

    return waits_of(real, attempts=attempts or (1 if refused else None), scale=scale)


def _audio(file: Path | None, content_type: str | None) -> tuple[bytes, str]:
    """Return audio and its type: the file's, or a short spoken sentence."""
    from receiver.demo import deepgram, serving

    audio, name = (read_file(file), file.name) if file else (serving.sample_audio(), "speech.mp3")
    return audio, content_type or deepgram.media_type_of(audio, name)
