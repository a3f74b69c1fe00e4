"""Ports for servers that a test starts by number."""

from __future__ import annotations

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


def free_port() -> int:
    """Return a port that nothing listens on, and that no connection is given."""
    while True:
        port = _CHANCE.randrange(_LOWEST, _end())
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
