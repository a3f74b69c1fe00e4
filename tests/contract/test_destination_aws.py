"""SQS, SNS and EventBridge keep the destination contract against emulators: no such service runs outside of AWS.

roto keeps its queues over a kill; moto, which has more of AWS's checks, is asked in `make soak`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import cache
from typing import Any

import msgspec
import pytest

from receiver.core.errors import ConfigError, SettingsError
from receiver.core.webhook import new_webhook_secret, verify
from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.destinations import Destination, kind_of
from receiver.settings.model import DestinationSettings
from tests.contract.destination_suite import BODY, T0, DestinationSuite, Place, event
from tests.support import s3
from tests.support.brokers import Moto, Roto, running
from tests.support.patience import PATIENCE
from tests.support.sink import Answer, Sink

REGION = "eu-central-1"
SECRET = new_webhook_secret()
KINDS = ("sqs", "sqs.fifo", "sns", "sns.fifo", "eventbridge")


@pytest.fixture(scope="module")
def roto() -> Iterator[Roto]:
    with running(Roto) as broker:
        assert isinstance(broker, Roto)
        yield broker


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The credentials that botocore finds."""
    for name, value in s3.credentials().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)


def made(kind: str, **fields: Any) -> Any:
    about = {"name": "app", "kind": kind, "timeout_seconds": 2, "region": REGION} | fields
    settings = DestinationSettings.model_validate(about)
    return kind_of(settings)(settings)


@cache
def clients(url: str) -> dict[str, Any]:
    """Return boto3's clients of an emulator."""
    import boto3

    known = {
        "aws_access_key_id": s3.ACCESS_KEY,
        "aws_secret_access_key": s3.SECRET_KEY,
        "region_name": REGION,
    }
    return {name: boto3.client(name, endpoint_url=url, **known) for name in ("sqs", "sns", "events")}


class AwsPlace:
    """A queue that gets what a destination of one kind is sent: itself, by a subscription, or by a rule."""

    secrets: Sequence[str] = (s3.SECRET_KEY, SECRET)

    def __init__(self, broker: Roto, kind: str, number: int) -> None:
        self.broker, self.kind, self.once = broker, kind.partition(".")[0], kind.endswith(".fifo")
        self.clients = clients(broker.url)
        self.fifo = ".fifo" if self.once else ""
        attributes = {"FifoQueue": "true"} if self.once else {}
        queue = self.clients["sqs"].create_queue(
            QueueName=f"{self.kind}{number}{self.fifo}", Attributes=attributes
        )
        self.queue = queue["QueueUrl"]
        self.destination: Destination = made(self.kind, **self._target(number))

    def _target(self, number: int) -> dict[str, Any]:
        if self.kind == "sqs":
            return {"url": self.queue, "secrets": [SECRET]}
        about = self.clients["sqs"].get_queue_attributes(QueueUrl=self.queue, AttributeNames=["QueueArn"])
        arn = about["Attributes"]["QueueArn"]
        if self.kind == "sns":
            sns = self.clients["sns"]
            attributes = {"FifoTopic": "true"} if self.once else {}
            self.topic = sns.create_topic(Name=f"topic{number}{self.fifo}", Attributes=attributes)["TopicArn"]
            raw = {"RawMessageDelivery": "true"}
            sns.subscribe(TopicArn=self.topic, Protocol="sqs", Endpoint=arn, Attributes=raw)
            return {"topic": self.topic, "secrets": [SECRET], "endpoint_url": self.broker.url}
        events, self.bus = self.clients["events"], f"bus{number}"
        events.create_event_bus(Name=self.bus)
        events.put_rule(Name="all", EventBusName=self.bus, EventPattern='{"source":["receiver"]}')
        events.put_targets(Rule="all", EventBusName=self.bus, Targets=[{"Id": "1", "Arn": arn}])
        return {"bus": self.bus, "endpoint_url": self.broker.url}

    def messages(self) -> list[dict[str, Any]]:
        """Take all messages that are in the queue."""
        ask = {
            "QueueUrl": self.queue,
            "MaxNumberOfMessages": 10,
            "MessageAttributeNames": ["All"],
            "AttributeNames": ["All"],
        }
        taken: list[dict[str, Any]] = []
        while batch := self.clients["sqs"].receive_message(**ask).get("Messages"):
            for one in batch:
                self.clients["sqs"].delete_message(QueueUrl=self.queue, ReceiptHandle=one["ReceiptHandle"])
            taken += batch
        return taken

    async def arrived(self, count: int) -> list[tuple[str, bytes]]:
        taken = self.messages()
        async with asyncio.timeout(PATIENCE):
            while len(taken) < count:  # EventBridge's rules take their time
                await asyncio.sleep(0.02)
                taken += self.messages()
        return [self._read(one) for one in taken]

    def _read(self, message: dict[str, Any]) -> tuple[str, bytes]:
        if self.kind == "eventbridge":
            detail = json.loads(message["Body"])["detail"]  # in an order of EventBridge's own
            data = {name: detail["data"][name] for name in ("event_id", "source", "ref")}
            return data["event_id"], msgspec.json.encode(
                {"type": detail["type"], "timestamp": detail["timestamp"], "data": data}
            )
        return message["MessageAttributes"]["webhook-id"]["StringValue"], message["Body"].encode()

    async def refuse(self) -> None:
        if self.kind == "sqs":
            self.clients["sqs"].delete_queue(QueueUrl=self.queue)
        elif self.kind == "sns":
            self.clients["sns"].delete_topic(TopicArn=self.topic)
        else:
            self.clients["events"].remove_targets(Rule="all", EventBusName=self.bus, Ids=["1"])
            self.clients["events"].delete_rule(Name="all", EventBusName=self.bus)
            self.clients["events"].delete_event_bus(Name=self.bus)

    def hang(self) -> None:
        self.broker.freeze()

    async def vanish(self) -> None:
        self.broker.kill()

    async def come_back(self) -> None:
        await self.broker.again()


