"""A destination that takes events over HTTP, signed by Standard Webhooks.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from pydantic import Field, SecretStr, field_validator

from receiver.core.errors import ConfigError
from receiver.core.findings import Code, Finding
from receiver.core.proofs import basic_credentials
from receiver.core.redaction import Redactor
from receiver.core.retry import retry_after
from receiver.core.urls import http_url, in_clear
from receiver.core.webhook import sign as standard_webhook
from receiver.core.webhook import webhook_key
from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.client import (
    NO_CERTIFICATES,
    USER_AGENT,
    Egress,
    Failure,
    Resolve,
    holds_certificates,
)
from receiver.outbound.destinations import Kind
from receiver.outbound.guard import blocked_by_address
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
    secrets: tuple[SecretStr, ...] = ()
    allow: Networks = ()
    headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    ca_file: str | None = None

    @field_validator("secrets")
    @classmethod
    def _secrets(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for secret in value:
            webhook_key(secret.get_secret_value())
        return value

    @field_validator("url")
    @classmethod
    def _url(cls, value: SecretStr) -> SecretStr:
        http_url(value.get_secret_value(), bare=False)
        return value


class HttpDestination(Kind):
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
        self._url, self._headers = _address(settings.name, options)
        self._redactor = Redactor(_secrets(options, self._url, self._headers))
        self._keys = [webhook_key(secret.get_secret_value()) for secret in options.secrets]
        self._egress = Egress(
            timeout_seconds=settings.timeout_seconds,
            connections=settings.concurrency,
            allow=options.allow,
            ca_file=options.ca_file,
            resolve=resolve,
        )

    @classmethod
    def findings(cls, where: str, options: HttpSettings) -> Iterator[Finding]:
        """Yield what is wrong or doubtful: certificates, secrets, TLS, an address that the guard refuses."""
        if options.ca_file is not None and not holds_certificates(options.ca_file):
            fix = "name a file with certificates in PEM form"
            yield Finding("E009", f"{where}.ca_file", NO_CERTIFICATES, fix)
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
        """Make one attempt: POST `body`, signed with every secret as of `timestamp` (epoch milliseconds)."""
        headers = self._headers | standard_webhook(self._keys, event_id, timestamp // 1000, body)
        if not self._keys:
            del headers["webhook-signature"]  # an empty one would only confuse
        answer = await self._egress.post(self._url, headers, body)
        if isinstance(answer, Failure):
            return Outcome(kind=answer.kind, detail=answer.detail)
        return _outcome(answer, self._redactor.clean_start(answer.body), timestamp)


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
    if name.lower() in _OWN:
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
    for secret in settings.secrets:
        yield secret.get_secret_value()
        yield secret.get_secret_value().removeprefix("whsec_")
    for name in ("authorization", *(name.lower() for name in settings.headers)):
        value = headers.get(name, "")
        pair = basic_credentials(value) or ""
        yield from (value, value.partition(" ")[2], pair, pair.partition(":")[2])
    parts = urlsplit(url)
    yield parts.path
    yield parts.query
    yield from (value for _, value in parse_qsl(parts.query))
    yield from (part for part in parts.path.split("/") if len(part) >= _LONG_PART)


def _outcome(reply: Reply, response: bytes, now: int) -> Outcome:
    """`response` is the reply's body without what must not be kept."""
    status = reply.status
    if 200 <= status < 300:
        return Outcome(kind=OutcomeKind.DELIVERED, status=status, response=response)
    detail = f"answered {status}"
    if 300 <= status < 400:
        detail += "; redirects are not followed"
    return Outcome(
        kind=OutcomeKind.GONE if status == 410 else OutcomeKind.REFUSED,
        status=status,
        detail=detail,
        response=response,
        retry_after=retry_after(reply.headers.get("retry-after", ""), now / 1000),
    )
