"""A whole receiver on loopback inside the test: real uvicorn, real store, real folder; ports may be wrapped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from receiver.app.wiring import Ports, Receiver, Timing, build, open_lasting
from receiver.core.clock import wall_clock
from receiver.core.observe import AttemptReport, CallbackReport, PickupReport, SubmissionReport
from receiver.settings.load import parse, postgres_url, sqlite_path
from receiver.settings.model import Settings
from receiver.web.console.sessions import sessions_of
from receiver.web.protocol import protocol
from receiver.web.reloading import Reloaded, Serving
from receiver.web.sockets import bind
from tests.support.clients import local_client
from tests.support.embedded import migrated
from tests.support.patience import PATIENCE
from tests.support.ports import held_port

BASIC = "deepgram:correct-horse-battery"
DEAPI_SECRET = "whsec_local_test_0123456789abcdefghijkl"
APP_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

QUICK = Timing(drain=(0.05, 0.2))
"""Where a store was out, tests wait for the drain of a journal."""


class Seen:
    """An observer that remembers what the engine reported."""

    def __init__(self) -> None:
        self.callbacks: list[CallbackReport] = []
        self.attempts: list[AttemptReport] = []
        self.pickups: list[PickupReport] = []
        self.submissions: list[SubmissionReport] = []
        self.notes: list[tuple[str, str, dict[str, Any]]] = []
        self.journal_depths: list[int] = []
        self._changed = asyncio.Condition()

    def callback(self, report: CallbackReport) -> None:
        self.callbacks.append(report)
        self._tell()

    def attempt(self, report: AttemptReport) -> None:
        self.attempts.append(report)
        self._tell()

    def pickup(self, report: PickupReport) -> None:
        self.pickups.append(report)
        self._tell()

    def submission(self, report: SubmissionReport) -> None:
        self.submissions.append(report)
        self._tell()

    def journal(self, depth: int, oldest_age_seconds: float) -> None:
        self.journal_depths.append(depth)
        self._tell()

    def note(self, level: str, event: str, **fields: Any) -> None:
        self.notes.append((level, event, fields))
        self._tell()

    def _tell(self) -> None:
        async def tell() -> None:
            async with self._changed:
                self._changed.notify_all()

        try:
            self._last = asyncio.get_running_loop().create_task(tell())
        except RuntimeError:  # reported from a thread: nobody waits for those
            return

    async def until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait until `condition` holds, looking whenever something was reported."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(condition)


@dataclass
class Running:
    """A receiver that listens."""

    receiver: Receiver
    base: str
    client: httpx2.AsyncClient
    seen: Seen
    folder: Path
    serving: Serving
    headers: dict[str, str] = field(default_factory=dict)

    async def reload(self, text: str) -> Reloaded:
        """Have it take the settings `text`."""
        self.serving._read = lambda: _parsed(text, self.receiver.settings.server.port)
        return await self.serving.reload()


def settings_text(
    folder: Path, *, destination: str | None = None, extra: str = "", retry: str = '"deepgram"'
) -> str:
    """Return a receiver.toml with both providers and, when given, one destination."""
    text = f"""
data = "{folder / "data"}"
[sources.deepgram]
provider = "deepgram"
basic = ["{BASIC}"]
[sources.speech]
provider = "deepgram"
require_token = true
[sources.deapi]
provider = "deapi"
secrets = ["{DEAPI_SECRET}"]
"""
    if destination:
        text += f"""
[destinations.app]
url = "{destination}"
secrets = ["{APP_SECRET}"]
retry = {retry}
allow = ["127.0.0.0/8"]
"""
    return text + extra


def api_token(name: str, secret: str, scopes: str = '["read", "operate", "admin"]') -> str:
    """Return the settings of one token of the API."""
    return f'[[api.tokens]]\nname = "{name}"\nsecret = "{secret}"\nscopes = {scopes}\n'


def _parsed(text: str, port: int) -> Settings:
    environ = {"RECEIVER__SERVER__PORT": str(port)}
    return parse(text, environ, lambda name: Path(name).read_text("utf-8"))


@contextlib.asynccontextmanager
async def running(
    folder: Path,
    text: str | None = None,
    *,
    shape: Callable[[Ports], Ports] = lambda ports: ports,
    clock: Callable[[], int] = wall_clock,
    work: bool = True,
    timing: Timing | None = None,
    port: int | None = None,
) -> AsyncIterator[Running]:
    """Run a receiver with the settings `text` until the block ends, then stop it gracefully."""
    sockets = bind("127.0.0.1", port) if port else [held_port()]
    port = int(sockets[0].getsockname()[1])
    settings = _parsed(text or settings_text(folder), port)
    if settings.submit.listen:
        host, _, number = settings.submit.listen.rpartition(":")
        sockets += bind(host, int(number))
    if postgres_url(settings) is None:
        migrated(sqlite_path(settings))
    seen = Seen()
    receiver = build(settings, observers=[seen], clock=clock, shape=shape, timing=timing or QUICK)
    serving = Serving(
        receiver, sessions_of(settings), settings=settings, intake=True, work=work, read=lambda: settings
    )
    async with open_lasting(receiver), serving.open():
        config = uvicorn.Config(
            serving,
            port=port,
            http=protocol(serving),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        task = asyncio.create_task(server._serve(sockets))
        while not server.started:
            if task.done():
                await task
            await asyncio.sleep(0)
        base = f"http://127.0.0.1:{port}"
        try:
            async with local_client(base_url=base, timeout=PATIENCE) as client:
                yield Running(receiver, base, client, seen, folder, serving)
        finally:
            serving.receiver.stopping = True  # streams end
            server.should_exit = True
            await task
