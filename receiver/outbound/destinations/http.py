"""A destination that takes events over HTTP, signed by Standard Webhooks.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from pydantic import Field, SecretStr, field_validator

from receiver.core.errors import Code, ConfigError, Finding
from receiver.core.event_json import STRUCTURED_TYPE, binary, structured
from receiver.core.proofs import basic_credentials
from receiver.core.redaction import Redactor
from receiver.core.retry import retry_after
from receiver.core.urls import http_url, in_clear
from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.client import (
    USER_AGENT,
    Egress,
    Failure,
    Resolve,
    trust,
)
from receiver.outbound.destinations import Destination
from receiver.outbound.guard import blocked_by_address
from receiver.outbound.proxy import Proxy, ProxyUrl
from receiver.outbound.signing import Keys, Secrets
from receiver.settings.load import own_settings
from receiver.settings.model import DestinationSettings, Networks, Section
from receiver.system.http1 import Reply

_OWN = frozenset(
    (
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
        "content-length",
        "transfer-encoding",
        "connection",
    )
)


_LONG_PART = 16
"""Characters in one part of a path: some services give out addresses that are their own proof."""


class HttpSettings(Section):
    """[destinations.NAME] of kind `http`."""

    url: SecretStr
    """Secret since a query or userinfo may carry credentials."""
    secrets: Secrets = ()
    allow: Networks = ()
    headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    ca_file: str | None = None
    method: Literal["POST", "PUT", "PATCH"] = "POST"
    success: tuple[int | str, ...] = ("2xx",)
    """Statuses that acknowledge an event: numbers, `2xx`, and the like."""
    format: Literal["webhook", "cloudevents", "cloudevents-binary"] = "webhook"
    """The body: the event as docs/events.md has it, or as a CloudEvent."""
    connect_seconds: float | None = Field(default=None, gt=0, le=120)
    """Longest time to connect, the name's lookup included; None is `timeout_seconds`."""
    answer_seconds: float | None = Field(default=None, gt=0, le=120)
    """Longest time from the request to its answer; None is `timeout_seconds`."""
    client_certificate: str | None = None
    """A PEM file with a certificate and its key, shown to a destination that asks for one."""
    proxy: ProxyUrl | None = None
    """The HTTP proxy that connects to the destination."""

    @field_validator("success")
    @classmethod
    def _success(cls, value: tuple[int | str, ...]) -> tuple[int | str, ...]:
        _statuses(value)
        return value

    @field_validator("url")
    @classmethod
    def _url(cls, value: SecretStr) -> SecretStr:
        http_url(value.get_secret_value(), bare=False)
        return value


class HttpDestination(Destination):
    """One configured URL."""

    kind = "http"
    Settings = HttpSettings
    codes: ClassVar = {
        "W003": Code("A destination has no secret", 'add secrets = ["env:APP_WEBHOOK_SECRET"]'),
        "W004": Code("A destination is called without TLS", "use an https:// URL"),
        "W005": Code("A destination's address is private and not in allow", "add its network to allow"),
    }

    def __init__(self, settings: DestinationSettings, *, resolve: Resolve | None = None) -> None:
        """`resolve` replaces the system's resolver. Raises `ConfigError` for headers that cannot be sent."""
        super().__init__(settings)
        options = own_settings(HttpSettings, settings)
        url, headers = _address(settings.name, options)
        self._redactor = Redactor(_secrets(options, url, headers))
        self._keys = Keys(options.secrets)
        self._format = options.format
        self._success = _statuses(options.success)
        self._egress = Egress(
            timeout_seconds=settings.timeout_seconds,
            connections=settings.concurrency,
            allow=options.allow,
            ca_file=options.ca_file,
            resolve=resolve,
            connect_seconds=options.connect_seconds,
            answer_seconds=options.answer_seconds,
            client_certificate=options.client_certificate,
            proxy=options.proxy.get_secret_value() if options.proxy else None,
        )
        if options.format == "cloudevents":
            headers["content-type"] = STRUCTURED_TYPE
        self._request = self._egress.prepared(url, headers, method=options.method)

    @classmethod
    def findings(cls, where: str, options: HttpSettings) -> Iterator[Finding]:
        """Yield what is wrong or doubtful: certificates, secrets, TLS, an address that the guard refuses."""
        if options.client_certificate is not None:
            try:
                trust(None, options.client_certificate)
            except ConfigError as error:
                fix = "name a file with a certificate and its unencrypted key in PEM form"
                yield Finding("E009", f"{where}.client_certificate", error.message, fix)
        yield from super().findings(where, options)
        if not options.secrets:
            unsigned = "its events are sent unsigned, so anybody could forge them"
            yield Finding("W003", f"{where}.secrets", unsigned, cls.codes["W003"].fix)
        url = options.url.get_secret_value()
        if in_clear(url):
            clear = "events and audio links travel in clear"
            yield Finding("W004", f"{where}.url", clear, cls.codes["W004"].fix)
        if blocked := blocked_by_address(url, options.allow):
            message = f"every attempt will be blocked: {blocked}"
            yield Finding("W005", f"{where}.allow", message, cls.codes["W005"].fix)

    async def open(self) -> None:
        """Make ready to send. Raises `ConfigError` when `ca_file` cannot be used."""
        await self._egress.open()

    async def close(self) -> None:
        """Let go of connections."""
        await self._egress.close()

    async def send(self, event_id: str, body: bytes, *, timestamp: int) -> Outcome:
        """Make one attempt: send `body`, signed with every secret that is valid at `timestamp` (epoch milliseconds)."""
        more: Mapping[str, str] = {}
        if self._format == "cloudevents":
            body = structured(body, event_id)
        elif self._format == "cloudevents-binary":
            more, body = binary(body, event_id)
        headers = {**self._keys.headers(event_id, timestamp, body), **more}
        answer = await self._egress.post(self._request, headers, body)
        if isinstance(answer, Failure):
            return answer.outcome
        kept = self._redactor.clean_start(answer.body)
        return _outcome(answer, kept, timestamp, delivered=answer.status in self._success)


