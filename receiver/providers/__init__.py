"""The frame of a provider adapter: the ports that the engine sees, and what all adapters have in common.

An adapter is pure: it reads no clock, opens no file and sends nothing but through the `Fetch` it is given. Adding one is
described in docs/adding-a-provider.md.
"""

from __future__ import annotations

import re
import sys
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, ClassVar, Self

from msgspec import Struct

from receiver.core.callback import Admission, Body, Head, Reply, TokenClaims, VerifiedCallback
from receiver.core.errors import (
    CallbackRejected,
    Code,
    ConfigError,
    Finding,
    MalformedCallback,
    RejectionKind,
    SettingsError,
    WrongSource,
)
from receiver.core.event import EventDraft, RemoteResult
from receiver.core.fetch import Fetch
from receiver.core.proofs import matching_place
from receiver.core.redaction import Redactor
from receiver.core.tokens import CallbackTokens
from receiver.core.transcript import Word
from receiver.core.work import Pickup
from receiver.providers.documents import Document, decode_object, encode
from receiver.providers.pickups import Lookup, Result
from receiver.providers.toolkit import content_key, redacted, unsigned
from receiver.settings.load import did_you_mean, own_settings
from receiver.settings.model import MIB, Section, SourceSettings
from receiver.settings.submitting import ProviderApi, Submission
from receiver.system.modules import class_named, module_names

NO_PROOF = "no proof is configured, so anybody's callback would be believed"
NO_REASON = "the provider gave no reason"


class SenderState(Struct, frozen=True, kw_only=True):
    """The state of our webhook as its provider reports it."""

    failing: bool
    """The webhook is switched off, or about to be: callbacks do not come."""
    detail: str = ""
    """The provider's word for the state, and its reason if it gives one."""


class Adapter(ABC):
    """One configured source. A subclass is one provider; its module says everything that is particular to it.

    One that calls back is a `PushProvider`, one that can be polled a `PullProvider`; many are both.
    """

    provider: ClassVar[str]
    """The name that `provider = "…"` uses."""
    Settings: ClassVar[type[Section]]
    """The source's own settings, beside those that every source has."""
    codes: ClassVar[Mapping[str, Code]]
    """What `receiver check` may find: the codes of this provider, whose first is that of a wrong setting."""
    fetches_keys: ClassVar[bool] = False
    """True: the provider's public keys are fetched, so the source has an HTTP client even if it is not polled."""
    https_only: ClassVar[bool] = False
    """True: the provider calls nothing but https."""
    job_secrets: ClassVar[bool] = False
    """True: a job may be submitted with a webhook secret of its own."""

    def __init__(self, settings: SourceSettings, options: Any, tokens: CallbackTokens) -> None:
        """`options` is an instance of `Settings`."""
        self.source, self._where = settings.name, f"sources.{settings.name}"
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
        try:
            options = own_settings(cls.Settings, settings)
        except SettingsError as error:
            code, fix = next(iter(cls.codes)), f"correct the setting; see {cls.Settings.manual}"
            return [
                Finding(code, problem.where, problem.message, problem.fix or fix)
                for problem in error.problems
            ]
        return list(cls._judge(f"sources.{settings.name}", options))

    @classmethod
    def written_as(cls, provider: str) -> str:
        """Return the settings to write for a provider that this adapter knows by another name, "" for others."""
        return ""

    @classmethod
    def _judge(cls, where: str, options: Any) -> Iterable[Finding]:
        """Yield what is wrong or doubtful about valid settings; `where` is `sources.NAME`."""
        return ()

    @classmethod
    def _finding(cls, code: str, where: str, setting: str, message: str, fix: str = "") -> Finding:
        """Return a finding about one setting; without `fix`, that of the code."""
        return Finding(code, f"{where}.{setting}", message, fix or cls.codes[code].fix)

    @classmethod
    def _missing(cls, code: str, where: str, setting: str, message: str = NO_PROOF) -> Finding:
        """Return the finding of a source without the proof or key that it needs."""
        return cls._finding(code, where, setting, message, f"{cls.codes[code].fix} to [{where}]")

    def _secrets(self) -> tuple[str, ...]:
        """Return every secret of the settings, as it may stand in a body."""
        return ()

    def redact(self, body: bytes) -> bytes:
        """Return `body` without the configured secrets, callback tokens and what signs its links."""
        return redacted(self._redactor, body)

    def _api_headers(self) -> Mapping[str, str]:
        """Return the headers that authenticate receiver at the provider's API; none without a key."""
        return {}

    def submit_api(self) -> ProviderApi | None:
        """Return the parts of the provider's API that applications may call through receiver; None if unknown."""
        return None

    def _submit_api(self, base: str, headers: Mapping[str, str], *, secret: str = "") -> ProviderApi:
        """Return the API of the provider's table in `submissions`. `headers` authenticate receiver."""
        text = (resources.files(__package__) / "submissions" / f"{self.provider}.toml").read_text("utf-8")
        return ProviderApi(Submission.model_validate({"base": base, **tomllib.loads(text)}), headers, secret)


