"""The way out of submissions: a request to a provider's API, body and answer streamed, never redirected.

Each request has a connection of its own: of one that was kept, nobody can tell, when the far side hangs up, whether it did so
before or after it had read a job.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from receiver.core.errors import AddressBlocked
from receiver.core.work import OutcomeKind
from receiver.outbound.client import PIECE, Egress, Failure, failure_of
from receiver.outbound.guard import Target
from receiver.settings.model import SourceSettings
from receiver.system.http1 import Unanswered

if TYPE_CHECKING:
    from receiver.outbound.streams import Incoming

CONNECT_SECONDS = 5.0
"""How long connecting may take."""


class NotSent(Failure, frozen=True, kw_only=True):
    """There was no connection, so the far side has nothing of the request."""


class Upstream(Egress):
    """The API of one source."""

    def __init__(self, settings: SourceSettings) -> None:
        super().__init__(
            timeout_seconds=CONNECT_SECONDS,
            connections=0,  # submissions at once have a limit of their own
            allow=settings.allow,
            ca_file=settings.ca_file,
        )

    async def exchange(
        self,
        method: str,
        place: Target,
        headers: Sequence[tuple[str, str]],
        body: AsyncIterator[bytes] | None,
    ) -> Incoming | Failure:
        """Send a request; return its answer as soon as the head of that is here. Only connecting is timed."""
        import aiohttp

        from receiver.outbound import streams

        if self._session is None:
            self._session = self._new_session(force_close=True)
        try:
            self._guard.check_host(place.host)
            response = await self._session.request(
                method,
                place.url,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                read_bufsize=PIECE,
            )
        except (AddressBlocked, aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            failure = failure_of(streams.translated(error), place.where)
            return NotSent(kind=failure.kind, detail=failure.detail)
        except (aiohttp.ClientError, OSError, Unanswered) as error:
            return failure_of(streams.translated(error), place.where)
        except ValueError:  # its text holds the header
            return NotSent(kind=OutcomeKind.BLOCKED, detail="a header cannot be sent")
        return streams.Incoming(response, place.where)
