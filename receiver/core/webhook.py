"""Standard Webhooks 1.0.0: how an event is signed, and how whoever takes it checks the signature.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Mapping, Sequence

from receiver.core.proofs import same_as_any

TOLERANCE_SECONDS = 300
"""How far a signature's time may be from the clock, after the specification."""


def webhook_key(secret: str) -> bytes:
    """Return the key bytes of a `whsec_…` secret. Raises `ValueError` with what to do."""
    try:
        encoded = secret.removeprefix("whsec_").rstrip("=")
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a destination's secret is whsec_ followed by base64 of 24 to 64 bytes") from None
    if not 24 <= len(key) <= 64:
        raise ValueError(
            f"a destination's secret holds 24 to 64 bytes after whsec_; this one holds {len(key)}"
        )
    return key


def new_webhook_secret() -> str:
    """Return a fresh `whsec_…` secret of 32 random bytes."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def sign(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the three Standard Webhooks headers of a message; `timestamp` in seconds; one `v1` signature for each key."""
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    signatures = ("v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def verify(secret: str, headers: Mapping[str, str], body: bytes, *, now: float) -> bool:
    """Tell whether `body` was signed with `secret` (`whsec_…`) within five minutes of `now` (epoch seconds).

    `headers` have names in lower case, or ignore case.
    """
    message_id, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not (message_id and stamp.isascii() and stamp.isdigit()) or abs(now - int(stamp)) > TOLERANCE_SECONDS:
        return False
    expected = sign([webhook_key(secret)], message_id, int(stamp), body)["webhook-signature"]
    return same_as_any(expected, headers.get("webhook-signature", "").split())
