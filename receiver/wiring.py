"""Where the parts are put together (floor 7): the only file that names concrete classes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from receiver import envelope
from receiver.attempts import Lane
from receiver.blobs.base import Blobs
from receiver.blobs.local import LocalBlobs, make_folder, sync_folder
from receiver.config import DestinationSettings, Finding, Settings, parse
from receiver.destinations.base import Destination
from receiver.destinations.http import HttpDestination
from receiver.errors import ConfigError
from receiver.intake import Intake
from receiver.journal import Journal
from receiver.logs import LogObserver
from receiver.metrics import MetricsObserver
from receiver.model import Event
from receiver.observe import Observer, Observers
from receiver.providers import deapi, deepgram
from receiver.providers.base import PushProvider
from receiver.recording import Recorder
from receiver.relay import Relay
from receiver.routing import Route, Router
from receiver.signing import CallbackTokens, ObjectLinks
from receiver.spool import Spool
from receiver.store.base import Store
from receiver.store.sqlite import SqliteStore

PROVIDERS: Mapping[str, ModuleType] = {"deepgram": deepgram, "deapi": deapi}
"""Every provider adapter by the name that `provider = "…"` uses."""
_DRAIN_SECONDS = (1.0, 5.0)
"""Pause between two looks at a waiting journal: at first, and at most."""
_FLUSH_SECONDS = 1.0


def wall_clock() -> int:
    """Return epoch milliseconds."""
    return time.time_ns() // 1_000_000


def load_settings(path: str | None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings file (`path`, else RECEIVER_CONFIG, else ./receiver.toml if it is there). Raises `ConfigError`."""
    environ = os.environ if environ is None else environ
    named = path or environ.get("RECEIVER_CONFIG")
    text = None
    if named or Path("receiver.toml").exists():
        try:
            text = Path(named or "receiver.toml").read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ConfigError(f"{named or 'receiver.toml'} cannot be read: {reason}") from None
    return parse(text, environ, lambda name: Path(name).read_text("utf-8"))


@dataclass
class Ports:
    """The adapters that the engine sees; a test may wrap them before they are used."""

    store: Store
    blobs: Blobs
    providers: Mapping[str, PushProvider]
    destinations: Mapping[str, Destination]


@dataclass
class Receiver:
    """The running parts."""

    settings: Settings
    ports: Ports
    tokens: CallbackTokens
    links: ObjectLinks
    journal: Journal
    intake: Intake
    relay: Relay
    observer: Observers
    metrics: MetricsObserver
    clock: Callable[[], int]

    @property
    def store(self) -> Store:
        """The store."""
        return self.ports.store

    @property
    def blobs(self) -> Blobs:
        """The blob store."""
        return self.ports.blobs


def token_secrets(settings: Settings) -> list[str]:
    """Return the secrets of callback tokens and links, oldest first; made and kept in the data folder if none is set.

    Raises `ConfigError` when they cannot be kept.
    """
    if settings.tokens.secrets:
        return [secret.get_secret_value() for secret in settings.tokens.secrets]
    path = Path(settings.data, "token-secret")
    try:
        make_folder(path.parent)
        with contextlib.suppress(FileExistsError):
            fresh = path.with_name(f".token-secret-{os.getpid()}-{secrets.token_hex(4)}")
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(fd, secrets.token_hex(32).encode())
                os.fsync(fd)
            finally:
                os.close(fd)
            try:
                os.link(fresh, path)  # whoever is first wins; a half-written secret is never seen
            finally:
                os.unlink(fresh)
        sync_folder(path.parent)  # before a URL is handed out that only this secret can prove
        return [path.read_text("ascii").strip()]
    except OSError as error:
        raise ConfigError(
            f"the token secret cannot be kept in {path}: {error.strerror}; "
            "set tokens.secrets, or make the data folder writable"
        ) from None


def build_providers(settings: Settings, tokens: CallbackTokens) -> dict[str, PushProvider]:
    """Return the adapter of each source. Raises `ConfigError` naming the first setting that does not fit."""
    return {
        name: _module(source.provider, name).create(source, tokens)
        for name, source in settings.sources.items()
    }


def provider_findings(settings: Settings) -> list[Finding]:
    """Return what the providers have to say about their sources' settings."""
    found: list[Finding] = []
    for name, source in settings.sources.items():
        found += _module(source.provider, name).findings(source)
    return found


def _module(provider: str, source: str) -> ModuleType:
    try:
        return PROVIDERS[provider]
    except KeyError:
        known = ", ".join(sorted(PROVIDERS))
        raise ConfigError(
            f"sources.{source}.provider: there is no provider {provider!r}; write one of {known}"
        ) from None


def sqlite_path(settings: Settings) -> str:
    """Return the SQLite file that `[store] url` names. Raises `ConfigError` for another kind of store."""
    url = settings.store.url.get_secret_value() if settings.store.url else None
    if url is None:
        return str(Path(settings.data, "receiver.db"))
    if not url.startswith("sqlite:///") or len(url) == len("sqlite:///"):
        raise ConfigError(
            "store.url begins with sqlite:/// (three slashes for a relative path, four for an absolute)"
        )
    return url.removeprefix("sqlite:///")


def blob_folder(settings: Settings) -> str:
    """Return the folder that `[blobs] url` names. Raises `ConfigError` for another kind of blob store."""
    url = settings.blobs.url
    if url is None:
        return str(Path(settings.data, "blobs"))
    if not url.startswith("file:///"):
        raise ConfigError("blobs.url begins with file:/// and an absolute path")
    return url.removeprefix("file://")


def build_store(settings: Settings) -> Store:
    """Return the configured store, not yet open. Raises `ConfigError`."""
    return SqliteStore(sqlite_path(settings))


