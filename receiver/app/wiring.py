"""Builds and runs the parts of a process: the only file that names concrete classes.

`open_receiver` starts the parts and at the end stops them: first the work, then the intake, at last blobs and store.
web/server.py handles the time before that, from the signal to the last callback. `rebuild` makes the parts for new settings
around those that stay; web/reloading.py puts them in place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from msgspec import Struct

from receiver import __version__
from receiver.app.log import LogObserver
from receiver.app.metrics import MetricsObserver
from receiver.core import event_json
from receiver.core.clock import wall_clock
from receiver.core.errors import ConfigError, install
from receiver.core.observe import Observer, Observers, Process
from receiver.core.routing import Router
from receiver.core.tokens import CallbackTokens, ObjectLinks
from receiver.engine.bulk import BulkWorker
from receiver.engine.collector import Collector, PullSource
from receiver.engine.erasure import Eraser
from receiver.engine.intake import Intake
from receiver.engine.janitor import Janitor
from receiver.engine.journal_drain import PAUSES, JournalDrain
from receiver.engine.overload import LoadShedder
from receiver.engine.recorder import Recorder
from receiver.engine.rejections import Rejections
from receiver.engine.relay import DeliveryTerms, Relay
from receiver.engine.renormalizer import Renormalizer
from receiver.engine.submissions import Parts as SubmissionParts
from receiver.engine.submissions import Submissions, SubmitSource
from receiver.engine.takeover import Takeover
from receiver.engine.tallies import Tallies
from receiver.engine.watcher import Watched, Watcher
from receiver.outbound.client import Egress
from receiver.outbound.destinations import Destination, kind_of
from receiver.outbound.fetcher import Fetcher
from receiver.providers import Adapter, PullProvider, PushProvider, adapter_of
from receiver.settings.load import (
    blob_folder,
    journal_folder,
    made_token_secrets,
    on_s3,
    postgres_url,
    public_base,
    sqlite_path,
)
from receiver.settings.model import Settings
from receiver.storage.blobs import Blobs
from receiver.storage.blobs.keys import KeyTemplate
from receiver.storage.blobs.local import LocalBlobs
from receiver.storage.journal import Journal
from receiver.storage.store.store import Store
from receiver.system.body_buffer import BodyBuffer


class Timing(Struct, frozen=True, kw_only=True):
    """Times without a setting; tests use shorter ones."""

    drain: tuple[float, float] = PAUSES
    """Seconds between two drains of a journal that is not empty: at first, and at most."""
    head_seconds: float = 15.0
    """How long a request's head may take from its first byte to its last."""
    ready_seconds: float = 1.0
    """How long an answer of `/readyz` serves: readiness is asked often and costs a few syncs."""


TIMING = Timing()


@dataclass
class Ports:
    """The adapters that the engine sees; a test may wrap them before they are used."""

    store: Store
    blobs: Blobs
    providers: Mapping[str, PushProvider]
    """The sources that call back."""
    destinations: Mapping[str, Destination]
    pulls: Mapping[str, PullProvider] = field(default_factory=dict)
    """The sources that can be polled; many call back as well."""
    fetchers: Mapping[str, Fetcher] = field(default_factory=dict)
    """The HTTP client of each source that can be polled, or whose keys are fetched."""
    submit_sources: Mapping[str, SubmitSource] = field(default_factory=dict)
    """The sources that accept submissions."""


class Lasting(Struct, kw_only=True):
    """The parts that a reload keeps."""

    store: Store
    blobs: Blobs
    bodies: BodyBuffer
    journal: Journal
    load: LoadShedder
    rejections: Rejections
    observer: Observers
    metrics: MetricsObserver
    tallies: Tallies
    clock: Callable[[], int]
    timing: Timing
    worker: str
    """Names this process in claims."""


class Receiver(Lasting, kw_only=True):
    """The running parts: those that last, and those that are made anew for new settings."""

    settings: Settings
    ports: Ports
    tokens: CallbackTokens
    links: ObjectLinks
    link: event_json.Link
    """Makes fresh links to stored objects."""
    intake: Intake
    journal_drain: JournalDrain
    relay: Relay
    collector: Collector
    takeover: Takeover
    janitor: Janitor
    watcher: Watcher
    renormalizer: Renormalizer
    eraser: Eraser
    bulk: BulkWorker
    submissions: Submissions
    stopping: bool = False
    """True from the signal to stop on; callbacks may still be taken for `server.drain_seconds`."""


