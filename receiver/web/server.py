"""The serving process: sockets, uvicorn, signals, the ready file, and the graceful stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import secrets
import signal
import socket
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import uvicorn
from msgspec import Struct

from receiver.app.wiring import Receiver, build, open_lasting
from receiver.core.errors import ReceiverError
from receiver.core.observe import Repeats
from receiver.settings.load import journal_folder
from receiver.system.event_loop import short_turns
from receiver.web.console.sessions import sessions_of
from receiver.web.protocol import protocol
from receiver.web.reloading import Read, Serving, answering
from receiver.web.sockets import bind_all, bind_trouble, connections_for, raise_descriptors

if TYPE_CHECKING:
    from receiver.core.observe import Observer
    from receiver.settings.model import Settings

_BACKLOG = 2048
_ACCEPTED_AT_ONCE = 128
"""Connections that are accepted before any is read from: with more, one that speaks could be closed as a silent one first."""
_YOUNG_OBJECTS = 10_000
"""Objects that may be made before the garbage collector looks at them; Python's own number is 700."""
_KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s that load balancers keep an idle connection, so that receiver is never the first to close it."""


class Doing(Struct, frozen=True, kw_only=True):
    """What a process does, and how it tells of it."""

    intake: bool
    work: bool
    ready_file: str | None
    read: Read
    """Reads the settings again, for a reload."""
    tell_link: Callable[[str], None] | None = None
    """Called, once it listens, with a link that logs in to the console once; None offers none."""
    tell_ready: Callable[[], None] | None = None
    """Called then as well; given to processes that share their ports."""


def run(settings: Settings, doing: Doing, *, listen: bool) -> None:
    """Run until SIGTERM or SIGINT, then stop within `server.stop_seconds`. At SIGHUP read the settings again.

    Raises `ReceiverError` when the port is not free, `ConfigError` and `Unavailable` when a part cannot be opened.
    """
    raise_descriptors()
    sockets = bind_all(settings, shared=doing.tell_ready is not None) if listen else []
    try:
        port = {"port": sockets[0].getsockname()[1]} if sockets else {}
        bound = settings.server.model_copy(update=port)
        receiver = build(settings.model_copy(update={"server": bound}))
        with asyncio.Runner(loop_factory=short_turns) as runner:
            runner.run(_run(receiver, settings, sockets, doing))
    finally:
        for sock in sockets:
            sock.close()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, and with a call when it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for sock in sockets or ():
            sock.listen(_BACKLOG)
        self._ready()


async def _run(receiver: Receiver, settings: Settings, sockets: list[socket.socket], doing: Doing) -> None:
    sessions = sessions_of(receiver.settings)
    link = (
        sessions.offer_link() if doing.tell_link else None
    )  # before the pages: they are there for who can log in
    roads = {"intake": doing.intake, "work": doing.work}
    serving = Serving(receiver, sessions, settings=settings, read=doing.read, **roads)
    stop = _Stop()
    _listen_to_signals(stop, serving)
    _calm_collector()
    _forward_logging(receiver.observer)
    address = whereabouts(receiver.settings, console=sessions.on) if sockets else {}
    with _ready_signal(receiver, address, doing.ready_file) as signalled:

        def ready() -> None:
            if doing.tell_link and link:
                doing.tell_link(f"{address['url']}/console/login?once={link}")
            signalled()
            if doing.tell_ready:
                doing.tell_ready()

        async with open_lasting(receiver, intake=doing.intake), serving.open(), _control(serving):
            if sockets:
                await _serve(serving, sockets, stop, ready, doing)
            else:
                ready()
                await stop.wait()
    receiver.observer.note("info", "receiver.stopped")


@contextlib.asynccontextmanager
async def _control(serving: Serving) -> AsyncIterator[None]:
    """Answer `receiver reload`; where no socket can be had, SIGHUP still reloads."""

    async def answer() -> bytes:
        return msgspec.json.encode(await serving.reload())

    async with contextlib.AsyncExitStack() as stack:
        try:
            folder = journal_folder(serving.receiver.settings)
            await stack.enter_async_context(answering(folder, answer))
        except OSError as error:
            serving.receiver.observer.note("warning", "receiver.no_control", error=error.strerror or "")
        yield


def _calm_collector() -> None:
    """Let the garbage collector skip what lives as long as the process, and look less often at the rest.

    Almost nothing here is cyclic. Measured: a tenth less time for each callback, and the slowest answers twice as fast. It does
    not look before: that takes a twelfth of a start, and finds less than a thousand objects.
    """
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)


class _Stop(asyncio.Event):
    """Set by the first signal to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.at_once = asyncio.Event()
        """Set when the stop must not wait for load balancers: by Ctrl-C, or by a second SIGTERM."""


class Terminal:
    """The terminal that a process began in, if any. When it is closed the system sends SIGHUP, as others do for a reload."""

    def __init__(self) -> None:
        self._began = self._is_there()

    @property
    def closed(self) -> bool:
        """True when there was one, and is no more."""
        return self._began and not self._is_there()

    @staticmethod
    def _is_there() -> bool:
        try:
            os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        except OSError:
            return False
        return True


