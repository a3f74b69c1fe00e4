"""`simulate` and `demo`: the provider played offline, and the main job shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import secrets
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from receiver.cli.act import ENDED, event_type_of, ordered
from receiver.cli.options import (
    AsJson,
    UsageError,
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
from receiver.core.clock import wall_clock
from receiver.core.errors import NotFound
from receiver.web.views import view

if TYPE_CHECKING:
    import httpx2
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from receiver.core.work import Pickup
    from receiver.demo.serving import Callback, Try
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
    settings = load(ctx)
    chosen = source_of(settings, "deepgram", source)
    asked = job_format(format)
    target = _target(settings, chosen, url, {"product": product} | asked, ref=ref, wrong=wrong_credentials)
    if product == "speak" and not error and json_result is None:
        audio, name = _audio(file)
        kind = content_type or deepgram.media_type(asked) or deepgram.media_type_of(audio, name)
        callback = deepgram.speech(target, audio, content_type=kind, method=method, chunked=chunked)
    else:
        fields = _document(chosen, product, json_result, error=error)
        token = newest(chosen, "dg_token")
        callback = deepgram.document(target, fields, method=method, dg_token=token)
    most = attempts or (1 if wrong_credentials else _DEEPGRAM_TRIES)
    waits = deepgram.waits(retries=most - 1, scale=time_scale)
    label = "failure" if error else {"speak": "audio", "listen": "transcript", "read": "analysis"}[product]

    def tries() -> Iterator[Try]:
        with _client(ca_file) as client:
            for _ in range(2 if duplicate else 1):
                yield from serving.send_until_taken(client, lambda: callback, label=label, waits=waits)

    _tell(tries(), as_json=as_json, refused=wrong_credentials)


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
    settings = load(ctx)
    chosen = source_of(settings, "deapi", source)
    target = _target(settings, chosen, url, {}, ref=ref, wrong=False, job_secret=job_secret)
    secret = newest(chosen, "secrets")
    if job_secret:
        secret = tokens_of(settings).job_secrets(urlsplit(target).path.rpartition("/")[2])[0]
    if wrong_credentials:
        secret = secrets.token_hex(32)
    if secret is None:
        raise UsageError(f"sources.{chosen.name}.secrets is empty: add one, or use --job-secret")
    waits = deapi.waits(attempts=attempts or (1 if wrong_credentials else _DEAPI_TRIES), scale=time_scale)
    names = deapi.story(event, out_of_order=out_of_order, duplicate=duplicate)
    if expired_link and (result_url or "completed" not in names):
        raise UsageError("--expired-link is for a completed job whose result lies on this machine")
    served = "completed" in names and result_url is None and not wrong_credentials
    with contextlib.ExitStack() as stack:
        results, job_id = None, str(uuid.uuid4())
        if served:
            results = stack.enter_context(deapi_results(chosen, ask=expired_link))
            job_id, result_url = results.job(job_type, expired=expired_link)
        job = deapi.Job(target, secret, id=job_id, kind=job_type, result_url=result_url)
        bodies = {name: job.body(name, now=_now()) for name in names}

        came = True

        def tries() -> Iterator[Try]:
            nonlocal came
            with _client(ca_file) as client:
                for name in names:

                    def make(name: str = name) -> Callback:
                        return job.callback(name, bodies[name], now=_now())

                    for tried in serving.send_until_taken(client, make, label=f"job.{name}", waits=waits):
                        yield tried
                        if results is not None and name == "completed" and tried.taken:
                            ids = _event_ids(tried)
                            came &= results.wait(settings, ids, within=seconds(timeout), as_json=as_json)

        _tell(tries(), as_json=as_json, refused=wrong_credentials)
        if not came:
            warn(NOBODY)
            raise typer.Exit(1)


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


def _now() -> int:
    return wall_clock()


def _target(
    settings: Settings,
    source: SourceSettings,
    url: str | None,
    format: dict[str, Any],
    *,
    ref: str | None,
    wrong: bool,
    job_secret: bool = False,
) -> str:
    """Return the callback URL to call: `url` as it stands if it is one, else made as `callback-url` does."""
    from receiver.core import callback_urls
    from receiver.settings.load import public_base

    if url is not None and "/callbacks/" in url:
        return url
    base = url or public_base(settings.model_copy(update={"public_url": None}))
    basic = newest(source, "basic") if source.provider == "deepgram" else None
    token = tokens_of(settings).issue(source.name, ref=ref, format=format, job_secret=job_secret)
    if wrong and basic:
        basic = f"somebody:{secrets.token_hex(8)}"
    elif wrong:
        token = token[::-1]
    return callback_urls.compose(base, source.name, token=token, basic=basic)


def _audio(file: Path | None) -> tuple[bytes, str]:
    if file is None:
        return files("receiver.demo").joinpath("samples/speech.mp3").read_bytes(), "speech.mp3"
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
        text = "Hello, this is the voice of the stand-in."
        return deepgram.transcript(text, now=_now(), callback_secret=secret)
    return deepgram.analysis("A stand-in says hello.", now=_now())


def _tell(tries: Iterable[Try], *, as_json: bool, refused: bool) -> None:
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
LOOK_SECONDS = 0.2
"""Between two looks into the store."""
NOBODY = "no event came: is `receiver serve` or `receiver work` running, with these settings?"

Say = Callable[[str], None]

# ---------------------------------------------------------------- what the settings must say


def refuse(reason: str, lines: list[str]) -> typer.Exit:
    """Tell what is missing in the settings and return the end of the command, to be raised."""
    warn(f"receiver: {reason}. With these settings (and receiver started anew) it can be played:")
    for line in lines:
        warn(line)
    return typer.Exit(2)


def api_key(source: SourceSettings, key: Any) -> str:
    """Return the source's key, which the stand-in is to take. Raises `UsageError` without one."""
    if key is None:
        raise UsageError(f"sources.{source.name}.api_key is not set: the stand-in takes any")
    return str(key.get_secret_value())


