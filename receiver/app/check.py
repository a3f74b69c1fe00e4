"""Checks the settings, and asks the services that they name, PostgreSQL, S3 and queues: what is wrong or doubtful, as findings.

The codes are stable: scripts and docs/configuration.md may name them. `E…` stops `serve` and `work`, `W…` does not.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import stat
import tempfile
import threading
import tomllib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from receiver.core import urls
from receiver.core.clock import wall_clock
from receiver.core.errors import Code, ConfigError, Finding, ReceiverError, SettingsError, install
from receiver.core.event import EVENT_TYPES
from receiver.core.event_json import PLACES, may_be_there
from receiver.core.routing import ABOUT_DESTINATIONS, Route
from receiver.core.tokens import CallbackTokens
from receiver.core.urls import is_private, is_this_machine
from receiver.outbound.client import NO_CERTIFICATES, holds_certificates
from receiver.outbound.destinations import Destination, kind_named, kind_of, kinds
from receiver.outbound.guard import blocked_by_address
from receiver.providers import Adapter, adapter_named, adapters, instead_of
from receiver.settings import load
from receiver.settings.load import did_you_mean, own_settings
from receiver.settings.model import (
    DestinationSettings,
    Section,
    ServerSettings,
    Settings,
    SourceSettings,
    TokenSettings,
)
from receiver.storage.blobs.keys import KeyTemplate
from receiver.storage.blobs.s3_options import S3Options
from receiver.system.files import nearest, scarce

_GENERAL = {
    "E001": Code("The settings cannot be read", ""),
    "E002": Code("A source names an unknown provider", "write the name of a provider that receiver knows"),
    "E003": Code("public_url is not a usable URL", 'write it as "https://hooks.example.com"'),
    "E004": Code("public_url has a port that Deepgram does not call", "use port 80, 443, 8080 or 8443"),
    "E005": Code("public_url holds an underscore", "choose a host and path without one"),
    "E006": Code("deAPI cannot call a public_url without TLS", "put TLS in front, and write https://"),
    "E007": Code(
        "A folder cannot be written", "give the user that runs receiver the folder, or name another"
    ),
    "E008": Code(
        "store.url or blobs.url cannot be used",
        "write postgresql://… or sqlite:///… for the store, s3://… or file:///… for the blobs",
    ),
    "E009": Code("A destination cannot be used", ""),
    "E010": Code("A source's ca_file cannot be used", "name a file with certificates in PEM form"),
    "E011": Code("What a setting needs is not installed", "install receiver with its extra"),
    "E012": Code("PostgreSQL cannot be reached", "start the server, or correct host and port in store.url"),
    "E013": Code("PostgreSQL refuses the user", "correct user and password in store.url"),
    "E014": Code("There is no such database", "create it, or correct its name in store.url"),
    "E015": Code("The tables are not there, or older than this program", "run `receiver migrate`"),
    "E016": Code(
        "The tables are newer than this program", "install the receiver that made them, or a later one"
    ),
    "E017": Code(
        "The clocks are ten minutes apart", "set this machine's clock, or the database server's (NTP)"
    ),
    "E018": Code("The database cannot be used", ""),
    "E019": Code(
        "Machines share a store and no token secret", 'add secrets = ["env:TOKEN_SECRET"] to [tokens]'
    ),
    "E020": Code("The bucket cannot be used", ""),
    "E021": Code("A setting of S3 is wrong", ""),
    "E022": Code("blobs.key makes no keys", "end it with {name}"),
    "E023": Code("A source cannot be submitted to", ""),
    "E024": Code(
        "A submit token names a source that may not be submitted to",
        "set submit = true there, or leave it out",
    ),
    "W001": Code(
        "public_url is not set",
        'write public_url = "https://…"; until then callback-url refuses, and audio links point to this machine',
    ),
    "W002": Code("No destination is configured", "add a [destinations.NAME] section with url and secrets"),
    "W006": Code("The settings file can be read by other users", "chmod 600 the file"),
    "W007": Code("Callbacks come without TLS", "put TLS in front, and write https:// in public_url"),
    "W008": Code("public_url is an address that providers cannot reach", "write the name they can reach"),
    "W009": Code("No source is configured", "add a [sources.NAME] section"),
    "W010": Code(
        "A destination asks for what no event has", "compare it with the sources and docs/events.md"
    ),
    "W011": Code("A token of the API is very short", "use 32 random letters and digits"),
    "W012": Code("A source asks a private address that is not in allow", "add its network to allow"),
    "W013": Code("The clocks differ", "set this machine's clock, or the database server's (NTP)"),
    "W014": Code("The database server does not sync its disk", "set fsync = on in its postgresql.conf"),
    "W015": Code("Machines share a store and no blobs", 'write url = "s3://…" in [blobs]'),
    "W016": Code("Audio travels to S3 in clear", "write https:// in blobs.endpoint_url"),
    "W017": Code("The bucket does not answer", "start the store, or correct blobs.endpoint_url"),
    "W018": Code("The bucket works, and not as it should", ""),
    "W019": Code("Events are kept longer than retention.events says", "write the age of audio"),
    "W023": Code("A disk is nearly full", "make room, or shorten what [retention] keeps"),
    "W024": Code(
        "Submissions are taken where providers call back",
        'write listen = "127.0.0.1:8090" in [submit], or let the ingress refuse /submit',
    ),
    "W021": Code("A value of env: or file: is in quotes", "write it without them"),
    "W022": Code(
        "Several secrets sign callback URLs or did",
        "take the old ones out once receiver_token_secret_callbacks_total counts nothing by them",
    ),
    "W025": Code("A destination would take no events", "correct the setting, or what the destination allows"),
    "W026": Code("No destination takes a source's events", "name the source in a destination's sources"),
    "W020": Code("The tables are newer than this program, and fit it", "install the receiver that made them"),
}


@cache
def all_codes() -> Mapping[str, Code]:
    """Return every code there is. The first digit tells whose: 0 all, 1 Deepgram's, 2 deAPI's, 3 Deepdub's, 4 PlayHT's, 5 SNS's, 6 Pub/Sub's.

    Loads every provider and kind of destination: only those in use are loaded else.
    """
    parts: tuple[type[Destination | Adapter], ...] = (*kinds().values(), *adapters().values())
    return _GENERAL | {code: meaning for part in parts for code, meaning in part.codes.items()}


def finding(code: str, where: str, message: str, fix: str | None = None) -> Finding:
    """Return a finding with the code's own advice, or a closer one; `message` may begin with the setting, as those of errors do."""
    return Finding(code, where, message.removeprefix(f"{where}: "), fix or _GENERAL[code].fix)


