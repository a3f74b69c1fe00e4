"""What `receiver check` finds about the places where things are kept: folders, PostgreSQL, S3."""

from __future__ import annotations

import errno
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from receiver.app.findings import finding
from receiver.core.errors import ConfigError
from receiver.settings import load
from receiver.settings.model import Finding, Settings, install
from receiver.storage.blobs.keys import KeyTemplate
from receiver.storage.blobs.s3_options import S3Options

NO_CERTIFICATES = "it cannot be read, or holds no certificates in PEM form"
"""Said of a `ca_file`."""


def holds_certificates(ca_file: str) -> bool:
    """Tell whether a file holds certificates in PEM form."""
    try:
        ssl.create_default_context().load_verify_locations(ca_file)
    except OSError:  # ssl.SSLError is one
        return False
    return True


def kept_places(settings: Settings) -> Iterator[Finding]:
    """Find what is wrong or doubtful about the places where `settings` keep things, and for how long."""
    yield from _places(settings)
    yield from _store(settings)
    yield from _blobs(settings)
    yield from _retention(settings)


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
        trouble = _not_writable(Path(place))
        if trouble and trouble not in seen:
            seen.add(trouble)
            yield finding("E007", where, trouble)


def _store(settings: Settings) -> Iterator[Finding]:
    """Check what a store of many machines needs."""
    url = load.postgres_url(settings)
    if url is None:
        return
    if find_spec("psycopg") is None:
        yield _missing("store.url", "postgresql://…", "psycopg", "postgres")
    else:
        from receiver.storage.store.postgres_connect import parse

        try:
            parse(url)
        except ConfigError as error:
            fix = None if "cannot be read" in error.message else "correct the parameter, or take it out"
            yield finding("E008", "store.url", error.message.removeprefix("store.url: "), fix)
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
    if blobs.endpoint_url is not None:
        yield from _address("blobs.endpoint_url", blobs.endpoint_url)
    if blobs.link_endpoint_url is not None:
        yield from _address("blobs.link_endpoint_url", blobs.link_endpoint_url)


def _address(where: str, url: str) -> Iterator[Finding]:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        good = (
            parts.scheme in ("http", "https") and bool(host) and "@" not in parts.netloc and parts.port != 0
        )
    except ValueError:
        good = False
    if not good:
        message = "it must be an http:// or https:// URL with a host, and without credentials"
        yield finding("E021", where, message, 'write it as "https://s3.example.com"')
    elif parts.scheme == "http" and not _loopback(host):
        yield finding("W016", where, "audio and what it is signed with can be read on the way")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _not_writable(folder: Path) -> str | None:
    """Return why `folder` could not be made or written, by its nearest parent that is there."""
    here = folder.absolute()
    while not os.path.lexists(here) and here != here.parent:
        here = here.parent
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
    told, kept = settings.retention, settings.retention.kept
    if kept.events is None or kept.audio is None or kept.events >= kept.audio:
        return
    message = f"events stay as long as their audio, {told.audio}, and not {told.events} only"
    fix = f'write events = "{told.audio}", or keep audio for {told.events} only'
    yield finding("W019", "retention.events", message, fix)
