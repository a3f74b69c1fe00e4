"""The callback token in the path, checked the same way for every provider."""

from __future__ import annotations

from receiver.core.callback import Head, TokenClaims, VerifiedCallback
from receiver.core.errors import CallbackRejected, WrongSource
from receiver.core.signing import CallbackTokens


def check_token(tokens: CallbackTokens, source: str, head: Head, *, required: bool) -> TokenClaims | None:
    """Return what the path's token says, None when there is none and none is required.

    A token that is there must be ours, made for this source and not expired, whether required or not. Raises
    `CallbackRejected`, or `WrongSource` for a token of another source.
    """
    if not head.token:
        if required:
            raise CallbackRejected(
                "the callback URL carries no token: make one with `receiver callback-url`",
                setting=f"sources.{source}.require_token",
            )
        return None
    claims = tokens.read(head.token)
    if claims is None:
        raise CallbackRejected(
            "the token in the callback URL is not one of ours, or was signed with a secret that is gone",
            setting="tokens.secrets",
        )
    if claims.source != source:
        raise WrongSource(setting=f"sources.{source}")
    if claims.expires_at is not None and head.received_at >= claims.expires_at:
        raise CallbackRejected("the token in the callback URL has expired: hand out URLs that last longer")
    return claims


def content_key(callback: VerifiedCallback) -> str:
    """Return the idempotency key of a callback without an id of its own: the token, if any, and a hash of the body."""
    digest = callback.body.sha256
    return f"token:{callback.claims.token_id}:{digest}" if callback.claims else f"sha256:{digest}"