# ---------------------------------------------------------------- the checks


def check_file(path: str | None, environ: Mapping[str, str]) -> tuple[Settings | None, list[Finding]]:
    """Load the settings and check all that can be understood of them; None when nothing can."""
    used = str(load.file_of(path, environ))
    loaded = load.look(path, environ)
    found = [
        finding("E001", problem.where or used, problem.message, problem.fix) for problem in loaded.problems
    ]
    if loaded.settings is None:
        return None, found
    in_quotes = "the quotes belong to the value: an env file, unlike a shell, keeps them"
    found += [finding("W021", where, in_quotes) for where in loaded.quoted]
    found += [one for one in check(loaded.settings) if not _follows(one, found)]
    return loaded.settings, sorted(
        [*found, *_file_findings(used, loaded.settings)], key=lambda one: not one.fatal
    )


def _follows(one: Finding, found: Iterable[Finding]) -> bool:
    """Tell whether a setting is only found wanting since what was written there cannot be understood."""
    return any(other.fatal and (one.where in other.where or one.where in other.message) for other in found)


def check(settings: Settings) -> list[Finding]:
    """Return what is wrong or doubtful about `settings`, what stops `serve` first. Nothing is made or changed."""
    found = [
        *_sources(settings),
        *_submit(settings),
        *_public_url(settings),
        *_places(settings),
        *_store(settings),
        *_blobs(settings),
        *_retention(settings),
        *(f for name in settings.destinations for f in _destination(settings, settings.destinations[name])),
    ]
    for token in settings.api.tokens:
        if token.secret is not None and len(token.secret.get_secret_value()) < _SHORT:
            short = f"the secret of {token.name} has fewer than {_SHORT} characters"
            found.append(finding("W011", "api.tokens", short))
    if (count := len(settings.tokens.secrets)) > 1:
        signing = settings.tokens.signing or count
        message = f"number {signing} of {count} signs, and any is accepted: a change of secrets is under way"
        found.append(finding("W022", "tokens.secrets", message))
    found += _unrouted(settings, found)
    return sorted(found, key=lambda finding: not finding.fatal)


