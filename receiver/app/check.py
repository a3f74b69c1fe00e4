"""What `receiver check` finds: numbered findings about the settings, before anything runs."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from receiver.app import wiring
from receiver.app.check_store import NO_CERTIFICATES, holds_certificates, kept_places
from receiver.app.findings import CODES, finding
from receiver.core import callback_urls
from receiver.core.errors import ConfigError, ReceiverError
from receiver.core.event import EVENT_TYPES
from receiver.core.routing import Route
from receiver.outbound.guard import Guard
from receiver.settings import load
from receiver.settings.model import DestinationSettings, Finding, Settings, SourceSettings

__all__ = ["CODES", "check", "check_file", "finding"]


def check_file(path: str | None, environ: Mapping[str, str]) -> tuple[Settings | None, list[Finding]]:
    """Load the settings and check them; unreadable settings are a finding (and None) instead of an error."""
    used = path or environ.get("RECEIVER_CONFIG") or "receiver.toml"
    try:
        settings = load.load_settings(path, environ)
    except ConfigError as error:
        return None, [finding("E001", used, error.message)]
    return settings, check(settings) + list(_file_findings(used))


def check(settings: Settings) -> list[Finding]:
    """Return what is wrong or doubtful about `settings`, what stops `serve` first. Nothing is made or changed."""
    found = [
        *_sources(settings),
        *_public_url(settings),
        *kept_places(settings),
        *(f for name in settings.destinations for f in _destination(settings, settings.destinations[name])),
    ]
    if any(len(token.get_secret_value()) < _SHORT for token in settings.server.admin_tokens):
        short = f"a token has fewer than {_SHORT} characters, and lets its holder make callback URLs"
        found.append(finding("W011", "server.admin_tokens", short))
    if not settings.destinations:
        found.append(finding("W002", "destinations", "events will be stored, and nobody told of them"))
    return sorted(found, key=lambda finding: not finding.fatal)


_SHORT = 16
"""Characters below which an admin token could be guessed."""


def _sources(settings: Settings) -> Iterator[Finding]:
    known = ", ".join(sorted(wiring.PROVIDERS))
    for name, source in settings.sources.items():
        if source.provider not in wiring.PROVIDERS:
            where = f"sources.{name}.provider"
            yield finding("E002", where, f"there is no provider {source.provider!r}", f"write one of {known}")
    fitting = {n: s for n, s in settings.sources.items() if s.provider in wiring.PROVIDERS}
    yield from wiring.provider_findings(settings.model_copy(update={"sources": fitting}))
    for name, source in fitting.items():
        yield from _asking(f"sources.{name}", source)
    if not settings.sources:
        yield finding("W009", "sources", "every callback will be answered 404")


def _asking(where: str, source: SourceSettings) -> Iterator[Finding]:
    """Check what pickups need of a source: its authorities, and leave to connect to where it asks."""
    if source.ca_file is not None and not holds_certificates(source.ca_file):
        yield finding("E010", f"{where}.ca_file", NO_CERTIFICATES)
    for name in ("api_url", "base_url"):
        url = source.options.get(name)
        try:
            blocked = _blocked(url, source.allow) if isinstance(url, str) else None
        except ValueError:  # no URL at all, which the provider's own finding tells
            continue
        if blocked:
            yield finding("W012", f"{where}.allow", f"every attempt will be blocked: {blocked}")


_URL_CODES = {"form": "E003", "port": "E004", "underscore": "E005", "https": "E006"}


def _public_url(settings: Settings) -> Iterator[Finding]:
    url = settings.public_url
    if not url:
        yield finding("W001", "public_url", "providers cannot be told where to call")
        return
    providers = {source.provider for source in settings.sources.values()}
    problems = callback_urls.public_url_problems(url, https_only=bool(providers & callback_urls.HTTPS_ONLY))
    for problem in problems:
        yield finding(_URL_CODES[problem.kind], "public_url", problem.message, problem.fix)
    if problems:
        return
    if callback_urls.is_private(url):
        yield finding("W008", "public_url", "it names this machine or a private network")
    elif url.startswith("http://"):
        yield finding("W007", "public_url", "credentials and audio travel in clear")


def _destination(settings: Settings, destination: DestinationSettings) -> Iterator[Finding]:
    where = f"destinations.{destination.name}"
    try:
        wiring.build_destination(destination)
    except ReceiverError as error:
        yield finding("E009", where, error.message)
    if destination.ca_file is not None and not holds_certificates(destination.ca_file):
        yield finding("E009", f"{where}.ca_file", NO_CERTIFICATES)
    if not destination.secrets:
        yield finding("W003", f"{where}.secrets", "its events are sent unsigned, so anybody could forge them")
    url = destination.url.get_secret_value()
    private = callback_urls.is_private(url)
    if url.startswith("http://") and not private:
        yield finding("W004", f"{where}.url", "events and audio links travel in clear")
    blocked = _blocked(url, destination.allow)
    if blocked:
        yield finding("W005", f"{where}.allow", f"every attempt will be blocked: {blocked}")
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
            yield finding("W010", f"{where}.sources", f"no source is named {pattern!r}")
    for pattern in destination.events:
        route = Route(destination.name, events=(pattern,))
        if not any(route.wants("", event_type) for event_type in EVENT_TYPES):
            yield finding("W010", f"{where}.events", f"no event type is {pattern!r}")


_SECRET_KEYS = {"secrets", "basic", "callback_secrets", "dg_token"}
_SECRET_KEYS |= {"admin_tokens", "api_key", "callback_keys", "headers"}
_WITH_PASSWORD = re.compile(r"postgres(ql)?://([^/]*:[^/]*@|.*[?&](ssl)?password=)")
_OPENING = re.compile(r"(token|key|secret|sig|signature|password)s?$", re.IGNORECASE)
"""How the name of a query's field ends whose value opens something: `token`, `apiKey`, `X-Amz-Signature`."""


def _file_findings(path: str) -> Iterator[Finding]:
    """Warn of a settings file that holds secrets itself and that other users can read."""
    try:
        mode = os.stat(path).st_mode
        raw = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError):
        return
    if mode & (stat.S_IRGRP | stat.S_IROTH) and any(_literal_secrets(raw, secret=False)):
        message = f"it holds secrets, and its mode is {stat.S_IMODE(mode):o}"
        yield finding("W006", path, message, f"chmod 600 {path}, or write the secrets as env:NAME")


def _literal_secrets(value: Any, *, secret: bool) -> Iterator[bool]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _literal_secrets(item, secret=secret or key in _SECRET_KEYS)
    elif isinstance(value, list):
        for item in value:
            yield from _literal_secrets(item, secret=secret)
    elif isinstance(value, str) and (secret or _WITH_PASSWORD.match(value) or _with_credentials(value)):
        yield not any(mark in f":{value}" for mark in (":env:", ":file:"))


def _with_credentials(url: str) -> bool:
    """Tell whether a text is a URL that holds credentials, before its host or in its query."""
    if not url.lower().startswith(("http://", "https://")):
        return False
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL, which is told elsewhere
        return False
    fields = parse_qsl(parts.query)
    return "@" in parts.netloc or any(_OPENING.search(name) for name, _ in fields)
