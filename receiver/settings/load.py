"""Where the settings come from, and the places they name: files, folders, the token secret."""

from __future__ import annotations

import contextlib
import os
import secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path

from receiver.core.errors import ConfigError
from receiver.settings.model import PREFIX, Settings, parse
from receiver.system.files import make_folder, sync_folder


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
    return str(environ.get(f"{PREFIX}SERVER__LOG") or written or "auto")


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
    return url.removeprefix("sqlite:///")


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
