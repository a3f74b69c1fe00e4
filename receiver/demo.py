"""The main job, shown (floor 9): `receiver demo` runs receiver and a sample application, and plays the providers.

Every step says what happens and checks that it did. All of it stays on 127.0.0.1 and in one folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import httpx2
from rich.console import Console

from receiver import urls
from receiver.cli.template import fresh
from receiver.errors import ReceiverError
from receiver.signing import CallbackTokens
from receiver.standins import deapi, deepgram
from receiver.standins.children import Child, Line, clean_environment
from receiver.standins.sending import Callback, Try, open_client, send

_MARKER = ".receiver-demo"
_PATIENCE = 20.0
"""Seconds that any one promise is given to come true."""
_QUESTION_SECONDS = 15.0
_STEPS: Final = 7


class NotAsPromised(ReceiverError):
    """Something did not happen as it should."""


def show(folder: Path, *, stay: bool | None) -> int:
    """Play the demo in `folder`; return 0 when all was as promised, else 1. `stay` None asks in a terminal.

    Raises `ReceiverError` when the folder is there and is not one that a demo made.
    """
    out = Console(highlight=False, markup=False, emoji=False)
    _fresh_folder(folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with open_client() as client, _stage(folder, out, client) as stage:
            began = time.monotonic()
            _play(stage)
            out.print(f"\nAll of it as promised, in {time.monotonic() - began:.0f} s.", style="bold green")
            _look_further(stage)
            if stay or (stay is None and _asked(out)):
                _stay(stage)
    except NotAsPromised as error:
        out.print(f"\nNot as promised: {error.message}", style="bold red")
        out.print(f"The logs are in {folder}: receiver.log, app.log")
        return 1
    finally:
        _leave(folder)
    return 0


# ---------------------------------------------------------------- the stage


@dataclass
class Stage:
    """What the steps share."""

    folder: Path
    out: Console
    client: httpx2.Client
    ports: tuple[int, int]
    """Of receiver, and of the sample application."""
    basic: str
    deapi_secret: str
    app_secret: str
    tokens: CallbackTokens
    receiver: Child | None = None
    app: Child | None = None
    events: dict[str, str] = field(default_factory=dict)
    """Event id to type, of everything that receiver answered for."""
    delivered: dict[str, int] = field(default_factory=dict)
    """Event id to the number of times the application got it."""
    step: int = 0

    @property
    def base(self) -> str:
        """Where receiver listens."""
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def config(self) -> str:
        """The settings file."""
        return str(self.folder / "receiver.toml")

    def title(self, text: str) -> None:
        """Say what the next step is."""
        self.step += 1
        self.out.print(f"\n{self.step}/{_STEPS}  {text}", style="bold")

    def good(self, text: str) -> None:
        """Say what was found to be so."""
        mark = "✓" if "utf" in self.out.encoding.lower() else "ok"
        self.out.print(f"  {mark} {text}", style="green" if self.out.is_terminal else None)

    def start_receiver(self) -> None:
        """Start receiver and wait until it listens."""
        self.receiver = Child(
            "receiver.cli.app",
            ["--config", self.config, "serve"],
            log=str(self.folder / "receiver.log"),
            env=clean_environment(os.environ),
        )
        self._need(
            self.receiver.wait_for(lambda line: line.get("event") == "receiver.ready", seconds=_PATIENCE),
            "receiver did not start",
        )

    def start_app(self) -> None:
        """Start the sample application and wait until it listens."""
        self.app = Child(
            "receiver.standins.app",
            ["--port", str(self.ports[1])],
            log=str(self.folder / "app.log"),
            env=clean_environment(os.environ) | {"SAMPLE_APP_SECRET": self.app_secret},
        )
        ready = self.app.wait_for(lambda line: line["got"] == "ready", seconds=_PATIENCE)
        self._need(ready, "the sample application did not start")

    def stop_app(self) -> None:
        """Take the sample application down."""
        if self.app is not None:
            self._count(self.app)
            self.app.stop()
            self.app = None

    def _count(self, app: Child) -> None:
        for line in app.lines:
            if line["got"] == "event":
                self.delivered[line["event_id"]] = self.delivered.get(line["event_id"], 0) + 1

    def _need(self, line: Line | None, otherwise: str) -> Line:
        if line is None:
            raise NotAsPromised(otherwise)
        return line

    def send(self, callback: Callback, label: str) -> Try:
        """Make one try of a callback."""
        return send(self.client, callback, label=label)

    def recorded(self, callback: Callback, event_type: str) -> str:
        """Send a callback that must be recorded; return the event's id."""
        tried = self.send(callback, event_type)
        answer = _answer(tried)
        if tried.status != 200 or answer.get("status") != "recorded":
            raise NotAsPromised(f"{event_type} was answered {tried.status}: {tried.answer}")
        event_id = str(answer["event_id"])
        self.events[event_id] = event_type
        self.good(f"{event_type}: answered 200 in {tried.seconds * 1000:.0f} ms, stored as {event_id}")
        return event_id

    def got(self, event_id: str) -> Line:
        """Wait until the application has taken the event."""
        assert self.app is not None
        line = self.app.wait_for(lambda line: line.get("event_id") == event_id, seconds=_PATIENCE)
        return self._need(line, f"the application never got {event_id}")

    def failed_attempt(self, event_id: str) -> Line:
        """Wait until an attempt to deliver the event has failed."""
        assert self.receiver is not None

        def fits(line: Line) -> bool:
            kind = str(line.get("event"))
            return (
                line.get("event_id") == event_id
                and kind.startswith("attempt.")
                and kind != "attempt.delivered"
            )

        line = self.receiver.wait_for(fits, seconds=_PATIENCE)
        return self._need(line, f"no attempt was made to deliver {event_id}")

    def ask(self, *words: str) -> Any:
        """Return what a command of receiver's prints as JSON."""
        command = [sys.executable, "-m", "receiver.cli.app", "--config", self.config, *words, "--json"]
        done = subprocess.run(
            command, capture_output=True, check=False, env=clean_environment(os.environ), timeout=_PATIENCE
        )
        if done.returncode:
            raise NotAsPromised(f"receiver {' '.join(words)} failed: {done.stderr.decode().strip()}")
        return json.loads(done.stdout)

    def close(self) -> None:
        """End both processes."""
        for child in (self.app, self.receiver):
            if child is not None:
                child.stop()