_SHORT = 16
"""Characters below which a token of the API could be guessed."""


def _sources(settings: Settings) -> Iterator[Finding]:
    for name, source in settings.sources.items():
        where, adapter = f"sources.{name}", adapter_named(source.provider)
        if adapter is None:
            unknown = f"there is no provider {source.provider!r}"
            yield finding("E002", f"{where}.provider", unknown, instead_of(source.provider))
            continue
        yield from adapter.findings(source)
        yield from _asking(where, source)
    if not settings.sources:
        yield finding("W009", "sources", "every callback will be answered 404")


def _submit(settings: Settings) -> Iterator[Finding]:
    """Check what submissions need."""
    if not settings.submit.tokens:
        return
    from receiver.engine.submissions import SubmitSource  # most settings have no tokens

    tokens = CallbackTokens(["a" * 16])
    for number, token in enumerate(settings.submit.tokens):
        for name in token.sources:
            source = settings.sources.get(name)
            if source is None or not source.submit:
                yield finding("E024", f"submit.tokens[{number}].sources", f"{name} may not be submitted to")
    for name, source in settings.sources.items():
        kind = adapter_named(source.provider)
        if source.submit and kind is not None:
            try:
                adapter = kind.create(source, tokens)
            except ConfigError:  # told by the provider's own findings
                continue
            try:
                SubmitSource.create(settings, source, adapter, tokens)
            except ConfigError as error:
                yield finding("E023", f"sources.{name}.submit", error.message)
    if not settings.submit.listen:
        yield finding("W024", "submit.listen", "whoever may call back may also try tokens of applications")


def _asking(where: str, source: SourceSettings) -> Iterator[Finding]:
    """Check what pickups need of a source: its authorities, and leave to connect to where it asks."""
    if source.ca_file is not None and not holds_certificates(source.ca_file):
        yield finding("E010", f"{where}.ca_file", NO_CERTIFICATES)
    result = source.options.get("result")
    tables = [result, *result.values()] if isinstance(result, Mapping) else []
    asked = [table.get("url") for table in tables if isinstance(table, Mapping)]
    for url in (source.options.get("api_url"), source.options.get("base_url"), *asked):
        try:
            blocked = blocked_by_address(url, source.allow) if isinstance(url, str) else None
        except ValueError:  # no URL at all, which is a finding of the provider's own
            continue
        if blocked:
            yield finding("W012", f"{where}.allow", f"every attempt will be blocked: {blocked}")


def _public_url(settings: Settings) -> Iterator[Finding]:
    url = settings.public_url
    if not url:
        yield finding("W001", "public_url", "providers cannot be told where to call")
        return
    used = [adapter_named(source.provider) for source in settings.sources.values()]
    https_only = any(adapter is not None and adapter.https_only for adapter in used)
    deepgram = any(source.provider == "deepgram" for source in settings.sources.values())
    problems = urls.public_url_problems(url, deepgram=deepgram, https_only=https_only)
    yield from problems
    if problems:
        return
    if is_private(url):
        yield finding("W008", "public_url", "it names this machine or a private network")
    elif url.startswith("http://"):
        yield finding("W007", "public_url", "credentials and audio travel in clear")


def _destination(settings: Settings, destination: DestinationSettings) -> Iterator[Finding]:
    where = f"destinations.{destination.name}"
    try:
        kind = kind_of(destination)
        kind(destination)
    except SettingsError as error:
        yield from (
            finding("E009", problem.where, problem.message, problem.fix) for problem in error.problems
        )
    except ReceiverError as error:
        yield finding("E009", where, error.message)
    else:
        yield from kind.findings(where, own_settings(kind.Settings, destination))
        if kind.needs is not None and find_spec(kind.needs[0]) is None:
            package, extra = kind.needs
            yield _missing(f"{where}.kind", kind.kind, package, extra)
    yield from _filters(settings, destination, where)


