"""A destination that is a topic of Amazon SNS, standard or FIFO.

https://docs.aws.amazon.com/sns/latest/api/API_Publish.html
"""

from __future__ import annotations

from urllib.parse import urlencode

from pydantic import field_validator

from receiver.core.message import about
from receiver.core.work import Outcome
from receiver.outbound.aws import AwsService, AwsSettings, OnAws, Refusal, fifo, plain, weight
from receiver.outbound.destinations import Kind
from receiver.outbound.queues import attributes, too_large
from receiver.outbound.signing import Keys, Secrets
from receiver.settings.load import own_settings
from receiver.settings.model import DestinationSettings

LIMIT = 256 * 1024
"""Bytes of a message, after the documentation of Publish."""
_HEADERS = {"content-type": "application/x-www-form-urlencoded"}
_VERSION = "2010-03-31"
_LONGEST_SUBJECT = 100


class SnsSettings(AwsSettings):
    """[destinations.NAME] of kind `sns`."""

    topic: str
    """The topic's ARN; `.fifo` at its end is a FIFO topic."""
    secrets: Secrets = ()

    @field_validator("topic")
    @classmethod
    def _topic(cls, value: str) -> str:
        if not value.startswith("arn:") or value.count(":") != 5:
            raise ValueError("write the topic's ARN: arn:aws:sns:REGION:ACCOUNT:TOPIC")
        return value


class SnsDestination(OnAws, Kind):
    """Publishes each event as one message."""

    kind = "sns"
    Settings = SnsSettings

    def __init__(self, settings: DestinationSettings) -> None:
        super().__init__(settings)
        options = own_settings(SnsSettings, settings)
        self._service = AwsService(settings, options, "sns", options.topic.split(":")[3])
        self._topic = options.topic
        self._keys = Keys(options.secrets)

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Publish the event as one message, with its signature and what it is as attributes."""
        body, event = plain(body), about(body)
        labels = attributes(self._keys, event, event_id, timestamp, body)
        fields = self._fields(body.decode()) | fifo(self._topic, event, event_id)
        for number, (name, value) in enumerate(labels.items(), 1):
            entry = f"MessageAttributes.entry.{number}"
            fields |= {
                f"{entry}.Name": name,
                f"{entry}.Value.DataType": "String",
                f"{entry}.Value.StringValue": value,
            }
        over = too_large(weight(body, labels), LIMIT)
        return over or await self._service.call(_HEADERS, urlencode(fields).encode(), _refusal)

    async def probe(self) -> str | None:
        """Ask whether there is the topic and messages may be published, by a message whose subject is too long."""
        asked = {"Action": "GetTopicAttributes", "Version": _VERSION, "TopicArn": self._topic}
        if absent := await self._service.absent(_HEADERS, urlencode(asked).encode()):
            return absent
        fields = self._fields("receiver check") | {"Subject": "x" * (_LONGEST_SUBJECT + 1)}
        if self._topic.endswith(".fifo"):
            fields["MessageGroupId"] = fields["MessageDeduplicationId"] = "receiver-check"
        return await self._service.probe(_HEADERS, urlencode(fields).encode(), _refusal)

    def _fields(self, message: str) -> dict[str, str]:
        return {"Action": "Publish", "Version": _VERSION, "TopicArn": self._topic, "Message": message}


def _refusal(answer: bytes) -> Refusal | None:
    return None if b"<MessageId>" in answer else ("without a MessageId", "")