@contextlib.contextmanager
def _stage(folder: Path, out: Console, client: httpx2.Client) -> Iterator[Stage]:
    made = fresh()
    stage = Stage(
        folder=folder,
        out=out,
        client=client,
        ports=_free_ports(),
        basic=made.basic,
        deapi_secret=fresh().token_secret,
        app_secret=made.app_secret,
        tokens=CallbackTokens([made.token_secret]),
    )
    _write_settings(stage, made.token_secret)
    try:
        yield stage
    finally:
        stage.close()


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        for sock in (one, two):
            sock.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def _write_settings(stage: Stage, token_secret: str) -> None:
    quoted = json.dumps
    text = f"""\
# Written by `receiver demo`; everything stays on this machine.
data = {quoted(str(stage.folder.absolute() / "data"))}

[server]
host = "127.0.0.1"
port = {stage.ports[0]}
log = "json"

[tokens]
secrets = [{quoted(token_secret)}]

[sources.deepgram]
provider = "deepgram"
basic = [{quoted(stage.basic)}]
require_token = true

[sources.deapi]
provider = "deapi"
secrets = [{quoted(stage.deapi_secret)}]

[destinations.app]
url = "http://127.0.0.1:{stage.ports[1]}/hooks"
secrets = [{quoted(stage.app_secret)}]
allow = ["127.0.0.0/8"]
retry = {{retries = 20, wait = 1}}    # a real one would be "deepgram" or "standard"
timeout_seconds = 5
"""
    fd = os.open(stage.config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)


