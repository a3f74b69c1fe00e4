"""The address of a caller behind trusted proxies (`server.trusted_proxies`), from `X-Forwarded-For`."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request


class Proxies:
    """Finds the caller's address behind proxies that are trusted to name it in `X-Forwarded-For`."""

    def __init__(self, trusted: Iterable[str]) -> None:
        names = set(trusted)
        self._all = "*" in names
        self._networks = [ipaddress.ip_network(name, strict=False) for name in names - {"*"}]
        self._known: dict[str, bool] = {}

    def caller(self, peer: str, headers: Sequence[tuple[str, str]]) -> str:
        """Return the nearest address that is not a trusted proxy; `peer` itself when no trusted proxy names another."""
        hops: list[str] = []
        for name, value in headers:
            if name == "x-forwarded-for":
                hops += map(str.strip, value.split(","))
        if not hops or not self._trusts(peer):
            return peer
        for hop in map(_without_port, reversed(hops)):
            try:
                ipaddress.ip_address(hop)
            except ValueError:  # a proxy's own spelling, or a stranger's invention: not an address to show
                return peer
            peer = hop
            if not self._trusts(hop):
                break
        return peer

    def caller_of(self, request: Request) -> str | None:
        """Return the address of a request's caller; None when the server does not know it."""
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in request.scope["headers"]]
        return self.caller(request.client.host, headers) if request.client else None

    def _trusts(self, address: str) -> bool:
        if self._all:
            return True
        known = self._known.get(address)
        if known is None:
            try:
                parsed = ipaddress.ip_address(address)
                known = any(parsed in network for network in self._networks)
            except ValueError:
                known = False
            if len(self._known) > 4096:
                self._known.clear()
            self._known[address] = known
        return known


def _without_port(hop: str) -> str:
    """Return the address of `192.0.2.1:4711` or `[2001:db8::1]:4711`, as some proxies write it; others as they are."""
    host, _, _ = hop.removeprefix("[").partition("]") if hop.startswith("[") else (hop, "", "")
    return host.partition(":")[0] if host.count(":") == 1 else host
