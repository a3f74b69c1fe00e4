"""Where the settings come from (a TOML file, the environment, other files), and the places they name."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from receiver.core.errors import ConfigError
from receiver.settings.model import DestinationSettings, Section, Settings, SourceSettings
from receiver.system.files import make_folder, sync_folder

T = TypeVar("T", bound=Section)
_PREFIX = "RECEIVER__"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
Reader = Callable[[str], str]
"""Reads a text file, given its path; raises `OSError`."""

_DEFAULT_SOURCES: Mapping[str, Any] = {"deepgram": {"provider": "deepgram", "require_token": True}}
"""With no file at all: Deepgram, proved by the callback tokens that `receiver callback-url` hands out."""


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


def wanted_log(path: str | None, environ: Mapping[str, str]) -> str:
    """Return `server.log` as settings ask for it that cannot be used: what is wrong with them is told that way, too."""
    try:
        file = Path(path or environ.get("RECEIVER_CONFIG") or "receiver.toml")
        raw = tomllib.loads(file.read_text("utf-8")).get("server", {})
    except (OSError, ValueError):
        raw = {}
    written = raw.get("log") if isinstance(raw, dict) else None
    return str(environ.get(f"{_PREFIX}SERVER__LOG") or written or "auto")


def parse(text: str | None, environ: Mapping[str, str], read: Reader) -> Settings:
    """Return the settings of a TOML text (None: no file) under `environ`. Raises `ConfigError`, never with a secret in it."""
    try:
        raw: dict[str, Any] = tomllib.loads(text) if text is not None else {}
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the settings are not valid TOML: {error}") from None
    _override(raw, environ)
    if text is None and "sources" not in raw:
        raw["sources"] = {name: dict(fields) for name, fields in _DEFAULT_SOURCES.items()}
    missing: list[str] = []
    resolved = _resolve(raw, "", _Outside(environ, read, missing))
    if missing:
        raise ConfigError("; ".join(missing))
    _sections(resolved)
    try:
        return Settings.model_validate(resolved)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def _override(raw: dict[str, Any], environ: Mapping[str, str]) -> None:
    for name, value in sorted(environ.items()):
        if not name.startswith(_PREFIX):
            continue
        *sections, key = [part.lower() for part in name[len(_PREFIX) :].split("__")]
        table = raw
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{name} names a section that is a plain value: {section}")
        table[key] = _toml_value(value)
    server = raw.setdefault("server", {})
    # Before the file's, which `init` wrote: where a platform sets PORT, it sends requests to no other.
    if isinstance(server, dict) and "PORT" in environ and f"{_PREFIX}SERVER__PORT" not in environ:
        server["port"] = environ["PORT"]
    store = raw.setdefault("store", {})
    if isinstance(store, dict) and "DATABASE_URL" in environ:
        store.setdefault("url", environ["DATABASE_URL"])


def _toml_value(text: str) -> Any:
    """Read an environment value as TOML where it is TOML (numbers, lists, true), else as text."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


@dataclass(frozen=True, slots=True)
class _Outside:
    """Where values come from that are not written in the settings themselves."""

    environ: Mapping[str, str]
    read: Reader
    missing: list[str]
    """What was not there: all of it is told at once, since each start to find the next one takes a person's time."""


def _resolve(value: Any, where: str, outside: _Outside) -> Any:
    if isinstance(value, dict):
        return {key: _resolve(item, f"{where}.{key}".lstrip("."), outside) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, where, outside) for item in value]
    if isinstance(value, str):
        try:
            return _secret(value, where, outside.environ, outside.read)
        except ConfigError as error:
            outside.missing.append(error.message)
    return value


_BASIC = re.compile(r"([^:]+):((?:env|file):.+)", re.DOTALL)


def _secret(text: str, where: str, environ: Mapping[str, str], read: Reader) -> str:
    kind, _, rest = text.partition(":")
    if kind == "env":
        value = environ.get(rest, "").strip()  # `echo` and many templates end a value with a line feed
        if not value:
            state = "empty" if rest in environ else "not set"
            raise ConfigError(f"{where} says env:{rest}, and {rest} is {state}: export it")
        return value
    if kind == "file":
        if rest.startswith("//"):
            return text  # a file:// URL is a place, not a secret
        try:
            found = read(rest).strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise ConfigError(f"{where} says file:{rest}, which cannot be read: {reason}") from None
        if not found:
            raise ConfigError(f"{where} says file:{rest}, which is empty: write the secret into it")
        return found
    if where.endswith(".basic") and (pair := _BASIC.fullmatch(text)):
        return f"{pair[1]}:{_secret(pair[2], where, environ, read)}"
    return text


