"""Redaction: removes known secrets from bytes that are stored or shown."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from functools import cache, cached_property
from typing import Any

import msgspec

REDACTED = b"[redacted]"
_SHORTEST = 6
"""Characters; shorter values are left alone: chance would find them in long texts and audio, and damage those."""
_SHORT_ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "/": "\\/",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}
_PERCENT = re.compile(rb"%[0-9A-Fa-f]{2}")


class Redactor:
    """Replaces secrets in bytes: plain, in every spelling that JSON allows, and percent-encoded.

    Callback tokens are replaced as well, known or not: each proves one callback URL.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        kept = sorted({secret for secret in secrets if len(secret) >= _SHORTEST}, key=len, reverse=True)
        self._kept = kept
        self._canonical = tuple(msgspec.json.encode(secret)[1:-1] for secret in kept)
        self._plain = tuple(secret.encode("utf-8", "surrogatepass") for secret in kept)

        self._hints = (b"\\", b"%", *(secret[:_SHORTEST] for secret in self._plain), *_TOKEN_STARTS)
        """One of them is in all bytes that hold a secret or a token."""

    @cached_property
    def _spelled(self) -> re.Pattern[bytes]:
        """Matches every secret in every spelling; compiled when first needed, as it takes long."""
        return re.compile(b"|".join(map(_spellings, self._kept)))

    def clean(self, raw: bytes) -> bytes:
        """Return `raw` with every secret and every callback token replaced by `[redacted]`."""
        if self._kept and (b"\\" in raw or self._may_be_in(raw, self._plain)):
            raw = self._spelled.sub(REDACTED, raw)
        if b"\\u" in raw or REDACTED in raw or _begins_a_token(raw):
            raw = _token().sub(REDACTED, raw)
        return raw

    def clean_start(self, raw: bytes) -> bytes:
        """Do the same for the beginning of something longer: a secret cut off by its end is replaced as well."""
        if not any(hint in raw for hint in self._hints):  # as in most answers of destinations
            return raw
        raw = self.clean(raw)
        for secret in self._plain:
            start = secret[:_SHORTEST]
            at = raw.find(start, max(len(raw) - len(secret) + 1, 0))
            while at >= 0:
                if secret.startswith(raw[at:]):
                    return raw[:at] + REDACTED
                at = raw.find(start, at + 1)
        return raw

    def clean_document(self, document: Any, raw: bytes) -> bytes:
        """Do the same for a decoded document and its bytes; returns `raw` itself when it holds no secret.

        Long documents are common and secrets in them are not, so most documents cost only a plain search.
        """
        canonical = msgspec.json.encode(document) if b"\\" in raw else raw
        if not (self._may_be_in(canonical, self._canonical) or _begins_a_token(canonical)):
            return raw
        cleaned = self.clean(canonical)
        return raw if cleaned == canonical else cleaned

    def _may_be_in(self, raw: bytes, secrets: tuple[bytes, ...]) -> bool:
        if not secrets:
            return False
        for secret in secrets:
            if secret in raw:
                return True
        return b"%" in raw and _PERCENT.search(raw) is not None


def _spellings(secret: str) -> bytes:
    """Return a pattern of every way to write `secret` in a JSON string or a URL, the plain one included."""
    return b"".join(map(_spellings_of_char, secret))


def _spellings_of_char(char: str) -> bytes:
    plain = char.encode("utf-8", "surrogatepass")
    units = char.encode("utf-16-be", "surrogatepass")
    escaped = "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
    quoted = "".join(f"%{byte:02x}" for byte in plain)
    ways = [re.escape(plain), *(b"(?i:" + re.escape(way.encode()) + b")" for way in (escaped, quoted))]
    if char in _SHORT_ESCAPES:
        ways.append(re.escape(_SHORT_ESCAPES[char].encode()))
    return b"(?:" + b"|".join(ways) + b")"


# ---------------------------------------------------------------- callback tokens, known by their shape

_TOKEN_START = base64.b32encode(b'{"s":"')[:9].decode().lower()
"""How each of them begins: what it says is JSON with the source first, and 9 characters of base32 are 45 bits of that."""
_TOKEN_STARTS = (_TOKEN_START.encode(), _TOKEN_START.upper().encode())
_TOKEN_REST = 55
"""Characters; with fewer it is no whole token, and more than half of its signature is missing."""


@cache
def _token() -> re.Pattern[bytes]:
    return re.compile(
        # In a body that is cleaned piece by piece, what a cut leaves of one follows the part that has gone.
        rb"(?i:%b(?:[a-z2-7]|%b){%d,})|\[redacted\][a-z2-7]+"
        % (_spellings(_TOKEN_START), rb"\\u00(?:[46][1-9a-f]|[57][0-9a]|3[2-7])", _TOKEN_REST)
    )


def _begins_a_token(raw: bytes) -> bool:
    lower, upper = _TOKEN_STARTS
    return lower in raw or upper in raw
