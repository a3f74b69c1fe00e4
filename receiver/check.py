"""What `receiver check` finds (floor 8): numbered findings about the settings, before anything runs.

The codes are stable: scripts and docs/configuration.md may name them. `E…` stops `serve` and `work`, `W…` does not.
"""

from __future__ import annotations

import os
import ssl
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from receiver import places, urls, wiring
from receiver.addresses import Guard
from receiver.config import DestinationSettings, Finding, Settings
from receiver.errors import ConfigError, ReceiverError
from receiver.model import EVENT_TYPES
from receiver.routing import Route


@dataclass(frozen=True, slots=True)
class Code:
    """What one code stands for."""

    title: str
    fix: str
    """What to do about it, in general; a finding may say it more closely."""


CODES: Mapping[str, Code] = {
    "E001": Code("The settings cannot be read", "correct the setting that the message names"),
    "E002": Code("A source names an unknown provider", "write the name of a provider that receiver knows"),
    "E003": Code("public_url is not a usable URL", 'write it as "https://hooks.example.com"'),
    "E004": Code("public_url has a port that Deepgram does not call", "use port 80, 443, 8080 or 8443"),
    "E005": Code("public_url holds an underscore", "choose a host and path without one"),
    "E006": Code("deAPI cannot call a public_url without TLS", "put TLS in front, and write https://"),
    "E007": Code(
        "A folder cannot be written", "give the user that runs receiver the folder, or name another"
    ),
    "E008": Code("The store or the blobs are of an unknown kind", "write a sqlite:/// or a file:/// URL"),
    "E009": Code("A destination cannot be used", "correct the setting that the message names"),
    "E101": Code("A Deepgram source has no proof", 'add basic = ["user:env:DEEPGRAM_CALLBACK_PASSWORD"]'),
    "E102": Code("require_dg_token without dg_token", "add dg_token"),
    "E103": Code("require_callback_secret without callback_secrets", "add callback_secrets"),
    "E104": Code("A Deepgram source's setting is wrong", "correct the setting that the message names"),
    "E201": Code("A deAPI source has no proof", 'add secrets = ["env:DEAPI_WEBHOOK_SECRET"]'),
    "E204": Code("A deAPI source's setting is wrong", "correct the setting that the message names"),
    "W001": Code(
        "public_url is not set",
        'write public_url = "https://…"; until then callback-url refuses, and audio links point to this machine',
    ),
    "W002": Code("No destination is configured", "add a [destinations.NAME] section with url and secrets"),
    "W003": Code("A destination has no secret", 'add secrets = ["env:APP_WEBHOOK_SECRET"]'),
    "W004": Code("A destination is called without TLS", "use an https:// URL"),
    "W005": Code("A destination's address is private and not in allow", "add its network to allow"),
    "W006": Code("The settings file can be read by other users", "chmod 600 the file"),
    "W007": Code("Callbacks come without TLS", "put TLS in front, and write https:// in public_url"),
    "W008": Code("public_url is an address that providers cannot reach", "write the name they can reach"),
    "W009": Code("No source is configured", "add a [sources.NAME] section"),
    "W010": Code("A destination's filter matches nothing", "compare it with the sources and the event types"),
    "W101": Code("dg_token is the only proof", 'add basic = ["user:env:DEEPGRAM_CALLBACK_PASSWORD"]'),
    "W102": Code("Only transcripts can be proved", 'add basic = ["user:env:DEEPGRAM_CALLBACK_PASSWORD"]'),
    "W103": Code("A Deepgram pair holds an underscore", "use letters and digits"),
    "W201": Code("Only jobs with a secret of their own can be proved", "add secrets"),
    "W202": Code("A deAPI secret is very short", "copy the secret from deAPI's webhook settings again"),
}
"""Every code there is. E1 and W1 are Deepgram's, E2 and W2 deAPI's."""


def check_file(path: str | None, environ: Mapping[str, str]) -> tuple[Settings | None, list[Finding]]:
    """Load the settings and check them; unreadable settings are a finding (and None) instead of an error."""
    used = path or environ.get("RECEIVER_CONFIG") or "receiver.toml"
    try:
        settings = places.load_settings(path, environ)
    except ConfigError as error:
        return None, [_finding("E001", used, error.message)]
    return settings, check(settings) + list(_file_findings(used))


def check(settings: Settings) -> list[Finding]:
    """Return what is wrong or doubtful about `settings`, what stops `serve` first. Nothing is made or changed."""
    found = [
        *_sources(settings),
        *_public_url(settings),
        *_places(settings),
        *(f for name in settings.destinations for f in _destination(settings, settings.destinations[name])),
    ]
    if not settings.destinations:
        found.append(_finding("W002", "destinations", "events will be stored, and nobody told of them"))
    return sorted(found, key=lambda finding: not finding.fatal)


def _finding(code: str, where: str, message: str, fix: str | None = None) -> Finding:
    return Finding(code, where, message, fix or CODES[code].fix)


def _sources(settings: Settings) -> Iterator[Finding]:
    known = ", ".join(sorted(wiring.PROVIDERS))
    for name, source in settings.sources.items():
        if source.provider not in wiring.PROVIDERS:
            where = f"sources.{name}.provider"
            yield _finding(
                "E002", where, f"there is no provider {source.provider!r}", f"write one of {known}"
            )
    fitting = {n: s for n, s in settings.sources.items() if s.provider in wiring.PROVIDERS}
    yield from wiring.provider_findings(settings.model_copy(update={"sources": fitting}))
    if not settings.sources:
        yield _finding("W009", "sources", "every callback will be answered 404")