def build_providers(settings: Settings, tokens: CallbackTokens) -> dict[str, Adapter]:
    """Return the adapter of each source. Raises `ConfigError` naming the first setting that does not fit."""
    return {name: adapter_of(source).create(source, tokens) for name, source in settings.sources.items()}


def build_store(settings: Settings) -> Store:
    """Return the configured store, not yet open. Raises `ConfigError`."""
    url = postgres_url(settings)
    if url is None:
        from receiver.storage.store.sqlite import SqliteStore

        return SqliteStore(sqlite_path(settings))
    try:
        from receiver.storage.store.postgres import PostgresStore
    except ImportError:
        raise ConfigError(
            f"store.url is postgresql://…, which needs psycopg: {install('postgres')}"
        ) from None
    return PostgresStore(url)


def build_blobs(settings: Settings) -> Blobs:
    """Return the configured blob store, not yet open. Raises `ConfigError`."""
    if on_s3(settings):
        from receiver.storage.blobs.s3 import S3Blobs
        from receiver.storage.blobs.s3_options import S3Options

        return S3Blobs(S3Options.of(settings.blobs))
    return LocalBlobs(blob_folder(settings), KeyTemplate(settings.blobs.key))


def build_router(settings: Settings) -> Router:
    """Return the router: the destinations of each event."""
    return Router(destination.route for destination in settings.destinations.values())


def build(
    settings: Settings,
    *,
    observers: Iterable[Observer] | None = None,
    clock: Callable[[], int] = wall_clock,
    shape: Callable[[Ports], Ports] = lambda ports: ports,
    timing: Timing = TIMING,
) -> Receiver:
    """Build the parts, without starting them. `shape` may wrap the ports. Raises `ConfigError`."""
    metrics = MetricsObserver()
    if observers is None:
        observers = [LogObserver(style=settings.server.log, level=settings.server.log_level)]
    tokens, folder = _tokens(settings), journal_folder(settings)
    bodies = BodyBuffer(str(Path(folder, "spool")))
    ports = shape(_ports(settings, tokens, bodies, build_store(settings), build_blobs(settings)))
    worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    tallies = Tallies(ports.store, _process(worker, clock()), clock)
    observer = Observers([metrics, tallies, *observers])
    lasting = Lasting(
        store=ports.store,
        blobs=ports.blobs,
        bodies=bodies,
        journal=Journal(folder, max_bytes=settings.journal.max_bytes, observer=observer, clock=clock),
        load=LoadShedder(settings.server.max_callbacks),
        rejections=Rejections(ports.store, observer),
        observer=observer,
        metrics=metrics,
        tallies=tallies,
        clock=clock,
        timing=timing,
        worker=worker,
    )
    receiver = _Parts(settings, lasting, ports, tokens).receiver()
    ports.store.listen(partial(_wake, receiver))
    return receiver


def _process(worker: str, now: int) -> Process:
    host = socket.gethostname()
    return Process(id=worker, host=host, version=__version__, role="", started_at=now, seen_at=now)


def rebuild(receiver: Receiver, settings: Settings) -> Receiver:
    """Build the parts for new settings, without starting them, around the parts that stay. Raises `ConfigError`."""
    tokens = _tokens(settings)
    ports = _ports(settings, tokens, receiver.bodies, receiver.store, receiver.blobs)
    return _Parts(settings, receiver, ports, tokens).receiver()


def _tokens(settings: Settings) -> CallbackTokens:
    return CallbackTokens(made_token_secrets(settings), settings.tokens.signing)


