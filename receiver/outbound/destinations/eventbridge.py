"""A destination that is an event bus of Amazon EventBridge.

https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEvents.html
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from receiver.outbound.aws import Aws, AwsSettings
from receiver.outbound.queues import Message

_TIME_BYTES = 14


class EventBridgeSettings(AwsSettings):
    """[destinations.NAME] of kind `eventbridge`."""

    bus: str = "default"
    """The bus's name, or its ARN."""
    source: str = "receiver"
    """The `source` that rules match; the event's own is `detail.data.source`."""


class EventBridgeDestination(Aws):
    """Puts each event as one entry: its type is the `detail-type`, the whole event the `detail`, its id `detail.data.event_id`.

    EventBridge has no attributes, and gives the detail on in a spelling of its own: there is nothing to sign.
    """

    kind, service = "eventbridge", "events"
    Settings = EventBridgeSettings
    content_type, target = "application/x-amz-json-1.1", "AWSEvents"
    actions = ("PutEvents", "DescribeEventBus")
    limit = 1024 * 1024
    """Of an entry: https://aws.amazon.com/blogs/compute (29 January 2026)."""
    taken = b'"EventId"'

    def _place(self) -> tuple[str | None, str | None]:
        arn = self._options.bus.split(":")
        return arn[3] if len(arn) == 6 else None, None

    def _size(self, message: Message) -> int:
        """Counted as https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-putevents.html says."""
        source = self._options.source.encode()
        return _TIME_BYTES + len(source) + len(message.event.type) + len(message.body)

    def _fields(self, message: Message) -> dict[str, Any]:
        time = datetime.fromisoformat(message.event.time).timestamp()
        return self._entry(message.event.type, message.body.decode()) | {"Time": time}

    def _probes(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"Name": self._options.bus}, self._entry("receiver check", "{")

    def _entry(self, type_: str, detail: str) -> dict[str, Any]:
        about = {"EventBusName": self._options.bus, "Source": self._options.source}
        return about | {"DetailType": type_, "Detail": detail}

    def _encoded(self, action: str, fields: dict[str, Any]) -> bytes:
        return super()._encoded(action, {"Entries": [fields]} if action == self.actions[0] else fields)