def _unrouted(settings: Settings, found: Sequence[Finding]) -> Iterator[Finding]:
    routes = [destination.route for destination in settings.destinations.values()]
    if not routes:
        yield finding("W002", "destinations", "events will be stored, and nobody told of them")
    elif not any(one.code in {"E002", "W010"} for one in found):  # which may be why
        types = [one for one in EVENT_TYPES if not one.startswith(ABOUT_DESTINATIONS)]
        for name in settings.sources:
            if all(route.refusal(name, one) for route in routes for one in types):
                fix = f'add "{name}" to sources of a destination, and its types to events'
                yield finding("W026", f"sources.{name}", "its events will be stored, and sent nowhere", fix)


def _filters(settings: Settings, destination: DestinationSettings, where: str) -> Iterator[Finding]:
    for pattern in destination.sources:
        route = Route(destination.name, sources=(pattern,))
        if settings.sources and all(route.refusal(source, "") for source in settings.sources):
            near = did_you_mean(pattern, settings.sources)
            yield finding("W010", f"{where}.sources", f"no source is named {pattern!r}", near)
    for pattern in destination.events:
        route = Route(destination.name, events=(pattern,))
        if all(route.refusal("", event_type) for event_type in EVENT_TYPES):
            near = did_you_mean(pattern, EVENT_TYPES)
            yield finding("W010", f"{where}.events", f"no event type is {pattern!r}", near)
    for setting, places in (("where", destination.where), ("data", destination.data or ())):
        for place in places:
            if not may_be_there(place):
                near = did_you_mean(place, PLACES)
                yield finding("W010", f"{where}.{setting}", f"no event has the field {place!r}", near)


def _secret_keys(settings: Settings) -> frozenset[str]:
    """Return the settings, of the parts that are used, that hold nothing but secrets; a `url` is looked into instead."""
    used: list[type[Destination | Adapter] | None] = [
        *(adapter_named(source.provider) for source in settings.sources.values()),
        *(kind_named(destination.kind) for destination in settings.destinations.values()),
    ]
    sections: list[type[Section]] = [ServerSettings, TokenSettings]
    sections += [part.Settings for part in used if part is not None]
    named = {
        name
        for section in sections
        for name, setting in section.model_fields.items()
        if "Secret" in str(setting.annotation) and name != "url"
    }
    return frozenset({"headers"} | named)


_WITH_PASSWORD = re.compile(r"postgres(ql)?://([^/]*:[^/]*@|.*[?&](ssl)?password=)")
_OPENING = re.compile(r"(token|key|secret|sig|signature|password)s?$", re.IGNORECASE)
"""How the name of a query's field ends whose value opens something: `token`, `apiKey`, `X-Amz-Signature`."""


def _file_findings(path: str, settings: Settings) -> Iterator[Finding]:
    """Warn of a settings file that holds secrets itself and that other users can read."""
    try:
        mode = os.stat(path).st_mode
        raw = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError):
        return
    if not mode & (stat.S_IRGRP | stat.S_IROTH):
        return
    if any(_literal_secrets(raw, _secret_keys(settings), secret=False)):
        message = f"it holds secrets, and its mode is {stat.S_IMODE(mode):o}"
        yield finding("W006", path, message, f"chmod 600 {path}, or write the secrets as env:NAME")


def _literal_secrets(value: Any, keys: Container[str], *, secret: bool) -> Iterator[bool]:
    if isinstance(value, dict):
        times = ("from", "until") if "secret" in value else ()
        for key, item in value.items():
            if key not in times:
                yield from _literal_secrets(item, keys, secret=secret or key in keys)
    elif isinstance(value, list):
        for item in value:
            yield from _literal_secrets(item, keys, secret=secret)
    elif isinstance(value, str) and (secret or _WITH_PASSWORD.match(value) or _with_credentials(value)):
        yield not any(mark in f":{value}" for mark in (":env:", ":file:"))


