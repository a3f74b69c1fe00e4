"""`simulate` and `demo`: the provider played offline, and the main job shown."""

from __future__ import annotations

import contextlib
import json
import secrets
import uuid
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from receiver.cli.common import load, newest, source_of, tokens_of
from receiver.cli.options import UsageError, job_format, option, seconds
from receiver.cli.output import clean, print_json, warn
from receiver.core.clock import wall_clock
from receiver.demo import playing_pulls
from receiver.demo.playing_here import NOBODY, deapi_results
from receiver.demo.playing_pulls import Timeout

if TYPE_CHECKING:
    import httpx2

    from receiver.demo.standins.sending import Callback, Try
    from receiver.settings.model import Settings, SourceSettings

simulate = typer.Typer(
    help="Play a provider against a running receiver, offline.", no_args_is_help=True, rich_markup_mode=None
)

Url = Annotated[
    str | None,
    option(
        "--url",
        env="RECEIVER_SIMULATE_URL",
        help="Where receiver listens, or a whole callback URL; by default from the settings.",
    ),
]
Source = Annotated[str | None, option("--source", help="Which source, when several are of this provider.")]
Ref = Annotated[str | None, option("--ref", help="The caller's own id, carried by the callback URL.")]
Scale = Annotated[
    float, option("--time-scale", help="1 waits between tries as the provider does; 0 not at all.", min=0)
]
CaFile = Annotated[
    str | None,
    option(
        "--ca-file",
        env="RECEIVER_SIMULATE_CA_FILE",
        help="More certificate authorities to trust (PEM), for an https:// URL.",
    ),
]
Wrong = Annotated[bool, option("--wrong-credentials", help="Be somebody else: success is a refusal.")]
Duplicate = Annotated[bool, option("--duplicate", help="Send everything twice.")]
AsJson = Annotated[bool, option("--json", help="Print JSON.")]


_DEEPGRAM_TRIES, _DEAPI_TRIES = 11, 10


def register(app: typer.Typer) -> None:
    """Add the commands."""
    simulate.command(name="deepgram")(simulate_deepgram)
    simulate.command(name="deapi")(simulate_deapi)
    playing_pulls.register(simulate)
    app.add_typer(simulate, name="simulate")
    app.command()(demo)


def simulate_deepgram(
    ctx: typer.Context,
    url: Url = None,
    source: Source = None,
    product: Annotated[
        str,
        option("--product", env="RECEIVER_SIMULATE_PRODUCT", help="speak (audio), listen or read (JSON)."),
    ] = "speak",
    file: Annotated[
        Path | None,
        option("--file", env="RECEIVER_SIMULATE_FILE", help="Audio to send; built-in speech if left out."),
    ] = None,
    json_result: Annotated[
        Path | None,
        option("--json-result", env="RECEIVER_SIMULATE_JSON_RESULT", help="Send this JSON document."),
    ] = None,
    content_type: Annotated[
        str | None,
        option("--content-type", env="RECEIVER_SIMULATE_CONTENT_TYPE", help="Say this of the audio."),
    ] = None,
    format: Annotated[
        str | None,
        option("--format", help="What the job asked for: encoding=mulaw,container=none,sample_rate=8000."),
    ] = None,
    method: Annotated[
        str, option("--method", env="RECEIVER_SIMULATE_METHOD", help="post or put, as callback_method.")
    ] = "post",
    chunked: Annotated[
        bool, option("--chunked", env="RECEIVER_SIMULATE_CHUNKED", help="Send without a Content-Length.")
    ] = False,
    error: Annotated[
        bool, option("--error", env="RECEIVER_SIMULATE_ERROR", help="Send a failure instead of a result.")
    ] = False,
    attempts: Annotated[
        int | None,
        option(
            "--attempts",
            env="RECEIVER_SIMULATE_ATTEMPTS",
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
    from receiver.demo.standins import deepgram, sending

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
                yield from sending.send_until_taken(client, lambda: callback, label=label, waits=waits)

    _tell(tries(), as_json=as_json, refused=wrong_credentials)


def simulate_deapi(
    ctx: typer.Context,
    url: Url = None,
    source: Source = None,
    event: Annotated[
        str,
        option(
            "--event",
            env="RECEIVER_SIMULATE_EVENT",
            help="processing, completed, failed, or all (the first two).",
        ),
    ] = "all",
    job_type: Annotated[
        str, option("--job-type", env="RECEIVER_SIMULATE_JOB_TYPE", help="As deAPI names it.")
    ] = "txt2audio",
    result_url: Annotated[
        str | None,
        option(
            "--result-url",
            env="RECEIVER_SIMULATE_RESULT_URL",
            help="Where the result lies; served on this machine if left out.",
        ),
    ] = None,
    expired_link: Annotated[
        bool,
        option(
            "--expired-link",
            env="RECEIVER_SIMULATE_EXPIRED_LINK",
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
    out_of_order: Annotated[
        bool,
        option("--out-of-order", env="RECEIVER_SIMULATE_OUT_OF_ORDER", help="Send the last event first."),
    ] = False,
    attempts: Annotated[
        int | None,
        option(
            "--attempts",
            env="RECEIVER_SIMULATE_ATTEMPTS",
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
    from receiver.demo.standins import deapi, sending

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

                    for tried in sending.send_until_taken(client, make, label=f"job.{name}", waits=waits):
                        yield tried
                        if results is not None and name == "completed" and tried.taken:
                            ids = _event_ids(tried)
                            came &= results.wait(settings, ids, within=seconds(timeout), as_json=as_json)

        _tell(tries(), as_json=as_json, refused=wrong_credentials)
        if not came:
            warn(NOBODY)
            raise typer.Exit(1)


def _client(ca_file: str | None) -> httpx2.Client:
    from receiver.demo.standins.sending import open_client

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
        return files("receiver.demo.samples").joinpath("speech.mp3").read_bytes(), "speech.mp3"
    return _read(file), file.name


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None


def _document(source: SourceSettings, product: str, file: Path | None, *, error: bool) -> dict[str, Any]:
    from receiver.demo.standins import deepgram

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
    """Show the main job on this machine, step by step, in under a minute."""
    from receiver.demo.demo import show

    raise typer.Exit(show(folder, stay=stay))
