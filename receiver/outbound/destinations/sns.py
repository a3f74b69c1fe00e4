"""A destination that is a topic of Amazon SNS, standard or FIFO.

https://docs.aws.amazon.com/sns/latest/api/API_Publish.html
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from pydantic import field_validator

from receiver.outbound.aws import Aws, AwsSettings, fifo
from receiver.outbound.queues import Message
from receiver.outbound.signing import Secrets

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


class SnsDestination(Aws):
    """Publishes each event as one message: signature, and what the event is, are attributes."""

    kind = service = "sns"
    Settings = SnsSettings
    content_type, target = "application/x-www-form-urlencoded", ""
    actions = ("Publish", "GetTopicAttributes")
    limit = 256 * 1024
    """After the documentation of Publish."""
    taken = b"<MessageId>"

    def _place(self) -> tuple[str | None, str | None]:
        return self._options.topic.split(":")[3], None

    def _fields(self, message: Message) -> dict[str, Any]:
        fields = {"Message": message.body.decode()}
        for number, (name, value) in enumerate(message.labels.items(), 1):
            entry = f"MessageAttributes.entry.{number}"
            fields |= {
                f"{entry}.Name": name,
                f"{entry}.Value.DataType": "String",
                f"{entry}.Value.StringValue": value,
            }
        return fields | fifo(self._options.topic, message.event.job_id, message.event_id)

    def _probes(self) -> tuple[dict[str, Any], dict[str, Any]]:
        wrong = {"Message": "receiver check", "Subject": "x" * (_LONGEST_SUBJECT + 1)}
        return {}, wrong | fifo(self._options.topic, None, "receiver-check")

    def _encoded(self, action: str, fields: dict[str, Any]) -> bytes:
        whole = {"Action": action, "Version": "2010-03-31", "TopicArn": self._options.topic}
        return urlencode(whole | fields).encode()
