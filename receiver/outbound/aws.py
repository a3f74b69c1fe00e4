"""The frame of destinations on AWS: signed calls by the client of all deliveries, with the credentials that botocore finds.

One call is one POST; botocore's own client would take a thread and a millisecond of processor time for each.
"""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from asyncio import Lock, wrap_future
from typing import Any, ClassVar
from urllib.parse import urlsplit

import msgspec
from pydantic import field_validator

from receiver.core.errors import ConfigError
from receiver.core.redaction import Redactor
from receiver.core.urls import http_url
from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.client import USER_AGENT, Egress, Failure
from receiver.outbound.guard import ANYWHERE
from receiver.outbound.proxy import ProxyUrl
from receiver.outbound.queues import Message, Queue, over, refused, too_large
from receiver.settings.model import DestinationSettings, Section
from receiver.system.aws_signature import Signature
from receiver.system.background import Threads
from receiver.system.http1 import Reply

_THROTTLED = re.compile("Throttl|TooManyRequests|RequestLimit|OverLimit|SlowDown")
_OVER_LIMIT = re.compile("must be shorter than|too long|over the limit")
_OF_THE_EVENT = re.compile(
    "(^|#)(Invalid(MessageContents|Parameter.*)|MessageAttributesInvalid|Malformed.*|ValidationException)$"
)
"""Codes of refusals that are about the one message."""
_ABSENT = re.compile("NotFound|NonExistent|DoesNotExist")
_CODE = re.compile(rb'<Code>([^<]*)<|"(?:__type|ErrorCode)" *: *"([^"]*)"')
_WORDS = re.compile(rb'<Message>([^<]*)<|"(?:[Mm]essage|ErrorMessage)" *: *"([^"]*)"')
"""The code and the words of an error, which is XML or JSON by the service."""
_GROUP = re.compile("[!-~]{1,128}")


class AwsSettings(Section):
    """How a service of AWS is reached. Credentials are no part of it: botocore finds them (environment, profile, role)."""

    region: str | None = None
    """What no ARN or URL names."""
    endpoint_url: str | None = None
    """Another address than AWS's own: one inside a VPC, or an emulator's."""
    ca_file: str | None = None
    proxy: ProxyUrl | None = None

    @field_validator("endpoint_url")
    @classmethod
    def _usable(cls, value: str | None) -> str | None:
        if value is not None:
            http_url(value)
        return value


