"""A second look at a refused request: see it, verify it again with today's settings, or accept it once.

Only requests with a callback token of receiver's are kept for this, for a day. An accepted one is recorded like every
callback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from receiver.app.trial import judged
from receiver.core.callback import Admission, Head, MemoryBody
from receiver.core.errors import IgnoredCallback, StoreUnavailable, Unavailable, UsageError
from receiver.core.redaction import Redactor
from receiver.settings.load import public_base

if TYPE_CHECKING:
    from receiver.app.wiring import Receiver
    from receiver.core.event import Recorded
    from receiver.providers import PushProvider

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
