"""A dry run of a request to a source: the event that it would become, and the result of each proof. Nothing is recorded.

A request that was refused has a second look: see it, verify it again with today's settings, or accept it once. Only requests
with a callback token of receiver's are kept for this, for a day. An accepted one is recorded like every callback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from receiver.core.callback import Admission, Head, MemoryBody
from receiver.core.errors import (
    CallbackRejected,
    IgnoredCallback,
    MalformedCallback,
    RejectionKind,
    StoreUnavailable,
    Unavailable,
    UsageError,
)
from receiver.core.redaction import REDACTED, Redactor
from receiver.settings.load import public_base

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver
    from receiver.core.callback import Head, VerifiedCallback
    from receiver.core.event import EventDraft, Recorded
    from receiver.providers import PushProvider


def judged(adapter: PushProvider, head: Head, body: MemoryBody) -> dict[str, Any]:
    """Return what each proof says of a request, and what it would become. Raises `KeysNeeded`."""
    proofs = list(adapter.examine(head, body))
    verdict, reason, event = _event(adapter, head, body)
    if head.method not in adapter.methods:
        taken = " or ".join(adapter.methods)
        verdict, reason, event = "refused", f"a callback of this source comes by {taken}", None
    reply = adapter.handshake(head, body.load(), proved=verdict != "refused")
    if reply is not None:
        return {
            "verdict": "handshake",
            "reason": "",
            "proofs": proofs,
            "answer": reply.body.decode("utf-8", "replace"),
        }
    return {"verdict": verdict, "reason": reason, "proofs": proofs, "event": event}


def _event(adapter: PushProvider, head: Head, body: MemoryBody) -> tuple[str, str, dict[str, Any] | None]:
    try:
        callback = adapter.verify(adapter.admit(head), body)
    except CallbackRejected as error:
        reason, event = error.message, None
        if error.kind is RejectionKind.STALE:
            reason += "; to try it as of the time when it came, add --at"
        elif error.kind is RejectionKind.MISSING:
            bare = Admission(head=head, claims=None, proofs=frozenset(), body_limit=body.size)
            otherwise, why, event = _meant(adapter, adapter.believed(bare, body))
            reason += f"; with it the request would be {otherwise}{why and ': '}{why}"
        return "refused", reason, event
    return _meant(adapter, callback)


def _meant(adapter: PushProvider, callback: VerifiedCallback) -> tuple[str, str, dict[str, Any] | None]:
    try:
        return "accepted", "", _fields(adapter.normalize(callback))
    except MalformedCallback as error:
        return "parked", error.message, None
    except IgnoredCallback:
        return "ignored", "the settings say to ignore it", None


def _fields(draft: EventDraft) -> dict[str, Any]:
    """Return what the event would say; a result that is fetched later is a URL."""
    url = draft.remote.url if draft.remote else None
    bare = None if url is None else url.partition("?")[0] + ("?" + REDACTED.decode() if "?" in url else "")
    return {
        "type": draft.type,
        "job_id": draft.job_id,
        "ref": draft.ref,
        "text": draft.transcript.text if draft.transcript else None,
        "audio": draft.audio.content_type if draft.audio else None,
        "file": draft.file.content_type if draft.file else None,
        "fetched_from": bare,
        "error": draft.error.message if draft.error else None,
        "error_code": draft.error.code if draft.error else None,
        "idempotency_key": draft.idempotency_key,
        "provider_data": dict(draft.provider_data),
    }


# ---------------------------------------------------------------- a second look at what was refused

ACCEPTED = "accepted-by-operator"
"""The proof of a callback that nothing but an operator's word proves."""
_PATH = "/callbacks/"


async def verify_again(receiver: Receiver, rejection_id: str) -> dict[str, Any]:
    """Return what each proof says of a rejected request by today's settings, as of the time when it came.

    Raises `NotFound`, `UsageError`, `StoreUnavailable`.
    """
    provider, head, body = await _kept(receiver, rejection_id)
    try:
        return await receiver.intake.with_keys(provider, head, judged, provider, head, body)
    except Unavailable as error:
        raise StoreUnavailable(error.message) from None


async def accept_once(receiver: Receiver, rejection_id: str) -> Recorded:
    """Record a rejected request on an operator's word; once more, it is a duplicate.

    Raises `NotFound`, `UsageError`, `StoreUnavailable`.
    """
    provider, head, body = await _kept(receiver, rejection_id)
    claims = head.claims or receiver.tokens.read(head.token or "")
    if claims is None or claims.source != head.source:
        raise UsageError(
            "the token in its URL is not one of ours any more, so nobody can tell whose job it is"
        )
    if claims.unread:
        raise StoreUnavailable("the store could not tell what the URL's token stands for")
    admission = Admission(head=head, claims=claims, proofs=frozenset((ACCEPTED,)), body_limit=body.size)
    bare = MemoryBody(_bare(provider, head, body))
    try:
        return await receiver.intake.record_accepted(provider, provider.believed(admission, bare))
    except IgnoredCallback:
        raise UsageError("the settings say that such a callback is ignored: nothing was recorded") from None
    except Unavailable as error:
        raise StoreUnavailable(error.message) from None


async def kept_request(receiver: Receiver, rejection_id: str) -> tuple[Head, bytes]:
    """Return a rejected request's head, and its body as it may be shown.

    Raises `NotFound`, `UsageError`, `StoreUnavailable`.
    """
    provider, head, body = await _kept(receiver, rejection_id)
    return head, _bare(provider, head, body)


def _bare(provider: PushProvider, head: Head, body: MemoryBody) -> bytes:
    """Return the body without what came as its proof, which fits no secret of the settings: nothing else knows it for one."""
    return Redactor(provider.came_as_proof(head, body.load())).clean(body.load())


async def _kept(receiver: Receiver, rejection_id: str) -> tuple[PushProvider, Head, MemoryBody]:
    kept = await receiver.store.rejected_request(rejection_id)
    provider = receiver.ports.providers.get(kept.head.source)
    if provider is None:
        raise UsageError(f"no source is named {kept.head.source} any more")
    # Some providers sign the URL: that of today, as a wrong public_url may be why it was refused.
    _, path, rest = kept.head.url.partition(_PATH)
    head = replace(kept.head, url=public_base(receiver.settings) + path + rest)
    return provider, await receiver.intake.with_claims(head), MemoryBody(kept.body)
