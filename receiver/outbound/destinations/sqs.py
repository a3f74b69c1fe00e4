"""A destination that is a queue of Amazon SQS, standard or FIFO.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import msgspec
from pydantic import field_validator

from receiver.core.message import about
from receiver.core.urls import http_url
from receiver.core.work import Outcome
from receiver.outbound.aws import AwsService, AwsSettings, OnAws, Refusal, fifo, plain, weight
from receiver.outbound.destinations import Kind
from receiver.outbound.queues import attributes, too_large
from receiver.outbound.signing import Keys, Secrets
from receiver.settings.load import own_settings
from receiver.settings.model import DestinationSettings

LIMIT = 1024 * 1024
"""Bytes of a message: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html."""
_HEADERS = {"content-type": "application/x-amz-json-1.0", "x-amz-target": "AmazonSQS.SendMessage"}
_DESCRIBE = _HEADERS | {"x-amz-target": "AmazonSQS.GetQueueAttributes"}
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


class SqsDestination(OnAws, Kind):
    """Sends each event as one message."""

    kind = "sqs"
    Settings = SqsSettings

    def __init__(self, settings: DestinationSettings) -> None:
        """Raises `ConfigError` when nothing names the region."""
        super().__init__(settings)
        options = own_settings(SqsSettings, settings)
        parts = urlsplit(options.url)
        found = _REGION.search(parts.netloc)
        if options.endpoint_url is None:
            options = options.model_copy(update={"endpoint_url": f"{parts.scheme}://{parts.netloc}"})
        self._service = AwsService(settings, options, "sqs", found[1] if found else None)
        self._url = options.url
        self._keys = Keys(options.secrets)

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Send the event as one message, with its signature and what it is as attributes."""
        body, event = plain(body), about(body)
        labels = attributes(self._keys, event, event_id, timestamp, body)
        message: dict[str, Any] = {
            "QueueUrl": self._url,
            "MessageBody": body.decode(),
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": value} for name, value in labels.items()
            },
        } | fifo(self._url, event, event_id)
        over = too_large(weight(body, labels), LIMIT)
        return over or await self._service.call(_HEADERS, msgspec.json.encode(message), _refusal)

    async def probe(self) -> str | None:
        """Ask whether there is the queue and messages may be sent to it, by a message whose attribute is of no type."""
        asked = msgspec.json.encode({"QueueUrl": self._url, "AttributeNames": ["QueueArn"]})
        if absent := await self._service.absent(_DESCRIBE, asked):
            return absent
        nothing = {"a": {"DataType": "None", "StringValue": "a"}}
        message = {"QueueUrl": self._url, "MessageBody": "receiver check", "MessageAttributes": nothing}
        if self._url.endswith(".fifo"):
            message["MessageGroupId"] = message["MessageDeduplicationId"] = "receiver-check"
        return await self._service.probe(_HEADERS, msgspec.json.encode(message), _refusal)


def _refusal(answer: bytes) -> Refusal | None:
    return None if b'"MessageId"' in answer else ("without a MessageId", "")
