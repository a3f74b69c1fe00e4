"""The tokens in URLs that receiver issues: callback URLs, and links to stored objects. Letters and digits only.

A callback token holds its claims, or is a short one, whose claims are a row of the store. Both prove themselves.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets as random
from collections.abc import Sequence
from typing import Any

import msgspec
from itsdangerous import Signer

from receiver.core.callback import TokenClaims

_MAC_BYTES = 32
_CALLBACK_SALT = "receiver.callback-token"
_OBJECT_SALT = "receiver.object-link"
_MAX_TOKEN = 2048
"""Characters; a longer one is no token of ours, and is not decoded."""
SHORT_CHARS = 40
"""Characters of a short token: Soniox takes URLs of 256 at most (the API's schema of `webhook_url`, https://soniox.com/docs)."""
_SHORT_ID, _SHORT_MAC = 10, 15
"""Bytes of a short token: of its id, whose first byte holds the flags, and of what proves it."""
_HAS_JOB_SECRET = 1
_REMEMBERED = 1024
"""Tokens that were read lately and need not be checked again."""


class _AlnumSigner:
    """itsdangerous signatures over bytes, spelled in letters and digits (Deepgram refuses underscores)."""

    def __init__(self, secrets: Sequence[str], salt: str, signing: int | None) -> None:
        self._signers = [
            Signer(secret, salt=salt, key_derivation="hmac", digest_method=hashlib.sha256)
            for secret in secrets
        ]
        self._signing = self._signers[(signing or len(secrets)) - 1]

    def sign(self, payload: bytes) -> str:
        mac = base64.urlsafe_b64decode(self._signing.get_signature(payload) + b"=")
        return base64.b32encode(payload + mac).decode().rstrip("=").lower()

    def unsign(self, token: str) -> tuple[bytes, int] | None:
        """Return what was signed, and the place of the secret that did it, counted from 1."""
        if not token or len(token) > _MAX_TOKEN or not token.isascii() or not token.isalnum():
            return None
        try:
            raw = base64.b32decode(token.upper() + "=" * (-len(token) % 8))
        except binascii.Error:
            return None
        payload, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        signature = base64.urlsafe_b64encode(mac).rstrip(b"=")
        for place, signer in enumerate(self._signers, 1):
            if signer.verify_signature(payload, signature):
                return payload, place
        return None


class CallbackTokens:
    """Makes and reads the token of a callback URL: it proves that receiver issued the URL, and tells which job it is."""

    def __init__(self, secrets: Sequence[str], signing: int | None = None) -> None:
        """Any of `secrets` is accepted. `signing` is the place of the one that signs, counted from 1; None is the last."""
        if not secrets:
            raise ValueError("callback tokens need at least one secret")
        first = secrets[(signing or len(secrets)) - 1]
        self._secrets = (first, *(secret for secret in reversed(secrets) if secret != first))
        self._places = {secret: place for place, secret in enumerate(secrets, 1)}
        self._signer = _AlnumSigner(secrets, _CALLBACK_SALT, signing)
        self._seen: dict[str, TokenClaims] = {}

    def issue(
        self,
        source: str,
        *,
        ref: str | None = None,
        format: dict[str, Any] | None = None,
        expires_at: int | None = None,
        job_secret: bool = False,
        expect_by: int | None = None,
        now: int | None = None,
    ) -> str:
        """Return a new token; `expires_at` in epoch milliseconds, None for one that stays; `expect_by` and `now` likewise."""
        fields: dict[str, Any] = {"s": source, "i": random.token_hex(8)}
        if ref is not None:
            fields["r"] = ref
        if format:
            fields["f"] = format
        if expires_at is not None:
            fields["x"] = expires_at
        if job_secret:
            fields["j"] = 1
        if expect_by is not None:
            fields["e"] = expect_by
        if now is not None:
            fields["t"] = now // 1000
        return self._signer.sign(msgspec.json.encode(fields))

    def issue_short(
        self,
        source: str,
        *,
        expires_at: int,
        ref: str | None = None,
        format: dict[str, Any] | None = None,
        job_secret: bool = False,
        expect_by: int | None = None,
        now: int | None = None,
    ) -> tuple[str, TokenClaims]:
        """Return a new short token, and its claims: these are to be stored before the token is given to anybody."""
        token_id = bytes((_HAS_JOB_SECRET if job_secret else 0,)) + random.token_bytes(_SHORT_ID - 1)
        mac = _short_mac(self._secrets[0], source, token_id)
        token = base64.b32encode(token_id + mac).decode().lower()
        claims = TokenClaims(
            source=source,
            token_id=token_id.hex(),
            ref=ref,
            format=format or {},
            issued_at=None if now is None else now // 1000 * 1000,
            expires_at=expires_at,
            job_secret=job_secret,
            expect_by=expect_by,
        )
        return token, claims

    def read_short(self, source: str, token: str) -> TokenClaims | None:
        """Return what a short token says by itself: that we made it for `source`. None when it is another text."""
        if len(token) != SHORT_CHARS or not token.isascii() or not token.isalnum():
            return None
        try:
            raw = base64.b32decode(token.upper())
        except binascii.Error:
            return None
        token_id, mac = raw[:_SHORT_ID], raw[_SHORT_ID:]
        for secret in self._secrets:
            if hmac.compare_digest(mac, _short_mac(secret, source, token_id)):
                has_job_secret = bool(token_id[0] & _HAS_JOB_SECRET)
                return TokenClaims(
                    source=source,
                    token_id=token_id.hex(),
                    job_secret=has_job_secret,
                    secret=self._places[secret],
                    unread=True,
                )
        return None

    def read(self, token: str) -> TokenClaims | None:
        """Return what a token says, None when we did not make it. Expiry is left to the caller."""
        claims = self._seen.get(token)
        if claims is None:
            found = self._signer.unsign(token)
            if found is None:
                return None
            claims = _claims(*found)
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            self._seen[token] = claims
        return claims

    def job_secrets(self, token: str) -> list[str]:
        """Return the webhook secrets derived from a token (64 hex digits), one for each of ours: first by the one that signs."""
        return [
            hmac.digest(secret.encode(), b"receiver.job-secret." + token.encode(), "sha256").hex()
            for secret in self._secrets
        ]


def _claims(payload: bytes, secret: int) -> TokenClaims:
    fields = msgspec.json.decode(payload)
    return TokenClaims(
        source=fields["s"],
        token_id=fields["i"],
        ref=fields.get("r"),
        format=fields.get("f", {}),
        issued_at=fields["t"] * 1000 if "t" in fields else None,
        expires_at=fields.get("x"),
        job_secret=bool(fields.get("j")),
        expect_by=fields.get("e"),
        secret=secret,
    )


def _short_mac(secret: str, source: str, token_id: bytes) -> bytes:
    message = b"receiver.short-token." + source.encode() + b"." + token_id
    return hmac.digest(secret.encode(), message, "sha256")[:_SHORT_MAC]


class ObjectLinks:
    """Makes and reads the token of a link to a locally stored object."""

    def __init__(self, secrets: Sequence[str], signing: int | None = None) -> None:
        """As for `CallbackTokens`."""
        self._signer = _AlnumSigner(secrets, _OBJECT_SALT, signing)

    def issue(self, key: str, *, content_type: str, expires_at: int) -> str:
        """Return a token for the object `key`, good until `expires_at` (epoch milliseconds)."""
        return self._signer.sign(msgspec.json.encode([key, content_type, expires_at]))

    def read(self, token: str) -> tuple[str, str, int] | None:
        """Return key, content type and expiry, None when we did not make the token."""
        found = self._signer.unsign(token)
        if found is None:
            return None
        key, content_type, expires_at = msgspec.json.decode(found[0])
        return key, content_type, expires_at
