"""The frame of a provider adapter: the ports that the engine sees, and what all adapters have in common.

An adapter is pure: it reads no clock, opens no file and sends nothing but through the `Fetch` it is given. Adding one is
described in docs/adding-a-provider.md.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from msgspec import Struct

from receiver.core.callback import Admission, Body, Head, HeldBody, TokenClaims, VerifiedCallback
from receiver.core.errors import ConfigError, MalformedCallback
from receiver.core.event import EventDraft, JobError
from receiver.core.fetch import Failed, Fetch
from receiver.core.findings import Code, Finding
from receiver.core.redaction import Redactor
from receiver.core.tokens import CallbackTokens
from receiver.core.work import Pickup
from receiver.providers.documents import Document, decode_object, encode
from receiver.providers.toolkit import check_token, content_key, redacted, unsigned
from receiver.settings.load import own_settings
from receiver.settings.model import Section, SourceSettings


@runtime_checkable
class PushProvider(Protocol):
    """One configured source of a provider that calls back."""

    provider: ClassVar[str]
    """The provider's name: `deepgram`, `deapi`."""
    keeps_retrying: ClassVar[bool]
    """True: the provider retries a 503 within minutes, so we may answer it when the journal holds the copy.
    False: a failure costs more than a retry (deAPI switches webhooks off), so we answer 200."""

    @property
    def source(self) -> str:
        """Name of the source."""

    def admit(self, head: Head) -> Admission:
        """Prove what headers alone can prove, before a body byte is read.

        Raises `CallbackRejected` (401), or `WrongSource` (403) for a token of another source.
        """

    def verify(self, admission: Admission, body: Body) -> VerifiedCallback:
        """Prove the rest with the body; the only maker of `VerifiedCallback`. Raises `CallbackRejected`."""

    def normalize(self, callback: VerifiedCallback) -> EventDraft:
        """Turn a proved callback into an event draft.

        Raises exactly `MalformedCallback` when it is not understood; the caller parks it.
        """

    def redact(self, body: bytes) -> bytes:
        """Return `body` without the secrets it may carry, for keeping what could not be normalized."""

    def fallback_key(self, callback: VerifiedCallback) -> str:
        """Return the idempotency key of a callback that could not be normalized (token and content hash)."""

    @property
    def secret_headers(self) -> frozenset[str]:
        """Names, in lower case, of the headers that prove a callback: nothing may keep their values."""


class Order(Struct, frozen=True, kw_only=True):
    """What a person or an application asked to have picked up, understood."""

    key: str
    """The result's identity: the same for the same job, whichever road it comes by."""
    job_id: str | None
    target: str | None = None
    """The URL to begin with, where one was given."""


class Collected(Struct, frozen=True, kw_only=True):
    """The result is here, or the provider's word that the job failed."""

    draft: EventDraft
    """Its `idempotency_key` and `second_key` are both the pickup's key."""
    body: HeldBody | None = None
    """The bytes of `draft.audio` or `draft.file`. Whoever is given it discards it."""


class NotYet(Struct, frozen=True, kw_only=True):
    """The provider has not finished."""

    retry_in: float
    """Seconds until it is worth asking again; the engine spreads it a little."""
    detail: str = ""
    progress: EventDraft | None = None
    """A `….processing` event, when there is news of it worth telling."""


class Gone(Struct, frozen=True, kw_only=True):
    """There is no result, and asking again would not change that."""

    error: JobError


Result = Collected | NotYet | Gone | Failed


@runtime_checkable
class PullProvider(Protocol):
    """One configured source of a provider that is asked for its results. Many are a `PushProvider` as well."""

    provider: ClassVar[str]

    @property
    def source(self) -> str:
        """Name of the source."""

    @property
    def deadline_seconds(self) -> float:
        """How long after it was asked for a result is given up, unless the pickup says otherwise."""

    def order(self, text: str, format: Mapping[str, Any]) -> Order:
        """Understand what was handed over: the provider's URL or its job id. Raises `PickupRefused`."""

    def can_ask(self, pickup: Pickup) -> bool:
        """Tell whether the provider can be asked for this one (an API key is set, the job is known)."""

    def family(self, pickup: Pickup) -> str:
        """Return `speech`, `transcript` or `media`: the first part of the type of an event that tells of failure."""

    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Result:
        """Make one attempt. `pickup.attempts` counts those before it; nothing is remembered between attempts."""

    def redact(self, body: bytes) -> bytes:
        """Return `body` without the secrets it may carry."""


