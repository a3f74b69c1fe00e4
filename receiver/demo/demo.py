"""The main job, shown: `receiver demo` runs receiver and a sample application, and simulates the providers.

Every step says what happens and checks that it did. All of it stays on 127.0.0.1 and in one folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from rich.console import Console

from receiver.core import urls
from receiver.core.clock import wall_clock
from receiver.demo import deapi, deepgram
from receiver.demo.deepdub import BASE_PATH
from receiver.demo.playht import API
from receiver.demo.serving import Callback, open_client, sample_audio, send
from receiver.demo.stage import Line, NotAsPromised, Stage, answer_of, fresh_folder, leave, set_stage

_OVERDUE_SECONDS = 2


def show(folder: Path, *, stay: bool | None) -> int:
    """Play the demo in `folder`; return 0 when all was as promised, else 1. `stay` None stays up in a terminal.

    Raises `ReceiverError` when the folder is there and is not one that a demo made.
    """
    out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    fresh_folder(folder)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with open_client() as client, set_stage(folder, out, client) as stage:
            began = time.monotonic()
            _play(stage)
            out.print(f"\nAll of it as promised, in {time.monotonic() - began:.0f} s.", style="bold green")
            _look_further(stage)
            if stay or (stay is None and sys.stdin.isatty() and sys.stdout.isatty()):
                _stay(stage)
    except NotAsPromised as error:
        out.print(f"\nNot as promised: {error.message}", style="bold red")
        out.print(f"The logs are in {folder}: receiver.log, app.log")
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
        leave(folder)
    return 0


# ---------------------------------------------------------------- the steps


def _play(stage: Stage) -> None:
    audio = sample_audio()
    stage.title("Start receiver and a sample application")
    stage.start_receiver()
    stage.start_app()
    stage.good(f"receiver listens on {stage.base}, all it keeps is in {stage.folder}/data")
    stage.good(f"the application listens on 127.0.0.1:{stage.ports[1]}")
    speech = _speech(stage, audio)
    _strangers(stage, speech)
    _outage(stage, audio)
    _duplicate(stage, speech)
    _killed(stage, audio)
    _expired_link(stage, audio)
    _deepdub(stage, audio)
    _playht(stage, audio)
    _overdue(stage, audio)
    _compare(stage)


def _deepgram(stage: Stage, ref: str, audio: bytes, *, token: str | None = None) -> Callback:
    token = token or stage.tokens.issue("deepgram", ref=ref, format={"product": "speak"})
    url = urls.compose(stage.base, "deepgram", token=token, basic=stage.basic)
    return deepgram.speech(url, audio, content_type="audio/mpeg", method="PUT")


def _speech(stage: Stage, audio: bytes) -> Callback:
    stage.title("Deepgram calls back with speech: PUT, Basic credentials, a token that says order-42")
    callback = _deepgram(stage, "order-42", audio)
    event_id = stage.recorded(callback, "speech.completed")
    line = stage.delivery(event_id)
    fetched = _same_audio(line, audio)
    if line["ref"] != "order-42":
        raise NotAsPromised("the event carries another ref")
    stage.good("delivered: the application checked the signature and saw ref order-42")
    length = f"{fetched['bytes']} bytes, {fetched['duration_seconds']:.2f} s"
    stage.good(f"it fetched the audio by the event's link: {length}, SHA-256 as sent")
    return callback


def _strangers(stage: Stage, speech: Callback) -> None:
    stage.title("Somebody else calls back: a wrong password, then no signature")
    parts = urlsplit(speech.url)
    wrong = urlunsplit(parts._replace(netloc=f"deepgram:guess@{parts.netloc.rpartition('@')[2]}"))
    forged = Callback(speech.method, wrong, speech.headers, b"not from Deepgram")
    unsigned = Callback("POST", f"{stage.base}/callbacks/deapi", {"content-type": "application/json"}, b"{}")
    for callback, what in ((forged, "the wrong password"), (unsigned, "no signature")):
        attempt = send(stage.client, callback, label=what)
        if attempt.status != 401:
            raise NotAsPromised(f"{what} was answered {attempt.status} instead of 401")
        stage.good(f"{what}: refused with 401, nothing stored")


def _outage(stage: Stage, audio: bytes) -> None:
    stage.title("The application goes down; deAPI calls back twice, signed; the result lies behind a link")
    stage.stop_app()
    ids = _deapi_story(stage, "order-43")
    for event_id in ids:
        line = stage.failed_attempt(event_id)
    stage.good(f"the attempts fail ({line.get('detail')}), and are tried again every second")
    stage.title("The application comes up again")
    stage.start_app()
    for event_id in ids:
        line = stage.delivery(event_id)
    _same_audio(line, audio)
    stage.good(
        "both events are delivered, signed, by a retry; the audio was fetched before deAPI's link could end"
    )


def _duplicate(stage: Stage, speech: Callback) -> None:
    stage.title("Deepgram sends the first callback again, as it does when an answer was lost")
    attempt = send(stage.client, speech, label="speech.completed")
    answer = answer_of(attempt)
    first = next(iter(stage.events))
    if attempt.status != 200 or answer.get("status") != "duplicate" or answer.get("event_id") != first:
        raise NotAsPromised(f"the duplicate was answered {attempt.status}: {attempt.answer}")
    stage.good(f"answered 200 as a duplicate of {first}; no second event, no second delivery")


def _killed(stage: Stage, audio: bytes) -> None:
    stage.title("receiver is killed (SIGKILL) with an event answered for and not yet delivered")
    stage.stop_app()
    event_id = stage.recorded(_deepgram(stage, "order-44", audio), "speech.completed")
    stage.failed_attempt(event_id)
    stage.receiver.stop(signal.SIGKILL)
    stage.good("killed; nothing was handed over or written on the way out")
    stage.start_app()
    stage.start_receiver()
    stage.delivery(event_id)
    stage.good("started again, and the event is delivered: what was answered with 200 is never lost")


def _compare(stage: Stage) -> None:
    """Compare what the store holds with what was answered and promised, and with what the application got."""
    found = {event["id"]: event["type"] for event in stage.run("events")["items"]}
    # A slow machine hears of PlayHT's progress in between.
    known = {i: kind for i, kind in found.items() if i in stage.events or kind != "speech.processing"}
    if known != stage.events:
        raise NotAsPromised(f"the store holds {len(known)} events instead of {len(stage.events)}")
    states = sorted(delivery["state"] for delivery in stage.run("deliveries")["items"])
    if states != ["delivered"] * len(found):
        raise NotAsPromised(f"the deliveries are {', '.join(states)}")
    stage.stop_app()
    if stage.delivered != dict.fromkeys(found, 1):
        raise NotAsPromised("the application did not get each event exactly once")


def _same_audio(line: Line, audio: bytes) -> dict[str, Any]:
    """Return what the application says of the audio it fetched, which must be `audio`."""
    fetched: dict[str, Any] = line["audio"] or {}
    if fetched.get("sha256") != hashlib.sha256(audio).hexdigest():
        raise NotAsPromised("the audio that the application fetched is not the provider's")
    return fetched


def _deapi_story(stage: Stage, ref: str, *, expired: bool = False) -> list[str]:
    """Let deAPI call back with processing and completed; return the events' ids. With `expired` the link is dead on arrival."""
    host = stage.deapi
    url = urls.compose(stage.base, "deapi", token=stage.tokens.issue("deapi", ref=ref))
    job_id = host.add()
    job = deapi.Job(url, stage.deapi_secret, id=job_id, result_url=host.link(host.base, job_id))
    if expired:
        host.expire()
    ids = []
    for event in ("processing", "completed"):
        now = wall_clock()
        callback = job.callback(event, job.body(event, now=now), now=now)
        ids.append(stage.recorded(callback, f"speech.{event}"))
    return ids


