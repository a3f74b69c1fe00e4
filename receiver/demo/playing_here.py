"""What playing a provider that is asked needs: its place on this machine, and an ear for what it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import typer

from receiver.cli.common import made_store, provider_settings
from receiver.cli.options import UsageError
from receiver.cli.output import clean, warn
from receiver.core.errors import NotFound

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from receiver.settings.model import Settings, SourceSettings
    from receiver.storage.store.base import Store

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
    from receiver.outbound.url import listed

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
    from receiver.demo.standins.serving import served

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
        from receiver.demo.standins.deapi_results import Work

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
    from receiver.demo.standins.deapi_results import Deapi

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