class Adapter:
    """One configured source. A subclass is one provider; its module says everything that is particular to it.

    A class that defines `admit`, `verify` and `normalize` is a `PushProvider`, one that defines `collect` and what goes with it
    a `PullProvider`.
    """

    provider: ClassVar[str]
    """The name that `provider = "…"` uses."""
    Settings: ClassVar[type[Section]]
    """The source's own settings, beside those that every source has."""
    codes: ClassVar[Mapping[str, Code]]
    """What `receiver check` may find: the codes of this provider, whose first is that of a wrong setting."""
    calls_back: ClassVar[bool] = True
    """False: the provider is only asked, and no callback URL is issued for it."""
    keeps_retrying: ClassVar[bool] = False
    https_only: ClassVar[bool] = False
    """True: the provider calls nothing but https."""
    job_secrets: ClassVar[bool] = False
    """True: a job may be submitted with a webhook secret of its own."""
    secret_headers: frozenset[str] = frozenset()

    def __init__(self, settings: SourceSettings, options: Any, tokens: CallbackTokens) -> None:
        """`options` is an instance of `Settings`."""
        self.source = settings.name
        self._settings, self._options, self._tokens = settings, options, tokens
        self._redactor = Redactor(self._secrets())

    @classmethod
    def create(cls, settings: SourceSettings, tokens: CallbackTokens) -> Self:
        """Return the adapter of one source. Raises `ConfigError` when it could prove nobody, or a setting is wrong."""
        options = own_settings(cls.Settings, settings)
        for finding in cls._judge(f"sources.{settings.name}", options):
            if finding.fatal:
                raise ConfigError(f"{finding.where}: {finding.message}; {finding.fix}")
        return cls(settings, options, tokens)

    @classmethod
    def findings(cls, settings: SourceSettings) -> list[Finding]:
        """Return what `receiver check` says of one source."""
        where = f"sources.{settings.name}"
        try:
            options = own_settings(cls.Settings, settings)
        except ConfigError as error:
            fix = "correct the setting; see docs/configuration.md"
            return [Finding(next(iter(cls.codes)), where, error.message, fix)]
        return list(cls._judge(where, options))

    @classmethod
    def _judge(cls, where: str, options: Any) -> Iterable[Finding]:
        """Yield what is wrong or doubtful about valid settings; `where` is `sources.NAME`."""
        return ()

    @classmethod
    def _finding(cls, code: str, where: str, message: str, fix: str = "") -> Finding:
        return Finding(code, where, message, fix or cls.codes[code].fix)

    def _secrets(self) -> tuple[str, ...]:
        """Return every secret of the settings, as it may stand in a body."""
        return ()

    def sign(self, body: bytes, *, now: int) -> dict[str, str]:
        """Return the headers with which the provider would prove `body`; `now` in epoch milliseconds."""
        return {}

    def redact(self, body: bytes) -> bytes:
        """Return `body` without the configured secrets, callback tokens and what signs its links."""
        return redacted(self._redactor, body)

    def fallback_key(self, callback: VerifiedCallback) -> str:
        """Return the identity of a callback that could not be normalized: token and content hash."""
        return content_key(callback)

    def _claims(self, head: Head, *, required: bool) -> TokenClaims | None:
        """Return what the path's token says; see `check_token`."""
        return check_token(self._tokens, self.source, head, required=required)

    def _load(self, body: Body, limit: int) -> tuple[Document, bytes]:
        """Return a JSON body, decoded and as bytes. Raises `MalformedCallback`."""
        if body.size > limit:
            raise MalformedCallback(f"the JSON has {body.size} bytes; {limit} are allowed")
        raw = body.load()
        return decode_object(raw), raw

    def _without_secrets(self, document: Document, raw: bytes) -> tuple[Document, bytes]:
        """Return a document and its bytes without the configured secrets and callback tokens."""
        kept = self._redactor.clean_document(document, raw)
        return (document, raw) if kept is raw else (decode_object(kept), kept)

    @staticmethod
    def _without_signatures(document: Document, raw: bytes) -> tuple[Document, bytes]:
        """Return a document and its bytes without what signs its links."""
        bare: Document = unsigned(document)
        return bare, raw if bare is document else encode(bare)


@cache
def adapters() -> Mapping[str, type[Adapter]]:
    """Return every provider's adapter by the name that `provider = "…"` uses. A provider is found by its module."""
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return {kind.provider: kind for kind in sorted(Adapter.__subclasses__(), key=lambda kind: kind.provider)}


def adapter_of(source: SourceSettings) -> type[Adapter]:
    """Return the adapter of a source's provider. Raises `ConfigError` when there is no such provider."""
    try:
        return adapters()[source.provider]
    except KeyError:
        known = ", ".join(adapters())
        message = f"there is no provider {source.provider!r}; write one of {known}"
        raise ConfigError(f"sources.{source.name}.provider: {message}") from None
