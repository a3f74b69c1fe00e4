"""Ports for servers that a test starts by number."""

from __future__ import annotations

import contextlib
import random
import socket
from functools import cache
from pathlib import Path

_LOWEST = 10_000
_CHANCE = random.SystemRandom()


@cache
def _end() -> int:
    """Return the first port that the kernel gives to connections: such a one may be taken before the server starts."""
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])


def held_port() -> socket.socket:
    """Return a socket that listens on a port that no connection is given: nobody else can take it while this is open."""
    while True:
        sock = socket.socket()
        with contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", _CHANCE.randrange(_LOWEST, _end())))
            sock.listen()
            return sock
        sock.close()


def free_port() -> int:
    """Return such a port, for what can only be told its number: another server may take it before."""
    with held_port() as sock:
        return int(sock.getsockname()[1])
