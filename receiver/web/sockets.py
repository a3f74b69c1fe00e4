"""Sockets to listen on, and how many descriptors and connections a process may have."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
from typing import TYPE_CHECKING

from receiver.core.errors import ReceiverError
from receiver.web.connections import DEFAULT_CONNECTIONS

if TYPE_CHECKING:
    from receiver.settings.model import Settings

_MOST_DESCRIPTORS = 65_536
_OTHER_DESCRIPTORS = 256
"""Descriptors that are kept for store, journal, audio and deliveries."""


def raise_descriptors() -> None:
    """Let this process open as many files as it may: many systems begin with 1,024, and let a process ask for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections_for(setting: int | None) -> int:
    """Return how many connections may be open: as set, and never more than there are descriptors for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = max(soft - _OTHER_DESCRIPTORS, soft // 2)
    return min(setting or DEFAULT_CONNECTIONS, room)


def bind_all(settings: Settings, *, shared: bool) -> list[socket.socket]:
    """Return the sockets of the server, and those of `submit.listen`. Raises `ReceiverError`."""
    sockets = bind(settings.server.host, settings.server.port, shared=shared)
    if settings.submit.listen:
        host, _, port = settings.submit.listen.rpartition(":")
        sockets += bind(host.strip("[]"), int(port), shared=shared)
    return sockets


def bind(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Return sockets bound to every address of `host`, not yet listening; `shared` with others that are bound so.

    Raises `ReceiverError` with what to do.
    """
    sockets: list[socket.socket] = []
    try:
        addresses = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE, proto=socket.IPPROTO_TCP
        )
        for family, kind, proto, _, address in dict.fromkeys(addresses):
            sock = socket.socket(family, kind, proto)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken = sockets[0].getsockname()[1] if len(sockets) > 1 else port
            sock.bind((address[0], taken, *address[2:]))
            sock.setblocking(False)
    except (OSError, UnicodeError) as error:
        for sock in sockets:
            sock.close()
        raise ReceiverError(bind_trouble(host, port, error)) from None
    return sockets


def bind_trouble(host: str, port: int, error: Exception) -> str:
    """Return why an address could not be bound, and what to do."""
    match getattr(error, "errno", None):
        case errno.EADDRINUSE:
            return (
                f"port {port} on {host} is taken by another program: stop it, or choose another with --port"
            )
        case errno.EACCES:
            return f"port {port} may not be opened by this user: choose one above 1023 with --port"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine: choose another with --host"
    return f"{host} cannot be listened on ({getattr(error, 'strerror', None) or error}): choose another with --host"
