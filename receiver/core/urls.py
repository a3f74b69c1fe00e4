"""URLs: the form of those in settings, whether one leads to a private network, and the callback URL to hand to a provider. Pure."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, quote, urlsplit

from receiver.core.errors import ConfigError, Finding


def http_url(text: str, *, bare: bool = True) -> SplitResult:
    """Return an http(s) URL taken apart; a `bare` one is ASCII, without credentials, query and fragment.

    Raises `ValueError` with what is wrong, which quotes nothing of it: a URL may hold secrets.
    """
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ValueError("it must begin with https:// (or http://) and a host")
    if bare and (parts.username is not None or parts.password is not None):
        raise ValueError("it holds credentials; those have a setting of their own")
    if bare and ("?" in text or "#" in text):
        raise ValueError("it holds a query or a fragment")
    if bare and not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("it holds a space or a character outside ASCII (write such a host in its xn-- form)")
    return parts


OWN_PORTS = {"http": 80, "https": 443}


def port_of(parts: SplitResult) -> int:
    """Return the port of a URL; that of its scheme where it names none."""
    return parts.port or OWN_PORTS.get(parts.scheme, 80)


def is_this_machine(host: str) -> bool:
    """Tell whether a host is this machine by name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_private(url: str) -> bool:
    """Tell whether the URL's host is this machine by name, or a literal address that is not public."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return is_this_machine(host)


def in_clear(url: str) -> bool:
    """Tell whether others could read what is sent: http to a host that is neither this machine nor a private address."""
    return url.startswith("http://") and not is_private(url)


# ---------------------------------------------------------------- callback URLs

PORTS = (80, 443, 8080, 8443)
"""The ports that Deepgram calls back on (https://developers.deepgram.com/docs/callback)."""
MAX_LENGTH = 2048
"""The most characters that deAPI takes for `webhook_url` (https://docs.deapi.ai); kept for every provider."""


def public_url_problems(public_url: str, *, deepgram: bool = True, https_only: bool = False) -> list[Finding]:
    """Return every reason why a provider cannot call URLs under `public_url`.

    `deepgram` for its own rules of port and underscore, `https_only` for providers that insist on https.
    """
    try:
        parts, found = http_url(public_url), []
    except ValueError as error:
        return [Finding("E003", "public_url", str(error), 'write it as "https://hooks.example.com"')]
    if deepgram and (port := port_of(parts)) not in PORTS:
        allowed = ", ".join(str(port) for port in PORTS)
        message = f"port {port} is not one that Deepgram calls back on"
        fix = f"use one of {allowed}, with a proxy in front if need be"
        found.append(Finding("E004", "public_url", message, fix))
    if deepgram and "_" in public_url:
        message = "it holds an underscore, and Deepgram fails to resolve such a callback"
        found.append(Finding("E005", "public_url", message, "choose a host and path without one"))
    if https_only and parts.scheme != "https":
        fix = "put TLS in front, and write https://"
        found.append(Finding("E006", "public_url", "deAPI calls https URLs only", fix))
    return found


def compose(base: str, source: str, *, token: str | None = None, basic: str | None = None) -> str:
    """Return `base/callbacks/source/token` with `basic` (`user:password`) percent-encoded in front of the host.

    Nothing is checked: for URLs that stay on this machine, and for `callback_url`, which checks.
    """
    parts = urlsplit(base)
    credentials = ""
    if basic is not None:
        user, _, password = basic.partition(":")
        credentials = f"{quote(user, safe='')}:{quote(password, safe='')}@"
    path = "/".join(part for part in (parts.path.strip("/"), "callbacks", source, token) if part)
    return f"{parts.scheme}://{credentials}{parts.netloc}/{path}"


def callback_url(
    public_url: str | None,
    source: str,
    *,
    deepgram: bool = True,
    https_only: bool = False,
    token: str | None = None,
    basic: str | None = None,
) -> str:
    """Return the URL to hand to a provider: `basic` is the `user:password` it shall send, `token` one of ours.

    Raises `ConfigError` with the reason when the provider could not call it: no public URL; for `deepgram` another port
    than 80, 443, 8080 and 8443, or an underscore anywhere; http where it is `https_only` (deAPI); or more than 2048
    characters.
    """
    if not public_url:
        raise ConfigError(
            'public_url is not set, so nobody outside can be told where to call: write public_url = "https://…"'
        )
    for problem in public_url_problems(public_url, deepgram=deepgram, https_only=https_only):
        raise ConfigError(f"public_url: {problem.message}; {problem.fix}")
    if deepgram and basic is not None and "_" in basic:
        raise ConfigError(
            f"sources.{source}.basic: user or password holds an underscore, and Deepgram refuses callback URLs with "
            "one; choose a pair of letters and digits"
        )
    url = compose(public_url, source, token=token, basic=basic)
    if deepgram and "_" in url:
        raise ConfigError(
            f"the URL of {source} holds an underscore, which Deepgram refuses; rename the source"
        )
    if len(url) > MAX_LENGTH:
        raise ConfigError(
            f"the URL has {len(url)} characters, and {MAX_LENGTH} is the most a provider takes; use a shorter ref"
        )
    return url
