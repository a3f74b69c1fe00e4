"""Reloads the settings of a running process, without refusing a callback meanwhile.

A request ends with the settings that it began with. In order: the new parts start, new requests go to them, the old parts
claim no more work and finish running attempts, and when the last old request has its answer, its connections close.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from receiver.app import wiring
from receiver.core.errors import ReceiverError, Unavailable
from receiver.settings.model import Section, Settings
from receiver.storage.store.small_tables import everywhere
from receiver.system.files import make_folder
from receiver.web.app import create_app, create_submit_app
from receiver.web.console.sessions import Sessions, sessions_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from receiver.app.wiring import Receiver


FIXED = ("data", "server", "store", "blobs", "journal")
"""Sections that are taken at the start alone: sockets, files and connections hang on them."""
_FIXED_PLACES = ("submit.listen",)


Changes = dict[str, list[str]]
"""The names of what a reload changes, never a value: by `sources_added`, `sources_removed`, `sources_changed`, the same of
destinations, `settings_changed` for other settings that were taken, and `needs_restart` for those that the process goes on
without.
"""


def taken(running: Settings, read: Settings) -> tuple[Settings, Changes]:
    """Return what a process that runs with `running` runs with after it has read `read`, and what that changes."""
    fixed: dict[str, Any] = {name: getattr(running, name) for name in FIXED}
    fixed["submit"] = read.submit.model_copy(update={"listen": running.submit.listen})
    changes = _named("sources", running.sources, read.sources)
    changes |= _named("destinations", running.destinations, read.destinations)
    changes |= {"settings_changed": [], "needs_restart": []}
    for name in Settings.model_fields.keys() - {"sources", "destinations"}:
        for place in _differing(getattr(running, name), getattr(read, name), name):
            needs_restart = name in FIXED or place in _FIXED_PLACES
            changes["needs_restart" if needs_restart else "settings_changed"].append(place)
    return read.model_copy(update=fixed), {what: sorted(names) for what, names in changes.items() if names}


def _differing(before: Any, after: Any, place: str) -> list[str]:
    """Return the settings of a section that differ; of what is no section, its place."""
    if not isinstance(before, Section):
        return [place] if before != after else []
    names = type(before).model_fields
    return [f"{place}.{name}" for name in names if getattr(before, name) != getattr(after, name)]


def _named(kind: str, before: Mapping[str, Section], after: Mapping[str, Section]) -> Changes:
    return {
        f"{kind}_added": [name for name in after if name not in before],
        f"{kind}_removed": [name for name in before if name not in after],
        f"{kind}_changed": [name for name in after if name in before and after[name] != before[name]],
    }


Read = Callable[[], "Settings"]
"""Reads the settings again. Raises `ReceiverError` when they cannot be used."""


class Reloaded(Struct, frozen=True):
    """What became of one reload."""

    pid: int
    error: str | None = None
    """Why nothing was taken."""
    changes: Changes = {}


class _Face:
    """The receiver that one reading of the settings made, as requests see it."""

    def __init__(self, receiver: Receiver, sessions: Sessions, *, intake: bool) -> None:
        self.receiver = receiver
        self.sessions = sessions
        self.app = _by_listener(receiver, create_app(receiver, intake=intake, sessions=sessions))
        self.under_way = 0
        self.idle = asyncio.Event()
        """Set when this face is the old one, and its last request has ended."""


class Serving:
    """The application of a process: passes each request to what the settings make now."""

    def __init__(
        self,
        receiver: Receiver,
        sessions: Sessions,
        *,
        settings: Settings,
        intake: bool,
        work: bool,
        read: Read,
    ) -> None:
        """`receiver` runs with `settings`, which have the port as it was written. `read` reads them again, when asked to."""
        self._intake, self._work, self._read = intake, work, read
        self._settings = settings
        self.receiver = receiver
        """The receiver as the settings make it now."""
        self._face = _Face(receiver, sessions, intake=intake)
        self._one = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Run the parts that the settings make, until the block ends: no request is under way then. Raises `ConfigError`, `Unavailable`."""
        try:
            async with self._one:
                await wiring.begin(self.receiver, intake=self._intake, work=self._work)
            yield
        finally:
            async with self._one:
                await asyncio.gather(wiring.stop_work(self.receiver), *self._retiring)
                await wiring.end(self.receiver)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; with `Connection: close` once the process is stopping."""
        face = self._face
        face.under_way += 1

        async def closing(message: Message) -> None:
            if self.receiver.stopping and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        try:
            await face.app(scope, receive, closing)
        finally:
            face.under_way -= 1
            if face is not self._face and not face.under_way:
                face.idle.set()

    async def reload(self) -> Reloaded:
        """Read the settings and take them; tell what that changed, or why nothing was."""
        async with self._one:
            observer = self.receiver.observer
            try:
                settings, changes = taken(self._settings, await asyncio.to_thread(self._read))
                await self._take(settings)
            except ReceiverError as error:
                observer.note("error", "settings.not_taken", error=error.message)
                return Reloaded(os.getpid(), error=error.message)
            observer.note(
                "info", "settings.taken", **{what: ", ".join(names) for what, names in changes.items()}
            )
            return Reloaded(os.getpid(), changes=changes)

    async def _take(self, settings: Settings) -> None:
        """Put the receiver that `settings` make in place of the one that is there. Raises `ReceiverError`: nothing has changed then."""
        old = self._face
        if old.receiver.stopping:
            raise ReceiverError("receiver is stopping")
        bound = {"server": old.receiver.settings.server}
        fresh = wiring.rebuild(old.receiver, settings.model_copy(update=bound))
        try:
            await wiring.begin(fresh, intake=self._intake, work=self._work)
            await self._end_logins(settings)
            if old.receiver.stopping:  # since then: the new one would not know
                raise ReceiverError("receiver is stopping")
        except BaseException:
            await wiring.stop_work(fresh)
            await wiring.end(fresh)
            raise
        sessions = old.sessions
        if (settings.api.tokens, settings.tokens) != (self._settings.api.tokens, self._settings.tokens):
            sessions = sessions_of(settings)
        self._face, self._settings = _Face(fresh, sessions, intake=self._intake), settings
        self.receiver = fresh
        if not old.under_way:
            old.idle.set()
        retiring = asyncio.create_task(self._retire(old))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)

    async def _end_logins(self, settings: Settings) -> None:
        """End the logins by tokens that leave, also should these come back. Raises `StoreUnavailable`."""
        kept = {token.digest for token in settings.api.tokens}
        for token in self._settings.api.tokens:
            if token.digest not in kept:
                await self.receiver.store.end_login(everywhere(token.name), now=self.receiver.clock())

    @staticmethod
    async def _retire(old: _Face) -> None:
        old.receiver.stopping = True  # its streams end; who reads them comes again, and goes on where it was
        await old.receiver.journal_drain.stop()
        await wiring.stop_work(old.receiver)
        await old.idle.wait()
        await wiring.end(old.receiver)


def _by_listener(receiver: Receiver, app: ASGIApp) -> ASGIApp:
    """Return the application; the listener of submissions, if there is one, serves nothing else, and nobody else serves them."""
    if not receiver.settings.submit.listen:
        return app
    port, submit = int(receiver.settings.submit.listen.rpartition(":")[2]), create_submit_app(receiver)

    async def by_listener(scope: Scope, receive: Receive, send: Send) -> None:
        chosen = submit if scope["server"][1] == port else app
        await chosen(scope, receive, send)

    return by_listener


# ---------------------------------------------------------------- how a command asks the receivers of this machine: each listens on a socket in the journal's folder

_MOST_BYTES = 1024 * 1024
_LONGEST_PATH = 100
"""Bytes that the system allows in a socket's path, a few less."""


