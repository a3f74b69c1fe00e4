"""A fetcher and a host of a provider, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from receiver.outbound.client import Egress, Resolve
from receiver.outbound.fetcher import Fetcher, Limits
from receiver.system.body_buffer import BodyBuffer
from tests.support.provider_host import ProviderHost

LOOPBACK = ("127.0.0.0/8", "::1/128")
LIMIT = 10_000_000
NOW = 1_795_000_000
"""The fetcher's clock, in seconds since 1970."""


@dataclass
class Way:
    """One fetcher, and the host that it asks."""

    host: ProviderHost
    folder: str
    """Where downloads lie."""
    fetcher: Fetcher
    _stack: AsyncExitStack = field(repr=False)

    @classmethod
    @asynccontextmanager
    async def opened(
        cls,
        host: ProviderHost,
        folder: str,
        *,
        allow: tuple[str, ...] = LOOPBACK,
        resolve: Resolve | None = None,
        ca_file: str | None = None,
    ) -> AsyncIterator[Way]:
        """Open a way whose client may connect to `allow`."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(lambda: way.fetcher.close())
            way = cls(host, folder, _fetcher(folder, Limits(), allow, resolve, ca_file), stack)
            await way.fetcher.open()
            yield way

    def url(self, path: str = "/") -> str:
        """Return the URL of a path at the host."""
        return self.host.url(path)

    async def again(self, **limits: Any) -> Fetcher:
        """Open another fetcher with other limits; it is closed with this way."""
        fetcher = _fetcher(self.folder, Limits(**limits), LOOPBACK, None, None)
        await fetcher.open()
        self._stack.push_async_callback(fetcher.close)
        return fetcher


def _fetcher(
    folder: str, limits: Limits, allow: tuple[str, ...], resolve: Resolve | None, ca_file: str | None
) -> Fetcher:
    bodies = BodyBuffer(folder)
    bodies.open()
    egress = Egress(timeout_seconds=30, connections=8, allow=allow, resolve=resolve, ca_file=ca_file)
    return Fetcher(egress, bodies, name="deapi", limits=limits, clock=lambda: NOW)


@pytest.fixture
async def the_way(tmp_path: Path) -> AsyncIterator[Way]:
    """A fetcher that may ask this machine, and a host here."""
    async with ProviderHost() as host, Way.opened(host, str(tmp_path / "spool")) as way:
        yield way