class Aws(Queue):
    """One queue, topic or bus of a service of AWS in one region."""

    needs = ("botocore", "aws")
    service: ClassVar[str]
    content_type: ClassVar[str]
    target: ClassVar[str]
    """The service's name in calls with JSON."""
    actions: ClassVar[tuple[str, str]]
    """What sends a message, and what asks about the place that it goes to."""
    limit: ClassVar[int]
    """Bytes of a message."""
    taken: ClassVar[bytes]
    """What the answer has when the message was taken."""

    def __init__(self, settings: DestinationSettings) -> None:
        """Raises `ConfigError` when nothing names the region."""
        super().__init__(settings)
        options = self._options
        region, address = self._place()
        region = options.region or region
        if not region:
            raise ConfigError(
                f'destinations.{settings.name}.region: is missing; write region = "eu-central-1"'
            )
        suffix = ".cn" if region.startswith("cn-") else ""
        address = options.endpoint_url or address or f"https://{self.service}.{region}.amazonaws.com{suffix}"
        url = address.rstrip("/") + "/"
        self._host, self._path = urlsplit(url)[1:3]
        self._signature = Signature(region, self.service)
        self._egress = Egress(
            timeout_seconds=settings.timeout_seconds,
            connections=settings.concurrency,
            allow=ANYWHERE,  # only the operator names the address, and AWS's are private in a VPC
            ca_file=options.ca_file,
            proxy=options.proxy.get_secret_value() if options.proxy else None,
        )
        self._request = self._egress.prepared(url, {"host": self._host, "user-agent": USER_AGENT})
        self._found: Any = None
        """Credentials as botocore keeps them: it renews them, which may take long."""
        self._frozen: Any = None
        self._finding = Lock()
        self._threads = Threads(1, "aws-credentials")
        self._redactor = Redactor(())

    @abstractmethod
    def _place(self) -> tuple[str | None, str | None]:
        """Return the region and the address that the settings name beside `region` and `endpoint_url`."""

    @abstractmethod
    def _fields(self, message: Message) -> dict[str, Any]:
        """Return what the call says that sends a message."""

    @abstractmethod
    def _probes(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what the call says that asks, and one with a message that has to be refused for what it says."""

    def _size(self, message: Message) -> int:
        """Return the bytes that SQS and SNS count: the body, and of each attribute name, type and value."""
        labels = message.labels.items()
        return len(message.body) + sum(
            len(name) + len("String") + len(value.encode()) for name, value in labels
        )

    def _encoded(self, action: str, fields: dict[str, Any]) -> bytes:
        return msgspec.json.encode(fields)

    async def open(self) -> None:
        """Make ready. Raises `ConfigError` when a certificate cannot be used."""
        self._threads = Threads(1, "aws-credentials")
        await self._egress.open()

    async def close(self) -> None:
        """Let go of connections, and of the thread."""
        self._threads.close()
        await self._egress.close()

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Send the same JSON without the two characters that JSON takes as they are and SQS and SNS refuse."""
        body = body.replace(b"\xef\xbf\xbe", b"\\ufffe").replace(b"\xef\xbf\xbf", b"\\uffff")
        return await super().send(event_id, body, timestamp=timestamp)

    async def _put(self, message: Message) -> Outcome:
        outcome = over(self._size(message), self.limit)
        return outcome or await self._call(self.actions[0], self._fields(message))

    async def probe(self) -> str | None:
        """Ask whether it is there, and whether messages may be sent to it, by one that has to be refused for what it says.

        What may not be asked about may be there.
        """
        question, wrong = self._probes()
        outcome = await self._call(self.actions[1], question)
        if _ABSENT.search(outcome.detail):
            return outcome.detail
        outcome = await self._call(self.actions[0], wrong)
        return None if outcome.status == 400 or outcome.kind is OutcomeKind.DELIVERED else outcome.detail

    async def _call(self, action: str, fields: dict[str, Any]) -> Outcome:
        try:
            credentials = await self._credentials()
        except Exception as error:  # whatever botocore's many sources of credentials raise
            return refused(f"AWS credentials cannot be had ({type(error).__name__})")
        if credentials is None:
            return refused(
                "there are no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
            )
        body, named = self._encoded(action, fields), {"host": self._host, "content-type": self.content_type}
        if self.target:
            named["x-amz-target"] = f"{self.target}.{action}"
        digest = hashlib.sha256(body).hexdigest()
        signed = self._signature.headers("POST", self._path, named, digest, credentials)
        del signed["host"]  # it is in the prepared request
        reply = await self._egress.post(self._request, signed, body)
        if isinstance(reply, Failure):
            return reply.outcome
        kept = self._redactor.clean_start(reply.body)
        if reply.status == 200 and self.taken in reply.body:
            return Outcome(kind=OutcomeKind.DELIVERED, status=reply.status, response=kept)
        return _refusal(reply, kept)

    async def _credentials(self) -> Any:
        """Return credentials that may be signed with, renewed in time; None when there are none."""
        async with self._finding:
            if self._found is None or getattr(self._found, "refresh_needed", bool)():
                self._found, self._frozen = await wrap_future(self._threads.submit(self._find))
                if self._frozen is not None:
                    self._redactor = Redactor((self._frozen.secret_key, self._frozen.token or ""))
            return self._frozen

    def _find(self) -> tuple[Any, Any]:
        from botocore.session import get_session

        found = self._found or get_session().get_credentials()
        return found, None if found is None else found.get_frozen_credentials()


def fifo(name: str, job_id: str | None, message_id: str) -> dict[str, str]:
    """Return what a message to a FIFO queue or topic needs: the events of one job in order, each event once."""
    if not name.endswith(".fifo"):
        return {}
    group = job_id or message_id
    if not _GROUP.fullmatch(group):
        group = hashlib.sha256(group.encode()).hexdigest()
    return {"MessageGroupId": group, "MessageDeduplicationId": message_id}


def _refusal(reply: Reply, response: bytes) -> Outcome:
    """Return what a refusal means: AWS answers 400 to nearly all, be it the message's fault or not."""
    code, words, status = _found(_CODE, reply), _found(_WORDS, reply), reply.status
    said = f"answered {status} {code.rpartition('#')[2][:100]}".rstrip()
    if _OVER_LIMIT.search(words):
        return too_large(f"{said}, the event is too large", status=status, response=response)
    known = status if status >= 500 else None
    if _THROTTLED.search(code):
        known = 429
    elif _OF_THE_EVENT.search(code):
        known = 400
    return Outcome(kind=OutcomeKind.REFUSED, status=known, detail=said, response=response)


def _found(pattern: re.Pattern[bytes], reply: Reply) -> str:
    found = pattern.search(reply.body)
    return (found[1] or found[2] or b"").decode("utf-8", "replace") if found else ""