def _listen_to_signals(stop: _Stop, serving: Serving) -> None:
    """Stop gracefully at SIGTERM or SIGINT; a second Ctrl-C ends at once, as all that was answered is stored.

    At SIGHUP the settings are read again; but where a terminal was closed, which sends the same, the process ends.
    """
    terminal = Terminal()
    reloads: set[asyncio.Task[Any]] = set()

    def interrupted() -> None:
        if stop.at_once.is_set():
            os._exit(130)
        stop.at_once.set()
        stop.set()

    def terminated() -> None:
        if stop.is_set():
            stop.at_once.set()
        stop.set()

    def hung_up() -> None:
        if terminal.closed:
            terminated()
        else:
            reloads.add(task := asyncio.create_task(serving.reload()))
            task.add_done_callback(reloads.discard)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, hung_up)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # which a supervisor has blocked
    loop.add_signal_handler(signal.SIGTERM, terminated)
    loop.add_signal_handler(signal.SIGINT, interrupted)


async def _serve(
    serving: Serving, sockets: list[socket.socket], stop: _Stop, ready: Callable[[], None], doing: Doing
) -> None:
    settings = serving.receiver.settings.server
    server = _Server(_config(serving, intake=doing.intake), ready)
    listening = asyncio.create_task(server.serve(sockets=sockets))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({listening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        receiver = serving.receiver
        if stop.is_set():
            receiver.stopping = True
            if doing.intake:
                await _drain(receiver, stop, listening)
        server.should_exit = True
        if doing.work and stop.is_set():
            # All ends stop at once, so that the whole takes stop_seconds and not three times as long.
            grace = settings.stop_seconds
            await asyncio.gather(listening, receiver.relay.stop(grace), receiver.collector.stop(grace))
        else:
            await listening
    except OSError as error:
        raise ReceiverError(bind_trouble(settings.host, settings.port, error)) from None
    finally:
        stopping.cancel()


def _config(serving: Serving, *, intake: bool) -> uvicorn.Config:
    settings = serving.receiver.settings.server
    connections = connections_for(settings.max_connections)
    config = uvicorn.Config(
        serving,
        http=protocol(serving, intake=intake, max_connections=connections),
        loop="asyncio",
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        log_config=None,
        proxy_headers=False,  # `Callbacks` reads them, for what is a callback
        backlog=_ACCEPTED_AT_ONCE,  # asyncio accepts so many in one turn
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
    config.timeout_graceful_shutdown = settings.stop_seconds  # type: ignore[assignment]  # said to be an int, and used as a timeout, where parts of a second count
    return config


async def _drain(receiver: Receiver, stop: _Stop, listening: asyncio.Task[None]) -> None:
    """Serve for another `server.drain_seconds`, so that load balancers see `/readyz/intake` fail and send callbacks elsewhere.

    Each connection ends with its next answer, so that those kept open lead elsewhere as well.
    """
    seconds = receiver.settings.server.drain_seconds
    if seconds and not stop.at_once.is_set():
        receiver.observer.note("info", "receiver.draining", seconds=seconds)
        hurry = asyncio.create_task(stop.at_once.wait())
        await asyncio.wait({listening, hurry}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()


def whereabouts(settings: Settings, *, console: bool) -> dict[str, Any]:
    """Return where it listens, for the ready file and the log; where the console is, if anybody can log in there."""
    host, port = settings.server.host, settings.server.port
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return {"host": host, "port": port, "url": url} | ({"console": f"{url}/console/"} if console else {})


@contextlib.contextmanager
def _ready_signal(
    receiver: Receiver, address: dict[str, Any], path: str | None
) -> Iterator[Callable[[], None]]:
    """Yield a function that reports readiness: the log line `receiver.ready`, and the ready file until the process ends."""

    def ready() -> None:
        if path:
            write_ready_file(path, address)
        receiver.observer.note("info", "receiver.ready", pid=os.getpid(), **address)

    try:
        yield ready
    finally:
        if path:
            with contextlib.suppress(OSError):
                os.unlink(path)


def write_ready_file(path: str, address: Mapping[str, Any]) -> None:
    """Write the ready file, which appears whole or not at all. Raises `ReceiverError`."""
    fresh = f"{path}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with open(fresh, "x", encoding="utf-8") as file:  # never through a link that somebody laid there
            file.write(json.dumps({"pid": os.getpid(), **address}) + "\n")
        os.replace(fresh, path)
    except OSError as error:
        raise ReceiverError(f"the ready file {path} cannot be written: {error.strerror}") from None


class _Forward(logging.Handler):
    """Passes the log records of uvicorn and asyncio to the observer, as one line without a traceback."""

    def __init__(self, observer: Observer) -> None:
        super().__init__(logging.WARNING)
        self._observer = observer
        self._repeats = Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"logger": record.name, "message": record.getMessage().splitlines()[0][:300]}
        left_out = self._repeats.left_out((record.name, fields["message"][:40]))
        if left_out is None:
            return
        if left_out:
            fields["left_out"] = left_out
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            frames = traceback.extract_tb(error.__traceback__)
            fields["error"] = type(error).__name__
            fields["at_line"] = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        level = "error" if record.levelno >= logging.ERROR else "warning"
        self._observer.note(level, "process.log", **fields)


def _forward_logging(observer: Observer) -> None:
    for name in ("uvicorn.error", "uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Forward(observer)], False
        logger.setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").propagate = False
