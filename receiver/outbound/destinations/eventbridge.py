"""A destination that is an event bus of Amazon EventBridge.

https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEvents.html
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from receiver.core.message import about
from receiver.core.work import Outcome
from receiver.outbound.aws import AwsService, AwsSettings, OnAws, Refusal
from receiver.outbound.destinations import Kind
from receiver.outbound.queues import too_large
from receiver.settings.load import own_settings
from receiver.settings.model import DestinationSettings

LIMIT = 1024 * 1024
"""Bytes of an entry: https://aws.amazon.com/blogs/compute (29 January 2026); they are counted as
https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-putevents.html says."""
_TIME_BYTES = 14
_HEADERS = {"content-type": "application/x-amz-json-1.1", "x-amz-target": "AWSEvents.PutEvents"}
_DESCRIBE = _HEADERS | {"x-amz-target": "AWSEvents.DescribeEventBus"}


class EventBridgeSettings(AwsSettings):
    """[destinations.NAME] of kind `eventbridge`."""

    bus: str = "default"
    """The bus's name, or its ARN."""
    source: str = "receiver"
    """The `source` that rules match; the event's own is `detail.data.source`."""


class EventBridgeDestination(OnAws, Kind):
    """Puts each event as one entry: its type is the `detail-type`, the whole event the `detail`.

    EventBridge has no attributes, and gives the detail on in a spelling of its own: there is nothing to sign.
    """

    kind = "eventbridge"
    Settings = EventBridgeSettings

    def __init__(self, settings: DestinationSettings) -> None:
        """Raises `ConfigError` when nothing names the region."""
        super().__init__(settings)
        options = own_settings(EventBridgeSettings, settings)
        arn = options.bus.split(":")
        self._service = AwsService(settings, options, "events", arn[3] if len(arn) == 6 else None)
        self._about = {"EventBusName": options.bus, "Source": options.source}

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Put the event. Its id is `detail.data.event_id`."""
        event = about(body)
        entry = {
            "Time": datetime.fromisoformat(event.time).timestamp(),
            "DetailType": event.type,
            "Detail": body.decode(),
        }
        size = _TIME_BYTES + len(self._about["Source"].encode()) + len(event.type) + len(body)
        return too_large(size, LIMIT) or await self._service.call(_HEADERS, self._entries(entry), _refusal)

    async def probe(self) -> str | None:
        """Ask whether there is the bus, and whether events may be put to it, by an entry whose detail is no JSON."""
        asked = msgspec.json.encode({"Name": self._about["EventBusName"]})
        if absent := await self._service.absent(_DESCRIBE, asked):
            return absent
        wrong = {"DetailType": "receiver check", "Detail": "{"}
        return await self._service.probe(_HEADERS, self._entries(wrong), _refusal)

    def _entries(self, entry: dict[str, Any]) -> bytes:
        return msgspec.json.encode({"Entries": [self._about | entry]})


class _Result(msgspec.Struct):
    code: str = msgspec.field(default="", name="ErrorCode")
    message: str = msgspec.field(default="", name="ErrorMessage")
    event_id: str = msgspec.field(default="", name="EventId")


class _Answer(msgspec.Struct):
    entries: list[_Result] = msgspec.field(default_factory=list, name="Entries")


def _refusal(answer: bytes) -> Refusal | None:
    try:
        (result,) = msgspec.json.decode(answer, type=_Answer).entries
    except ValueError:
        return "without a result", ""
    return None if result.event_id else (result.code, result.message)
