"""What proves a request: Basic credentials, HMAC, and comparing in constant time.

A secret setting is a list: the last one signs, and each of them is accepted.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence


def same(left: str | bytes, right: str | bytes) -> bool:
    """Compare two strings in constant time, whatever characters they hold."""
    return hmac.compare_digest(_bytes(left), _bytes(right))


def matching_place(value: str | bytes, expected: Sequence[str | bytes]) -> int:
    """Compare `value` with every expected one, without stopping at a match; return the place of one that is the same.

    Places count from 1; 0 is none.
    """
    given, place = _bytes(value), 0
    for number, candidate in enumerate(expected, 1):
        place = number if hmac.compare_digest(given, _bytes(candidate)) else place
    return place


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")


def basic_credentials(header: str) -> str | None:
    """Return `user:password` from an `Authorization: Basic …` value, None when it is not one.

    The password may hold colons; the text is UTF-8, or latin-1 where it is not valid UTF-8.
    """
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        raw = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return text if ":" in text else None


def hmac_sha256_hex(secret: str, message: bytes) -> str:
    """Return the lower-case hex HMAC-SHA256 of `message` under the secret's UTF-8 bytes."""
    return hmac.digest(secret.encode(), message, "sha256").hex()