class _Parts(Struct, frozen=True, dict=True):
    """What most of the parts are made with, and how each is made."""

    settings: Settings
    lasting: Lasting
    ports: Ports
    tokens: CallbackTokens

    @cached_property
    def router(self) -> Router:
        """Which destinations want which events."""
        return build_router(self.settings)

    def receiver(self) -> Receiver:
        """Return the running parts, not yet started."""
        links = ObjectLinks(made_token_secrets(self.settings), self.settings.tokens.signing)
        link = self._link(links)
        relay = self._relay(link)
        recorder = self._recorder(relay, lambda source: collector.wake((source,)))
        collector = self._collector(recorder)
        store, observer, clock = self.lasting.store, self.lasting.observer, self.lasting.clock
        blobs, providers = self.lasting.blobs, self.ports.providers
        submissions = self._submissions(relay)
        renormalizer = Renormalizer(store=store, blobs=blobs, recorder=recorder, providers=providers)
        return Receiver(
            **{name: getattr(self.lasting, name) for name in Lasting.__struct_fields__},
            settings=self.settings,
            ports=self.ports,
            tokens=self.tokens,
            links=links,
            link=link,
            intake=self._intake(recorder),
            journal_drain=self._journal_drain(recorder, submissions),
            relay=relay,
            collector=collector,
            takeover=Takeover(store, observer, clock, relay.wake, collector.wake),
            janitor=Janitor(store, blobs, self.settings.retention.kept, observer, clock),
            watcher=self._watcher(relay),
            renormalizer=renormalizer,
            eraser=self._eraser(),
            bulk=BulkWorker(
                store,
                self.router,
                wake=relay.wake,
                observer=observer,
                clock=clock,
                again=renormalizer.again,
            ),
            submissions=submissions,
        )

    def _eraser(self) -> Eraser:
        return Eraser(
            store=self.lasting.store,
            blobs=self.lasting.blobs,
            journal=self.lasting.journal,
            providers=self.ports.providers,
            secrets=made_token_secrets(self.settings),
        )

    def _link(self, links: ObjectLinks) -> event_json.Link:
        return event_json.linker(
            presign=self.lasting.blobs.presign,
            links=links,
            base=public_base(self.settings),
            seconds=self.settings.blobs.link_seconds,
            clock=self.lasting.clock,
        )

    def _relay(self, link: event_json.Link) -> Relay:
        lanes = {
            name: DeliveryTerms(
                destination=self.ports.destinations[name],
                policy=destination.policy,
                concurrency=destination.concurrency,
                timeout_seconds=destination.timeout_seconds,
                breaker_failures=destination.breaker_failures,
                recover=destination.recover == "auto",
                rules=destination.rules,
                data=destination.fields,
            )
            for name, destination in self.settings.destinations.items()
        }
        return Relay(
            store=self.lasting.store,
            lanes=lanes,
            observer=self.lasting.observer,
            render=partial(event_json.render, link=link),
            clock=self.lasting.clock,
            worker=self.lasting.worker,
            routed=self.router.destinations,
        )

    def _recorder(self, relay: Relay, wake_pickups: Callable[[str], None]) -> Recorder:
        return Recorder(
            store=self.lasting.store,
            blobs=self.lasting.blobs,
            bodies=self.lasting.bodies,
            router=self.router,
            keys=KeyTemplate(self.settings.blobs.key),
            by_job={name for name, one in self.ports.submit_sources.items() if one.api.table.by_job},
            clock=self.lasting.clock,
            expect=relay.expect,
            wake=relay.wake,
            wake_pickups=wake_pickups,
        )

    def _collector(self, recorder: Recorder) -> Collector:
        sources = {
            name: PullSource(
                provider_name=source.provider,
                provider=self.ports.pulls.get(name),
                fetch=self.ports.fetchers.get(name),
                concurrency=source.pickup_concurrency,
                attempt_seconds=source.attempt_seconds,
            )
            for name, source in self.settings.sources.items()
        }
        return Collector(
            store=self.lasting.store,
            recorder=recorder,
            sources=sources,
            observer=self.lasting.observer,
            clock=self.lasting.clock,
            worker=self.lasting.worker,
        )

    def _intake(self, recorder: Recorder) -> Intake:
        return Intake(
            providers=self.ports.providers,
            sources=self.settings.sources,
            tokens=self.tokens,
            store=self.lasting.store,
            recorder=recorder,
            journal=self.lasting.journal,
            bodies=self.lasting.bodies,
            observer=self.lasting.observer,
            load=self.lasting.load,
            rejections=self.lasting.rejections,
            fetchers=self.ports.fetchers,
        )

    def _journal_drain(self, recorder: Recorder, submissions: Submissions) -> JournalDrain:
        return JournalDrain(
            submissions=submissions.parts,
            providers=self.ports.providers,
            store=self.lasting.store,
            recorder=recorder,
            journal=self.lasting.journal,
            observer=self.lasting.observer,
            secrets=made_token_secrets(self.settings),
            pauses=self.lasting.timing.drain,
        )

    def _watcher(self, relay: Relay) -> Watcher:
        sources = {
            name: Watched(adapter=adapter, fetch=self.ports.fetchers[name], every=adapter.watch_seconds)
            for name, adapter in self.ports.pulls.items()
            if adapter.watch_seconds is not None
        }
        return Watcher(
            self.lasting.store,
            sources,
            routed=self.router.destinations,
            wake=relay.wake,
            observer=self.lasting.observer,
            clock=self.lasting.clock,
        )

    def _submissions(self, relay: Relay) -> Submissions:
        parts = SubmissionParts(
            settings=self.settings.submit,
            sources=self.ports.submit_sources,
            store=self.lasting.store,
            journal=self.lasting.journal,
            bodies=self.lasting.bodies,
            observer=self.lasting.observer,
            clock=self.lasting.clock,
            routed=self.router.destinations,
            wake=relay.wake,
        )
        return Submissions(parts)


