"""Which addresses may be connected to: a table of its own, since Python's `is_global` differs between versions.

Sources: the IANA special-purpose registries, read in November 2026
(https://www.iana.org/assignments/iana-ipv4-special-registry, https://www.iana.org/assignments/iana-ipv6-special-registry),
and for IPv6 the rule that only 2000::/3 is assigned as global unicast
(https://www.iana.org/assignments/ipv6-address-space). An address that carries an IPv4 address (mapped, compatible, NAT64,
6to4, Teredo, ISATAP) is judged by every address inside. One address of no registry is refused: 168.63.129.16, where every
machine in Azure finds its host (https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16).
"""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import urljoin, urlsplit

from msgspec import Struct
from yarl import URL

from receiver.core.errors import AddressBlocked

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_REFUSED_4 = [
    (IPv4Network(text), reason)
    for text, reason in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared (carrier-grade NAT)"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "Azure's own, for its machines"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved for protocols"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "a 6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("240.0.0.0/4", "reserved"),
    )
]
_REFUSED_6 = [
    (IPv6Network(text), reason)
    for text, reason in (
        ("64:ff9b:1::/48", "local NAT64"),
        ("100::/64", "discard-only"),
        ("100:0:0:1::/64", "a dummy prefix"),
        ("2001::/23", "reserved for protocols"),
        ("2001:db8::/32", "documentation"),
        ("3fff::/20", "documentation"),
        ("5f00::/16", "segment routing"),
        ("fc00::/7", "private (unique local)"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
]
_GLOBAL_6 = IPv6Network("2000::/3")
_MAPPED = IPv6Network("::ffff:0:0/96")
_COMPATIBLE = IPv6Network("::/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_SIX_TO_FOUR = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
_CARRIERS = (_MAPPED, _COMPATIBLE, _NAT64, _SIX_TO_FOUR, _TEREDO)
"""Prefixes that say nothing but what they carry; ISATAP also has the prefix of its site."""
ANYWHERE = ("0.0.0.0/0", "::/0")
"""Permits all: for places that only the operator names, such as a proxy."""
_WORD = 0xFFFFFFFF


def inside(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that an IPv6 address carries, none for an ordinary one."""
    number = int(address)
    last = number & _WORD
    if address in _MAPPED or address in _COMPATIBLE or address in _NAT64:
        return (IPv4Address(last),)
    if address in _SIX_TO_FOUR:
        return (IPv4Address(number >> 80 & _WORD),)
    if address in _TEREDO:  # the server, and the client with every bit turned (RFC 4380)
        return IPv4Address(number >> 64 & _WORD), IPv4Address(last ^ _WORD)
    if address not in _NAT64_LOCAL and number >> 32 & 0xFDFFFFFF == 0x5EFE:  # ISATAP (RFC 5214)
        return (IPv4Address(last),)
    return ()


def refusal(address: Address, allow: Iterable[Network] = ()) -> str | None:
    """Return why `address` must not be connected to ("loopback", "private", …), None when it may be.

    It may be when it is public, or inside a network of `allow`. 64:ff9b:1::/48 is never public (RFC 8215), whatever it carries.
    """
    networks = tuple(allow)
    if _within(address, networks):
        return None
    if isinstance(address, IPv4Address):
        return _first(address, _REFUSED_4)
    for number in inside(address):
        reason = refusal(number, networks)
        if reason is not None:
            return f"{reason} ({number} inside)"
    if _within(address, _CARRIERS):
        return None
    return _first(address, _REFUSED_6) or (None if address in _GLOBAL_6 else "not handed out")


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _first(address: Address, table: Iterable[tuple[Network, str]]) -> str | None:
    return next((reason for network, reason in table if address in network), None)


_ODD_IPV4 = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+)){0,3}", re.IGNORECASE)


def literal(host: str) -> Address | None:
    """Return the address that `host` spells, however oddly (octal, hex, short, full-width digits), None for a name."""
    text = unicodedata.normalize("NFKC", host).replace("。", ".").strip("[]").rstrip(".")
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    if not _ODD_IPV4.fullmatch(text):
        return None
    try:
        return IPv4Address(socket.inet_aton(text))
    except OSError:
        return None


class Guard:
    """Says which addresses one destination may have."""

    def __init__(self, allow: Iterable[str] = ()) -> None:
        """`allow` has the CIDRs that the settings permit. Raises `ValueError` for an invalid one."""
        self._allow: tuple[Network, ...] = tuple(ipaddress.ip_network(text) for text in allow)

    def check(self, address: str, name: str = "") -> None:
        """Raise `AddressBlocked` when `address` (as text, to which `name` resolved) must not be connected to."""
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            raise AddressBlocked(f"{name or address} is not at an internet address") from None
        reason = refusal(parsed, self._allow)
        if reason is not None:
            who = f"{name} resolves to {parsed}, which" if name and name != address else str(parsed)
            raise AddressBlocked(f'{who} is {reason}; allow = ["{_network(parsed)}"] would permit it')

    def check_host(self, host: str) -> None:
        """Raise `AddressBlocked` for a host that is a refused address, or an address in an odd spelling. Names pass."""
        found = literal(host)
        if found is None:
            return
        if isinstance(found, IPv4Address) and host != str(found):
            raise AddressBlocked(f"{host} is another spelling of {found}: write {found}")
        self.check(str(found))


def _network(address: Address) -> str:
    return f"{address}/{address.max_prefixlen}"


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
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
        """The request goes over TLS."""
        return self.url.scheme == "https"


def target(text: str) -> Target | str:
    """Take a URL apart; return the reason, as a sentence about "the URL", when nothing may be sent there.

    Refused are other schemes than http and https, credentials before the host, control characters, and hosts that are
    neither a name nor an address. Characters outside ASCII are escaped; the fragment is dropped.
    """
    if len(text) > _MAX_LENGTH:
        return f"the URL is longer than {_MAX_LENGTH} characters"
    if _CONTROL.search(text):
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


def blocked_by_address(url: str, allow: Iterable[str]) -> str | None:
    """Return why the address guard will refuse a URL whose host is an address or this machine; None where DNS decides."""
    host = urlsplit(url).hostname or ""
    guard = Guard(allow)
    try:
        if host == "localhost" or host.endswith(".localhost"):
            guard.check("127.0.0.1", host)
        else:
            guard.check_host(host)
    except AddressBlocked as error:
        return error.message
    return None
