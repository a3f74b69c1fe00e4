"""A source that settings describe, and what it says of a request: for tests without a running receiver."""

from __future__ import annotations

import json
from typing import Any

from receiver.core.callback import Head, MemoryBody
from receiver.core.errors import CallbackRejected, MalformedCallback
from receiver.core.event import EventDraft
from receiver.providers.custom import CustomProvider
from receiver.settings.model import SourceSettings
from tests.support.golden import tokens

NOW = 1_705_315_845_000
SECRET = "example-secret-0123456789abcdef"
EVENT = {"family": "speech", "job": "id"}
SAME = {"kind": "same", "at": "header:x-secret"}


def source(**options: Any) -> CustomProvider:
    """Return a source; without options of these names it has a shared secret in a header, and takes speech."""
    table = {"secrets": [SECRET], "proof": [SAME], "event": EVENT, "require_token": False} | options
    return CustomProvider.create(
        SourceSettings.model_validate({"name": "x", "provider": "custom", **table}), tokens()
    )


def head(
    *headers: tuple[str, str],
    query: str = "",
    method: str = "POST",
    peer: str | None = None,
    token: str | None = None,
    now: int = NOW,
) -> Head:
    """Return a head with these headers; a secret header is there when none is named so."""
    lines = tuple((name.lower(), value) for name, value in headers)
    if not any(name == "x-secret" for name, _ in lines):
        lines = (*lines, ("x-secret", SECRET))
    path = f"/callbacks/x{'/' if token else ''}{token or ''}"
    url = f"https://hooks.example.com{path}{'?' if query else ''}{query}"
    return Head(
        source="x",
        method=method,
        headers=lines,
        token=token,
        received_at=now,
        query=query,
        url=url,
        peer=peer,
    )


def verdict(made: CustomProvider, head: Head, body: bytes | dict[str, Any]) -> EventDraft | str:
    """Return the draft of a request; else `refused: …` or `parked: …` with the reason."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        callback = made.verify(made.admit(head), MemoryBody(raw))
    except CallbackRejected as error:
        return f"refused: {error.message}"
    try:
        return made.normalize(callback)
    except MalformedCallback as error:
        return f"parked: {error.message}"
