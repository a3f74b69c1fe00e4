"""A destination that is a stream of NATS JetStream: an event counts as delivered when the stream has stored it.

https://docs.nats.io/nats-concepts/jetstream/headers
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from receiver.core.work import Outcome
from receiver.outbound.client import trust
from receiver.outbound.queues import Broker, BrokerSettings, Message, over, placed, refused, too_large
from receiver.settings.model import DestinationSettings

if TYPE_CHECKING:
    from nats.aio.client import Client

_OTHER_STREAM = 10060
"""JetStream's error for a message that names another stream than the one that would take it."""
_OVER_LIMIT = 10054
"""JetStream's error for a message that is larger than its stream allows."""


class Unreadable(OSError):
    """What the server says, or the file of credentials, cannot be read."""


class NatsSettings(BrokerSettings):
    """[destinations.NAME] of kind `nats`. The URL is `nats://host:4222` or `tls://…`, with `user:password@` or `token@`."""

    schemes = ("nats", "tls")
    subject: str
    """The subject of a message; `{type}` and `{source}` are the event's."""
    credentials_file: str | None = None
    """A `.creds` file."""

    @field_validator("subject")
    @classmethod
    def _subject(cls, value: str) -> str:
        subject = placed(value, "type", "source")
        if not subject or not all(subject.split(".")) or any(char in " *>\t\r\n" for char in subject):
            raise ValueError("write a subject without wildcards: speech.{type}")
        return value


class NatsDestination(Broker["Client"]):
    """Publishes each event to a subject that a stream takes."""

    kind = "nats"
    Settings = NatsSettings
    needs = ("nats", "nats")

    def __init__(self, settings: DestinationSettings) -> None:
        super().__init__(settings)
        self._said: Exception | None = None
        """The server's last error that belongs to no message: the reason of a lost connection, or a missing permission."""

    async def _put(self, message: Message) -> Outcome:
        # JetStream keeps one of several messages with its id.
        labels = message.labels | {"Nats-Msg-Id": message.event_id}
        subject = placed(self._options.subject, message.event.type, message.event.source)
        return await self._publish(subject, message.body, labels)

    async def probe(self) -> str | None:
        """Ask whether a stream takes the subject, by a message that only a stream of another name may take."""
        subject = placed(self._options.subject, "speech.completed", "check")
        outcome = await self._publish(subject, b"", {"Nats-Expected-Stream": "receiver-check"})
        return None if f"({_OTHER_STREAM})" in outcome.detail else outcome.detail

    async def _publish(self, subject: str, body: bytes, headers: dict[str, str]) -> Outcome:
        from nats.js import errors

        size = len(body) + sum(len(name) + len(value.encode()) + 4 for name, value in headers.items())

        async def publish(client: Client) -> Outcome | None:
            if outcome := over(size + len("NATS/1.0\r\n\r\n"), client.max_payload):
                return outcome
            try:
                await client.jetstream().publish(subject, body, timeout=self._seconds, headers=headers)
            except errors.NoStreamResponseError:
                return refused(f"no stream takes the subject {subject}: make one, or correct the subject")
            except errors.APIError as error:
                if error.err_code == _OVER_LIMIT:
                    return too_large("the message is larger than its stream allows")
                return refused(f"JetStream refuses ({error.err_code}): {(error.description or '')[:200]}")
            return None

        return await self._work(publish)

    def _broken(self, error: Exception) -> Outcome | None:
        from nats import errors

        if not isinstance(error, errors.Error | OSError):
            return None
        said = str(self._said or error)
        if "permissions violation" in said.lower():
            return refused(said[:200])
        if "authorization" in said.lower():
            return refused(f"{self._where} refuses the credentials in url or credentials_file")
        if isinstance(error, Unreadable):
            return refused(f"{self._where} does not answer as NATS does, or credentials_file is none")
        if isinstance(error, TimeoutError):  # nats-py's is one as well
            return self._unreached(TimeoutError())
        return self._unreached(self._said if isinstance(self._said, OSError) else error)

    async def _connect(self) -> Client:
        from nats import errors
        from nats.aio.client import Client

        self._said = None

        async def on_error(error: Exception) -> None:
            self._said = error

        options: dict[str, Any] = {"user_credentials": self._options.credentials_file}
        if self._options.ca_file or self._url.startswith("tls://"):
            options["tls"] = trust(self._options.ca_file)
        client = Client()
        try:
            await client.connect(
                self._url,
                name="receiver",
                allow_reconnect=False,  # the next attempt connects
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=max(1, round(self._seconds)),
                error_cb=on_error,
                **options,
            )
        except BaseException as error:  # nats-py leaves the connection open
            self._end(client)
            if not isinstance(error, Exception) or isinstance(error, errors.Error | OSError):
                raise
            raise Unreadable from None  # whatever nats-py meets in what it reads
        return client

    async def _hang_up(self, link: Client) -> None:
        await link.close()