def _folder(journal: str) -> Path:
    return Path(journal, "running")


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield a path that a socket can have: for a long one, a way to it by its open folder."""
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@contextlib.asynccontextmanager
async def answering(journal: str, answer: Callable[[], Awaitable[bytes]]) -> AsyncIterator[None]:
    """Answer each command with what `answer` returns, until the block ends. Raises `OSError`.

    Whoever may write the journal's folder may ask, and nobody else.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            writer.write(await answer())
            await writer.drain()

    folder = _folder(journal)
    make_folder(folder)
    path = folder / f"{secrets.token_hex(4)}.sock"
    with _short(path) as short:
        server = await asyncio.start_unix_server(serve, short)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


def ask_all(journal: str, *, seconds: float) -> tuple[list[bytes], list[str]]:
    """Return what each running receiver with this journal answers, and a sentence for each that does not."""
    answers: list[bytes] = []
    silent: list[str] = []
    for path in sorted(_folder(journal).glob("*.sock")):
        try:
            answer = _ask(path, seconds)
        except Unavailable as error:  # the others are asked all the same
            silent.append(error.message)
        else:
            answers += [] if answer is None else [answer]
    return answers, silent


def _ask(path: Path, seconds: float) -> bytes | None:
    """Return what one answers; None when its process was killed, and only the socket's name is left: it is removed.

    Raises `Unavailable` when there is no answer.
    """
    with socket.socket(socket.AF_UNIX) as asking, _short(path) as short:
        asking.settimeout(seconds)
        try:
            asking.connect(short)
            answer = b""
            while len(answer) < _MOST_BYTES and (piece := asking.recv(65_536)):
                answer += piece
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return None
        except OSError as error:
            reason = error.strerror or f"it did not answer within {seconds:g} s"
            raise _silent(path, reason) from None
    if not answer:
        raise _silent(path, "it ended, or failed, before it answered; look into its log")
    return answer


def _silent(path: Path, reason: str) -> Unavailable:
    return Unavailable(f"a running receiver cannot be asked ({path}): {reason}")
