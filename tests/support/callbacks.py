"""Callbacks made in a test: proved the way a provider proves them, with any body and type."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from receiver.core.callback import Body, Head, MemoryBody, VerifiedCallback
from receiver.core.event import EventDraft
from receiver.core.proofs import hmac_sha256_hex
from receiver.providers import deapi, deepgram
from tests.support.golden import source_settings, tokens

NOW = 1795222923456
"""2026-11-21T01:02:03.456Z"""
PAIR = "caller:correct-horse"
BASIC = ("authorization", "Basic " + base64.b64encode(PAIR.encode()).decode())
DEAPI_SECRET = "deapi-account-secret-0123456789"


def deepgram_source(**options: Any) -> deepgram.DeepgramProvider:
    """Return a Deepgram source, proved by `PAIR` unless `options` say otherwise."""
    return deepgram.DeepgramProvider.create(
        source_settings("dg", {"provider": "deepgram", "basic": [PAIR]} | options), tokens()
    )


def deapi_source(**options: Any) -> deapi.DeapiProvider:
    """Return a deAPI source with `DEAPI_SECRET` unless `options` say otherwise."""
    return deapi.DeapiProvider.create(
        source_settings("da", {"provider": "deapi", "secrets": [DEAPI_SECRET]} | options), tokens()
    )


def deepgram_head(
    content_type: str | None = None, *headers: tuple[str, str], asked: Mapping[str, Any] | None = None
) -> Head:
    """Return a Deepgram head with right credentials; `asked` is the format in its token (None: no token)."""
    token = None if asked is None else tokens().issue("dg", ref="ref-1", format=dict(asked))
    typed = () if content_type is None else (("content-type", content_type),)
    return Head(source="dg", method="POST", headers=(BASIC, *typed, *headers), token=token, received_at=NOW)


def prove(
    source: deepgram.DeepgramProvider | deapi.DeapiProvider, head: Head, body: Body
) -> VerifiedCallback:
    """Admit and verify."""
    return source.verify(source.admit(head), body)


def deepgram_draft(
    body: bytes,
    content_type: str | None = None,
    *headers: tuple[str, str],
    asked: Mapping[str, Any] | None = None,
    **options: Any,
) -> EventDraft:
    """Return the draft of one proved Deepgram callback."""
    source = deepgram_source(**options)
    return source.normalize(
        prove(source, deepgram_head(content_type, *headers, asked=asked), MemoryBody(body))
    )


def deapi_head(
    body: bytes, *, secret: str = DEAPI_SECRET, token: str | None = None, stamp: int = NOW // 1000
) -> Head:
    """Return a deAPI head, signed over `body`."""
    signature = hmac_sha256_hex(secret, str(stamp).encode() + b"." + body)
    headers = (
        ("content-type", "application/json"),
        ("x-deapi-timestamp", str(stamp)),
        ("x-deapi-signature", f"sha256={signature}"),
    )
    return Head(source="da", method="POST", headers=headers, token=token, received_at=NOW)


def deapi_draft(body: bytes, **options: Any) -> EventDraft:
    """Return the draft of one proved deAPI callback."""
    source = deapi_source(**options)
    return source.normalize(prove(source, deapi_head(body), MemoryBody(body)))
