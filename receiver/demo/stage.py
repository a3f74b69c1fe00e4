"""The demo's environment: its folder, its settings, receiver and the sample application as processes."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import httpx2
from msgspec import Struct
from rich.console import Console

from receiver.cli.run import fresh
from receiver.core.errors import ReceiverError
from receiver.core.tokens import CallbackTokens
from receiver.demo.deapi import Deapi
from receiver.demo.deepdub import Deepdub
from receiver.demo.playht import Playht
from receiver.demo.serving import Callback, CallbackAttempt, send, served
from receiver.system.files import is_running, write_file

TIMEOUT_SECONDS = 60.0
"""Seconds to wait for any one promised thing."""
STEPS: Final = 11
_MARKER = ".receiver-demo"


class NotAsPromised(ReceiverError):
    """Something did not happen as it should."""


class Stage(Struct):
    """What the steps share."""

    folder: Path
    out: Console
    client: httpx2.Client
    ports: tuple[int, int]
    """Of receiver, and of the sample application."""
    basic: str
    deapi_secret: str
    app_secret: str
    console_token: str
    tokens: CallbackTokens
    deapi: Deapi
    deepdub: Deepdub
    playht: Playht
    api_key: str
    """The one key that the simulated providers take; receiver has it in its settings."""
    user_id: str
    events: dict[str, str] = {}
    """Event id to type, of everything that receiver answered for."""
    delivered: dict[str, int] = {}
    """Event id to the number of times the application got it."""
    step: int = 0
    processes: dict[str, Child] = {}
    """By module, the last one started of each."""

    @property
    def receiver(self) -> Child:
        """The receiver."""
        return self.processes["receiver.cli.app"]

    @property
    def app(self) -> Child:
        """The sample application."""
        return self.processes["receiver.demo.application"]

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
        self.out.print(f"\n{self.step}/{STEPS}  {text}", style="bold")

    def good(self, text: str) -> None:
        """Say what was found to be so."""
        mark = "✓" if "utf" in self.out.encoding.lower() else "ok"
        self.out.print(f"  {mark} {text}", style="green" if self.out.is_terminal else None)

    def start_receiver(self) -> None:
        """Start receiver and wait until it listens."""
        self._start("receiver.cli.app", "--config", self.config, "serve", log="receiver.log")
        _wait(self.receiver, lambda line: line.get("event") == "receiver.ready", "receiver did not start")

    def start_app(self) -> None:
        """Start the sample application and wait until it listens."""
        self._start("receiver.demo.application", "--port", str(self.ports[1]), log="app.log")
        _wait(self.app, lambda line: line["got"] == "ready", "the sample application did not start")

    def _start(self, module: str, *arguments: str, log: str) -> None:
        environment = clean_environment(os.environ) | {"SAMPLE_APP_SECRET": self.app_secret}
        self.processes[module] = Child(module, arguments, log=str(self.folder / log), env=environment)

    def stop_app(self) -> None:
        """Take the sample application down."""
        self.app.stop()
        for line in self.app.lines:
            if line["got"] == "event":
                self.delivered[line["event_id"]] = self.delivered.get(line["event_id"], 0) + 1

    def recorded(self, callback: Callback, event_type: str) -> str:
        """Send a callback that must be recorded; return the event's id."""
        attempt = send(self.client, callback, label=event_type)
        answer = answer_of(attempt)
        if attempt.status != 200 or answer.get("status") != "recorded":
            raise NotAsPromised(f"{event_type} was answered {attempt.status}: {attempt.answer}")
        event_id = str(answer["event_id"])
        self.events[event_id] = event_type
        how = "comes with its result as" if "pickup_id" in answer else "stored as"
        self.good(f"{event_type}: answered 200 in {attempt.seconds * 1000:.0f} ms, {how} {event_id}")
        return event_id

    def delivery(self, event_id: str) -> Line:
        """Wait until the application has taken the event."""
        otherwise = f"the application never got {event_id}"
        return _wait(self.app, lambda line: line.get("event_id") == event_id, otherwise)

    def delivery_of(self, event_type: str, *, ref: str) -> Line:
        """Wait until the application has taken an event of this type with this ref; note it as an event to be."""

        def fits(line: Line) -> bool:
            return line.get("type") == event_type and line.get("ref") == ref

        line = _wait(self.app, fits, f"the application never got {event_type} for {ref}")
        self.events[line["event_id"]] = event_type
        return line

    def failed_attempt(self, event_id: str) -> Line:
        """Wait until an attempt to deliver the event has failed."""

        def fits(line: Line) -> bool:
            kind = str(line.get("event"))
            failed = kind.startswith("attempt.") and kind != "attempt.delivered"
            return failed and line.get("event_id") == event_id

        return _wait(self.receiver, fits, f"no attempt was made to deliver {event_id}")

    def run(self, *words: str, **settings: str) -> Any:
        """Return what a command of receiver's prints as JSON; `settings` are more of its environment."""
        done = self.call(*words, "--json", capture_output=True, **settings)
        if done.returncode:
            raise NotAsPromised(f"receiver {' '.join(words)} failed: {done.stderr.decode().strip()}")
        return json.loads(done.stdout)

    def call(
        self, *words: str, capture_output: bool = False, **settings: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command of receiver's on the demo's settings; what it prints is shown, or else returned."""
        return subprocess.run(
            [sys.executable, "-m", "receiver.cli.app", "--config", self.config, *words],
            capture_output=capture_output,
            check=False,
            env=clean_environment(os.environ) | settings,
            timeout=TIMEOUT_SECONDS,
        )

    def close(self) -> None:
        """End both processes."""
        for child in self.processes.values():
            child.stop()


def _wait(child: Child, fits: Callable[[Line], bool], otherwise: str) -> Line:
    """Return the first fitting line of a process. Raises `NotAsPromised(otherwise)` when none comes in time."""
    line = child.wait_for(fits, seconds=TIMEOUT_SECONDS)
    if line is None:
        raise NotAsPromised(otherwise)
    return line


@contextlib.contextmanager
def set_stage(folder: Path, out: Console, client: httpx2.Client) -> Iterator[Stage]:
    """Write fresh settings; end the processes afterwards, whatever happened."""
    made, key, user_id = fresh(), fresh().token_secret, secrets.token_hex(12)
    deapi, deepdub = Deapi(key), Deepdub(key, not_ready=2)
    playht = Playht(api_key=key, user_id=user_id)
    with (
        served(deapi.app) as deapi.base,
        served(deepdub.app) as deepdub.base,
        served(playht.app) as playht.base,
    ):
        stage = Stage(
            folder=folder,
            out=out,
            client=client,
            ports=_free_ports(),
            basic=made.basic,
            deapi_secret=fresh().token_secret,
            app_secret=made.app_secret,
            console_token=fresh().token_secret,
            tokens=CallbackTokens([made.token_secret]),
            deapi=deapi,
            deepdub=deepdub,
            playht=playht,
            api_key=key,
            user_id=user_id,
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
    key = {"api_key": stage.api_key}
    tables: dict[str, dict[str, Any]] = {
        "server": {"host": "127.0.0.1", "port": stage.ports[0], "log": "json"},
        "tokens": {"secrets": [token_secret]},
        "sources.deepgram": {"provider": "deepgram", "basic": [stage.basic], "require_token": True},
        "sources.deapi": Deapi.settings(stage.deapi.base, **key) | {"secrets": [stage.deapi_secret]},
        "sources.deepdub": Deepdub.settings(stage.deepdub.base, **key),
        "sources.playht": Playht.settings(stage.playht.base, **key, user_id=stage.user_id),
        "destinations.app": {
            "url": f"http://127.0.0.1:{stage.ports[1]}/hooks",
            "secrets": [stage.app_secret],
            "allow": ["127.0.0.0/8"],
            "timeout_seconds": 30,
        },
    }
    lines = ["# Written by `receiver demo`; everything stays on this machine."]
    lines.append(f"data = {json.dumps(str(stage.folder.absolute() / 'data'))}")
    for name, table in tables.items():
        lines += ["", f"[{name}]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    lines.append('retry = {retries = 20, wait = 1}    # a real one would be "deepgram" or "standard"')
    lines += ["", "[[api.tokens]]", 'name = "demo"', f"secret = {json.dumps(stage.console_token)}"]
    lines.append('scopes = ["read", "operate", "admin"]')
    write_file(Path(stage.config), ("\n".join(lines) + "\n").encode())


def fresh_folder(folder: Path) -> None:
    """Make the folder anew. Only one that a demo made, and that no demo uses, is ever removed."""
    marker = folder / _MARKER
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ReceiverError(f"{folder} is not a folder: name another with --folder")
    if folder.exists() and any(folder.iterdir()):
        if not marker.is_file():
            raise ReceiverError(
                f"{folder} was not made by the demo, and is left as it is: name another with --folder"
            )
        if is_running(marker.read_text("ascii", "replace").strip()):
            raise ReceiverError(f"a demo is running in {folder}: end it, or name another with --folder")
        shutil.rmtree(folder)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker.write_text(str(os.getpid()), "ascii")
    except OSError as error:
        raise ReceiverError(f"{folder} cannot be made: {error.strerror}") from None


def leave(folder: Path) -> None:
    """Note in the folder that no demo uses it any more."""
    with contextlib.suppress(OSError):
        (folder / _MARKER).write_text("done", "ascii")


def answer_of(attempt: CallbackAttempt) -> dict[str, Any]:
    """Return the JSON object of an answer, {} when it is none."""
    return _json_object(attempt.answer) or {}


Line = dict[str, Any]


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` without what would change a receiver's settings."""
    ours = ("PORT", "DATABASE_URL")
    return {k: v for k, v in environ.items() if not k.startswith("RECEIVER") and k not in ours}


class Child:
    """A Python module running as a process; both its outputs go to a file, and JSON lines are remembered."""

    def __init__(self, module: str, arguments: Sequence[str], *, log: str, env: Mapping[str, str]) -> None:
        self.name = module
        self.lines: list[Line] = []
        self._changed = threading.Condition()
        self._ended = False
        self._process = self._spawn(module, arguments, env)
        reading = (self._process.stdout, log)
        self._reader = threading.Thread(target=self._read, args=reading, name=f"reads {module}", daemon=True)
        self._reader.start()

    def _spawn(
        self, module: str, arguments: Sequence[str], env: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(env),
        )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.poll()

    def wait_for(self, fits: Callable[[Line], bool], *, seconds: float, after: int = 0) -> Line | None:
        """Return the first fitting line from index `after` on, waiting for it; None when time or the process ended."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                for line in self.lines[after:]:
                    if fits(line):
                        return line
                after = len(self.lines)
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    return None
                self._changed.wait(left)

    def stop(self, signum: signal.Signals = signal.SIGTERM, *, seconds: float = 15.0) -> int:
        """Send a signal and return the exit status; killed when it has not ended after `seconds`."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signum)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(seconds)
        return self._process.returncode

    def _read(self, output: IO[bytes], log: str) -> None:
        with output, open(log, "ab", buffering=0) as file:
            for raw in output:
                file.write(raw)
                line = _json_object(raw)
                if line is not None:
                    with self._changed:
                        self.lines.append(line)
                        self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def _json_object(text: str | bytes) -> dict[str, Any] | None:
    """Return the JSON object that a text is, None when it is something else."""
    try:
        fields = json.loads(text)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None