def _statuses(codes: Sequence[int | str]) -> frozenset[int]:
    """Return the statuses that numbers and texts like `2xx` stand for. Raises `ValueError`."""
    found: set[int] = set()
    for code in codes:
        text = str(code)
        if re.fullmatch("[2-5]xx", text):
            found.update(range(int(text[0]) * 100, int(text[0]) * 100 + 100))
        elif re.fullmatch("[2-5][0-9][0-9]", text):
            found.add(int(text))
        else:
            raise ValueError(f'write statuses as 200 or "2xx", from 200 to 599; this is {text[:20]!r}')
    if not found:
        raise ValueError('name at least one status: ["2xx"]')
    return frozenset(found)


def _address(name: str, settings: HttpSettings) -> tuple[str, dict[str, str]]:
    """Return the URL without credentials, and the headers of every attempt (credentials become Basic)."""
    headers = {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "accept": "*/*",
        "accept-encoding": "identity",
    }
    parts = urlsplit(settings.url.get_secret_value())
    credentials, at, place = parts.netloc.rpartition("@")
    if at:
        user, _, password = credentials.partition(":")
        pair = f"{unquote(user)}:{unquote(password)}".encode()
        headers["authorization"] = "Basic " + base64.b64encode(pair).decode()
    for header, value in settings.headers.items():
        headers[header.lower()] = _checked(name, header, value.get_secret_value())
    return urlunsplit(parts._replace(netloc=place, fragment="")), headers


def _checked(destination: str, name: str, value: str) -> str:
    where = f"destinations.{destination}.headers.{name}"
    if name.lower() in _OWN or name.lower().startswith("ce-"):
        raise ConfigError(f"{where}: receiver sets this header itself; remove it")
    if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"{where}: a header's name has letters, digits, - and _")
    if any(char in value for char in "\r\n\0"):
        raise ConfigError(f"{where}: a header's value is one line")
    if not value.isprintable() and any("\ud800" <= char <= "\udfff" for char in value):
        raise ConfigError(f"{where}: a header's value is text; this one is not UTF-8")
    return value


def _secrets(settings: HttpSettings, url: str, headers: dict[str, str]) -> Iterator[str]:
    """Return what an answer must not bring into the store, where one that shows the request would have it.

    That is what the settings call secret: header values, with and without the scheme before them, credentials, path and
    query of the URL, and such parts of the path as are too long for a word.
    """
    for one in settings.secrets:
        secret = one.secret.get_secret_value()
        yield secret
        yield secret.removeprefix("whsec_").removeprefix("whsk_")
    for name in ("authorization", *(name.lower() for name in settings.headers)):
        value = headers.get(name, "")
        pair = basic_credentials(value) or ""
        yield from (value, value.partition(" ")[2], pair, pair.partition(":")[2])
    if settings.proxy is not None:
        yield from Proxy(settings.proxy.get_secret_value()).secrets
    parts = urlsplit(url)
    yield parts.path
    yield parts.query
    yield from (value for _, value in parse_qsl(parts.query))
    yield from (part for part in parts.path.split("/") if len(part) >= _LONG_PART)


def _outcome(reply: Reply, response: bytes, now: int, *, delivered: bool) -> Outcome:
    """`response` is the reply's body without what must not be kept."""
    status = reply.status
    if delivered:
        return Outcome(kind=OutcomeKind.DELIVERED, status=status, response=response)
    return Outcome(
        kind=OutcomeKind.GONE if status == 410 else OutcomeKind.REFUSED,
        status=status,
        detail="redirects are not followed" if 300 <= status < 400 else "",
        response=response,
        retry_after=retry_after(reply.headers.get("retry-after", ""), now / 1000),
    )