def _fresh_folder(folder: Path) -> None:
    """Make the folder anew. Only one that a demo made, and that no demo uses, is ever removed."""
    marker = folder / _MARKER
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ReceiverError(f"{folder} is not a folder: name another with --folder")
    if folder.exists() and any(folder.iterdir()):
        if not marker.is_file():
            raise ReceiverError(
                f"{folder} was not made by the demo, and is left as it is: name another with --folder"
            )
        if _alive(marker.read_text("ascii", "replace").strip()):
            raise ReceiverError(f"a demo is running in {folder}: end it, or name another with --folder")
        shutil.rmtree(folder)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker.write_text(str(os.getpid()), "ascii")
    except OSError as error:
        raise ReceiverError(f"{folder} cannot be made: {error.strerror}") from None


def _alive(pid: str) -> bool:
    if not pid.isdigit() or int(pid) in (0, os.getpid()):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _leave(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / _MARKER).write_text("done", "ascii")


# ---------------------------------------------------------------- the steps


def _play(stage: Stage) -> None:
    audio = files("receiver.samples").joinpath("speech.mp3").read_bytes()
    stage.title("Start receiver and a sample application")
    stage.start_receiver()
    stage.start_app()
    stage.good(f"receiver listens on {stage.base}, all it keeps is in {stage.folder}/data")
    stage.good(f"the application listens on 127.0.0.1:{stage.ports[1]}")
    speech = _speech(stage, audio)
    _strangers(stage, speech)
    _outage(stage)
    _duplicate(stage, speech)
    _killed(stage, audio)
    _compare(stage)


def _deepgram(stage: Stage, ref: str, audio: bytes, *, basic: str | None = None) -> Callback:
    token = stage.tokens.issue("deepgram", ref=ref, format={"product": "speak"})
    url = urls.compose(stage.base, "deepgram", token=token, basic=basic or stage.basic)
    return deepgram.speech(url, audio, content_type="audio/mpeg", method="PUT")


def _speech(stage: Stage, audio: bytes) -> Callback:
    stage.title("Deepgram calls back with speech: PUT, Basic credentials, a token that says order-42")
    callback = _deepgram(stage, "order-42", audio)
    event_id = stage.recorded(callback, "speech.completed")
    line = stage.got(event_id)
    heard = line["audio"] or {}
    if line["ref"] != "order-42" or heard.get("sha256") != hashlib.sha256(audio).hexdigest():
        raise NotAsPromised("the audio that the application fetched is not the audio that was sent")
    stage.good("delivered: the application checked the signature and saw ref order-42")
    length = f"{heard['bytes']} bytes, {heard['duration_seconds']} s"
    stage.good(f"it fetched the audio by the event's link: {length}, SHA-256 as sent")
    return callback


def _strangers(stage: Stage, speech: Callback) -> None:
    stage.title("Somebody else calls back: a wrong password, then no signature")
    parts = urlsplit(speech.url)
    wrong = urlunsplit(parts._replace(netloc=f"deepgram:guess@{parts.netloc.rpartition('@')[2]}"))
    forged = Callback(speech.method, wrong, speech.headers, b"not from Deepgram")
    unsigned = Callback("POST", f"{stage.base}/callbacks/deapi", {"content-type": "application/json"}, b"{}")
    for callback, what in ((forged, "the wrong password"), (unsigned, "no signature")):
        tried = stage.send(callback, what)
        if tried.status != 401:
            raise NotAsPromised(f"{what} was answered {tried.status} instead of 401")
        stage.good(f"{what}: refused with 401, nothing stored")


def _outage(stage: Stage) -> None:
    stage.title("The application goes down; deAPI calls back twice, signed")
    stage.stop_app()
    url = urls.compose(stage.base, "deapi", token=stage.tokens.issue("deapi", ref="order-43"))
    job = deapi.Job(url, stage.deapi_secret)
    ids = []
    for event in ("processing", "completed"):
        now = time.time_ns() // 1_000_000
        callback = job.callback(event, job.body(event, now=now), now=now)
        ids.append(stage.recorded(callback, f"speech.{event}"))
    for event_id in ids:
        line = stage.failed_attempt(event_id)
    stage.good(f"the attempts fail ({line.get('detail')}), and are tried again every second")
    stage.title("The application comes up again")
    stage.start_app()
    for event_id in ids:
        stage.got(event_id)
    stage.good("both events are delivered, signed, by a retry; nobody had to do anything")