def build_blobs(settings: Settings) -> Blobs:
    """Return the configured blob store, not yet open. Raises `ConfigError`."""
    return LocalBlobs(blob_folder(settings))


def journal_folder(settings: Settings) -> str:
    """Return the journal's folder."""
    return settings.journal.path or str(Path(settings.data, "journal"))


def build_destination(settings: DestinationSettings) -> Destination:
    """Return the adapter of one destination. Raises `ConfigError`."""
    return HttpDestination(settings)


def build(
    settings: Settings,
    *,
    observers: Iterable[Observer] | None = None,
    clock: Callable[[], int] = wall_clock,
    shape: Callable[[Ports], Ports] = lambda ports: ports,
) -> Receiver:
    """Put the parts together, nothing started yet. `shape` may wrap the ports. Raises `ConfigError`."""
    metrics = MetricsObserver()
    listeners = (
        [LogObserver(style=settings.server.log, level=settings.server.log_level)]
        if observers is None
        else list(observers)
    )
    observer = Observers([metrics, *listeners])
    secrets_ = token_secrets(settings)
    tokens, links = CallbackTokens(secrets_), ObjectLinks(secrets_)
    ports = shape(
        Ports(
            store=build_store(settings),
            blobs=build_blobs(settings),
            providers=build_providers(settings, tokens),
            destinations={n: build_destination(d) for n, d in settings.destinations.items()},
        )
    )
    relay = Relay(
        store=ports.store,
        lanes={n: _lane(ports.destinations[n], d) for n, d in settings.destinations.items()},
        observer=observer,
        render=_renderer(settings, ports.blobs, links, clock),
        clock=clock,
        worker=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}",
    )
    folder = journal_folder(settings)
    spool = Spool(str(Path(folder, "spool")))
    journal = Journal(folder, max_bytes=settings.journal.max_bytes, observer=observer, clock=clock)
    recorder = Recorder(
        store=ports.store,
        blobs=ports.blobs,
        spool=spool,
        router=Router(
            Route(name, destination.sources, destination.events)
            for name, destination in settings.destinations.items()
        ),
        clock=clock,
        wake=relay.wake,
    )
    intake = Intake(
        providers=ports.providers,
        sources=settings.sources,
        store=ports.store,
        recorder=recorder,
        journal=journal,
        spool=spool,
        observer=observer,
    )
    return Receiver(
        settings=settings,
        ports=ports,
        tokens=tokens,
        links=links,
        journal=journal,
        intake=intake,
        relay=relay,
        observer=observer,
        metrics=metrics,
        clock=clock,
    )


def _lane(destination: Destination, settings: DestinationSettings) -> Lane:
    return Lane(
        destination=destination,
        policy=settings.policy,
        concurrency=settings.concurrency,
        timeout_seconds=settings.timeout_seconds,
    )


def public_base(settings: Settings) -> str:
    """Return the URL under which receiver is reached, without a trailing slash."""
    if settings.public_url:
        return settings.public_url.rstrip("/")
    host = settings.server.host
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104 - shown, not bound
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{settings.server.port}"


def _renderer(
    settings: Settings, blobs: Blobs, links: ObjectLinks, clock: Callable[[], int]
) -> Callable[[Event], bytes]:
    base = public_base(settings)
    life = settings.blobs.link_seconds * 1000

    def link(key: str, content_type: str) -> tuple[str, int]:
        expires_at = clock() + life
        url = blobs.presign(key, content_type=content_type, expires_at=expires_at)
        if url is None:
            token = links.issue(key, content_type=content_type, expires_at=expires_at)
            url = f"{base}/objects/{token}"
        return url, expires_at

    return lambda event: envelope.render(event, link)


@contextlib.asynccontextmanager
async def open_receiver(
    receiver: Receiver, *, intake: bool = True, work: bool = True
) -> AsyncIterator[Receiver]:
    """Run the parts: `intake` drains the journal, `work` relays. Leaving stops gracefully and hands claims back.

    Raises `ConfigError`, `Unavailable` when a part cannot be opened.
    """
    store = receiver.store
    await store.migrate()
    await store.open()
    tasks: list[asyncio.Task[None]] = []
    try:
        await receiver.blobs.open()
        if intake:
            await receiver.journal.open()
            receiver.intake.open()
            tasks.append(asyncio.create_task(_drain_forever(receiver)))
            tasks.append(asyncio.create_task(_flush_forever(receiver)))
        if work:
            for destination in receiver.ports.destinations.values():
                await destination.open()
            receiver.relay.start()
        yield receiver
    finally:
        if work:
            await receiver.relay.stop(receiver.settings.server.stop_seconds)
            for destination in receiver.ports.destinations.values():
                await destination.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if intake:
            await receiver.intake.flush_rejections()
        await receiver.blobs.close()
        await store.close()


async def _drain_forever(receiver: Receiver) -> None:
    journal, pause = receiver.journal, _DRAIN_SECONDS[0]
    while True:
        if journal.depth == 0:
            journal.kept.clear()
            await journal.kept.wait()
        await asyncio.sleep(pause)
        try:
            done = await receiver.intake.drain()
        except Exception as error:  # a bug must not leave callbacks in the journal until the next start
            receiver.observer.note("error", "journal.drain_failed", error=type(error).__name__)
            done = 0
        pause = _DRAIN_SECONDS[0] if done else min(pause * 2, _DRAIN_SECONDS[1])


async def _flush_forever(receiver: Receiver) -> None:
    while True:
        await asyncio.sleep(_FLUSH_SECONDS)
        try:
            await receiver.intake.flush_rejections()
        except Exception as error:
            receiver.observer.note("error", "rejections.flush_failed", error=type(error).__name__)
