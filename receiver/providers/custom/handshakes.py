"""Handshakes, `[[handshake]]`: questions by which a provider finds out that a callback URL is ours. Answered, never stored."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec.structs import replace
from pydantic import Field, model_validator

from receiver.core.callback import Reply
from receiver.core.errors import CallbackRejected
from receiver.providers.proofs.request import At, Request, Words, as_text
from receiver.providers.toolkit import Hosts, https_at
from receiver.settings.model import Section

MAX_ECHO = 1024
"""Characters that are echoed, at most."""
_OK = Reply(body=b'{"status":"ok"}', content_type="application/json")
Method = Literal["GET", "POST", "PUT", "OPTIONS"]


_NEEDED = {
    "echo": ("value",),
    "hmac-echo": ("value",),
    "confirm-get": ("value", "hosts"),
    "ping": ("when",),
}


class When(Section):
    """`when`: which requests are handshakes."""

    at: At
    """Where the word is."""
    is_: Words = Field((), alias="is")
    """Words; without any it is enough that the value is there."""


class Handshake(Section):
    """`[[handshake]]`: a question that is answered and never stored."""

    kind: Literal["echo", "hmac-echo", "options", "ping", "confirm-get"]
    """What is answered: the value, its HMAC-SHA256 under the newest secret, what a browser asks before a POST, or nothing but 200; `confirm-get` fetches the URL that the value is, then answers 200."""
    methods: tuple[Method, ...] = ()
    """Without any: OPTIONS for `options`; for the others POST, PUT and, where no proof is needed, GET."""
    when: When | None = None
    """Without it, a request with `value` is one; `options` is any request of its method."""
    value: At | None = None
    """What is echoed; for `confirm-get`, where the URL is."""
    hosts: Hosts = ()
    """`confirm-get`: hosts that may be fetched from, by https, each with all below it."""
    signed: bool = False
    """True: only a request that was proved is answered. `hmac-echo` is always so: an HMAC for anybody's value would sign callbacks. `confirm-get` as well."""
    answer_field: str = ""
    """The field of a JSON answer; without it the answer is plain text."""
    echo_field: str = ""
    """`hmac-echo`: the field of the answer that holds the value itself."""
    answer_prefix: str = ""
    """`hmac-echo`: what stands before the HMAC."""
    encoding: Literal["hex", "base64"] = "hex"
    """`hmac-echo`: how the HMAC is spelled."""
    allow_origin: str = ""
    """`options`: what `Access-Control-Allow-Origin` and `WebHook-Allowed-Origin` say."""

    @model_validator(mode="after")
    def _complete(self) -> Handshake:
        for name in _NEEDED.get(self.kind, ()):
            if not getattr(self, name):
                raise ValueError(f'kind = "{self.kind}" needs {name}')
        return self

    @property
    def needs_proof(self) -> bool:
        """True when only a request that was proved is answered."""
        return self.signed or self.kind in ("hmac-echo", "confirm-get")

    @property
    def taken_methods(self) -> Sequence[str]:
        """The methods by which it comes."""
        if self.methods or self.kind == "options":
            return self.methods or ("OPTIONS",)
        return ("POST", "PUT") if self.needs_proof else ("POST", "PUT", "GET")

    def answer(self, request: Request, secret: str | None) -> Reply | None:
        """Return the answer, None when the request is no such handshake. `secret` signs it."""
        if request.head.method not in self.taken_methods:
            return None
        try:
            value = as_text(self.value.value(request)) if self.value is not None else None
            word = as_text(self.when.at.value(request)) if self.when is not None else None
        except CallbackRejected:
            return None
        if self.when is not None and (word is None or (self.when.is_ and word not in self.when.is_)):
            return None
        if self.kind == "options":
            return _options(self.allow_origin)
        if self.kind == "ping":
            return _OK
        if not value or len(value) > MAX_ECHO or not value.isprintable():
            return None
        if self.kind == "confirm-get":
            return replace(_OK, confirm=value) if https_at(value, self.hosts) else None
        return self._echo(value, secret)

    def _echo(self, value: str, secret: str | None) -> Reply | None:
        answer: dict[str, Any] = {}
        if self.kind == "hmac-echo":
            if secret is None:
                return None
            digest = hmac.digest(secret.encode(), value.encode(), "sha256")
            if self.echo_field:
                answer[self.echo_field] = value
            value = self.answer_prefix + (
                digest.hex() if self.encoding == "hex" else base64.b64encode(digest).decode()
            )
        if not self.answer_field:
            return Reply(body=value.encode(), content_type="text/plain; charset=utf-8")
        answer[self.answer_field] = value
        return Reply(body=msgspec.json.encode(answer), content_type="application/json")


def _options(origin: str) -> Reply:
    headers = {"allow": "POST, PUT, OPTIONS"}
    if origin:
        headers |= {
            "access-control-allow-origin": origin,
            "access-control-allow-methods": "POST, PUT, OPTIONS",
            "access-control-allow-headers": "content-type",
            "webhook-allowed-origin": origin,
        }
    return Reply(body=b"", content_type="text/plain; charset=utf-8", headers=headers)