def _duplicate(stage: Stage, speech: Callback) -> None:
    stage.title("Deepgram sends the first callback again, as it does when an answer was lost")
    tried = stage.send(speech, "speech.completed")
    answer = _answer(tried)
    first = next(iter(stage.events))
    if tried.status != 200 or answer.get("status") != "duplicate" or answer.get("event_id") != first:
        raise NotAsPromised(f"the duplicate was answered {tried.status}: {tried.answer}")
    stage.good(f"answered 200 as a duplicate of {first}; no second event, no second delivery")


def _killed(stage: Stage, audio: bytes) -> None:
    stage.title("receiver is killed (SIGKILL) with an event answered for and not yet delivered")
    stage.stop_app()
    event_id = stage.recorded(_deepgram(stage, "order-44", audio), "speech.completed")
    stage.failed_attempt(event_id)
    assert stage.receiver is not None
    stage.receiver.stop(signal.SIGKILL)
    stage.good("killed; nothing was handed over or written on the way out")
    stage.start_app()
    stage.start_receiver()
    stage.got(event_id)
    stage.good("started again, and the event is delivered: what was answered with 200 is never lost")


def _compare(stage: Stage) -> None:
    """Compare what the store holds with what was answered, and with what the application got."""
    found = {event["id"]: event["type"] for event in stage.ask("events")}
    if found != stage.events:
        raise NotAsPromised(f"the store holds {len(found)} events instead of {len(stage.events)}")
    owed = stage.ask("deliveries")
    states = sorted(delivery["state"] for delivery in owed)
    if states != ["delivered"] * len(stage.events):
        raise NotAsPromised(f"the deliveries are {', '.join(states)}")
    stage.stop_app()
    if stage.delivered != dict.fromkeys(stage.events, 1):
        raise NotAsPromised("the application did not get each event exactly once")
    stage.start_app()


def _answer(tried: Try) -> dict[str, Any]:
    try:
        fields = json.loads(tried.answer)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


# ---------------------------------------------------------------- afterwards


def _look_further(stage: Stage) -> None:
    say = stage.out.print
    for words in (["events"], ["deliveries"], ["rejections"]):
        command = f"receiver --config {stage.config} {' '.join(words)}"
        say(f"\n$ {command}", style="bold")
        sys.stdout.flush()
        subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-m", "receiver.cli.app", "--config", stage.config, *words],
            check=False,
            env=clean_environment(os.environ),
            timeout=_PATIENCE,
        )
    first = next(iter(stage.events))
    say(f"\nThe audio lies under {stage.folder}/data/blobs. Look further with")
    say(f"  receiver --config {stage.config} events {first}")
    say(f"  receiver --config {stage.config} deliveries --json")
    say(f"  less {stage.folder}/receiver.log")
    say("and begin with a file of your own: receiver init")


def _asked(out: Console) -> bool:
    """Ask in a terminal whether to stay up; silence is no."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    out.print(f"\nStay up, to try things out? [y/N] (no in {_QUESTION_SECONDS:.0f} s) ", end="")
    sys.stdout.flush()
    readable, _, _ = select.select([sys.stdin], [], [], _QUESTION_SECONDS)
    if not readable:
        out.print()
        return False
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _stay(stage: Stage) -> None:
    """Keep both processes up until Ctrl-C, and say what the application gets."""
    assert stage.app is not None
    stage.out.print(f"\nreceiver stays up on {stage.base}. Try, in another terminal:")
    stage.out.print(f"  receiver --config {stage.config} simulate deepgram --ref order-45")
    stage.out.print("Ctrl-C ends it.\n")
    heard = 0
    with contextlib.suppress(KeyboardInterrupt):
        while stage.app.status is None:
            line = stage.app.wait_for(lambda _: True, seconds=3600, after=heard)
            heard += line is not None
            if line is not None and line["got"] == "event":
                stage.out.print(f"the application got {line['type']} {line['event_id']} (ref {line['ref']})")
