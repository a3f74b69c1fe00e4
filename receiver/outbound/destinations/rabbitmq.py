"""A destination that is a queue or an exchange of RabbitMQ: an event counts as delivered when the broker confirms it.

https://www.rabbitmq.com/docs/confirms
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, Self

from pydantic import model_validator

from receiver.core.work import Outcome
from receiver.outbound.client import trust
from receiver.outbound.queues import Broker, BrokerSettings, Message, placed, refused, too_large

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange


class RabbitSettings(BrokerSettings):
    """[destinations.NAME] of kind `rabbitmq`. The URL is `amqps://user:password@host/vhost`, or `amqp://…`."""

    schemes = ("amqps", "amqp")
    queue: str | None = None
    """The queue that gets the events, by the default exchange."""
    exchange: str | None = None
    routing_key: str = "{type}"
    """With `exchange`; `{type}` and `{source}` are the event's."""

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


class RabbitDestination(Broker[_Open]):
    """Publishes each event as one persistent message that some queue has to take."""

    kind = "rabbitmq"
    Settings = RabbitSettings
    needs = ("aio_pika", "rabbitmq")

    async def open(self) -> None:
        """Nothing to make ready: the first event connects. What aiormq would log about it, each outcome says."""
        logging.getLogger("aiormq").setLevel(logging.CRITICAL + 1)

    async def _put(self, message: Message) -> Outcome:
        from aio_pika import DeliveryMode, exceptions
        from aio_pika import Message as RabbitMessage

        event = message.event
        made = RabbitMessage(
            message.body,
            headers=dict(message.labels),
            content_type="application/json",
            delivery_mode=DeliveryMode.PERSISTENT,
            message_id=message.event_id,
            type=event.type,
            timestamp=datetime.fromisoformat(event.time),
            app_id="receiver",
        )
        key = self._options.queue or placed(self._options.routing_key, event.type, event.source)

        async def publish(link: _Open) -> Outcome | None:
            try:
                await link.exchange.publish(made, key, mandatory=True)
            except exceptions.PublishError:
                return refused("no queue takes the message: bind one to the exchange, or correct routing_key")
            except exceptions.DeliveryError:
                return refused("the broker did not take the message: is the queue full?")
            return None

        return await self._work(publish)

    async def probe(self) -> str | None:
        """Ask whether there is the queue or exchange; whether it may be written to, only a message tells."""

        async def ask(link: _Open) -> None:
            if self._options.queue:
                await link.channel.declare_queue(self._options.queue, passive=True)
            else:
                await link.channel.declare_exchange(self._options.exchange, passive=True)

        return (await self._work(ask)).detail or None

    def _broken(self, error: Exception) -> Outcome | None:
        from aio_pika import exceptions

        said = str(error)[:200]
        if isinstance(error, exceptions.ProbableAuthenticationError):
            return refused(f"{self._where} refuses user or password")
        if isinstance(error, exceptions.AMQPChannelError) and "larger than" in said:
            return too_large("the message is larger than the broker takes")
        if isinstance(error, exceptions.AMQPChannelError):
            return refused(f"the broker refuses: {said}")
        return self._unreached(error) if isinstance(error, exceptions.CONNECTION_EXCEPTIONS) else None

    async def _connect(self) -> _Open:
        import aio_pika

        context = trust(self._options.ca_file) if self._url.startswith("amqps") else None
        connection = await aio_pika.connect(self._url, timeout=self._seconds, ssl_context=context)
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = channel.default_exchange
        if self._options.exchange:
            exchange = await channel.get_exchange(self._options.exchange, ensure=False)
        return _Open(connection, channel, exchange)

    async def _hang_up(self, link: _Open) -> None:
        await link.connection.close()
