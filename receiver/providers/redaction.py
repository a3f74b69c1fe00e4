"""Taking known secrets out of bytes that are kept (floor 3, shared by the adapters)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from receiver.providers.jsonbody import encode

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


_SIGNED = re.compile(r"(https?://[^\s\"'<>?#]*)\?[^\s\"'<>]*", re.IGNORECASE)
"""A link with a query, alone or within a text."""


def unsigned(value: Any) -> Any:
    """Return a decoded document whose links have lost their queries, where storage puts its signatures.

    A link that still works lets anybody have the result who has the event. Without such links, `value` itself is returned.
    """
    if isinstance(value, str):
        return _SIGNED.sub(rf"\1?{REDACTED.decode()}", value) if "?" in value and "://" in value else value
    if isinstance(value, dict):
        fields = {key: unsigned(item) for key, item in value.items()}
        return fields if any(fields[key] is not item for key, item in value.items()) else value
    if isinstance(value, list):
        items = [unsigned(item) for item in value]
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    return value


class Redactor:
    """Replaces secrets in bytes, as they are and in every spelling that JSON allows."""

    def __init__(self, secrets: Iterable[str]) -> None:
        kept = sorted({secret for secret in secrets if len(secret) >= _SHORTEST}, key=len, reverse=True)
        self._canonical = tuple(encode(secret)[1:-1] for secret in kept)
        self._plain = tuple(secret.encode("utf-8", "surrogatepass") for secret in kept)
        self._spelled = re.compile(b"|".join(map(_spellings, kept))) if kept else None

    def clean(self, raw: bytes, token: str | None = None) -> bytes:
        """Return `raw` with every secret, and the callback token it came with, replaced by `[redacted]`."""
        if self._spelled is not None and (b"\\" in raw or any(secret in raw for secret in self._plain)):
            raw = self._spelled.sub(REDACTED, raw)
        return raw.replace(token.encode(), REDACTED) if token else raw

    def clean_document(self, document: Any, raw: bytes, token: str | None = None) -> bytes:
        """Do the same for a decoded document and its bytes; returns `raw` itself when it holds no secret.

        Long documents are common and secrets in them are not, so nothing but a plain search is spent on most.
        """
        wanted = (*self._canonical, token.encode()) if token else self._canonical
        if not wanted:
            return raw
        canonical = encode(document) if b"\\" in raw else raw
        if not any(secret in canonical for secret in wanted):
            return raw
        return self.clean(canonical, token)


def _spellings(secret: str) -> bytes:
    """Return a pattern of every way to write `secret` inside a JSON string, the plain one included."""
    return b"".join(map(_spellings_of_char, secret))


def _spellings_of_char(char: str) -> bytes:
    plain = char.encode("utf-8", "surrogatepass")
    units = char.encode("utf-16-be", "surrogatepass")
    escaped = "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
    ways = [re.escape(plain), b"(?i:" + re.escape(escaped.encode()) + b")"]
    if char in _SHORT_ESCAPES:
        ways.append(re.escape(_SHORT_ESCAPES[char].encode()))
    return b"(?:" + b"|".join(ways) + b")"
