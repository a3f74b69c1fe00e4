"""The http(s) URLs of settings: their form, and whether one leads to this machine or a private network. Pure."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit


def http_url(text: str, *, bare: bool = True) -> SplitResult:
    """Return an http(s) URL taken apart; a `bare` one is ASCII, without credentials, query and fragment.

    Raises `ValueError` with what is wrong, which quotes nothing of it: a URL may hold secrets.
    """
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ValueError("it must begin with https:// (or http://) and a host")
    if bare and (parts.username is not None or parts.password is not None):
        raise ValueError("it holds credentials; those have a setting of their own")
    if bare and ("?" in text or "#" in text):
        raise ValueError("it holds a query or a fragment")
    if bare and not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("it holds a space or a character outside ASCII (write such a host in its xn-- form)")
    return parts


OWN_PORTS = {"http": 80, "https": 443}


def port_of(parts: SplitResult) -> int:
    """Return the port of a URL; that of its scheme where it names none."""
    return parts.port or OWN_PORTS.get(parts.scheme, 80)


def is_this_machine(host: str) -> bool:
    """Tell whether a host is this machine by name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_private(url: str) -> bool:
    """Tell whether the URL's host is this machine by name, or a literal address that is not public."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return is_this_machine(host)


def in_clear(url: str) -> bool:
    """Tell whether others could read what is sent: http to a host that is neither this machine nor a private address."""
    return url.startswith("http://") and not is_private(url)