def _with_credentials(url: str) -> bool:
    """Tell whether a text is a URL that holds credentials, before its host or in its query."""
    if not url.lower().startswith(("http://", "https://")):
        return False
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL at all, which is a finding elsewhere
        return False
    fields = parse_qsl(parts.query)
    return "@" in parts.netloc or any(_OPENING.search(name) for name, _ in fields)


def _places(settings: Settings) -> Iterator[Finding]:
    """Check that what is to be written can be; the folders themselves are made by `serve`."""
    folders = {"data": settings.data, "journal.path": load.journal_folder(settings)}
    for where, shared, resolve in (
        ("store.url", load.postgres_url(settings) is not None, load.sqlite_path),
        ("blobs.url", load.on_s3(settings), load.blob_folder),
    ):
        if shared:
            continue
        try:
            place = resolve(settings)
        except ConfigError as error:
            yield finding("E008", where, error.message)
            continue
        folders[where] = str(Path(place).parent) if where == "store.url" else place
    seen: set[str] = set()
    for where, place in folders.items():
        trouble = _not_writable(place)
        if trouble and trouble not in seen:
            seen.add(trouble)
            yield finding("E007", where, trouble)
    for where, trouble in scarce(folders).items():
        yield finding("W023", where, f"{trouble}: with none, callbacks are refused")


def _store(settings: Settings) -> Iterator[Finding]:
    """Check what a store of many machines needs."""
    url = load.postgres_url(settings)
    if url is None:
        return
    if find_spec("psycopg") is None:
        yield _missing("store.url", "postgresql://…", "psycopg", "postgres")
    else:
        from receiver.storage.store.postgres_connection import parse

        try:
            parse(url)
        except ConfigError as error:
            fix = None if "cannot be read" in error.message else "correct the parameter, or take it out"
            yield finding("E008", "store.url", error.message, fix)
    if not settings.tokens.secrets:
        message = "other machines would not know the callback URLs that this one hands out"
        yield finding("E019", "tokens.secrets", message)
    if not load.on_s3(settings):
        message = "the store is for many machines, and the audio lies on this one: no other could serve it"
        yield finding("W015", "blobs.url", message)


def _missing(where: str, url: str, package: str, extra: str) -> Finding:
    message = f"{where} is {url}, which needs {package}"
    return finding("E011", where, message, install(extra))


def _blobs(settings: Settings) -> Iterator[Finding]:
    """Check the settings of S3, and of keys."""
    blobs = settings.blobs
    try:
        KeyTemplate(blobs.key)
    except ConfigError as error:
        yield finding("E022", "blobs.key", error.message)
    if not load.on_s3(settings):
        return
    if find_spec("boto3") is None:
        yield _missing("blobs.url", "s3://…", "boto3", "s3")
    try:
        S3Options.of(blobs)
    except ConfigError as error:
        yield finding("E008", "blobs.url", error.message)
    if blobs.sse_kms_key_id and blobs.sse != "aws:kms":
        yield finding(
            "E021", "blobs.sse_kms_key_id", "the key has no use", 'add sse = "aws:kms", or take it out'
        )
    if blobs.ca_file is not None and not holds_certificates(blobs.ca_file):
        yield finding("E021", "blobs.ca_file", NO_CERTIFICATES)
    for name in ("endpoint_url", "link_endpoint_url"):
        parts = urlsplit(getattr(blobs, name) or "")
        if parts.scheme == "http" and not is_this_machine(parts.hostname or ""):
            clear = "audio and what it is signed with can be read on the way"
            yield finding("W016", f"blobs.{name}", clear)


def _not_writable(folder: str) -> str | None:
    """Return why `folder` could not be made or written, by its nearest parent that is there."""
    here = nearest(folder)
    if not here.is_dir():
        return f"{here} is not a folder"
    if not os.access(here, os.W_OK | os.X_OK):
        return f"{here} may not be written"
    try:
        # Leave alone does not tell: nothing can be made in /proc, whoever asks.
        os.rmdir(tempfile.mkdtemp(prefix=".receiver-check-", dir=here))
    except OSError as error:
        if error.errno not in _FULL:
            return f"nothing can be made in {here}: {error.strerror}"
    return None


