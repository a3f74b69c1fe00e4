"""A destination that is a queue or an exchange of RabbitMQ: an event counts as delivered when the broker confirms it.

https://www.rabbitmq.com/docs/confirms
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import SecretStr, field_validator, model_validator

from receiver.core.message import about
from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.client import failure_of, trust
from receiver.outbound.destinations import Kind
from receiver.outbound.queues import TOO_LARGE, Link, attributes, placed, refused
from receiver.outbound.signing import Keys, Secrets
from receiver.settings.load import own_settings
from receiver.settings.model import DestinationSettings, Section

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange


class RabbitSettings(Section):
    """[destinations.NAME] of kind `rabbitmq`."""

    url: SecretStr
    """`amqps://user:password@host/vhost`, or `amqp://…`."""
    queue: str | None = None
    """The queue that gets the events, by the default exchange."""
    exchange: str | None = None
    routing_key: str = "{type}"
    """With `exchange`; `{type}` and `{source}` are the event's."""
    ca_file: str | None = None
    secrets: Secrets = ()

    @field_validator("url")
    @classmethod
    def _url(cls, value: SecretStr) -> SecretStr:
        parts = urlsplit(value.get_secret_value())
        if parts.scheme not in ("amqp", "amqps") or not parts.hostname or parts.port == 0:
            raise ValueError("it must begin with amqps:// (or amqp://) and a host")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if bool(self.queue) == bool(self.exchange):
            raise ValueError("write queue or exchange, and one of them")
        placed(self.routing_key, "type", "source")
        return self


class _Open(NamedTuple):
    connection: AbstractConnection
    channel: AbstractChannel
    exchange: AbstractExchange


class RabbitDestination(Kind):
    """Publishes each event as one persistent message that some queue has to take."""

    kind = "rabbitmq"
    Settings = RabbitSettings
    needs = ("aio_pika", "rabbitmq")

    def __init__(self, settings: DestinationSettings) -> None:
        super().__init__(settings)
        self._options = own_settings(RabbitSettings, settings)
        self._seconds = settings.timeout_seconds
        self._keys = Keys(self._options.secrets)
        self._where = urlsplit(self._options.url.get_secret_value()).netloc.rpartition("@")[2]
        self._link = Link(self._connect, _hang_up)

    async def open(self) -> None:
        """Nothing to make ready: the first event connects. What aiormq would log about it, each outcome says."""
        logging.getLogger("aiormq").setLevel(logging.CRITICAL + 1)

    async def close(self) -> None:
        """Hang up."""
        await self._link.close()

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Publish the event: `message_id` is its id, `type` its type, the signature stands in headers."""
        from aio_pika import DeliveryMode, Message

        event = about(body)
        message = Message(
            body,
            headers=dict(attributes(self._keys, event, event_id, timestamp, body)),
            content_type="application/json",
            delivery_mode=DeliveryMode.PERSISTENT,
            message_id=event_id,
            type=event.type,
            timestamp=datetime.fromisoformat(event.time),
            app_id="receiver",
        )
        key = self._options.queue or placed(self._options.routing_key, event.type, event.source)

        async def publish(link: _Open) -> None:
            await link.exchange.publish(message, key, mandatory=True)

        return await self._doing(publish)

    async def probe(self) -> str | None:
        """Ask whether there is the queue or exchange; whether it may be written to, only a message tells."""

        async def ask(link: _Open) -> None:
            if self._options.queue:
                await link.channel.declare_queue(self._options.queue, passive=True)
            else:
                await link.channel.declare_exchange(self._options.exchange or "", passive=True)

        return (await self._doing(ask)).detail or None

    async def _doing(self, work: Any) -> Outcome:
        """Do something with the connection; whatever the broker says is an outcome."""
        from aio_pika import exceptions

        link = None
        try:
            async with asyncio.timeout(self._seconds):
                link = await self._link.get()
                await work(link)
        except exceptions.PublishError:
            return refused("no queue takes the message: bind one to the exchange, or correct routing_key")
        except exceptions.DeliveryError:
            return refused("the broker did not take the message: is the queue full?")
        except exceptions.ProbableAuthenticationError:
            return refused(f"{self._where} refuses user or password")
        except TimeoutError:
            self._link.drop(link)
            return Outcome(kind=OutcomeKind.TIMEOUT, detail=f"{self._where} did not answer in time")
        except exceptions.CONNECTION_EXCEPTIONS as error:
            self._link.drop(link)
            return self._judged(error)
        return Outcome(kind=OutcomeKind.DELIVERED)

    def _judged(self, error: Exception) -> Outcome:
        from aio_pika import exceptions

        said = str(error)[:200]
        if isinstance(error, exceptions.AMQPChannelError) and "larger than" in said:
            detail = f"the message is larger than the broker takes: {TOO_LARGE}"
            return Outcome(kind=OutcomeKind.TOO_LARGE, detail=detail)
        if isinstance(error, exceptions.AMQPChannelError):
            return refused(f"the broker refuses: {said}")
        failure = failure_of(error, self._where)
        return Outcome(kind=failure.kind, detail=failure.detail)

    async def _connect(self) -> _Open:
        import aio_pika

        url = self._options.url.get_secret_value()
        context = trust(self._options.ca_file) if url.startswith("amqps") else None
        connection = await aio_pika.connect(url, timeout=self._seconds, ssl_context=context)
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = channel.default_exchange
        if self._options.exchange:
            exchange = await channel.get_exchange(self._options.exchange, ensure=False)
        return _Open(connection, channel, exchange)


async def _hang_up(link: _Open) -> None:
    await link.connection.close()