def _expired_link(stage: Stage, audio: bytes) -> None:
    """The link of deAPI is dead on arrival; a fresh one is asked for."""
    stage.title("deAPI calls back, and its link has expired")
    event_id = _deapi_story(stage, "order-45", expired=True)[-1]
    _same_audio(stage.delivery(event_id), audio)
    requests = stage.deapi.requests[-3:]
    shown = ", ".join(f"{request.method} {request.path.rpartition('/')[0]}/…" for request in requests)
    stage.good(f"receiver asked: {shown}")
    stage.good("a fresh link from deAPI's API; the key went there and nowhere else; delivered with the audio")


def _deepdub(stage: Stage, audio: bytes) -> None:
    """Deepdub has a URL that is 404 until the audio is ready."""
    stage.title("Deepdub does not call back: the application hands over the URL it was given")
    job = {"targetText": "Hello", "model": "dd-etts-3.2", "voicePromptId": "voice", "locale": "en-US"}
    submit = f"{stage.deepdub.base}{BASE_PATH}/tts/retroactive"
    url = _posted(stage, submit, job, {"x-api-key": stage.api_key})["url"]
    made = stage.run("pickup", "deepdub", url, "--ref", "order-46")
    stage.events[made["event_id"]] = "speech.completed"
    stage.good("receiver pickup deepdub https://… --ref order-46")
    _same_audio(stage.delivery(made["event_id"]), audio)
    answers = sum(request.method == "GET" for request in stage.deepdub.requests)
    stage.good(f"asked {answers} times ({answers - 1} × 404: not yet), then delivered like any other event")


