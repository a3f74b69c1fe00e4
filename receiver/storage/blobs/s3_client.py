"""Runs boto3 in a thread pool of its own, with time limits that hold.

Python cannot interrupt a thread. Three bounds replace that: the connection's timeouts; no new try once the time is over or
the caller has gone; and then the shutdown of the thread's socket, since a store that sends a byte now and then never runs
into a timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from receiver.core.errors import BlobsUnavailable, ConfigError, NotFound
from receiver.storage.blobs.s3_errors import GaveUp, is_outage, unavailable
from receiver.storage.blobs.s3_options import S3Options, make_client, make_link_client
from receiver.storage.blobs.s3_signed import FirstTries, Signer, trust_of
from receiver.system.background import Background, Threads

_PAUSES = (0.1, 0.5)
"""Seconds before the second and the third try of a call whose trouble may pass."""
_KEEP_SECONDS = 60.0
"""Pause between two looks at credentials that expire; botocore renews them from 15 minutes before their end."""
_END_SECONDS = 2.0
"""How long a thread may take to end after its socket's shutdown; past that the process ends without it."""
T = TypeVar("T")


class Calls:
    """Runs functions of a boto3 client in threads. Everything it raises is `BlobsUnavailable`, `NotFound` or `ConfigError`."""

    def __init__(self, options: S3Options) -> None:
        self._options = options
        self._threads = Threads(options.connections, "s3")
        self._tickets: set[Ticket] = set()
        self._here = _Here()
        self._background = Background()
        self.client: Any = None
        self.links: Any = None
        """The client that signs links."""
        self.signers: tuple[Signer, ...] = ()
        """That of puts, and that of links."""
        self.first_tries: FirstTries | None = None
        """None: boto3 makes all tries."""

    async def open(self) -> None:
        """Load boto3, make the client, find credentials; no request is made, so that an outage does not hinder a start.

        Raises `ConfigError` when boto3 is missing, `BlobsUnavailable` when there are no credentials.
        """
        credentials, trust = await self.run(self._begin, doing="opening", seconds=30.0)
        if trust is not None:
            self.first_tries = FirstTries(self._options, self.client, self.signers[0], trust, self._threads)
        if hasattr(credentials, "refresh_needed"):
            self._background.start(self._keep(credentials))

    async def close(self) -> None:
        """Let no further try begin, wait a moment for the requests under way, and cut those off that go on."""
        for ticket in list(self._tickets):
            ticket.given_up.set()
        await self._background.stop()
        if self.first_tries is not None:
            await self.first_tries.close()
        self._threads.close()
        await asyncio.to_thread(self._threads.join, self._options.timeout_seconds)
        for ticket in list(self._tickets):
            ticket.cut()
        await asyncio.to_thread(self._threads.join, _END_SECONDS)
        if self.client is not None:
            self.client.close()

    async def run(
        self,
        work: Callable[[Any], T],
        *,
        doing: str,
        seconds: float,
        permission: str = "",
    ) -> T:
        """Return what `work(client)` returns, called in a thread.

        Past `seconds`, or when cancelled, the thread's connection is cut and it begins no other try.
        """
        ticket = Ticket()
        try:
            future = self._threads.submit(partial(self._work, ticket, work))
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(future)
        except (NotFound, BlobsUnavailable, ConfigError):
            raise
        except Exception as error:  # whatever boto3 and its parts raise, the port promises one kind
            raise unavailable(error, self._options, doing, permission) from None
        finally:
            ticket.cut()

    def _work(self, ticket: Ticket, work: Callable[[Any], T]) -> T:
        self._here.ticket = ticket
        self._tickets.add(ticket)
        until = time.monotonic() + self._options.again_seconds
        pauses = iter(_PAUSES)
        try:
            while True:
                try:
                    return work(self.client)
                except Exception as error:
                    pause = next(pauses, None)
                    late = pause is None or time.monotonic() + pause > until
                    if late or not is_outage(error) or ticket.given_up.wait(pause):
                        raise
        finally:
            self._tickets.discard(ticket)
            self._here.ticket = Ticket()

    def _begin(self, _: Any) -> tuple[Any, Any]:
        client, credentials = make_client(self._options)
        make_cuttable(client, self._here)
        client.meta.events.register_last("before-call.s3", _on_call)
        frozen = credentials.get_frozen_credentials()
        self.links = make_link_client(self._options, client)
        self.signers = tuple(Signer(one, frozen, self._options.bucket) for one in (client, self.links))
        self.client = client
        return credentials, trust_of(self._options, self.signers[0])

    async def _keep(self, credentials: Any) -> None:
        """Renew credentials that expire in a thread: signing, on the event loop, would have to wait for that."""
        while True:
            await asyncio.sleep(_KEEP_SECONDS)
            try:
                frozen = await self.run(
                    lambda _: credentials.get_frozen_credentials(),
                    doing="renewing credentials of",
                    seconds=_KEEP_SECONDS,
                )
            except BlobsUnavailable as error:
                frozen = error
            for signer in self.signers:
                signer.credentials = frozen


def _on_call(params: Any, **_: Any) -> None:
    """Remove `Expect: 100-continue`: a thread whose socket is cut while botocore waits for the 100 would spin for ever."""
    params["headers"].pop("Expect", None)


class Ticket:
    """The permission of one call's thread to go on."""

    def __init__(self) -> None:
        self.given_up = threading.Event()
        """The caller has gone: the thread makes no further request."""
        self._lock = threading.Lock()
        self._connection: Any = None

    def hold(self, connection: Any) -> None:
        """Store the connection that the thread will use. Raises `GaveUp` if the caller has gone."""
        with self._lock:
            if self.given_up.is_set():
                raise GaveUp
            self._connection, connection.ticket = connection, self

    def cut(self) -> None:
        """Stop the thread: shut down its socket, so that every wait on it ends now."""
        with self._lock:
            self.given_up.set()
            # Another call may have the connection by now, from the pool.
            if self._connection is not None and self._connection.ticket is self:
                # Not a TLS socket's own method, which would have the thread read the rest as plain text.
                with contextlib.suppress(OSError, TypeError):
                    socket.socket.shutdown(self._connection.sock, socket.SHUT_RDWR)


class _Here(threading.local):
    """The ticket of the call that this thread works for; one of its own where it works for none."""

    def __init__(self) -> None:
        self.ticket = Ticket()


def make_cuttable(client: Any, here: _Here) -> None:
    """Have the ticket of each of a client's threads hold its connection: when it is connected, and for each request."""
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    pools = getattr(session, "_pool_classes_by_scheme", {})
    # Another botocore may have none: calls end in time all the same, threads when their store lets them.
    for scheme, pool in pools.items():
        pools[scheme] = type("Pool", (pool,), {"ConnectionCls": _cuttable(pool.ConnectionCls, here)})


def _cuttable(kind: Any, here: _Here) -> Any:
    class Cuttable(kind):  # type: ignore[misc]  # the base is urllib3's connection, a class that is known only when it runs
        ticket: Ticket | None = None

        def connect(self) -> None:
            super().connect()
            here.ticket.hold(self)

        def request(self, *args: Any, **more: Any) -> Any:
            here.ticket.hold(self)
            return super().request(*args, **more)

    return Cuttable
