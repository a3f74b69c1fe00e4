"""boto3 on threads: a pool of its own, time limits that hold, and no thread that works for nobody.

A thread cannot be interrupted. What bounds it: the connection's timeouts; two hooks of botocore's that let no further try begin
when a request's time is over or nobody waits for it any more; and then its socket is shut down, since a store that sends a
byte now and then is never silent.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from receiver.core.errors import BlobsUnavailable, ConfigError, NotFound
from receiver.storage.blobs.s3_errors import GaveUp, unavailable
from receiver.storage.blobs.s3_links import LinkSigner
from receiver.storage.blobs.s3_options import S3Options, make_client, make_link_client
from receiver.storage.blobs.s3_threads import Ticket, hold_sockets
from receiver.system.threads import Threads

_AGAIN_SECONDS = 3.0
"""Another try of a request begins only this long after the first: with a hung try the callback's 6 s are over."""
_KEEP_SECONDS = 60.0
"""Pause between two looks at credentials that expire; botocore renews them from 15 minutes before their end."""
_END_SECONDS = 2.0
"""How long a thread may take to end after its socket was shut down; then the process ends without it."""
T = TypeVar("T")


class Calls:
    """Runs functions of a boto3 client in threads. Everything it raises is `BlobsUnavailable`, `NotFound` or `ConfigError`."""

    def __init__(self, options: S3Options) -> None:
        self._options = options
        self._threads = Threads(options.connections, "s3")
        self._tickets: set[Ticket] = set()
        self._here = threading.local()
        self._keeper: asyncio.Task[None] | None = None
        self._closing = False
        self.client: Any = None
        self.links: Any = None
        """The client that signs links."""
        self.signer: Any = None

    async def open(self) -> None:
        """Load boto3, make the client, find credentials; no request is made, so that an outage does not hinder a start.

        Raises `ConfigError` when boto3 is missing, `BlobsUnavailable` when there are no credentials.
        """
        credentials = await self.run(self._begin, doing="opening", seconds=30.0)
        if hasattr(credentials, "refresh_needed"):
            self._keeper = asyncio.create_task(self._keep(credentials))

    async def close(self) -> None:
        """Let no further try begin, wait a moment for the requests under way, and cut those off that go on."""
        self._closing = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._threads.close()
        await asyncio.to_thread(self._threads.join, self._options.timeout_seconds)
        for ticket in list(self._tickets):
            ticket.give_up()
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
        under_way: set[Future[Any]] | None = None,
    ) -> T:
        """Return what `work(client)` returns, called in a thread.

        Past `seconds`, or when cancelled, the thread's connection is cut and it begins no other try; `under_way` keeps
        its future for whoever must wait for that.
        """
        ticket = Ticket()
        try:
            future = self._threads.submit(partial(self._work, ticket, work))
            if under_way is not None:
                under_way.add(future)
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(future)
        except (NotFound, BlobsUnavailable, ConfigError):
            raise
        except Exception as error:  # whatever boto3 and its parts raise, the port promises one kind
            raise unavailable(error, self._options, doing, permission) from None
        finally:
            ticket.give_up()

    def _work(self, ticket: Ticket, work: Callable[[Any], T]) -> T:
        self._here.ticket = ticket
        self._tickets.add(ticket)
        try:
            return work(self.client)
        except GaveUp:
            if ticket.last is not None:
                raise ticket.last from None
            raise
        finally:
            ticket.done()
            self._tickets.discard(ticket)
            self._here.ticket = None

    def _begin(self, _: Any) -> Any:
        client, credentials = make_client(self._options)
        if credentials is None:
            from botocore.exceptions import NoCredentialsError

            raise NoCredentialsError
        events = client.meta.events
        hold_sockets(client, self._on_socket, self._on_release)
        events.register("provide-client-params.s3", self._on_request)
        events.register_last("before-call.s3", _on_call)
        events.register("before-send.s3", self._on_send)
        events.register("response-received.s3", self._on_response)
        self.links = make_link_client(self._options, client)
        self.signer = LinkSigner(self.links, credentials, self._options.bucket)
        self.client = client
        return credentials

    def _on_request(self, **_: Any) -> None:
        ticket: Ticket | None = getattr(self._here, "ticket", None)
        if ticket is not None:
            ticket.sent, ticket.last = 0, None
            ticket.until = time.monotonic() + _AGAIN_SECONDS

    def _on_socket(self, sock: Any) -> None:
        ticket: Ticket | None = getattr(self._here, "ticket", None)
        if ticket is not None:
            ticket.hold(sock)

    def _on_release(self) -> None:
        ticket: Ticket | None = getattr(self._here, "ticket", None)
        if ticket is not None:
            ticket.done()

    def _on_send(self, **_: Any) -> None:
        """Stop a try that is not to begin: botocore does not take this for something to be tried again."""
        ticket: Ticket | None = getattr(self._here, "ticket", None)
        if ticket is None:
            return
        ticket.sent += 1
        late = ticket.sent > 1 and time.monotonic() > ticket.until
        if late or self._closing or not ticket.wanted:
            raise GaveUp

    def _on_response(self, parsed_response: Any, exception: Any, **_: Any) -> None:
        """Remember why a try failed, which is what its giving up is explained by."""
        ticket: Ticket | None = getattr(self._here, "ticket", None)
        if ticket is None or isinstance(exception, GaveUp):
            return
        ticket.last = exception
        if exception is None and isinstance(parsed_response, dict) and parsed_response.get("Error"):
            from botocore.exceptions import ClientError

            ticket.last = ClientError(parsed_response, "")

    async def _keep(self, credentials: Any) -> None:
        """Renew credentials that expire in a thread, before `presign` on the event loop would have to wait for that."""
        while True:
            await asyncio.sleep(_KEEP_SECONDS)
            try:
                await self.run(
                    lambda _: credentials.get_frozen_credentials(),
                    doing="renewing credentials of",
                    seconds=_KEEP_SECONDS,
                )
            except BlobsUnavailable:
                continue


def _on_call(params: Any, **_: Any) -> None:
    """Never ask by `Expect: 100-continue` first: a thread whose socket is cut while botocore waits for that would spin for ever."""
    params["headers"].pop("Expect", None)
