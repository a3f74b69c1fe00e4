"""What several adapters need: secrets, URLs of APIs and of jobs, failed attempts, redaction, audio types."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr

from receiver.core.callback import VerifiedCallback
from receiver.core.errors import MalformedCallback
from receiver.core.event import AudioDraft
from receiver.core.fetch import Failed, FetchResponse
from receiver.core.redaction import REDACTED, Redactor
from receiver.core.urls import OWN_PORTS, port_of
from receiver.core.work import OutcomeKind
from receiver.providers.documents import decode_object, encode, printable
from receiver.system.audio.formats import (
    MEDIA_TYPES,
    RAW_CODECS,
    RAW_MEDIA_TYPES,
    Format,
    sniff,
)


def _as_list(value: Any) -> Any:
    """Take one value for a list of one, and digits (an environment value is read as TOML) for text."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    return [str(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in items]


def _not_empty(value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    if any(not secret.get_secret_value() for secret in value):
        raise ValueError("an empty value would let everybody in: write the secret, or leave the setting out")
    return value


SecretList = Annotated[tuple[SecretStr, ...], BeforeValidator(_as_list), AfterValidator(_not_empty)]
"""Secrets, newest last; a single string stands for a list of one."""


def _host_names(value: tuple[str, ...]) -> tuple[str, ...]:
    for host in value:
        if host != "*" and not re.fullmatch(r"[a-z0-9-]+(?:\.[a-z0-9-]+)*|[0-9a-f:]+:[0-9a-f:.]*", host):
            raise ValueError(f'{host!r} is no host name in lower case, like "api.example.com"')
    return value


Hosts = Annotated[tuple[str, ...], AfterValidator(_host_names)]
"""Host names, each with all below it; `*` is any."""


def reveal(secrets: Iterable[SecretStr]) -> tuple[str, ...]:
    """Return the values behind the masks."""
    return tuple(secret.get_secret_value() for secret in secrets)


def revealed(secret: SecretStr | None) -> str:
    """Return the value behind the mask, "" where there is none."""
    return secret.get_secret_value() if secret else ""


def content_key(callback: VerifiedCallback, *, lasting: bool = True) -> str:
    """Return the idempotency key of a callback without an id of its own: the token, if any, and a hash of the body.

    Unless it is `lasting`, the key of a callback without a token holds for ten minutes: the same words may be another job's.
    """
    digest = callback.body.sha256
    if callback.claims:
        return f"token:{callback.claims.token_id}:{digest}"
    return f"sha256:{digest}" if lasting else f"sha256:{digest}:{ten_minutes(callback)}"


def ten_minutes(callback: VerifiedCallback) -> str:
    """Return the ten minutes in which a callback came; a repeat that falls into the next is taken for another one.

    Providers send a callback again within five (https://developers.deepgram.com/docs/callback).
    """
    return str(callback.head.received_at // (10 * 60 * 1000))


def origin(url: str) -> str:
    """Return scheme, host and (where it is not the scheme's own) port of a URL: what may be shown of it."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    shown = parts.port not in (None, OWN_PORTS.get(parts.scheme))
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if shown else "")


def is_url(text: str) -> bool:
    """Tell whether a text that was handed over is meant as a URL."""
    return "://" in text


def is_plain(url: str) -> bool:
    """Tell whether a URL has neither credentials nor a query nor a fragment, and can be read at all."""
    parts = _split(url)
    return parts is not None and "@" not in parts.netloc and "?" not in url and "#" not in url


def same_origin(base: str, url: str) -> bool:
    """Tell whether a plain URL has the scheme, host and port of `base`."""
    ours, theirs = urlsplit(base), urlsplit(url)
    return (ours.scheme, ours.hostname, port_of(ours)) == (theirs.scheme, theirs.hostname, port_of(theirs))


def id_below(url: str, *folders: str) -> str | None:
    """Return what follows one of the folders of an API in a URL, None when it is no plain URL below any of them."""
    if not is_plain(url):
        return None
    for folder in folders:
        start, path = urlsplit(folder).path + "/", urlsplit(url).path
        if same_origin(folder, url) and path.startswith(start):
            return path.removeprefix(start)
    return None


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port, parts.hostname
    except ValueError:
        return None
    return parts


def https_at(url: str, hosts: Iterable[str]) -> bool:
    """Tell whether a URL is https, without credentials, at one of these hosts or below it."""
    parts = _split(url)
    if parts is None or parts.scheme != "https" or "@" in parts.netloc:
        return False
    host = parts.hostname or ""
    return any(host == name or host.endswith(f".{name}") for name in hosts)


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
    if b"\\" in body or b"?" in body:
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


def refused(response: FetchResponse, detail: str) -> Failed:
    """Return the failed attempt that was answered with another status than the right one."""
    return Failed(
        kind=OutcomeKind.REFUSED, status=response.status, detail=detail, retry_after=response.retry_after
    )


def unusable(detail: str, status: int | None = None) -> Failed:
    """Return the failed attempt whose bytes are no result."""
    return Failed(kind=OutcomeKind.UNUSABLE, status=status, detail=detail)


def growing(attempts: int, first: float, factor: float, longest: float) -> float:
    """Return the seconds to wait after so many attempts: `first`, then `factor` times as long each time, up to `longest`."""
    return min(longest, first * factor ** min(attempts, 20))


UNTYPED = ("", "application/octet-stream", "binary/octet-stream")
"""Media types that say nothing."""
MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,60}/[a-z0-9][a-z0-9!#$&^_.+-]{0,60}")
ACTIVE = re.compile(r"html|svg|(?:java|ecma)script|[/+]xml$")
"""What media types have in them that a browser would run, whatever stands before the slash: none is kept as it is."""
ENCODINGS = {name: MEDIA_TYPES[f"audio/{name}"] for name in ("mp3", "opus", "flac", "aac", "wav", "ogg")}
"""Formats that a job may have asked for and that have a container or frames of their own."""
_RAW_ENCODINGS = {name: name for name in RAW_CODECS} | {
    "headerless-wav": "linear16",
    "pcm": "linear16",
    "raw": "linear16",
    "ulaw": "mulaw",
}
"""Samples without a container, by the words of several providers (`headerless-wav` is Deepdub's)."""
_ASKED = ("encoding", "format", "output_format")
"""What providers call the setting; the first that is there counts."""
_BASIC_HERTZ = 8000
"""`audio/basic` means mu-law at this rate (RFC 2046, section 4.3)."""


def asked_encoding(asked: Mapping[str, Any]) -> str | None:
    """Return the encoding that a job asked for, raw ones by their name in `RAW_CODECS`; None when that is not known."""
    value = next((asked[name] for name in _ASKED if name in asked), None)
    if not isinstance(value, str):
        return None
    word = value.strip().lower().replace("_", "-")
    return _RAW_ENCODINGS.get(word) or (word if word in ENCODINGS else None)


def magic(media_type: str, prefix: bytes, asked: Mapping[str, Any]) -> Format | None:
    """Return the format that the bytes show; a lone frame header does not outweigh a stated raw format."""
    form = sniff(prefix)
    if form is None or form.certain:
        return form
    stated_raw = media_type in RAW_MEDIA_TYPES or (
        media_type in UNTYPED and asked_encoding(asked) in RAW_CODECS
    )
    return None if stated_raw else form


def audio_draft(
    media_type: str,
    parameters: Mapping[str, str],
    prefix: bytes,
    asked: Mapping[str, Any],
    *,
    default_hertz: Mapping[str, int] | None = None,
) -> AudioDraft:
    """Return what is known of audio bytes. Those of no known format are `application/octet-stream`: never lost.

    `default_hertz` is what the provider makes of a raw encoding when no rate was asked for.
    """
    form = magic(media_type, prefix, asked) or MEDIA_TYPES.get(media_type)
    rates = default_hertz or {}
    if form and form.bytes_per_sample:
        return _raw(form, parameters, asked, rates, basic=media_type == "audio/basic")
    if form:
        return _contained(form)
    if (
        media_type not in UNTYPED
        and MEDIA_TYPE.fullmatch(media_type)
        and media_type.startswith(("audio/", "video/"))
        and not ACTIVE.search(media_type)
    ):
        return AudioDraft(content_type=media_type, extension="bin")
    encoding = asked_encoding(asked)
    if encoding in RAW_CODECS:
        return _raw(RAW_CODECS[encoding], {}, asked, rates)
    if encoding is not None:
        return _contained(ENCODINGS[encoding])
    return AudioDraft(content_type="application/octet-stream", extension="bin")


def _contained(form: Format) -> AudioDraft:
    return AudioDraft(content_type=form.content_type, extension=form.extension, codec=form.codec)


def _raw(
    form: Format,
    parameters: Mapping[str, str],
    asked: Mapping[str, Any],
    default_hertz: Mapping[str, int],
    *,
    basic: bool = False,
) -> AudioDraft:
    wanted = asked_encoding(asked)
    rate = _count(parameters.get("rate"), 768_000) or (_BASIC_HERTZ if basic else None)
    if rate is None and wanted in (form.codec, None):
        rate = _count(asked.get("sample_rate"), 768_000)
    if rate is None and wanted and wanted == form.codec:
        rate = default_hertz.get(wanted)
    channels = _count(parameters.get("channels"), 64) or _count(asked.get("channels"), 64) or 1
    content_type = form.content_type
    if rate:
        content_type += f";rate={rate}"
    if channels > 1:
        content_type += f";channels={channels}"
    return AudioDraft(
        content_type=content_type,
        extension=form.extension,
        sample_rate_hz=rate,
        channels=channels,
        codec=form.codec,
        bytes_per_frame=form.bytes_per_sample * channels,
    )


def _count(value: Any, most: int) -> int | None:
    """Return a whole number from 1 to `most`, given as a number or as digits; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most:
        return value
    return None
