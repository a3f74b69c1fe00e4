"""What a provider adapter must do: prove a callback by headers, prove it with the body, normalize it.

An adapter is pure: it reads no clock, opens no file and sends nothing but through the `Fetch` it is given. Adding one is
described in docs/adding-a-provider.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from msgspec import Struct

from receiver.core.callback import Admission, Body, Head, HeldBody, VerifiedCallback
from receiver.core.event import EventDraft, JobError
from receiver.core.fetch import Failed, Fetch
from receiver.core.work import Pickup


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