class PushProvider(Adapter):
    """A provider that calls back."""

    keeps_retrying: bool = False
    """True: the provider retries a 503 within minutes, so we may answer it when the journal holds the copy.
    False: a failure costs more than a retry (deAPI switches webhooks off), so we answer 200."""
    small_documents: ClassVar[bool] = False
    """True: the provider's callbacks are under 1 kB, so none over 1 MiB is read."""
    secret_headers: frozenset[str] = frozenset()
    """Names, in lower case, of the headers that prove a callback: nothing may keep their values."""
    methods: tuple[str, ...] = ("POST", "PUT")
    """The HTTP methods of callbacks."""
    handshake_methods: frozenset[str] = frozenset()
    """The methods by which the provider asks whether a callback URL is ours; none for most providers."""

    def __init__(self, settings: SourceSettings, options: Any, tokens: CallbackTokens) -> None:
        super().__init__(settings, options, tokens)
        self._json_limit = min(settings.max_json_bytes, MIB if self.small_documents else sys.maxsize)
        """The most bytes of a callback that is JSON."""

    @abstractmethod
    def admit(self, head: Head) -> Admission:
        """Prove what headers alone can prove, before a body byte is read.

        Raises `CallbackRejected` (401), or `WrongSource` (403) for a token of another source.
        """

    @abstractmethod
    def normalize(self, callback: VerifiedCallback) -> EventDraft:
        """Turn a proved callback into an event draft.

        Raises exactly `MalformedCallback` when it is not understood; the caller parks it.
        """

    def came_as_proof(self, head: Head, body: bytes) -> list[str]:
        """Return the values in a request that are meant to prove it, right or wrong: nothing may keep or show them."""
        return [value for name in self.secret_headers for value in head.all(name)]

    def examine(self, head: Head, body: Body) -> Iterable[dict[str, Any]]:
        """Return what each proof says of a request: `proof`, `holds`, `reason` and `signed`, the beginning of its message.

        Nothing for most providers, whose proofs are not told one by one.
        """
        return ()

    def wanted_headers(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        """Return each proof with the headers that it needs; of several names in one tuple, one is enough."""
        names = tuple(sorted(self.secret_headers))
        return [(self.provider, [names] if names else [])]

    def sign(self, body: bytes, *, now: int) -> dict[str, str]:
        """Return the headers with which the provider would prove `body`; `now` in epoch milliseconds."""
        return {}

    def verify(self, admission: Admission, body: Body) -> VerifiedCallback:
        """Prove the rest with the body; unless a provider says otherwise, it proves no more. Raises `CallbackRejected`."""
        return self.believed(admission, body)

    def believed(self, admission: Admission, body: Body) -> VerifiedCallback:
        """Return the callback with the admission's proofs, checking nothing: for `verify`, and for what a person accepts."""
        return VerifiedCallback(
            head=admission.head,
            claims=admission.claims,
            proofs=admission.proofs,
            secret=admission.secret,
            body=body,
        )

    def words(self, document: bytes) -> list[Word]:
        """Return the words of a kept transcript with their times, where the provider gives any."""
        return []

    def handshake(self, head: Head, body: bytes, *, proved: bool) -> Reply | None:
        """Return the answer to a question that is no callback, None when the request is none. `proved` tells whether it was proved."""
        return None

    def fallback_key(self, callback: VerifiedCallback) -> str:
        """Return the idempotency key of a callback that could not be normalized: token and content hash."""
        return content_key(callback, lasting=False)

    def _check_token(self, head: Head, *, required: bool) -> TokenClaims | None:
        """Check the callback token in the URL; return its claims, None if there is no token and none is required.

        A token must always be ours, made for this source and not expired, even where none is required. Raises
        `CallbackRejected`, or `WrongSource` for a token of another source.
        """
        if not head.token:
            if required:
                raise self._rejection(
                    "require_token",
                    "the callback URL carries no token: make one with `receiver callback-url`",
                    RejectionKind.MISSING,
                )
            return None
        claims = head.claims or self._tokens.read(head.token)
        if claims is None:
            raise CallbackRejected(
                "the token in the callback URL is not one of ours, or was signed with a secret that is gone",
                setting="tokens.secrets",
                kind=RejectionKind.TOKEN,
            )
        if claims.source != self.source:
            raise WrongSource(setting=self._where)
        if claims.expires_at is not None and head.received_at >= claims.expires_at:
            raise CallbackRejected(
                "the token in the callback URL has expired: hand out URLs that last longer",
                kind=RejectionKind.TOKEN,
            )
        return claims

    def _rejection(
        self, setting: str, message: str, kind: RejectionKind = RejectionKind.WRONG
    ) -> CallbackRejected:
        """Return the refusal that tells which of the source's settings to look at."""
        return CallbackRejected(message, setting=f"{self._where}.{setting}", kind=kind)

    def _place_of(self, value: str, expected: Sequence[str], setting: str, wrong: str) -> int:
        """Return the position, counted from 1, of the secret in a setting that equals `value`. Raises `CallbackRejected`,
        worded by `wrong`.
        """
        place = matching_place(value, expected)
        if not place:
            raise self._rejection(setting, f"{wrong} in {self._where}.{setting}")
        return place

    def _load(self, body: Body) -> tuple[Document, bytes]:
        """Return a JSON body, decoded and as bytes. Raises `MalformedCallback`."""
        if body.size > self._json_limit:
            raise MalformedCallback(
                f"the JSON has {body.size} bytes; {self._json_limit} are allowed (max_json_bytes)"
            )
        raw = body.load()
        return decode_object(raw), raw

    def _without_secrets(
        self, document: Document, raw: bytes, redactor: Redactor | None = None
    ) -> tuple[Document, bytes]:
        """Return a document and its bytes without the configured secrets and callback tokens."""
        kept = (redactor or self._redactor).clean_document(document, raw)
        return (document, raw) if kept is raw else (decode_object(kept), kept)

    @staticmethod
    def _without_signatures(document: Document, raw: bytes) -> tuple[Document, bytes]:
        """Return a document and its bytes without what signs its links."""
        bare: Document = unsigned(document)
        return bare, raw if bare is document else encode(bare)


class PullProvider(Adapter):
    """A provider that can be polled for results. Many call back as well."""

    job_ids: ClassVar[re.Pattern[str]] = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,199}")
    """The pattern of job ids that are safe in the path of a URL."""

    watch_seconds: float | None = None
    """How often the provider is polled for the state of our webhook; None if it cannot be."""

    @abstractmethod
    def lookup(self, text: str, format: Mapping[str, Any]) -> Lookup:
        """Parse what a user gave for a pickup: the provider's URL or its job id. Raises `PickupRefused`."""

    @abstractmethod
    async def collect(self, pickup: Pickup, fetch: Fetch, *, now: int) -> Result:
        """Make one attempt. `pickup.attempts` counts those before it; nothing is remembered between attempts."""

    @property
    def deadline_seconds(self) -> float:
        """Seconds from the request until a pickup is given up, unless the pickup has its own deadline."""
        return float(self._options.deadline_seconds)

    def can_ask(self, pickup: Pickup) -> bool:
        """Tell whether the provider can be polled for this pickup: its key is set, and the job id is known."""
        return self._can_poll(pickup.job_id)

    def _can_poll(self, job_id: str | None) -> bool:
        return bool(self._api_headers()) and job_id is not None and bool(self.job_ids.fullmatch(job_id))

    def family(self, pickup: Pickup) -> str:
        """Return `speech`, `transcript` or `media`: the first part of the type of an event that tells of failure."""
        return "speech"

    async def sender_state(self, fetch: Fetch) -> SenderState | None:
        """Poll the provider for the state of our webhook; None if it does not tell."""
        return None

    def _remote(self, key: str, url: str | None, callback: VerifiedCallback) -> RemoteResult:
        """Return the location of a result that a callback announced.

        The deadline counts from the callback's arrival, not from a time in it: the sender's clock may be wrong.
        """
        deadline = callback.head.received_at + round(self.deadline_seconds * 1000)
        return RemoteResult(key=key, url=url, deadline_at=deadline)


@cache
def adapters() -> Mapping[str, type[Adapter]]:
    """Return every provider's adapter by the name that `provider = "…"` uses, which is its module's."""
    return {name: adapter for name in module_names(__name__) if (adapter := adapter_named(name)) is not None}


def adapter_named(provider: str) -> type[Adapter] | None:
    """Return a provider's adapter, None when there is none. Only its module is imported."""
    adapter: type[Adapter] | None = class_named(__name__, provider, Adapter, "provider")
    return adapter


def adapter_of(source: SourceSettings) -> type[Adapter]:
    """Return the adapter of a source's provider. Raises `ConfigError` when there is no such provider."""
    found = adapter_named(source.provider)
    if found is None:
        message = f"there is no provider {source.provider!r}; {instead_of(source.provider)}"
        raise ConfigError(f"sources.{source.name}.provider: {message}")
    return found


def instead_of(provider: str) -> str:
    """Return what to write instead of an unknown provider."""
    known = f'write one of {", ".join(adapters())}; "custom" takes any other provider (docs/sources.md)'
    written = (kind.written_as(provider) for kind in adapters().values())
    return next(filter(None, written), "") or did_you_mean(provider, adapters()) or known