NUMBERS = iter(range(1000))


@pytest.fixture(params=[kind for kind in KINDS if kind != "sns.fifo"])
async def place(roto: Roto, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    place = AwsPlace(roto, request.param, next(NUMBERS))
    await place.destination.open()
    yield place
    await roto.again()
    await place.destination.close()


class TestAwsDestination(DestinationSuite):
    """The shared behaviour over SQS, SNS and EventBridge."""


async def send(destination: Any, body: bytes = BODY) -> Outcome:
    await destination.open()
    try:
        outcome: Outcome = await destination.send("evt_1", body, timestamp=T0)
        return outcome
    finally:
        await destination.close()


async def probe(destination: Any) -> str | None:
    await destination.open()
    try:
        trouble: str | None = await destination.probe()
        return trouble
    finally:
        await destination.close()


@pytest.mark.parametrize("kind", ["sqs.fifo", "sns"])
def test_a_message_says_what_it_is_and_carries_the_signature(roto: Roto, kind: str) -> None:
    place = AwsPlace(roto, kind, next(NUMBERS))
    body = event(1, job_id="job 1/ä")
    assert asyncio.run(send(place.destination, body)).kind is OutcomeKind.DELIVERED
    (message,) = place.messages()
    said = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
    assert verify(SECRET, said, message["Body"].encode(), now=T0 / 1000)
    about = {
        "event-type": "speech.completed",
        "event-source": "deepgram",
        "event-time": "2026-11-21T01:02:03.456Z",
    }
    assert about.items() <= said.items()
    if place.once:
        assert message["Attributes"]["MessageDeduplicationId"] == "evt_1"
        assert len(message["Attributes"]["MessageGroupId"]) == 64, "what a group cannot be named is hashed"


def test_a_group_is_a_job(roto: Roto) -> None:
    place = AwsPlace(roto, "sqs.fifo", next(NUMBERS))
    asyncio.run(send(place.destination, event(1, job_id="01a-4")))
    assert place.messages()[0]["Attributes"]["MessageGroupId"] == "01a-4"


def test_characters_that_a_queue_refuses_are_escaped(roto: Roto) -> None:
    place = AwsPlace(roto, "sqs", next(NUMBERS))
    asyncio.run(send(place.destination, event(1, text="\uffff\ufffe")))
    (message,) = place.messages()
    assert message["Body"].isascii() is False  # Straße stays as it is
    assert "\\uffff\\ufffe" in message["Body"]


@pytest.mark.parametrize("kind", ["sqs", "sns", "eventbridge"])
async def test_an_event_over_the_limit_is_not_sent_and_says_what_to_do(roto: Roto, kind: str) -> None:
    place = AwsPlace(roto, kind, next(NUMBERS))
    outcome = await send(place.destination, event(1, text="x" * 1024 * 1024))
    assert outcome.kind is OutcomeKind.TOO_LARGE
    assert "name fewer fields in the destination's `data`, then replay it" in outcome.detail
    assert place.messages() == []


async def test_a_queues_own_lower_limit_is_told_the_same_way(roto: Roto) -> None:
    place = AwsPlace(roto, "sqs", next(NUMBERS))
    limit = {"MaximumMessageSize": "1024"}
    place.clients["sqs"].set_queue_attributes(QueueUrl=place.queue, Attributes=limit)
    outcome = await send(place.destination, event(1, text="x" * 2000))
    assert outcome.kind is OutcomeKind.TOO_LARGE, outcome


@pytest.mark.parametrize("kind", KINDS)
async def test_check_tells_a_queue_that_is_not_there_and_leaves_no_message(roto: Roto, kind: str) -> None:
    place = AwsPlace(roto, kind, next(NUMBERS))
    assert await probe(place.destination) is None
    assert place.messages() == []
    await place.refuse()
    trouble = await probe(place.destination)
    assert trouble
    assert "answered" in trouble


@pytest.mark.parametrize(
    ("kind", "status", "answer", "counts"),
    [
        ("sqs", 400, b'{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"x"}', None),
        ("sqs", 400, b'{"__type":"com.amazon.coral.service#AccessDeniedException","Message":"x"}', None),
        ("sqs", 400, b'{"__type":"com.amazonaws.sqs#RequestThrottled","message":"x"}', 429),
        ("sqs", 400, b'{"__type":"com.amazonaws.sqs#InvalidMessageContents","message":"x"}', 400),
        ("sqs", 503, b"<html>" + s3.SECRET_KEY.encode(), 503),
        ("sqs", 200, b"<html>a proxy's page", None),
        (
            "sns",
            403,
            b"<ErrorResponse><Error><Code>AuthorizationError</Code><Message>m</Message></Error>",
            None,
        ),
        ("sns", 400, b"<ErrorResponse><Error><Code>Throttling</Code><Message>m</Message></Error>", 429),
        ("sns", 400, b"<ErrorResponse><Error><Code>InvalidParameter</Code></Error>", 400),
        ("eventbridge", 200, b'{"FailedEntryCount":1,"Entries":[{"ErrorCode":"InternalFailure"}]}', None),
        ("eventbridge", 200, b'{"FailedEntryCount":1,"Entries":[{"ErrorCode":"ThrottlingException"}]}', 429),
        ("eventbridge", 200, b'{"FailedEntryCount":1,"Entries":[{"ErrorCode":"MalformedDetail"}]}', 400),
    ],
)
async def test_a_refusal_counts_as_what_it_is_about(
    kind: str, status: int, answer: bytes, counts: int | None
) -> None:
    """400 is the event's fault, 429 asks for less, without a status the destination is at fault."""
    async with Sink() as sink:
        sink.default = Answer(status=status, body=answer)
        place = f"http://127.0.0.1:{sink.port}"
        target = {
            "sqs": {"url": f"{place}/1/q"},
            "sns": {"topic": "arn:aws:sns:eu-central-1:1:t", "endpoint_url": place},
            "eventbridge": {"endpoint_url": place},
        }[kind]
        outcome = await send(made(kind, **target))
    assert (outcome.kind, outcome.status) == (OutcomeKind.REFUSED, counts)
    assert str(status) in outcome.detail
    assert s3.SECRET_KEY.encode() not in outcome.response


async def test_no_credentials_are_told_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    outcome = await send(made("sqs", url="http://127.0.0.1:1/1/q"))
    assert "there are no AWS credentials: set AWS_ACCESS_KEY_ID" in outcome.detail


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("sqs", {"url": "https://example.com"}, "write the queue's URL"),
        ("sqs", {"url": "https://queues.example.com/1/q"}, "region: is missing"),
        ("sns", {"topic": "speech"}, "write the topic's ARN"),
        ("eventbridge", {}, "region: is missing"),
        ("eventbridge", {"region": REGION, "endpoint_url": "x"}, "it must begin with https://"),
    ],
)
def test_settings_that_cannot_be_used_say_what_to_write(kind: str, fields: dict[str, str], said: str) -> None:
    with pytest.raises((ConfigError, SettingsError), match=said):
        made(kind, **{"region": None} | fields)


def test_a_region_and_a_host_are_read_from_urls_and_arns() -> None:
    known = [
        made("sqs", region=None, url="https://sqs.eu-west-3.amazonaws.com/1/q"),
        made("sqs", region=None, url="https://vpce-1.sqs.eu-west-3.vpce.amazonaws.com/1/q"),
        made("sns", region=None, topic="arn:aws-cn:sns:cn-north-1:1:t"),
        made("eventbridge", region=None, bus="arn:aws:events:eu-west-3:1:event-bus/b"),
    ]
    assert [one._host for one in known] == [
        "sqs.eu-west-3.amazonaws.com",
        "vpce-1.sqs.eu-west-3.vpce.amazonaws.com",
        "sns.cn-north-1.amazonaws.com.cn",
        "events.eu-west-3.amazonaws.com",
    ]


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
async def test_moto_takes_events_and_probes_as_well(kind: str) -> None:
    with running(Moto) as broker:
        assert isinstance(broker, Moto)
        place = AwsPlace(broker, kind, 1)
        assert await probe(place.destination) is None
        assert (await send(place.destination)).kind is OutcomeKind.DELIVERED
        assert await place.arrived(1) == [("evt_1", BODY)]
        await place.refuse()
        assert await probe(place.destination)
