"""A destination that is a stream of NATS JetStream: an event counts as delivered when the stream has stored it.

https://docs.nats.io/nats-concepts/jetstream/headers
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr, field_validator

from receiver.core.message import about
from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.client import failure_of, trust
from receiver.outbound.destinations import Kind
from receiver.outbound.queues import TOO_LARGE, Link, attributes, placed, refused, too_large
from receiver.outbound.signing import Keys, Secrets
from receiver.settings.load import own_settings
from receiver.settings.model import DestinationSettings, Section

if TYPE_CHECKING:
    from nats.aio.client import Client

_OTHER_STREAM = 10060
"""JetStream's error for a message that names another stream than the one that would take it."""
_OVER_LIMIT = 10054
"""JetStream's error for a message that is larger than its stream allows."""


class Unreadable(OSError):
    """What the server says, or the file of credentials, cannot be read."""


class NatsSettings(Section):
    """[destinations.NAME] of kind `nats`."""

    url: SecretStr
    """`nats://host:4222`, `tls://…`; with `user:password@` or `token@`."""
    subject: str
    """The subject of a message; `{type}` and `{source}` are the event's."""
    credentials_file: str | None = None
    """A `.creds` file."""
    ca_file: str | None = None
    secrets: Secrets = ()

    @field_validator("url")
    @classmethod
    def _url(cls, value: SecretStr) -> SecretStr:
        parts = urlsplit(value.get_secret_value())
        if parts.scheme not in ("nats", "tls") or not parts.hostname or parts.port == 0:
            raise ValueError("it must begin with nats:// or tls:// and a host")
        return value

    @field_validator("subject")
    @classmethod
    def _subject(cls, value: str) -> str:
        subject = placed(value, "type", "source")
        if not subject or not all(subject.split(".")) or any(char in " *>\t\r\n" for char in subject):
            raise ValueError("write a subject without wildcards: speech.{type}")
        return value


class NatsDestination(Kind):
    """Publishes each event to a subject that a stream takes."""

    kind = "nats"
    Settings = NatsSettings
    needs = ("nats", "nats")

    def __init__(self, settings: DestinationSettings) -> None:
        super().__init__(settings)
        self._options = own_settings(NatsSettings, settings)
        self._seconds = settings.timeout_seconds
        self._keys = Keys(self._options.secrets)
        self._where = urlsplit(self._options.url.get_secret_value()).netloc.rpartition("@")[2]
        self._link = Link(self._connect, _hang_up)
        self._said: Exception | None = None
        """What the connection was told last that belongs to no message: why there is none, a permission that is missing."""

    async def open(self) -> None:
        """Nothing to make ready: the first event connects."""

    async def close(self) -> None:
        """Hang up."""
        await self._link.close()

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Publish the event; JetStream keeps one of several messages with its id."""
        event = about(body)
        labels = attributes(self._keys, event, event_id, timestamp, body) | {"Nats-Msg-Id": event_id}
        return await self._publish(placed(self._options.subject, event.type, event.source), body, labels)

    async def probe(self) -> str | None:
        """Ask whether a stream takes the subject, by a message that only a stream of another name may take."""
        subject = placed(self._options.subject, "speech.completed", "check")
        outcome = await self._publish(subject, b"", {"Nats-Expected-Stream": "receiver-check"})
        return None if f"({_OTHER_STREAM})" in outcome.detail else outcome.detail

    async def _publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> Outcome:
        from nats import errors
        from nats.js import errors as js_errors

        client = None
        try:
            async with asyncio.timeout(self._seconds):
                client = await self._link.get()
                size = len(body) + sum(len(name) + len(value.encode()) + 4 for name, value in headers.items())
                if over := too_large(size + len("NATS/1.0\r\n\r\n"), client.max_payload):
                    return over
                await client.jetstream().publish(subject, body, timeout=self._seconds, headers=dict(headers))
        except js_errors.NoStreamResponseError:
            return refused(f"no stream takes the subject {subject}: make one, or correct the subject")
        except js_errors.APIError as error:
            if error.err_code == _OVER_LIMIT:
                detail = f"the message is larger than its stream allows: {TOO_LARGE}"
                return Outcome(kind=OutcomeKind.TOO_LARGE, detail=detail)
            return refused(f"JetStream refuses ({error.err_code}): {(error.description or '')[:200]}")
        except (errors.Error, OSError) as error:
            self._link.drop(client)
            return self._failed(error)
        return Outcome(kind=OutcomeKind.DELIVERED)

    def _failed(self, error: Exception) -> Outcome:
        """Return what it means that nothing connects, the connection broke, or no answer came."""
        said = str(self._said or error)
        if "permissions violation" in said.lower():
            return refused(said[:200])
        if "authorization" in said.lower():
            return refused(f"{self._where} refuses the credentials in url or credentials_file")
        if isinstance(error, Unreadable):
            return refused(f"{self._where} does not answer as NATS does, or credentials_file is none")
        if isinstance(error, TimeoutError):  # nats-py's is one as well
            return Outcome(kind=OutcomeKind.TIMEOUT, detail=f"{self._where} did not answer in time")
        failure = failure_of(self._said if isinstance(self._said, OSError) else error, self._where)
        return Outcome(kind=failure.kind, detail=failure.detail)

    async def _connect(self) -> Client:
        from nats import errors
        from nats.aio.client import Client

        self._said = None

        async def on_error(error: Exception) -> None:
            self._said = error

        options: dict[str, Any] = {"user_credentials": self._options.credentials_file}
        if self._options.ca_file or self._options.url.get_secret_value().startswith("tls://"):
            options["tls"] = trust(self._options.ca_file)
        client = Client()
        try:
            await client.connect(
                self._options.url.get_secret_value(),
                name="receiver",
                allow_reconnect=False,  # the next attempt connects
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=max(1, round(self._seconds)),
                error_cb=on_error,
                **options,
            )
        except BaseException as error:  # nats-py leaves the connection open
            self._link.end(client)
            if not isinstance(error, Exception) or isinstance(error, errors.Error | OSError):
                raise
            raise Unreadable from None  # whatever nats-py meets in what it reads
        return client


async def _hang_up(client: Client) -> None:
    await client.close()
