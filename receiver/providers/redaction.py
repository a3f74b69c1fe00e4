"""What of a provider's words may be kept and shown (floor 3, shared by the adapters): no secret, no link that still works.

Storage puts its signatures into the queries of its links. Who has such a link has the result.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

from receiver.core.errors import MalformedCallback
from receiver.core.redaction import REDACTED, Redactor
from receiver.providers.jsonbody import decode_object, encode, printable

# A link is matched whole, with its query or without: a long run of beginnings of links is read once, not once for each.
_LINK = re.compile(r"(https?://[^\s\"'<>?#]*+)(\?[^\s\"'<>]*+)?", re.IGNORECASE)
"""A link, alone or within a text, and its query."""
_SPELLED_LINK = re.compile(
    rb"""(https?:(?:\\?/){2}(?:[^\s"'<>?#\\]|\\/|\\u(?!003f)[0-9a-f]{4})*+)"""
    rb"""((?:\?|\\u003f)(?:[^\s"'<>\\]|\\/|\\u[0-9a-f]{4})*+)?""",
    re.IGNORECASE,
)
"""The same in bytes that may be JSON, where slashes and others may be escaped."""


def unsigned(value: Any) -> Any:
    """Return a decoded document whose links have lost their queries.

    Without such links, `value` itself is returned.
    """
    if isinstance(value, str):
        return _LINK.sub(_without_query, value) if "?" in value and "://" in value else value
    if isinstance(value, dict):
        fields = {key: unsigned(item) for key, item in value.items()}
        return fields if any(fields[key] is not item for key, item in value.items()) else value
    if isinstance(value, list):
        items = [unsigned(item) for item in value]
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    return value


def _without_query(found: re.Match[str]) -> str:
    return found[0] if found[2] is None else f"{found[1]}?{REDACTED.decode()}"


def unsigned_bytes(raw: bytes) -> bytes:
    """Do the same for bytes of which nothing is known; what is JSON stays JSON."""
    return _SPELLED_LINK.sub(_without_spelled_query, raw) if b"?" in raw or b"\\u003" in raw else raw


def _without_spelled_query(found: re.Match[bytes]) -> bytes:
    return found[0] if found[2] is None else found[1] + b"?" + REDACTED


def redacted(redactor: Redactor, body: bytes) -> bytes:
    """Return a body that was not understood as it may be kept, whatever it is."""
    # Decoded, no spelling hides anything; what cannot be decoded is searched as the bytes it is.
    with contextlib.suppress(MalformedCallback):
        document = decode_object(body)
        kept = redactor.clean_document(document, body)
        clean = document if kept is body else decode_object(kept)
        bare = unsigned(clean)
        body = kept if bare is clean else encode(bare)
    return unsigned_bytes(redactor.clean(body))


def shown(redactor: Redactor, words: str, limit: int) -> str:
    """Return a provider's words as a message may show them: printable, and cut to `limit` when nothing is left to hide.

    Cut before that, they could end within a secret, whose beginning nobody would find.
    """
    clean = redactor.clean(printable(words, len(words)).encode("utf-8", "replace")).decode("utf-8", "replace")
    return _LINK.sub(_without_query, clean)[:limit]
