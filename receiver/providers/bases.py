"""The address of a provider's API, as a setting (floor 3, shared by the adapters). Keys are sent to nothing else."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator

from receiver.core.callback_urls import is_private


def _checked(value: str) -> str:
    """Return the URL without a slash at its end. Raises `ValueError`, which quotes nothing of it."""
    parts = _split(value)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError('write it as "https://host" or "https://host/path"')
    if parts.username is not None or parts.password is not None:
        raise ValueError("it holds credentials; the key has a setting of its own")
    if "?" in value or "#" in value:
        raise ValueError("it holds a query or a fragment")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("it holds a space or a character outside ASCII")
    return value.rstrip("/")


BaseUrl = Annotated[str, AfterValidator(_checked)]
"""An http(s) URL without credentials, query and fragment, and without a slash at its end."""


def origin(url: str) -> str:
    """Return scheme, host and (where it is not the scheme's own) port of a URL: what may be shown of it."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if _port(parts) != _own_port(parts) else "")


def host_of(base: str) -> str:
    """Return the host name of a checked base URL."""
    return urlsplit(base).hostname or ""


def in_clear(base: str) -> bool:
    """Tell whether a key would travel in clear: http to a host that is neither this machine nor a private address."""
    return base.startswith("http://") and not is_private(base)


def is_url(text: str) -> bool:
    """Tell whether a text that was handed over is meant as a URL."""
    return "://" in text


def is_plain(url: str) -> bool:
    """Tell whether a URL has neither credentials nor a query nor a fragment, and can be read at all."""
    parts = _split(url)
    return parts is not None and "@" not in parts.netloc and "?" not in url and "#" not in url


def same_origin(base: str, url: str) -> bool:
    """Tell whether a plain URL has the scheme, host and port of `base`."""
    ours, theirs = urlsplit(base), urlsplit(url)
    return (ours.scheme, ours.hostname, _port(ours)) == (theirs.scheme, theirs.hostname, _port(theirs))


def path_below(base: str, url: str) -> str | None:
    """Return what follows `base` in the path of a URL of the same origin, None when it is not below it."""
    start = urlsplit(base).path.rstrip("/") + "/"
    path = urlsplit(url).path
    return path.removeprefix(start) if path.startswith(start) else None


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port, parts.hostname
    except ValueError:
        return None
    return parts


def _own_port(parts: SplitResult) -> int:
    return 443 if parts.scheme == "https" else 80


def _port(parts: SplitResult) -> int:
    return parts.port or _own_port(parts)