def _ports(
    settings: Settings, tokens: CallbackTokens, bodies: BodyBuffer, store: Store, blobs: Blobs
) -> Ports:
    adapters = build_providers(settings, tokens)
    pulls = {n: adapter for n, adapter in adapters.items() if isinstance(adapter, PullProvider)}
    return Ports(
        store=store,
        blobs=blobs,
        providers={n: adapter for n, adapter in adapters.items() if isinstance(adapter, PushProvider)},
        destinations={n: kind_of(d)(d) for n, d in settings.destinations.items()},
        pulls=pulls,
        submit_sources={
            n: SubmitSource.create(settings, source, adapters[n], tokens)
            for n, source in settings.sources.items()
            if source.submit and settings.submit.tokens
        },
        fetchers={
            n: Fetcher.create(settings.sources[n], bodies)
            for n, adapter in adapters.items()
            if n in pulls or adapter.fetches_keys
        },
    )


@contextlib.asynccontextmanager
async def open_receiver(
    receiver: Receiver, *, intake: bool = True, work: bool = True
) -> AsyncIterator[Receiver]:
    """Run the parts: `intake` drains the journal, `work` relays and collects. Leaving stops gracefully and releases claims.

    Raises `ConfigError`, `Unavailable` when a part cannot be opened.
    """
    async with open_lasting(receiver, intake=intake):
        try:
            await begin(receiver, intake=intake, work=work)
            yield receiver
        finally:
            await stop_work(receiver)
            await end(receiver)


@contextlib.asynccontextmanager
async def open_lasting(receiver: Receiver, *, intake: bool = True) -> AsyncIterator[None]:
    """Hold the parts open that last. Raises `ConfigError`, `Unavailable` when one cannot be opened."""
    await receiver.store.prepare()
    try:
        await receiver.blobs.open()
        if intake:
            # Before the folder for temporary files, which lies in the journal's: its error names the path.
            await receiver.journal.open()
        receiver.bodies.open()
        receiver.rejections.start()
        yield
    finally:
        await receiver.rejections.stop()
        await receiver.tallies.stop()
        await receiver.blobs.close()
        await receiver.store.close()


async def begin(receiver: Receiver, *, intake: bool, work: bool) -> None:
    """Start the parts that the settings make, among those that last. Raises `ConfigError`, `Unavailable`; `end` cleans up."""
    for part in _ways_out(receiver, work=work):
        await part.open()
    if intake:
        receiver.submissions.start()
        receiver.journal_drain.start()
    receiver.store.listen(partial(_wake, receiver))
    if intake or work:
        receiver.tallies.start("serve" if intake and work else "intake" if intake else "work")
    if work:
        await receiver.takeover.look()
        receiver.takeover.start()
        receiver.relay.start()
        receiver.collector.start()
        receiver.janitor.start()
        receiver.watcher.start()
        receiver.bulk.start()


def _wake(receiver: Receiver, destinations: Iterable[str], sources: Iterable[str]) -> None:
    """Wake the lanes that other processes' notifications name."""
    receiver.relay.wake(destinations)
    receiver.collector.wake(sources)


async def stop_work(receiver: Receiver) -> None:
    """Claim no more, give attempts under way `server.stop_seconds` to end, and release the rest. Harmless to repeat."""
    grace = receiver.settings.server.stop_seconds
    for part in (receiver.bulk, receiver.watcher, receiver.janitor, receiver.takeover):
        await part.stop()
    await asyncio.gather(receiver.collector.stop(grace), receiver.relay.stop(grace))


async def end(receiver: Receiver) -> None:
    """Close connections, and write what is still to be written. No request is running any more."""
    for part in _ways_out(receiver, work=True):
        await part.close()
    await receiver.submissions.stop()
    await receiver.journal_drain.stop()


def _ways_out(receiver: Receiver, *, work: bool) -> list[Destination | Fetcher | Egress]:
    ports = receiver.ports
    destinations = ports.destinations.values() if work else ()
    return [*ports.fetchers.values(), *[s.upstream for s in ports.submit_sources.values()], *destinations]
