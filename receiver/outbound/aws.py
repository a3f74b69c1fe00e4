"""Signed calls to services of AWS by the client of all deliveries, with the credentials that botocore finds.

One call is one POST; botocore's own client would take a thread and a millisecond of processor time for each.
"""

from __future__ import annotations

import hashlib
import re
from asyncio import Lock, wrap_future
from collections.abc import Callable, Mapping
from typing import Any, ClassVar
from urllib.parse import urlsplit

import msgspec
from pydantic import field_validator

from receiver.core.errors import ConfigError
from receiver.core.message import About
from receiver.core.redaction import Redactor
from receiver.core.urls import http_url
from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.client import USER_AGENT, Egress, Failure
from receiver.outbound.guard import ANYWHERE
from receiver.outbound.proxy import ProxyUrl
from receiver.outbound.queues import TOO_LARGE
from receiver.settings.model import DestinationSettings, Section
from receiver.system.aws_signature import Signature
from receiver.system.http1 import Reply
from receiver.system.threads import NoThread, Threads

Refusal = tuple[str, str]
"""A code of AWS, and its words."""

_THROTTLED = re.compile("Throttl|TooManyRequests|RequestLimit|OverLimit|SlowDown")
_OVER_LIMIT = re.compile("must be shorter than|too long|over the limit")
_OF_THE_EVENT = re.compile(
    "Invalid(MessageContents|Parameter.*)|MessageAttributesInvalid|Malformed.*|ValidationException"
)
"""Codes of refusals that are about the one message."""
_ABSENT = re.compile("NotFound|NonExistent|DoesNotExist")
_IN_XML = re.compile(rb"<(Code|Message)>([^<]*)</")
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


class AwsService:
    """One service in one region, as a destination calls it."""

    def __init__(
        self, settings: DestinationSettings, options: AwsSettings, service: str, region: str | None
    ) -> None:
        """`region` is what an ARN or URL names. Raises `ConfigError` when nothing names one."""
        region = options.region or region
        if not region:
            raise ConfigError(
                f'destinations.{settings.name}.region: is missing; write region = "eu-central-1"'
            )
        suffix = ".cn" if region.startswith("cn-") else ""
        url = (options.endpoint_url or f"https://{service}.{region}.amazonaws.com{suffix}").rstrip("/") + "/"
        self._host, self._path = urlsplit(url)[1:3]
        self._signature = Signature(region, service)
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

    async def open(self) -> None:
        """Make ready. Raises `ConfigError` when a certificate cannot be used."""
        self._threads = Threads(1, "aws-credentials")
        await self._egress.open()

    async def close(self) -> None:
        """Let go of connections, and of the thread."""
        self._threads.close()
        await self._egress.close()

    async def call(
        self, headers: Mapping[str, str], body: bytes, refusal: Callable[[bytes], Refusal | None]
    ) -> Outcome:
        """Make one call; `refusal` reads what the body of a 200 says, and None is that the message was taken."""
        try:
            credentials = await self._credentials()
        except NoThread:
            return Outcome(
                kind=OutcomeKind.UNREACHABLE, detail="no thread can be started to find credentials"
            )
        except Exception as error:  # whatever botocore's many sources of credentials raise
            detail = f"AWS credentials cannot be had ({type(error).__name__})"
            return Outcome(kind=OutcomeKind.REFUSED, detail=detail)
        if credentials is None:
            detail = "there are no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
            return Outcome(kind=OutcomeKind.REFUSED, detail=detail)
        named = {"host": self._host, **headers}
        digest = hashlib.sha256(body).hexdigest()
        signed = self._signature.headers("POST", self._path, named, digest, credentials)
        del signed["host"]  # it is in the prepared request
        reply = await self._egress.post(self._request, signed, body)
        if isinstance(reply, Failure):
            return Outcome(kind=reply.kind, detail=reply.detail)
        refused = refusal(reply.body) if reply.status == 200 else _refusal(reply)
        kept = self._redactor.clean_start(reply.body)
        if refused is None:
            return Outcome(kind=OutcomeKind.DELIVERED, status=reply.status, response=kept)
        return _refused(refused, reply.status, kept)

    async def probe(
        self, headers: Mapping[str, str], body: bytes, refusal: Callable[[bytes], Refusal | None]
    ) -> str | None:
        """Send a message that has to be refused for what it says; return what else is in the way of any message."""
        outcome = await self.call(headers, body, refusal)
        for_what_it_says = outcome.status == 400
        return None if for_what_it_says or outcome.kind is OutcomeKind.DELIVERED else outcome.detail

    async def absent(self, headers: Mapping[str, str], question: bytes) -> str | None:
        """Ask about what messages are sent to; return the answer when it is not there. What may not be asked may be there."""
        outcome = await self.call(headers, question, lambda _: None)
        return outcome.detail if _ABSENT.search(outcome.detail) else None

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


class OnAws:
    """What destinations on AWS do alike."""

    needs: ClassVar[tuple[str, str] | None] = ("botocore", "aws")
    _service: AwsService

    async def open(self) -> None:
        """Make ready. Raises `ConfigError` when a certificate cannot be used."""
        await self._service.open()

    async def close(self) -> None:
        """Let go of connections."""
        await self._service.close()


def fifo(name: str, event: About, event_id: str) -> dict[str, str]:
    """Return what a message to a FIFO queue or topic needs: the events of one job in order, each event once."""
    if not name.endswith(".fifo"):
        return {}
    group = event.job_id or event_id
    if not _GROUP.fullmatch(group):
        group = hashlib.sha256(group.encode()).hexdigest()
    return {"MessageGroupId": group, "MessageDeduplicationId": event_id}


def plain(body: bytes) -> bytes:
    """Return the same JSON without the two characters that JSON takes as they are and SQS refuses."""
    return body.replace(b"\xef\xbf\xbe", b"\\ufffe").replace(b"\xef\xbf\xbf", b"\\uffff")


def weight(body: bytes, labels: Mapping[str, str]) -> int:
    """Return the bytes that SQS and SNS count: the body, and of each attribute name, type and value."""
    return len(body) + sum(len(name) + len("String") + len(value.encode()) for name, value in labels.items())


class _Error(msgspec.Struct):
    kind: str = msgspec.field(default="", name="__type")
    message: str = ""
    upper: str = msgspec.field(default="", name="Message")


def _refusal(reply: Reply) -> Refusal:
    """Return the code and the words of an error, which is JSON or XML by the service."""
    if found := dict(_IN_XML.findall(reply.body)):
        return found.get(b"Code", b"").decode("utf-8", "replace"), found.get(b"Message", b"").decode(
            "utf-8", "replace"
        )
    try:
        error = msgspec.json.decode(reply.body, type=_Error)
    except ValueError:
        return "", ""
    return error.kind.rpartition("#")[2], error.message or error.upper


def _refused(refusal: Refusal, status: int, response: bytes) -> Outcome:
    """Return what a refusal means: AWS answers 400 to nearly all, be it the message's fault or not."""
    code, words = refusal
    said = f"answered {status} {code[:100]}".rstrip()
    if _OVER_LIMIT.search(words):
        kind, detail = OutcomeKind.TOO_LARGE, f"{said}, the event is too large: {TOO_LARGE}"
        return Outcome(kind=kind, status=status, detail=detail, response=response)
    known = status if status >= 500 else None
    if _THROTTLED.search(code):
        known = 429
    elif _OF_THE_EVENT.fullmatch(code):
        known = 400
    return Outcome(kind=OutcomeKind.REFUSED, status=known, detail=said, response=response)
