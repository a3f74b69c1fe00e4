"""`simulate` and `demo`: the provider played offline, and the main job shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from receiver.cli.options import (
    AsJson,
    job_format,
    load,
    made_store,
    newest,
    option,
    provider_settings,
    seconds,
    source_of,
    tokens_of,
)
from receiver.cli.output import clean, print_json, warn
from receiver.cli.requests import ENDED, event_type_of, ordered
from receiver.core.clock import wall_clock
from receiver.core.errors import UsageError
from receiver.web.views import view

if TYPE_CHECKING:
    import httpx2

    from receiver.core.work import Pickup
    from receiver.demo.deapi import Deapi, Job
    from receiver.demo.serving import Callback, Provider, Try
    from receiver.settings.model import Settings, SourceSettings
    from receiver.storage.store.store import Store

simulate = typer.Typer(
    help="Play a provider, offline. It calls a running receiver.", no_args_is_help=True, rich_markup_mode=None
)


def own(*names: str, help: str, **more: Any) -> Any:
    """Return an option whose environment variable begins with RECEIVER_SIMULATE_."""
    flag = names[0].split("/")[0].removeprefix("--").replace("-", "_").upper()
    return option(*names, env=f"RECEIVER_SIMULATE_{flag}", help=help, **more)


Url = Annotated[
    str | None,
    own("--url", help="Where receiver listens, or a whole callback URL; by default from the settings."),
]
Source = Annotated[str | None, option("--source", help="Which source, when several are of this provider.")]
Ref = Annotated[str | None, option("--ref", help="The caller's own id; comes back in the event.")]
Scale = Annotated[
    float, option("--time-scale", help="1 waits between tries as the provider does; 0 not at all.", min=0)
]
CaFile = Annotated[
    str | None, own("--ca-file", help="More certificate authorities to trust (PEM), for an https:// URL.")
]
Wrong = Annotated[bool, option("--wrong-credentials", help="Be somebody else: success is a refusal.")]
Duplicate = Annotated[bool, option("--duplicate", help="Send everything twice.")]
_NEVER_SECONDS = 5.0
"""The deadline of a pickup whose result never comes, unless another is given."""
_FOR_EVER = 10**9

NotReady = Annotated[int, own("--not-ready", help="So many questions find it not ready.", min=0, max=1000)]
Never = Annotated[bool, own("--never", help="It is never ready: the deadline ends it.")]
Deadline = Annotated[
    str | None, option("--deadline", help="When to give up; the source's own if left out, 5s with --never.")
]
Timeout = Annotated[str, own("--timeout", help="How long to wait for the event, as 90s.")]

_DEEPGRAM_TRIES, _DEAPI_TRIES = 11, 10


def register(app: typer.Typer) -> None:
    """Add the commands."""
    simulate.command(name="deepgram")(simulate_deepgram)
    simulate.command(name="deapi")(simulate_deapi)
    simulate.command(name="deepdub")(simulate_deepdub)
    simulate.command(name="playht")(simulate_playht)
    app.add_typer(simulate, name="simulate")
    app.command()(demo)


def simulate_deepgram(
    ctx: typer.Context,
    url: Url = None,
    source: Source = None,
    product: Annotated[str, own("--product", help="speak (audio), listen or read (JSON).")] = "speak",
    file: Annotated[Path | None, own("--file", help="Audio to send; built-in speech if left out.")] = None,
    json_result: Annotated[Path | None, own("--json-result", help="Send this JSON document.")] = None,
    content_type: Annotated[str | None, own("--content-type", help="Say this of the audio.")] = None,
    format: Annotated[
        str | None,
        option("--format", help="What the job asked for: encoding=mulaw,container=none,sample_rate=8000."),
    ] = None,
    method: Annotated[str, own("--method", help="post or put, as callback_method.")] = "post",
    chunked: Annotated[bool, own("--chunked", help="Send without a Content-Length.")] = False,
    error: Annotated[bool, own("--error", help="Send a failure instead of a result.")] = False,
    attempts: Annotated[
        int | None,
        own(
            "--attempts",
            help="Most tries, 30 s apart. Default 11; 1 with --wrong-credentials.",
            min=1,
            max=100,
        ),
    ] = None,
    ca_file: CaFile = None,
    ref: Ref = None,
    time_scale: Scale = 0.01,
    wrong_credentials: Wrong = False,
    duplicate: Duplicate = False,
    as_json: AsJson = False,
) -> None:
    """Call back as Deepgram does: Basic credentials, POST or PUT, up to ten more tries."""
    from receiver.demo import deepgram, serving

    if product not in deepgram.PRODUCTS:
        raise UsageError(f"--product is one of {', '.join(deepgram.PRODUCTS)}")
    if method.lower() not in ("post", "put"):
        raise UsageError("--method is post or put")
    play = Play.of(ctx, "deepgram", source, as_json=as_json)
    job = job_format(format)
    target = play.callback_url(url, {"product": product} | job, ref=ref, wrong=wrong_credentials)
    if product == "speak" and not error and json_result is None:
        audio, name = _audio(file)
        kind = content_type or deepgram.media_type(job) or deepgram.media_type_of(audio, name)
        callback = deepgram.speech(target, audio, content_type=kind, method=method, chunked=chunked)
    else:
        fields = _document(play.source, product, json_result, error=error)
        token = newest(play.source, "dg_token")
        callback = deepgram.document(target, fields, method=method, dg_token=token)
    most = attempts or (1 if wrong_credentials else _DEEPGRAM_TRIES)
    waits = deepgram.waits(retries=most - 1, scale=time_scale)
    label = "failure" if error else {"speak": "audio", "listen": "transcript", "read": "analysis"}[product]

    def tries() -> Iterator[Try]:
        with _client(ca_file) as client:
            for _ in range(2 if duplicate else 1):
                yield from serving.send_until_taken(client, lambda: callback, label=label, waits=waits)

    _print_tries(tries(), as_json=as_json, refused=wrong_credentials)


def simulate_deapi(
    ctx: typer.Context,
    url: Url = None,
    source: Source = None,
    event: Annotated[
        str, own("--event", help="processing, completed, failed, or all (the first two).")
    ] = "all",
    job_type: Annotated[str, own("--job-type", help="As deAPI names it.")] = "txt2audio",
    result_url: Annotated[
        str | None, own("--result-url", help="Where the result lies; served on this machine if left out.")
    ] = None,
    expired_link: Annotated[
        bool,
        own(
            "--expired-link",
            help="The link is dead on arrival; asked about the job, deAPI gives a fresh one.",
        ),
    ] = False,
    timeout: Timeout = "60s",
    job_secret: Annotated[
        bool,
        option(
            "--job-secret", help="Sign with a webhook_secret of the job's own, as callback-url hands out."
        ),
    ] = False,
    out_of_order: Annotated[bool, own("--out-of-order", help="Send the last event first.")] = False,
    attempts: Annotated[
        int | None,
        own(
            "--attempts",
            help="Most tries of each, over 22 h 48 min. Default 10; 1 with --wrong-credentials.",
            min=1,
            max=100,
        ),
    ] = None,
    ca_file: CaFile = None,
    ref: Ref = None,
    time_scale: Scale = 0.0001,
    wrong_credentials: Wrong = False,
    duplicate: Duplicate = False,
    as_json: AsJson = False,
) -> None:
    """Call back as deAPI does: three events, each try signed afresh, ten tries; and have the result fetched."""
    from receiver.demo import deapi, serving

    if event not in (*deapi.EVENTS, "all"):
        raise UsageError(f"--event is one of {', '.join(deapi.EVENTS)} or all")
    play = Play.of(ctx, "deapi", source, timeout=timeout, as_json=as_json)
    target = play.callback_url(url, {}, ref=ref, job_secret=job_secret)
    secret = newest(play.source, "secrets")
    if job_secret:
        secret = tokens_of(play.settings).job_secrets(urlsplit(target).path.rpartition("/")[2])[0]
    if wrong_credentials:
        secret = secrets.token_hex(32)
    if secret is None:
        raise UsageError(f"sources.{play.source.name}.secrets is empty: add one, or use --job-secret")
    waits = deapi.waits(attempts=attempts or (1 if wrong_credentials else _DEAPI_TRIES), scale=time_scale)
    names = deapi.story(event, out_of_order=out_of_order, duplicate=duplicate)
    if expired_link and (result_url or "completed" not in names):
        raise UsageError("--expired-link is for a completed job whose result lies on this machine")
    serves_result = "completed" in names and result_url is None and not wrong_credentials
    recorded = True

    def tries() -> Iterator[Try]:
        nonlocal recorded
        for name in names:
            make = partial(_deapi_callback, job, name, bodies[name])
            for tried in serving.send_until_taken(client, make, label=f"job.{name}", waits=waits):
                yield tried
                if provider is not None and name == "completed" and tried.taken:
                    recorded &= play.wait_for_events(provider, _event_ids(tried))

    with contextlib.ExitStack() as stack:
        provider, job_id = None, str(uuid.uuid4())
        if serves_result:
            provider, base = stack.enter_context(_deapi_provider(play.source, api=expired_link))
            job_id, result_url = _deapi_result(provider, base, job_type, expired=expired_link)
        job = deapi.Job(target, secret, id=job_id, kind=job_type, result_url=result_url)
        bodies = {name: job.body(name, now=wall_clock()) for name in names}
        client = stack.enter_context(_client(ca_file))
        _print_tries(tries(), as_json=as_json, refused=wrong_credentials)
    if not recorded:
        warn(NO_EVENT)
        raise typer.Exit(1)


def _deapi_callback(job: Job, event: str, body: bytes) -> Callback:
    return job.callback(event, body, now=wall_clock())


def simulate_deepdub(
    ctx: typer.Context,
    source: Source = None,
    not_ready: NotReady = 2,
    no_content_type: Annotated[
        bool, own("--no-content-type", help="Send the audio without saying its type.")
    ] = False,
    never: Never = False,
    ref: Ref = None,
    deadline: Deadline = None,
    timeout: Timeout = "60s",
    as_json: AsJson = False,
) -> None:
    """Be asked as Deepdub is: 404 until the audio is ready."""
    from receiver.demo.deepdub import BASE_PATH, Deepdub

    play = Play.of(ctx, "deepdub", source, timeout=timeout, as_json=as_json)
    options = provider_settings(play.source)
    lines = _settings_lines("deepdub", play.source.name)
    port = _own_port(play.source, "base_url", options.base, BASE_PATH, lines)
    key = _api_key(play.source, options.api_key)
    provider = Deepdub(key, not_ready=_FOR_EVER if never else not_ready)
    provider.content_type = None if no_content_type else "asked"
    url = f"{options.base}/tts/retroactive/{provider.submit()}"
    pickup = _ordered(play, url, ref, deadline, never=never)
    play.pick_up(provider, port, pickup, failure=never)


def simulate_playht(
    ctx: typer.Context,
    source: Source = None,
    not_ready: NotReady = 0,
    error: Annotated[bool, own("--error", help="The job fails.")] = False,
    never: Never = False,
    ref: Ref = None,
    deadline: Deadline = None,
    timeout: Timeout = "60s",
    as_json: AsJson = False,
) -> None:
    """Be asked as PlayHT is: an event stream (or JSON, by the source's `mode`), then a link to the audio."""
    from receiver.demo import playht

    play = Play.of(ctx, "playht", source, timeout=timeout, as_json=as_json)
    options = provider_settings(play.source)
    lines = _settings_lines("playht", play.source.name)
    port = _own_port(play.source, "base_url", options.base_url, playht.API, lines)
    _need_result_host(play.source, options.result_hosts, lines)
    key = _api_key(play.source, options.api_key)
    provider = playht.Playht(api_key=key, user_id=options.user_id or "")
    under_way = [[playht.generating(0.1), playht.END]] * (1 if never else not_ready)
    streams = under_way if never else [*under_way, playht.STORY]
    job = provider.add(streams=streams, unfinished=_FOR_EVER if never else not_ready)
    if error:
        job.answers.append(playht.error(200, "the simulated provider was asked to fail"))
    pickup = _ordered(play, job.id, ref, deadline, never=never)
    play.pick_up(provider, port, pickup, failure=never or error)


def _ordered(play: Play, text: str, ref: str | None, deadline: str | None, *, never: bool) -> Pickup:
    limit = seconds(deadline) if deadline else (_NEVER_SECONDS if never else None)
    return ordered(play.settings, play.source.name, text, ref=ref, deadline_seconds=limit, format={})


def demo(
    folder: Annotated[
        Path,
        option(
            "--folder", env="RECEIVER_DEMO_FOLDER", help="Made afresh each time; left for looking further."
        ),
    ] = Path("receiver-demo"),
    stay: Annotated[
        bool | None,
        option("--stay/--no-stay", env="RECEIVER_DEMO_STAY", help="Stay up afterwards; asks in a terminal."),
    ] = None,
) -> None:
    """Show the main job on this machine. It takes less than a minute, and says each step."""
    from receiver.demo.demo import show

    raise typer.Exit(show(folder, stay=stay))


HOST = "127.0.0.1"
POLL_SECONDS = 0.2
"""Between two looks into the store."""
NO_EVENT = "no event came: is `receiver serve` or `receiver work` running, with these settings?"


@dataclass
class Play:
    """One run of `simulate`: which source is played, how long, and how it is printed."""

    settings: Settings
    source: SourceSettings
    timeout: float
    as_json: bool
    requests: list[dict[str, Any]] = field(default_factory=list)
    """The printed requests: method, path and status; never a query or a header."""

    @classmethod
    def of(
        cls, ctx: typer.Context, provider: str, name: str | None, *, timeout: str = "60s", as_json: bool
    ) -> Play:
        """Return the run for a source of this provider: the one of this name, or the only one."""
        settings = load(ctx)
        known = any(source.provider == provider for source in settings.sources.values())
        if provider in ("deepdub", "playht") and name is None and not known:
            raise _refuse(f'no source has provider = "{provider}"', _settings_lines(provider, provider))
        return cls(settings, source_of(settings, provider, name), seconds(timeout), as_json)

    def say(self, text: str) -> None:
        """Print a line, unless JSON is to be printed."""
        if not self.as_json:
            typer.echo(clean(text))

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
        from receiver.core import callback_urls
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
        return callback_urls.compose(base, self.source.name, token=token, basic=basic)

    def wait_for_events(self, provider: Provider, event_ids: list[str]) -> bool:
        """Wait until the events are recorded; False when they are not in time."""
        missing = list(event_ids)

        async def recorded(store: Store) -> bool:
            for event_id in list(missing):
                event_type = await event_type_of(store, event_id)
                if event_type is not None:
                    missing.remove(event_id)
                    self.say(f"{event_id}  {event_type}")
            return not missing

        async def wait() -> bool:
            async with made_store(self.settings) as store:
                return await self._wait(provider, lambda: recorded(store))

        return asyncio.run(wait())

    def pick_up(self, provider: Provider, port: int, pickup: Pickup, *, failure: bool) -> None:
        """Hand a pickup over, answer receiver's requests, and end with status 0 when its event is as it should be."""
        with _listening(provider, port):
            ended, event_type = asyncio.run(self._wait_for_pickup(provider, pickup))
        if self.as_json:
            print_json({"requests": self.requests, "pickup": view(ended), "event_type": event_type})
        if event_type is None:
            warn(NO_EVENT)
        if event_type != ("speech.failed" if failure else "speech.completed"):
            raise typer.Exit(1)

    async def _wait_for_pickup(self, provider: Provider, ordered: Pickup) -> tuple[Pickup, str | None]:
        async with made_store(self.settings) as store:
            pickup, _ = await store.add_pickup(ordered)
            self.say(f"handed over: {pickup.id}, to become {pickup.event_id}")

            async def ended() -> bool:
                nonlocal pickup
                pickup = await store.pickup(pickup.id)
                return pickup.state in ENDED

            if not await self._wait(provider, ended):
                return pickup, None
            event_type = await event_type_of(store, pickup.event_id)
            if event_type:
                self.say(f"{pickup.event_id}  {event_type}")
            return pickup, event_type

    async def _wait(self, provider: Provider, done: Callable[[], Awaitable[bool]]) -> bool:
        """Wait until it is done or the time is up, and print the provider's requests meanwhile."""
        until = time.monotonic() + self.timeout
        while True:
            self._print_requests(provider)
            finished = await done()
            if finished or time.monotonic() >= until:
                self._print_requests(provider)
                return finished
            await asyncio.sleep(POLL_SECONDS)

    def _print_requests(self, provider: Provider) -> None:
        for request in provider.requests[len(self.requests) :]:
            if request.status is None:
                return
            self.requests.append({"method": request.method, "path": request.path, "status": request.status})
            self.say(f"{request.method} {request.path}  {request.status}")


@contextlib.contextmanager
def _listening(provider: Provider, port: int) -> Iterator[str]:
    """Serve a provider on a port of this machine (0: a free one). Raises `UsageError` when it is taken."""
    from receiver.demo.serving import served

    with contextlib.ExitStack() as stack:
        try:
            base = stack.enter_context(served(provider.app, port=port))
        except OSError:
            raise UsageError(
                f"port {port} is taken by another program, perhaps another simulate: end it"
            ) from None
        yield base


@contextlib.contextmanager
def _deapi_provider(source: SourceSettings, *, api: bool) -> Iterator[tuple[Deapi, str]]:
    """Serve deAPI's results for a source; with `api` its jobs API as well, where the source looks for it."""
    from receiver.demo.deapi import Deapi

    options = provider_settings(source)
    lines = _settings_lines("deapi", source.name)
    _need_access(source, lines)
    _need_result_host(source, options.result_hosts, lines)
    here = urlsplit(options.api_url).hostname in (HOST, "localhost")
    port = _own_port(source, "api_url", options.api_url, "", lines) if api or here else 0
    provider = Deapi(_api_key(source, options.api_key) if api or options.api_key else "")
    with _listening(provider, port) as base:
        yield provider, base


def _deapi_result(provider: Deapi, base: str, kind: str, *, expired: bool) -> tuple[str, str]:
    """Return the id of a new job and the link to its result; with `expired` a dead one."""
    from receiver.demo.deapi import Work

    text = b"Hello, this is the voice of the simulator." if kind.endswith("2txt") else None
    job_id = provider.add(Work(kind=kind, result=text, content_type="text/plain" if text else "audio/mpeg"))
    link = provider.link(base, job_id)
    if expired:
        provider.expire()
    return job_id, link


def _refuse(reason: str, lines: list[str]) -> typer.Exit:
    """Print what is missing in the settings and return the end of the command, to be raised."""
    warn(f"receiver: {reason}. With these settings (and receiver started anew) it can be played:")
    for line in lines:
        warn(line)
    return typer.Exit(2)


def _api_key(source: SourceSettings, key: Any) -> str:
    """Return the source's key, which the simulated provider is to take. Raises `UsageError` without one."""
    if key is None:
        raise UsageError(f"sources.{source.name}.api_key is not set: the simulated provider takes any")
    return str(key.get_secret_value())


def _own_port(source: SourceSettings, setting: str, url: str, path: str, lines: list[str]) -> int:
    """Return the port of this machine that a source asks; ends the command when it asks anywhere else."""
    parts = urlsplit(url)
    here = parts.scheme == "http" and parts.hostname in (HOST, "localhost")
    if not here or not parts.port or parts.path.rstrip("/") != path:
        raise _refuse(
            f"sources.{source.name}.{setting} is not this machine's http://{HOST}:PORT{path}", lines
        )
    _need_access(source, lines)
    return parts.port


def _need_access(source: SourceSettings, lines: list[str]) -> None:
    """End the command when pickups of a source may not connect to this machine."""
    from receiver.core.errors import AddressBlocked
    from receiver.outbound.guard import Guard

    try:
        Guard(source.allow).check(HOST, HOST)
    except AddressBlocked:
        raise _refuse(f"sources.{source.name}.allow does not have {HOST}", lines) from None


def _need_result_host(source: SourceSettings, hosts: tuple[str, ...], lines: list[str]) -> None:
    """End the command when a source's results may not lie on this machine."""
    from receiver.outbound.guard import listed

    if not listed(HOST, hosts):
        raise _refuse(f"sources.{source.name}.result_hosts does not have {HOST}", lines)


def _settings_lines(provider: str, name: str) -> list[str]:
    """Return the settings of a source that `simulate` can play."""
    port, path = {"deepdub": (9901, "/api/v1"), "playht": (9902, "/api/v2"), "deapi": (9903, "")}[provider]
    key = "any-key-will-do" if provider == "playht" else "any key will do"
    address = "api_url" if provider == "deapi" else "base_url"
    lines = [f"[sources.{name}]", f'api_key = "{key}"', f'{address} = "http://{HOST}:{port}{path}"']
    if provider != "deapi":
        lines.insert(1, f'provider = "{provider}"')
    if provider == "playht":
        lines.insert(3, 'user_id = "anybody"')
    if provider != "deepdub":
        lines.append(f'result_hosts = ["{HOST}"]')
    return [*lines, 'allow = ["127.0.0.0/8"]']


def _client(ca_file: str | None) -> httpx2.Client:
    from receiver.demo.serving import open_client

    try:
        return open_client(ca_file)
    except OSError:  # ssl.SSLError is one
        raise UsageError(f"{ca_file} cannot be read, or holds no certificates in PEM form") from None


def _event_ids(tried: Try) -> list[str]:
    """Return the event that the answer to a callback names, if it does: one kept in the journal has none yet."""
    try:
        named = json.loads(tried.answer).get("event_id")
    except (ValueError, AttributeError):
        named = None
    return [named] if isinstance(named, str) else []


def _audio(file: Path | None) -> tuple[bytes, str]:
    from receiver.demo.serving import sample_audio

    if file is None:
        return sample_audio(), "speech.mp3"
    return _read(file), file.name


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None


def _document(source: SourceSettings, product: str, file: Path | None, *, error: bool) -> dict[str, Any]:
    from receiver.demo import deepgram

    if error:
        return deepgram.failure()
    if file is not None:
        try:
            fields = json.loads(_read(file))
        except ValueError:
            raise UsageError(f"{file} is not JSON") from None
        if not isinstance(fields, dict):
            raise UsageError(f"{file} is not a JSON object")
        return fields
    if product == "listen":
        secret = newest(source, "callback_secrets")
        text = "Hello, this is the voice of the simulator."
        return deepgram.transcript(text, now=wall_clock(), callback_secret=secret)
    return deepgram.analysis("A simulator says hello.", now=wall_clock())


def _print_tries(tries: Iterable[Try], *, as_json: bool, refused: bool) -> None:
    """Print each try as it is made; status 0 when the last of each label was as it should be."""
    lines: list[dict[str, Any]] = []
    last: dict[str, Try] = {}
    for tried in tries:
        last[tried.label] = tried
        if as_json:
            fields = {"label": tried.label, "try": tried.number, "status": tried.status}
            lines.append(fields | {"answer": tried.answer, "seconds": round(tried.seconds, 3)})
        else:
            status = "---" if tried.status is None else str(tried.status)
            took = f"{tried.seconds * 1000:.0f} ms"
            typer.echo(f"{tried.label}  try {tried.number}  {status}  {took}  {clean(tried.answer)}")
    if as_json:
        print_json(lines)
    good = all(t.status in (401, 403) if refused else t.taken for t in last.values())
    if not good:
        raise typer.Exit(1)