def own_port(source: SourceSettings, setting: str, url: str, path: str, lines: list[str]) -> int:
    """Return the port of this machine that a source asks; ends the command when it asks anywhere else."""
    parts = urlsplit(url)
    here = parts.scheme == "http" and parts.hostname in (HOST, "localhost")
    if not here or not parts.port or parts.path.rstrip("/") != path:
        raise refuse(f"sources.{source.name}.{setting} is not this machine's http://{HOST}:PORT{path}", lines)
    need_leave(source, lines)
    return parts.port


def need_leave(source: SourceSettings, lines: list[str]) -> None:
    """End the command when pickups of a source may not connect to this machine."""
    from receiver.core.errors import AddressBlocked
    from receiver.outbound.guard import Guard

    try:
        Guard(source.allow).check(HOST, HOST)
    except AddressBlocked:
        raise refuse(f"sources.{source.name}.allow does not have {HOST}", lines) from None


def need_result_host(source: SourceSettings, hosts: tuple[str, ...], lines: list[str]) -> None:
    """End the command when a source's results may not lie on this machine."""
    from receiver.outbound.guard import listed

    if not listed(HOST, hosts):
        raise refuse(f"sources.{source.name}.result_hosts does not have {HOST}", lines)


# ---------------------------------------------------------------- an ear


