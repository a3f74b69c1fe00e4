"""Golden requests: raw bytes of callbacks with what they must lead to. Parsed here, for every suite that replays them.

A case is a folder `tests/golden/<provider>/<case>/`:

- `request.http`: the request as it is sent, request line and headers (CRLF), an empty line, the body; without it, the example
  that ships with the source's recipe;
- `case.toml`: `received_at` (epoch milliseconds), `body` (a file under tests/golden that stands for the body), and
  `[source]`, settings that differ from the provider's `source.toml`;
- `expected.toml`: `[accepted]` with `[event]`, `[parked]`, or `[rejected]`;
- `origin.md`: where the case comes from.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from receiver.core.callback import Head
from receiver.core.proofs import hmac_sha256_hex
from receiver.core.tokens import CallbackTokens
from receiver.providers.custom.language import recipe_example
from receiver.settings.load import parse
from receiver.settings.model import SourceSettings

ROOT = Path(__file__).parent.parent / "golden"
PUBLIC_URL = "https://hooks.example.com"
"""Where the golden requests were sent to: some providers sign it."""
TOKEN_SECRETS = ("golden-token-secret-0123456789",)
"""Made the tokens in the golden paths: a receiver that replays them needs this in [tokens] secrets."""


@dataclass(frozen=True)
class Request:
    """One HTTP request, as bytes that were sent."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    """As written in the file; no Host, no Content-Length: the client that replays adds its own."""
    body: bytes

    @property
    def source(self) -> str:
        """The source that the path names."""
        return self._path.split("/")[2]

    @property
    def _path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def token(self) -> str | None:
        """The callback token in the path, if any."""
        parts = self._path.split("/")
        return parts[3] if len(parts) > 3 else None

    def head(self, received_at: int) -> Head:
        """Return the head as the web layer would hand it over."""
        headers = tuple((name.lower(), value) for name, value in self.headers)
        return Head(
            source=self.source,
            method=self.method,
            headers=headers,
            token=self.token,
            received_at=received_at,
            query=self.target.partition("?")[2],
            url=PUBLIC_URL + self.target,
        )

    def without(self, name: str) -> Request:
        """Return the request without a header (lower case)."""
        return replace(self, headers=tuple(pair for pair in self.headers if pair[0].lower() != name))

    def with_header(self, name: str, value: str) -> Request:
        """Return the request with one more header line."""
        return replace(self, headers=(*self.headers, (name, value)))

    def value(self, name: str) -> str:
        """Return the value of a header (lower case) that is there."""
        return next(value for key, value in self.headers if key.lower() == name)


@dataclass(frozen=True)
class Case:
    """One golden case."""

    provider: str
    name: str
    received_at: int
    settings: Mapping[str, Any]
    """The [sources.NAME] table."""
    request: Request
    expected: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """`accepted`, `parked` or `rejected`."""
        return next(word for word in ("accepted", "parked", "rejected") if word in self.expected)

    @property
    def source(self) -> SourceSettings:
        """The source's settings, checked as those of a file are."""
        return source_settings(self.request.source, self.settings)

    def fresh_request(self, now: int) -> Request:
        """Return the request to send at `now` (epoch milliseconds): a signature made over a time is made anew.

        Only for accepted and parked cases; a rejected one would lose what is wrong with it.
        """
        stamp = "x-deapi-timestamp"
        if not any(name.lower() == stamp for name, _ in self.request.headers):
            return self.request
        if self.request.token and "job_secret" in self.expected.get("accepted", {}):
            secret = tokens().job_secrets(self.request.token)[0]
        else:
            secret = self.settings["secrets"][-1]
        seconds = str(now // 1000)
        signature = hmac_sha256_hex(secret, seconds.encode() + b"." + self.request.body)
        bare = self.request.without(stamp).without("x-deapi-signature")
        return bare.with_header("X-DeAPI-Timestamp", seconds).with_header(
            "X-DeAPI-Signature", f"sha256={signature}"
        )


def tokens() -> CallbackTokens:
    """Return the maker of the golden paths' tokens."""
    return CallbackTokens(TOKEN_SECRETS)


def source_settings(name: str, table: Mapping[str, Any]) -> SourceSettings:
    """Return the settings of one [sources.NAME] table."""
    lines = [f"[sources.{name}]", *(f"{key} = {toml_value(value)}" for key, value in table.items())]
    return parse("\n".join(lines), {}, _no_files).sources[name]


def _no_files(path: str) -> str:
    raise FileNotFoundError(path)


def toml_value(value: Any) -> str:
    """Return a setting as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        return '"' + "".join(c if c.isalnum() else f"\\U{ord(c):08x}" for c in value) + '"'
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {toml_value(item)}' for key, item in value.items())}}}"
    return str(value)


def parse_request(raw: bytes, body: bytes | None = None) -> Request:
    """Return the request that `raw` spells; `body` stands for one kept in another file."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    pairs = (line.partition(":") for line in lines)
    headers = tuple((name.strip(), value.strip()) for name, _, value in pairs)
    return Request(method=method, target=target, headers=headers, body=rest if body is None else body)


def load_case(folder: Path) -> Case:
    """Return the case in a folder."""
    provider = folder.parent.name
    given = tomllib.loads((folder / "case.toml").read_text("utf-8"))
    common = tomllib.loads((folder.parent / "source.toml").read_text("utf-8"))
    body = (ROOT / given["body"]).read_bytes() if "body" in given else None
    own, file = given.get("source", {}), folder / "request.http"
    raw = file.read_bytes() if file.exists() else recipe_example(own["recipe"])
    return Case(
        provider=provider,
        name=folder.name,
        received_at=given["received_at"],
        settings=own if own.pop("instead", False) else {**common, **own},
        request=parse_request(raw, body),
        expected=tomllib.loads((folder / "expected.toml").read_text("utf-8")),
    )


@cache
def cases(provider: str | None = None) -> tuple[Case, ...]:
    """Return every golden case, or those of one provider, by name."""
    folders = sorted(path.parent for path in ROOT.glob(f"{provider or '*'}/*/case.toml"))
    return tuple(load_case(folder) for folder in folders)
