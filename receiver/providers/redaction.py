"""Taking known secrets out of bytes that are kept (floor 3, shared by the adapters)."""

from __future__ import annotations

import re
from collections.abc import Iterable

REDACTED = b"[redacted]"
_SHORTEST = 4
"""Shorter values are left alone: they would be found in any text."""
_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class Redactor:
    """Replaces secrets in bytes, as they are and in every spelling that JSON allows."""

    def __init__(self, secrets: Iterable[str]) -> None:
        kept = sorted({secret for secret in secrets if len(secret) >= _SHORTEST}, key=len, reverse=True)
        self._plain = tuple(secret.encode("utf-8", "surrogateescape") for secret in kept)
        self._spelled = re.compile(b"|".join(map(_spellings, kept))) if kept else None

    def clean(self, raw: bytes) -> bytes:
        """Return `raw` with every secret replaced by `[redacted]`."""
        if self._spelled is None or not self.may_hold(raw):
            return raw
        return self._spelled.sub(REDACTED, raw)

    def may_hold(self, raw: bytes) -> bool:
        """Tell cheaply whether `clean` could change anything: a secret is there, or escapes that may spell one."""
        if not self._plain:
            return False
        return b"\\" in raw or any(secret in raw for secret in self._plain)


def _spellings(secret: str) -> bytes:
    """Return a pattern of every way to write `secret` inside a JSON string, the plain one included."""
    return b"".join(map(_spellings_of_char, secret))


def _spellings_of_char(char: str) -> bytes:
    plain = char.encode("utf-8", "surrogateescape")
    units = char.encode("utf-16-be", "surrogatepass")
    escaped = "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
    ways = [re.escape(plain), b"(?i:" + re.escape(escaped.encode()) + b")"]
    if char in _SHORT_ESCAPES:
        ways.append(re.escape(_SHORT_ESCAPES[char].encode()))
    return b"(?:" + b"|".join(ways) + b")"