_FULL = (errno.ENOSPC, errno.EDQUOT)
"""A disk that is full may be emptied, by receiver itself as well: no reason not to start."""


def _retention(settings: Settings) -> Iterator[Finding]:
    """Find an age of events that the age of audio overrules: without its event, nobody could tell what a file is."""
    ages, kept = settings.retention, settings.retention.kept
    if kept.events is None or kept.audio is None or kept.events >= kept.audio:
        return
    message = f"events stay as long as their audio, {ages.audio}, and not {ages.events} only"
    fix = f'write events = "{ages.audio}", or keep audio for {ages.events} only'
    yield finding("W019", "retention.events", message, fix)


# ---------------------------------------------------------------- the services: asked by `receiver check`, and at each start

PATIENCE = 8.0
"""Seconds after which no answer is an answer."""


def reach(settings: Settings, *, clock: Callable[[], int] = wall_clock) -> list[Finding]:
    """Return what PostgreSQL, S3 and queues say, what stops `serve` first; nothing for embedded parts. Waits `PATIENCE` at most.

    The settings are to be such that `check` found nothing fatal. S3 is tried with a small object, which is deleted again.
    """
    probes: list[_Probe] = []
    if load.postgres_url(settings) is not None:
        probes.append(_Probe(lambda: _postgres(settings, clock), "store.url", silent="E012", broken="E018"))
    if load.on_s3(settings):
        probes.append(_Probe(lambda: _s3(settings), "blobs.url", silent="W017", broken="E020"))
    for name, destination in settings.destinations.items():
        if kind_of(destination).probe is not Destination.probe:
            ask, where = partial(_taking, destination), f"destinations.{name}"
            probes.append(_Probe(ask, where, silent="W025", broken="W025"))
    for probe in probes:
        probe.join(PATIENCE)
    return sorted((f for probe in probes for f in probe.findings), key=lambda finding: not finding.fatal)


class _Probe(threading.Thread):
    """Ask one service in a thread that ends with the process if there is never an answer."""

    def __init__(self, ask: Callable[[], Iterable[Finding]], where: str, *, silent: str, broken: str) -> None:
        super().__init__(daemon=True)
        self._ask, self._where, self._broken = ask, where, broken
        self.findings = [finding(silent, where, f"it did not answer within {PATIENCE:g} s")]
        self.start()

    def run(self) -> None:
        try:
            self.findings = list(self._ask())
        except Exception as error:  # a bug of ours must not pass for silence, nor for a traceback
            message = f"asking it failed ({type(error).__name__})"
            fix = "look at the settings; please report it"
            self.findings = [finding(self._broken, self._where, message, fix)]


def unreached(findings: Iterable[Finding]) -> bool:
    """Tell whether nothing stops the start but what may pass: an outage, or a clock that is not yet set after a boot."""
    return all(finding.code in {"E012", "E017"} for finding in findings if finding.fatal)


def _postgres(settings: Settings, clock: Callable[[], int]) -> Iterator[Finding]:
    from receiver.storage.store.postgres_connection import probe

    for trouble in probe(load.postgres_url(settings) or "", clock):
        yield finding(trouble.code, "store.url", trouble.message, trouble.fix)


def _taking(settings: DestinationSettings) -> Iterator[Finding]:
    async def ask() -> str | None:
        destination = kind_of(settings)(settings)
        await destination.open()
        try:
            return await destination.probe()
        finally:
            await destination.close()

    if trouble := asyncio.run(ask()):
        yield finding("W025", f"destinations.{settings.name}", trouble)


def _s3(settings: Settings) -> Iterator[Finding]:
    from receiver.storage.blobs.s3_probe import probe

    for trouble in probe(S3Options.of(settings.blobs)):
        code = "E020" if trouble.fatal else "W018"
        if trouble.outage:
            code = "W017"
        fix = f"grant {trouble.permission} (deploy/iam-policy.json)" if trouble.permission else None
        yield finding(code, "blobs.url", trouble.message, fix)
        if trouble.outage:
            return