def _playht(stage: Stage, audio: bytes) -> None:
    """PlayHT tells its progress as a stream of events."""
    stage.title("PlayHT tells how far it is as a stream: the application hands over the job's id")
    headers = {"authorization": f"Bearer {stage.api_key}", "x-user-id": stage.user_id}
    job = {"text": "Hello", "voice": "voice"}
    job_id = _posted(stage, f"{stage.playht.base}{API}/tts", job, headers)["id"]
    made = stage.run("pickup", "playht", job_id, "--ref", "order-47")
    stage.events[made["event_id"]] = "speech.completed"
    _same_audio(stage.delivery(made["event_id"]), audio)
    stage.good("the stream was followed to its end, the file fetched, and the event delivered")


def _overdue(stage: Stage, audio: bytes) -> None:
    """A callback that was expected does not come in time, and comes later."""
    stage.title(f"A callback that should have come within {_OVERDUE_SECONDS} seconds does not")
    words = ("deepgram", "--ref", "order-48", "--expect-within", f"{_OVERDUE_SECONDS}s")
    token = stage.run("callback-url", *words, RECEIVER__PUBLIC_URL="https://hooks.example.test")["token"]
    stage.delivery_of("callback.overdue", ref="order-48")
    stage.good("the application is told: callback.overdue")
    event_id = stage.recorded(_deepgram(stage, "order-48", audio, token=token), "speech.completed")
    _same_audio(stage.delivery(event_id), audio)
    if not stage.run("events", event_id)["data"]["late"]:
        raise NotAsPromised("the late callback is not marked late")
    stage.good('it comes all the same, counts, and says "late": true')


def _posted(stage: Stage, url: str, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    """Submit a job as the application does, and return the provider's answer."""
    headers = {"accept": "application/json"} | headers
    answer: dict[str, Any] = stage.client.post(url, json=body, headers=headers).json()
    return answer


# ---------------------------------------------------------------- afterwards


def _look_further(stage: Stage) -> None:
    say, first = stage.out.print, next(iter(stage.events))
    for words in (["events"], ["deliveries"], ["pickups"], ["rejections"]):
        command = f"{_command()} --config {_quoted(stage.config)} {' '.join(words)}"
        say(f"\n$ {command}", style="bold")
        sys.stdout.flush()
        stage.call(*words)
    audio = stage.run("events", first)["data"]["audio"]["uri"]
    say(f"\nThe audio of the first event is {unquote(urlsplit(audio).path)}. Look further with")
    say(f"  {_command()} --config {_quoted(stage.config)} events {first}")
    say(f"  {_command()} --config {_quoted(stage.config)} deliveries --json")
    say(f"  less {_quoted(f'{stage.folder}/receiver.log')}")
    say(f"and begin with a file of your own: {_command()} init")


def _command() -> str:
    """Return how this program is called from here: by its name when the shell finds it, else by its path."""
    if shutil.which("receiver"):
        return "receiver"
    beside = Path(sys.executable).with_name("receiver")
    here = Path.cwd()
    return _quoted(beside.relative_to(here) if beside.is_relative_to(here) else beside)


def _quoted(path: str | Path) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(path))


def _stay(stage: Stage) -> None:
    """Keep both processes up until Ctrl-C, and say what the application gets."""
    stage.start_app()
    stage.out.print(f"\nreceiver stays up. See and hear all of it at  {stage.base}/console/", style="bold")
    stage.out.print(f"  (log in with the token {stage.console_token})\nTry, in another terminal:")
    stage.out.print(
        f"  {_command()} --config {_quoted(Path(stage.config).absolute())} simulate deepgram --ref order-45"
    )
    stage.out.print("Ctrl-C ends it.\n")
    seen = 0
    with contextlib.suppress(KeyboardInterrupt):
        while stage.app.status is None:
            line = stage.app.wait_for(lambda _: True, seconds=3600, after=seen)
            seen += line is not None
            if line is not None and line["got"] == "event":
                stage.out.print(f"the application got {line['type']} {line['event_id']} (ref {line['ref']})")