class Heard:
    """An application as it is, with every answered request told: method, path and status; never a query or a header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and note what is answered."""

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = {"method": scope["method"], "path": scope["path"], "status": message["status"]}
                self._requests.put(told)
            await send(message)

        await self._app(scope, receive, noted)

    def news(self) -> list[dict[str, Any]]:
        """Return the requests since the last time."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._requests.get_nowait())
        return found


@contextlib.contextmanager
def heard(app: ASGIApp, port: int) -> Iterator[tuple[Heard, str]]:
    """Serve a stand-in on a port of this machine (0: a free one). Raises `UsageError` when it is taken."""
    from receiver.demo.serving import served

    hearing = Heard(app)
    with contextlib.ExitStack() as stack:
        try:
            base = stack.enter_context(served(hearing, port=port))
        except OSError:
            raise UsageError(
                f"port {port} is taken by another program, perhaps another simulate: end it"
            ) from None
        yield hearing, base


def tell(hearing: Heard, requests: list[dict[str, Any]], say: Say) -> None:
    """Say what the stand-in was asked since the last time."""
    for request in hearing.news():
        requests.append(request)
        say(f"{request['method']} {request['path']}  {request['status']}")


def saying(*, quiet: bool) -> Say:
    """Return what prints a line, or nothing where JSON is to be printed."""

    def say(text: str) -> None:
        if not quiet:
            typer.echo(clean(text))

    return say


# ---------------------------------------------------------------- deAPI's results


def deapi_lines(name: str) -> list[str]:
    """Return the settings of a deAPI source whose results lie on this machine."""
    return [
        f"[sources.{name}]",
        'api_key = "any key will do"',
        f'api_url = "http://{HOST}:9903"',
        f'result_hosts = ["{HOST}"]',
        'allow = ["127.0.0.0/8"]',
    ]


class Results:
    """deAPI's storage and jobs API on this machine, for as long as a `with` of `deapi_results` lasts."""

    def __init__(self, standin: Any, base: str, hearing: Heard) -> None:
        self._standin = standin
        self._base = base
        self._hearing = hearing

    def job(self, kind: str, *, expired: bool) -> tuple[str, str]:
        """Return the id of a new job and the link to its result; with `expired` a dead one."""
        from receiver.demo.deapi import Work

        text = b"Hello, this is the voice of the stand-in." if kind.endswith("2txt") else None
        work = Work(kind=kind, result=text, content_type="text/plain" if text else "audio/mpeg")
        job_id: str = self._standin.add(work)
        link: str = self._standin.link(self._base, job_id)
        if expired:
            self._standin.expire()
        return job_id, link

    def wait(self, settings: Settings, event_ids: list[str], *, within: float, as_json: bool) -> bool:
        """Wait until the events are recorded, saying what is asked meanwhile; False when they are not in time."""
        say = saying(quiet=as_json)
        return asyncio.run(_until_recorded(settings, event_ids, self._hearing, say, within))


@contextlib.contextmanager
def deapi_results(source: SourceSettings, *, ask: bool) -> Iterator[Results]:
    """Serve deAPI's results for a source; with `ask` its jobs API as well, where the source looks for it."""
    from receiver.demo.deapi import Deapi

    options = provider_settings(source)
    lines = deapi_lines(source.name)
    need_leave(source, lines)
    need_result_host(source, options.result_hosts, lines)
    here = urlsplit(options.api_url).hostname in (HOST, "localhost")
    port = own_port(source, "api_url", options.api_url, "", lines) if ask or here else 0
    standin = Deapi(api_key(source, options.api_key) if ask or options.api_key else "")
    with heard(standin.app, port) as (hearing, base):
        yield Results(standin, base, hearing)


async def _until_recorded(
    settings: Settings, event_ids: list[str], hearing: Heard, say: Say, within: float
) -> bool:
    async with made_store(settings) as store:
        until = time.monotonic() + within
        missing = list(event_ids)
        while missing and time.monotonic() < until:
            tell(hearing, [], say)
            missing = [one for one in missing if not await _recorded(store, one, say)]
            if missing:
                await asyncio.sleep(LOOK_SECONDS)
        tell(hearing, [], say)
        return not missing


async def _recorded(store: Store, event_id: str, say: Say) -> bool:
    try:
        event = await store.event(event_id)
    except NotFound:
        return False
    say(f"{event_id}  {event.type}")
    return True


_NEVER_SECONDS = 5.0
"""The deadline of a pickup whose result never comes, unless another is given."""

NotReady = Annotated[int, own("--not-ready", help="So many questions find it not ready.", min=0, max=1000)]
Never = Annotated[bool, own("--never", help="It is never ready: the deadline ends it.")]
Deadline = Annotated[
    str | None, option("--deadline", help="When to give up; the source's own if left out, 5s with --never.")
]
Timeout = Annotated[str, own("--timeout", help="How long to wait for the event, as 90s.")]


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
    error: Annotated[bool, own("--error", help="The job fails.")] = False,
    never: Never = False,
    ref: Ref = None,
    deadline: Deadline = None,
    timeout: Timeout = "60s",
    as_json: AsJson = False,
) -> None:
    """Be asked as PlayHT is: an event stream (or JSON, by the source's `mode`), then a link to the audio."""
    from receiver.demo import playht

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
        print_json({"requests": requests, "pickup": view(ended), "event_type": event_type})
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