_URL_CODES = {"form": "E003", "port": "E004", "underscore": "E005", "https": "E006"}


def _public_url(settings: Settings) -> Iterator[Finding]:
    url = settings.public_url
    if not url:
        yield _finding("W001", "public_url", "providers cannot be told where to call")
        return
    providers = {source.provider for source in settings.sources.values()}
    problems = urls.public_url_problems(url, https_only=bool(providers & urls.HTTPS_ONLY))
    for problem in problems:
        yield _finding(_URL_CODES[problem.kind], "public_url", problem.message, problem.fix)
    if problems:
        return
    if urls.is_private(url):
        yield _finding("W008", "public_url", "it names this machine or a private network")
    elif url.startswith("http://"):
        yield _finding("W007", "public_url", "credentials and audio travel in clear")


def _places(settings: Settings) -> Iterator[Finding]:
    """Check that what is to be written can be; the folders themselves are made by `serve`."""
    folders = {"data": settings.data, "journal.path": places.journal_folder(settings)}
    for where, resolve in (("store.url", places.sqlite_path), ("blobs.url", places.blob_folder)):
        try:
            place = resolve(settings)
        except ConfigError as error:
            yield _finding("E008", where, error.message)
            continue
        folders[where] = str(Path(place).parent) if where == "store.url" else place
    seen: set[str] = set()
    for where, place in folders.items():
        trouble = _not_writable(Path(place))
        if trouble and trouble not in seen:
            seen.add(trouble)
            yield _finding("E007", where, trouble)


def _not_writable(folder: Path) -> str | None:
    """Return why `folder` could not be made or written, by its nearest parent that is there."""
    here = folder.absolute()
    while not os.path.lexists(here) and here != here.parent:
        here = here.parent
    if not here.is_dir():
        return f"{here} is not a folder"
    if not os.access(here, os.W_OK | os.X_OK):
        return f"{here} may not be written"
    return None


def _destination(settings: Settings, destination: DestinationSettings) -> Iterator[Finding]:
    where = f"destinations.{destination.name}"
    try:
        wiring.build_destination(destination)
    except ReceiverError as error:
        yield _finding("E009", where, error.message)
    if destination.ca_file is not None:
        try:
            ssl.create_default_context().load_verify_locations(destination.ca_file)
        except OSError:  # ssl.SSLError is one
            yield _finding(
                "E009", f"{where}.ca_file", "it cannot be read, or holds no certificates in PEM form"
            )
    if not destination.secrets:
        yield _finding(
            "W003", f"{where}.secrets", "its events are sent unsigned, so anybody could forge them"
        )
    url = destination.url.get_secret_value()
    private = urls.is_private(url)
    if url.startswith("http://") and not private:
        yield _finding("W004", f"{where}.url", "events and audio links travel in clear")
    blocked = _blocked(url, destination.allow)
    if blocked:
        yield _finding("W005", f"{where}.allow", f"every attempt will be blocked: {blocked}")
    yield from _filters(settings, destination, where)


def _blocked(url: str, allow: Iterable[str]) -> str | None:
    """Return why the address guard will refuse a URL whose host is an address or this machine; None where DNS decides."""
    host = urlsplit(url).hostname or ""
    guard = Guard(allow)
    try:
        if host == "localhost" or host.endswith(".localhost"):
            guard.check("127.0.0.1", host)
        else:
            guard.check_host(host)
    except ReceiverError as error:
        return error.message
    return None


def _filters(settings: Settings, destination: DestinationSettings, where: str) -> Iterator[Finding]:
    for pattern in destination.sources:
        route = Route(destination.name, sources=(pattern,))
        if settings.sources and not any(route.wants(source, "") for source in settings.sources):
            yield _finding("W010", f"{where}.sources", f"no source is named {pattern!r}")
    for pattern in destination.events:
        route = Route(destination.name, events=(pattern,))
        if not any(route.wants("", event_type) for event_type in EVENT_TYPES):
            yield _finding("W010", f"{where}.events", f"no event type is {pattern!r}")


_SECRET_KEYS = frozenset(
    {"secrets", "basic", "callback_secrets", "dg_token", "admin_tokens", "api_key", "headers"}
)


def _file_findings(path: str) -> Iterator[Finding]:
    """Warn of a settings file that holds secrets itself and that other users can read."""
    try:
        mode = os.stat(path).st_mode
        raw = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError):
        return
    if mode & (stat.S_IRGRP | stat.S_IROTH) and any(_literal_secrets(raw, secret=False)):
        message = f"it holds secrets, and its mode is {stat.S_IMODE(mode):o}"
        yield _finding("W006", path, message, f"chmod 600 {path}, or write the secrets as env:NAME")


def _literal_secrets(value: Any, *, secret: bool) -> Iterator[bool]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _literal_secrets(item, secret=secret or key in _SECRET_KEYS)
    elif isinstance(value, list):
        for item in value:
            yield from _literal_secrets(item, secret=secret)
    elif secret and isinstance(value, str):
        yield not any(mark in f":{value}" for mark in (":env:", ":file:"))
