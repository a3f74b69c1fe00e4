"""Normalizes a proved callback through its adapter. A callback that the adapter does not understand is parked."""

from __future__ import annotations

from receiver.core.callback import VerifiedCallback
from receiver.core.errors import RESOURCE_ERRORS, IgnoredCallback, MalformedCallback
from receiver.core.event import EventDraft, Stage, scope, scoped
from receiver.core.observe import Observer
from receiver.providers import PushProvider

_BIG_PARKED = 4 * 1024 * 1024
"""Bytes from which a body that was not understood is kept from file to file, not through memory."""


class Normalizer:
    """Normalizes callbacks. A bug in an adapter parks the callback, and never loses it."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def normalize(self, provider: PushProvider, callback: VerifiedCallback) -> EventDraft:
        """Return the event draft of a callback; that of `callback.parked` if the adapter does not understand it. Raises
        `IgnoredCallback`.
        """
        try:
            draft = provider.normalize(callback)
        except MalformedCallback as error:
            draft = parked(provider, callback, error.message)
        except (IgnoredCallback, *RESOURCE_ERRORS):
            raise
        except Exception as error:  # proved, so it is kept whatever our own code makes of it
            self.bug("normalize", callback.source, error)
            draft = parked(provider, callback, "receiver could not read it (an internal error)")
        return draft if callback.claims is None else scoped(scope(callback), draft)

    def bug(self, step: str, source: str, error: Exception) -> None:
        """Report a bug of ours in a step of a callback's way in."""
        self._observer.note("error", "intake.bug", step=step, source=source, error=type(error).__name__)


def parked(provider: PushProvider, callback: VerifiedCallback, why: str) -> EventDraft:
    """Return the draft of `callback.parked`, with the body (secrets removed) for a person to look at."""
    small = callback.body.size <= _BIG_PARKED
    return EventDraft(
        type="callback.parked",
        idempotency_key=provider.fallback_key(callback),
        ref=callback.ref,
        occurred_at=callback.head.received_at,
        stage=Stage.OPEN,
        parked=why,
        provider_data={"content_type": callback.head.media_type[0], "bytes": callback.body.size},
        document=provider.redact(callback.body.load()) if small else None,
    )
