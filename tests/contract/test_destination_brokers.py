"""NATS JetStream and RabbitMQ keep the destination contract, against the real servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import pytest

from receiver.core.errors import SettingsError
from receiver.core.webhook import new_webhook_secret, verify
from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.destinations import Destination, kind_of
from receiver.settings.model import DestinationSettings
from tests.contract.destination_suite import BODY, T0, DestinationSuite, event
from tests.support.brokers import Broker, Nats, Rabbit, running

SECRET = new_webhook_secret()


def made(kind: str, **fields: Any) -> Any:
    settings = DestinationSettings.model_validate(
        {"name": "app", "kind": kind, "timeout_seconds": 2} | fields
    )
    return kind_of(settings)(settings)


async def send(destination: Any, body: bytes = BODY) -> Outcome:
    try:
        outcome: Outcome = await destination.send("evt_1", body, timestamp=T0)
        return outcome
    finally:
        await destination.close()


async def probe(destination: Any) -> str | None:
    try:
        trouble: str | None = await destination.probe()
        return trouble
    finally:
        await destination.close()


class BrokerPlace:
    """A broker, and a destination whose URL has a password."""

    secrets: Sequence[str] = ("hunter2", SECRET)
    broker: Broker
    destination: Destination

    def hang(self) -> None:
        self.broker.freeze()

    async def vanish(self) -> None:
        self.broker.kill()

    async def come_back(self) -> None:
        await self.broker.again()


# ---------------------------------------------------------------- NATS


@pytest.fixture(scope="module")
def nats_server() -> Iterator[Broker]:
    with running(Nats) as broker:
        yield broker


class NatsPlace(BrokerPlace):
    """A stream `speech` that takes `speech.>`."""

    once = True

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.url = f"nats://ours:hunter2@127.0.0.1:{broker.port}"
        self.destination = self.to("speech.{source}.{type}")

    def to(self, subject: str, **fields: Any) -> Any:
        """Return a destination for a subject."""
        return made("nats", url=self.url, subject=subject, secrets=[SECRET], **fields)

    async def _stream(self, work: Any) -> Any:
        import nats

        client = await nats.connect(self.url, allow_reconnect=False)
        try:
            return await work(client.jetstream())
        finally:
            await client.close()

    async def refuse(self) -> None:
        await self._stream(lambda js: js.delete_stream("speech"))

    async def begin(self, **more: Any) -> None:
        """Make the stream anew."""

        async def anew(js: Any) -> None:
            import nats

            with contextlib.suppress(nats.js.errors.NotFoundError):
                await js.delete_stream("speech")
            await js.add_stream(name="speech", subjects=["speech.>"], **more)

        await self._stream(anew)

    async def messages(self) -> list[Any]:
        """Return all messages of the stream."""

        async def read(js: Any) -> list[Any]:
            last = (await js.stream_info("speech")).state.last_seq
            return [await js.get_msg("speech", number) for number in range(1, last + 1)]

        return list(await self._stream(read))

    async def arrived(self, count: int) -> list[tuple[str, bytes]]:
        return [(one.headers["webhook-id"], one.data) for one in await self.messages()]


@pytest.fixture
async def nats_place(nats_server: Broker) -> AsyncIterator[NatsPlace]:
    place = NatsPlace(nats_server)
    await place.begin()
    await place.destination.open()
    yield place
    await nats_server.again()
    await place.destination.close()


class TestNatsDestination(DestinationSuite):
    """The shared behaviour over NATS JetStream."""

    @pytest.fixture
    async def place(self, nats_place: NatsPlace) -> NatsPlace:
        return nats_place


async def test_a_message_to_jetstream_says_what_it_is_and_carries_the_signature(
    nats_place: NatsPlace,
) -> None:
    await nats_place.destination.send("evt_1", BODY, timestamp=T0)
    (message,) = await nats_place.messages()
    assert message.subject == "speech.deepgram.speech.completed"
    _signed(message.headers, message.data)


def _signed(headers: Mapping[str, str], body: bytes) -> None:
    assert verify(SECRET, headers, body, now=T0 / 1000)
    about = {
        "event-type": "speech.completed",
        "event-source": "deepgram",
        "event-time": "2026-11-21T01:02:03.456Z",
    }
    assert about.items() <= headers.items()


async def test_an_event_over_a_servers_or_streams_limit_is_told_with_what_to_do(
    nats_place: NatsPlace,
) -> None:
    over = await nats_place.destination.send("evt_1", event(1, text="x" * 100_000), timestamp=T0)
    assert over.kind is OutcomeKind.TOO_LARGE
    assert "and the queue takes 100,000: name fewer fields in the destination's `data`" in over.detail
    await nats_place.begin(max_msg_size=1000)
    over = await nats_place.destination.send("evt_1", event(1, text="x" * 2_000), timestamp=T0)
    assert over.kind is OutcomeKind.TOO_LARGE, over


async def test_check_finds_what_a_stream_would_refuse_and_leaves_no_message(nats_place: NatsPlace) -> None:
    assert await probe(nats_place.to("speech.{type}")) is None
    assert await nats_place.messages() == []
    assert "no stream takes the subject other.speech.completed" in str(
        await probe(nats_place.to("other.{type}"))
    )
    forbidden = str(await probe(nats_place.to("forbidden.{type}", timeout_seconds=0.3)))
    assert "permissions violation" in forbidden.lower()
    port = nats_place.broker.port
    wrong = await probe(made("nats", url=f"nats://ours:hunter3@127.0.0.1:{port}", subject="speech.x"))
    assert wrong == f"127.0.0.1:{port} refuses the credentials in url or credentials_file"


# ---------------------------------------------------------------- RabbitMQ


@pytest.fixture(scope="module")
def rabbit_server() -> Iterator[Broker]:
    with running(Rabbit) as broker:
        yield broker


class RabbitPlace(BrokerPlace):
    """A durable queue."""

    once = False
    secrets = ("hunter2", SECRET)

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.url = f"amqp://guest:guest@127.0.0.1:{broker.port}/"
        self.destination = self.to(queue="speech")

    def to(self, **fields: Any) -> Any:
        """Return a destination for a queue or an exchange."""
        return made("rabbitmq", url=self.url, secrets=[SECRET], timeout_seconds=5, **fields)

    async def channel(self, work: Any) -> Any:
        """Do something with a channel."""
        import aio_pika

        connection = await aio_pika.connect(self.url)
        async with connection:
            return await work(await connection.channel())

    async def refuse(self) -> None:
        await self.channel(lambda channel: channel.queue_delete("speech"))

    async def begin(self) -> None:
        """Make the queue anew."""

        async def anew(channel: Any) -> None:
            await channel.queue_delete("speech")
            await channel.declare_queue("speech", durable=True)

        await self.channel(anew)

    async def messages(self) -> list[Any]:
        """Take all messages of the queue."""

        async def read(channel: Any) -> list[Any]:
            queue = await channel.get_queue("speech")
            taken = []
            while message := await queue.get(no_ack=True, fail=False):
                taken.append(message)
            return taken

        return list(await self.channel(read))

    async def arrived(self, count: int) -> list[tuple[str, bytes]]:
        return [(one.message_id, one.body) for one in await self.messages()]


@pytest.fixture
async def rabbit_place(rabbit_server: Broker) -> AsyncIterator[RabbitPlace]:
    place = RabbitPlace(rabbit_server)
    await place.begin()
    await place.destination.open()
    yield place
    await rabbit_server.again()
    await place.destination.close()


@pytest.mark.soak
class TestRabbitDestination(DestinationSuite):
    """The shared behaviour over RabbitMQ, whose start alone takes seconds of the processor."""

    @pytest.fixture
    async def place(self, rabbit_place: RabbitPlace) -> RabbitPlace:
        return rabbit_place


@pytest.mark.soak
async def test_a_message_to_rabbitmq_says_what_it_is_and_carries_the_signature(
    rabbit_place: RabbitPlace,
) -> None:
    await rabbit_place.destination.send("evt_1", BODY, timestamp=T0)
    (message,) = await rabbit_place.messages()
    assert (message.type, message.app_id) == ("speech.completed", "receiver")
    _signed(message.headers, message.body)


@pytest.mark.soak
async def test_an_exchange_routes_by_type_and_what_no_queue_takes_is_refused(
    rabbit_place: RabbitPlace,
) -> None:
    async def bind(channel: Any) -> None:
        exchange = await channel.declare_exchange("events", "topic")
        queue = await channel.get_queue("speech")
        await queue.bind(exchange, "speech.*")

    await rabbit_place.channel(bind)
    assert (await send(rabbit_place.to(exchange="events"))).kind is OutcomeKind.DELIVERED
    assert len(await rabbit_place.messages()) == 1
    lost = await send(rabbit_place.to(exchange="events", routing_key="other"))
    assert lost.kind is OutcomeKind.REFUSED
    assert lost.detail.startswith("no queue takes the message")


@pytest.mark.soak
async def test_check_finds_a_queue_or_an_exchange_that_is_not_there(rabbit_place: RabbitPlace) -> None:
    assert await probe(rabbit_place.to(queue="speech")) is None
    assert "no queue 'other'" in str(await probe(rabbit_place.to(queue="other")))
    assert "no exchange 'other'" in str(await probe(rabbit_place.to(exchange="other")))
    port = rabbit_place.broker.port
    wrong = await probe(made("rabbitmq", url=f"amqp://guest:hunter3@127.0.0.1:{port}/", queue="speech"))
    assert wrong == f"127.0.0.1:{port} refuses user or password"


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("nats", {"url": "http://x", "subject": "a"}, "it must begin with nats:// or tls:// and a host"),
        ("nats", {"url": "nats://u:hunter2@x:99999", "subject": "a"}, "Port out of range"),
        ("rabbitmq", {"url": "amqp://u:hunter2@x:99999", "queue": "q"}, "Port out of range"),
        ("nats", {"url": "nats://x", "subject": "a.>"}, "write a subject without wildcards"),
        ("nats", {"url": "nats://x", "subject": "a.{job}"}, r"write \{type\} or \{source\}"),
        ("rabbitmq", {"url": "http://x", "queue": "q"}, "it must begin with amqps://"),
        ("rabbitmq", {"url": "amqp://x"}, "write queue or exchange"),
        ("rabbitmq", {"url": "amqp://x", "queue": "q", "exchange": "e"}, "write queue or exchange"),
    ],
)
def test_settings_that_cannot_be_used_say_what_to_write(kind: str, fields: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        made(kind, **fields)


async def test_nobody_there_is_unreachable_for_each() -> None:
    for destination in (
        made("nats", url="nats://ours:hunter2@127.0.0.1:1", subject="a"),
        made("rabbitmq", url="amqp://ours:hunter2@127.0.0.1:1/", queue="q"),
    ):
        outcome = await send(destination)
        assert outcome.kind is OutcomeKind.UNREACHABLE
        assert outcome.detail == "127.0.0.1:1 cannot be reached: connection refused"


@pytest.mark.parametrize(
    "said", [b"INFO []\r\n", b'INFO {"connect_urls": 5}\r\nPONG\r\n', b"INFO " + b"x" * 100_000]
)
async def test_a_server_that_does_not_answer_as_nats_does_is_an_outcome(said: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        outcome = await send(made("nats", url=f"nats://ours:hunter2@{where}", subject="a"))
    assert outcome.kind is OutcomeKind.REFUSED
    assert outcome.detail == f"{where} does not answer as NATS does, or credentials_file is none"
