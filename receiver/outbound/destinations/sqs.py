"""A destination that is a queue of Amazon SQS, standard or FIFO.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from pydantic import field_validator

from receiver.core.urls import http_url
from receiver.outbound.aws import Aws, AwsSettings, fifo
from receiver.outbound.queues import Message
from receiver.outbound.signing import Secrets

_REGION = re.compile(r"(?:^|\.)sqs\.([a-z0-9-]+)\.")


class SqsSettings(AwsSettings):
    """[destinations.NAME] of kind `sqs`."""

    url: str
    """The queue's URL; `.fifo` at its end is a FIFO queue."""
    secrets: Secrets = ()

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        if http_url(value).path.count("/") < 2:
            raise ValueError("write the queue's URL: https://sqs.REGION.amazonaws.com/ACCOUNT/QUEUE")
        return value


class SqsDestination(Aws):
    """Sends each event as one message: signature, and what the event is, are attributes."""

    kind = service = "sqs"
    Settings = SqsSettings
    content_type, target = "application/x-amz-json-1.0", "AmazonSQS"
    actions = ("SendMessage", "GetQueueAttributes")
    limit = 1024 * 1024
    """https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html"""
    taken = b'"MessageId"'

    def _place(self) -> tuple[str | None, str | None]:
        parts = urlsplit(self._options.url)
        found = _REGION.search(parts.netloc)
        return found[1] if found else None, f"{parts.scheme}://{parts.netloc}"

    def _fields(self, message: Message) -> dict[str, Any]:
        labels = message.labels.items()
        fields = {
            "QueueUrl": self._options.url,
            "MessageBody": message.body.decode(),
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": value} for name, value in labels
            },
        }
        return fields | fifo(self._options.url, message.event.job_id, message.event_id)

    def _probes(self) -> tuple[dict[str, Any], dict[str, Any]]:
        url = self._options.url
        no_type = {"a": {"DataType": "None", "StringValue": "a"}}
        wrong = {"QueueUrl": url, "MessageBody": "receiver check", "MessageAttributes": no_type}
        return {"QueueUrl": url, "AttributeNames": ["QueueArn"]}, wrong | fifo(url, None, "receiver-check")
