"""URLs that are about to be asked: taken apart once, and refused when they are not plain. Pure.

The host that is judged is the one that is connected to: one parser reads it, for the guard, for the list of hosts and for the
client alike. Path and query are sent byte for byte as they were given, since a signed URL may be signed so.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urljoin, urlsplit

from msgspec import Struct
from yarl import URL

_PLAIN = re.compile(r"[!-~]+")
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")
_MAX_LENGTH = 16 * 1024


class Target(Struct, frozen=True, kw_only=True):
    """Where one request goes."""

    url: URL
    host: str
    """In ASCII (IDNA) and lower case, as it is connected to; an IPv6 address without brackets."""
    where: str
    """Host and port, for a person: all that may be shown of a URL."""

    @property
    def secure(self) -> bool:
        """It is asked over TLS."""
        return self.url.scheme == "https"


def target(text: str) -> Target | str:
    """Take a URL apart; return the reason, as a sentence about "the URL", when nothing may be sent there.

    Refused are other schemes than http and https, credentials before the host, control characters, and hosts that are
    neither a name nor an address. Characters outside ASCII are escaped; the fragment is dropped.
    """
    if len(text) > _MAX_LENGTH:
        return f"the URL is longer than {_MAX_LENGTH} characters"
    if any(char < " " or char == "\x7f" for char in text):
        return "the URL holds a control character"
    try:
        text.encode()  # not with halves of characters, as a header's stray bytes become
        url, parts = URL(text), urlsplit(text)
        host, port = url.raw_host or "", url.port
    except ValueError:  # its text quotes the URL
        return "the URL cannot be read"
    if url.scheme not in ("http", "https") or not host:
        return "the URL does not begin with https:// (or http://) and a host"
    if "@" in parts.netloc:
        return "the URL holds credentials before the host"
    if not port:
        return "the URL names port 0"
    if not _is_host(host):
        return "the URL's host is neither a name nor an address"
    literal = f"[{host}]" if ":" in host else host
    if _PLAIN.fullmatch(text):
        url = URL.build(
            scheme=url.scheme,
            host=literal,
            port=url.explicit_port,
            path=parts.path or "/",
            query_string=parts.query,
            encoded=True,
        )
    where = f"{literal}:{port}"
    return Target(url=url.with_fragment(None), host=host, where=where)


def follow(text: str, location: str) -> str:
    """Return the URL that a redirect from `text` leads to; "" when `location` cannot be read."""
    try:
        return urljoin(text, location)
    except ValueError:
        return ""


def listed(host: str, hosts: Iterable[str]) -> bool:
    """Whether `host` is one of `hosts` or below one; `*` is any. Case, IDNA form and a trailing dot make no difference.

    Ports are not compared: a host that is trusted is trusted whole.
    """
    name = _ascii(host)
    for entry in hosts:
        if entry == "*":
            return True
        parent = _ascii(entry)
        if parent and (name == parent or (name.endswith("." + parent) and not _is_address(name))):
            return True
    return False


def _ascii(host: str) -> str:
    try:
        return (URL.build(scheme="https", host=host.strip("[]")).raw_host or "").lower().rstrip(".")
    except ValueError:
        return ""


def _is_host(host: str) -> bool:
    return _is_address(host) or _NAME.fullmatch(host) is not None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