def _sections(raw: dict[str, Any]) -> None:
    """Give each source and destination its name."""
    for section in ("sources", "destinations"):
        tables = raw.get(section, {})
        if not isinstance(tables, dict):
            raise ConfigError(f"{section} must be a table of tables: write [{section}.NAME]")
        for name, table in tables.items():
            if not isinstance(table, dict):
                raise ConfigError(f"{section}.{name} must be a table: write [{section}.{name}]")
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"[{section}.{name}]: a name has lower-case letters, digits and hyphens, "
                    "63 at most (Deepgram refuses underscores)"
                )
            table["name"] = name


def _explain(error: ValidationError, section: str = "") -> str:
    lines = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "no such setting; see docs/configuration.md"
        elif item["type"] == "missing":
            message = "is missing"
        elif item["type"] == "string_type" and where.startswith("retention."):
            message = 'write it as "90d": a number and a unit, in quotes'
        lines.append(f"{section}{where}: {message}")
    return "; ".join(lines)


def own_settings(model: type[T], section: SourceSettings | DestinationSettings) -> T:
    """Check the `options` of a source with its provider's model, of a destination with its kind's.

    Raises `ConfigError` naming `sources.NAME.setting` or `destinations.NAME.setting`.
    """
    where = "sources" if isinstance(section, SourceSettings) else "destinations"
    try:
        return model.model_validate(dict(section.options))
    except ValidationError as error:
        raise ConfigError(_explain(error, f"{where}.{section.name}.")) from None


# ---------------------------------------------------------------- places


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
        sync_folder(path.parent)  # before a URL is issued that only this secret can prove
        return [path.read_text("ascii").strip()]
    except OSError as error:
        raise ConfigError(
            f"the token secret cannot be kept in {path}: {error.strerror}; "
            "set tokens.secrets, or make the data folder writable"
        ) from None


def postgres_url(settings: Settings) -> str | None:
    """Return the PostgreSQL URL that `[store] url` is, None for another kind of store."""
    url = settings.store.url.get_secret_value() if settings.store.url else ""
    return url if url.startswith(("postgresql://", "postgres://")) else None


def sqlite_path(settings: Settings) -> str:
    """Return the SQLite file that `[store] url` names. Raises `ConfigError` for another kind of store."""
    url = settings.store.url.get_secret_value() if settings.store.url else None
    if url is None:
        return str(Path(settings.data, "receiver.db"))
    if not url.startswith("sqlite:///") or len(url) == len("sqlite:///"):
        raise ConfigError(
            "store.url must begin with postgresql://, or with sqlite:/// (three slashes for a relative path, four for "
            "an absolute)"
        )
    path, asked, parameters = url.removeprefix("sqlite:///").partition("?")
    if asked:
        raise ConfigError(f"store.url: SQLite takes no parameters here: write it without ?{parameters}")
    if path == ":memory:":
        raise ConfigError("store.url: a store in memory would lose what was answered: name a file")
    return path


def on_s3(settings: Settings) -> bool:
    """Tell whether `[blobs] url` names a bucket."""
    return settings.blobs.url is not None and settings.blobs.url.startswith("s3://")


def blob_folder(settings: Settings) -> str:
    """Return the folder that `[blobs] url` names. Raises `ConfigError` for another kind of blob store."""
    url = settings.blobs.url
    if url is None:
        return str(Path(settings.data, "blobs"))
    if not url.startswith("file:///"):
        raise ConfigError(
            "blobs.url must begin with s3:// and a bucket, or with file:/// and an absolute path"
        )
    return url.removeprefix("file://")


def journal_folder(settings: Settings) -> str:
    """Return the journal's folder."""
    return settings.journal.path or str(Path(settings.data, "journal"))


def public_base(settings: Settings) -> str:
    """Return the URL under which receiver is reached, without a trailing slash."""
    if settings.public_url:
        return settings.public_url.rstrip("/")
    host = settings.server.host
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104 - shown, not bound
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{settings.server.port}"
