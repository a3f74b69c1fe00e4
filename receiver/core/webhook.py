"""Standard Webhooks 1.0.0: how an event is signed, and how whoever takes it checks the signature.

Secrets are `whsec_…` (HMAC-SHA256, signatures `v1`) or key pairs (Ed25519, signatures `v1a`): `whsk_…` signs, and whoever takes
events needs only `whpk_…`. An application in Python may import `verify` from here.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, cast

from receiver.core.proofs import matching_place

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

TOLERANCE_SECONDS = 300
"""How far a signature's time may be from the clock, after the specification."""
SigningKey: TypeAlias = "bytes | Ed25519PrivateKey"
"""What a secret signs with: the bytes of a shared secret, or a private key."""


def webhook_key(secret: str) -> SigningKey:
    """Return the key of a `whsec_…` or `whsk_…` secret. Raises `ValueError` with what to do."""
    if secret.startswith("whsk_"):
        key = _decoded(secret.removeprefix("whsk_"))
        if key is None or len(key) not in {32, 64}:
            raise ValueError(
                "a destination's private key is whsk_ followed by base64 of 32 or 64 bytes (Ed25519)"
            )
        # Only here, as it takes 6 MB and a fiftieth of a start, and few destinations have key pairs.
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(key[:32])
    key = _decoded(secret.removeprefix("whsec_"))
    if key is None:
        raise ValueError("a destination's secret is whsec_ followed by base64 of 24 to 64 bytes")
    if not 24 <= len(key) <= 64:
        raise ValueError(
            f"a destination's secret holds 24 to 64 bytes after whsec_; this one holds {len(key)}"
        )
    return key


def _decoded(text: str) -> bytes | None:
    encoded = text.rstrip("=")
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def new_webhook_secret(*, pair: bool = False) -> str:
    """Return a fresh secret of 32 random bytes: `whsec_…`, or for a `pair` its private key `whsk_…`."""
    return ("whsk_" if pair else "whsec_") + base64.b64encode(secrets.token_bytes(32)).decode()


def public_key(private: str) -> str:
    """Return the public key `whpk_…` of a private key `whsk_…`: what an application checks with. Raises `ValueError`."""
    if not private.startswith("whsk_"):
        raise ValueError("only a private key, whsk_…, has a public one")
    key = cast("Ed25519PrivateKey", webhook_key(private))
    return "whpk_" + base64.b64encode(key.public_key().public_bytes_raw()).decode()


def _signature(key: SigningKey, signed: bytes) -> str:
    if isinstance(key, bytes):
        return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    return "v1a," + base64.b64encode(key.sign(signed)).decode()


def sign(keys: Sequence[SigningKey], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the Standard Webhooks headers of a message; `timestamp` in seconds; one signature for each key, if any."""
    headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp)}
    if keys:  # an empty signature would only confuse
        signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
        headers["webhook-signature"] = " ".join([_signature(key, signed) for key in keys])
    return headers


def verify(secret: str, headers: Mapping[str, str], body: bytes, *, now: float) -> bool:
    """Tell whether `body` was signed within five minutes of `now` (epoch seconds).

    `secret` is the shared `whsec_…`, or the public key `whpk_…`. `headers` have names in lower case, or ignore case.
    """
    message_id, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not (message_id and stamp.isascii() and stamp.isdigit()) or abs(now - int(stamp)) > TOLERANCE_SECONDS:
        return False
    given = headers.get("webhook-signature", "").split()
    signed = b"%b.%d.%b" % (message_id.encode(), int(stamp), body)
    if secret.startswith("whpk_"):
        return any(
            _holds(secret, one.removeprefix("v1a,"), signed) for one in given if one.startswith("v1a,")
        )
    return matching_place(_signature(webhook_key(secret), signed), given) > 0


def _holds(public: str, signature: str, signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key, made = _decoded(public.removeprefix("whpk_")), _decoded(signature)
    if key is None or len(key) != 32:
        raise ValueError("a public key is whpk_ followed by base64 of 32 bytes (Ed25519)")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(made or b"", signed)
    except InvalidSignature:
        return False
    return True
