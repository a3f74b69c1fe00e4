"""What a provider adapter must do (floor 3): prove a callback by headers, prove it with the body, normalize it.

An adapter is pure: it reads no clock, opens no file and sends nothing. Adding one is described in
docs/adding-a-provider.md.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from receiver.callback import Admission, Body, Head, VerifiedCallback
from receiver.model import EventDraft


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
