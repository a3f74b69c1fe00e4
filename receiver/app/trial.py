"""A dry run of a request to a source: the event that it would become, and the result of each proof. Nothing is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from receiver.core.callback import Admission
from receiver.core.errors import CallbackRejected, IgnoredCallback, MalformedCallback, RejectionKind
from receiver.core.redaction import REDACTED

if TYPE_CHECKING:
    from receiver.core.callback import Head, MemoryBody, VerifiedCallback
    from receiver.core.event import EventDraft
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
