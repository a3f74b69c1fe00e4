"""The one outbound HTTP client (floor 3): address guard, no redirects, caps in bytes and time.

Names are resolved here, every address is judged, and the judged addresses are the ones connected to; the last look is taken
at the socket's own address. A pooled connection stays judged for as long as it lives. Nothing of the environment (proxies,
.netrc) is used, no cookies are kept, and replies are not decompressed.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from receiver.addresses import Guard
from receiver.delivery import OutcomeKind
from receiver.errors import AddressBlocked, ConfigError

RESPONSE_LIMIT = 16 * 1024
"""Bytes of a reply's body that are kept."""
BODY_SECONDS = 2.0
"""Longest wait for a reply's body, once status line and headers are here."""
DNS_SECONDS = 10
"""How long a resolved and judged name is remembered."""
IDLE_SECONDS = 4.0
"""How long a connection is kept for the next request: just under the 5 s after which uvicorn and Node.js hang up."""

AddrInfo = tuple[int, int, int, str, tuple[Any, ...]]
"""As `socket.getaddrinfo` gives it: family, type, protocol, canonical name, socket address."""
Resolve = Callable[[str, int, int], Awaitable[Sequence[AddrInfo]]]
"""Resolves (host, port, family); raises `OSError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The far side answered: its status line and headers arrived."""

    status: int
    headers: Mapping[str, str]
    """Names compare without regard to case."""
    body: bytes
    """At most `RESPONSE_LIMIT` bytes, and what came of them in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """No answer came."""

    kind: OutcomeKind
    """`TIMEOUT`, `UNREACHABLE` or `BLOCKED`."""
    detail: str
    """For a person; names host and port, never the rest of the URL."""


class _SocketBlocked(OSError):
    """The last look: a socket was about to be opened to an address that the guard refuses."""


class GuardedResolver(AbstractResolver):
    """Resolves a name and lets no address through unless all of them may be connected to."""

    def __init__(self, guard: Guard, resolve: Resolve | None = None) -> None:
        """`resolve` stands in for the system's resolver, which runs in two threads of its own."""
        self._guard = guard
        self._threads = ThreadPoolExecutor(2, "egress-dns") if resolve is None else None
        self._ask = resolve or self._system

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`. Raises `AddressBlocked` when any of them is refused, `OSError`."""
        try:
            found = await self._ask(host, port, family)
        except UnicodeError:
            raise socket.gaierror(socket.EAI_NONAME, "the name is not a host name") from None
        results = []
        for kind, _, protocol, _, address in found:
            text = str(address[0])
            self._guard.check(text, host)
            results.append(
                ResolveResult(
                    hostname=host,
                    host=text,
                    port=port,
                    family=kind,
                    proto=protocol,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        return results

    async def close(self) -> None:
        """Let go of the threads; a lookup under way ends by itself."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _system(self, host: str, port: int, family: int) -> Sequence[AddrInfo]:
        ask = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL, taken apart once."""

    url: URL
    where: str
    refusal: str | None


class Egress:
    """The outbound client of one destination: its guard, its timeout, its connections."""

    def __init__(
        self,
        *,
        timeout_seconds: float,
        connections: int,
        allow: Iterable[str] = (),
        ca_file: str | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        """`timeout_seconds` covers a whole request, from the name to the headers of the reply."""
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._connections = connections
        self._guard = Guard(allow)
        self._ca_file = ca_file
        self._resolve = resolve
        self._resolver: GuardedResolver | None = None
        self._session: aiohttp.ClientSession | None = None
        self._targets: dict[str, _Target] = {}

    async def open(self) -> None:
        """Make ready to send; connects to nothing. Raises `ConfigError` when `ca_file` cannot be used."""
        trust = _trust(self._ca_file)
        self._resolver = GuardedResolver(self._guard, self._resolve)
        connector = aiohttp.TCPConnector(
            limit=self._connections,
            resolver=self._resolver,
            ttl_dns_cache=DNS_SECONDS,
            keepalive_timeout=IDLE_SECONDS,
            socket_factory=self._socket,
            ssl=trust,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            read_bufsize=RESPONSE_LIMIT,
        )

    async def close(self) -> None:
        """Let go of connections and threads."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self._resolver is not None:
            await self._resolver.close()
            self._resolver = None

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply | Failure:
        """Send one POST, never redirected, and return what came of it.

        The status line and headers are the answer: once they are here, what the body does changes nothing. What comes of the
        body within `BODY_SECONDS`, and within the whole timeout, is kept up to `RESPONSE_LIMIT`.
        """
        if self._session is None:
            raise RuntimeError("the client is not open")
        target = self._targets.get(url) or self._target(url)
        if target.refusal is not None:
            return Failure(kind=OutcomeKind.BLOCKED, detail=target.refusal)
        try:
            response = await self._session.post(target.url, data=body, headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, OSError, AddressBlocked) as error:
            return _failure(error, target.where)
        try:
            received = await _body(response)
        finally:
            response.close()  # back to the pool already when the body has ended
        return Reply(status=response.status, headers=response.headers, body=received)

    def _target(self, text: str) -> _Target:
        url = URL(text)
        host = url.host or ""
        where = f"{f'[{host}]' if ':' in host else host}:{url.port}"
        refused = None
        try:
            self._guard.check_host(host)
        except AddressBlocked as error:
            refused = error.message
        target = _Target(url, where, refused)
        if len(self._targets) < 64:
            self._targets[text] = target
        return target

    def _socket(self, info: AddrInfo) -> socket.socket:
        try:
            self._guard.check(str(info[4][0]))
        except AddressBlocked as error:
            raise _SocketBlocked(error.message) from None
        return socket.socket(info[0], info[1], info[2])


def _trust(ca_file: str | None) -> ssl.SSLContext | bool:
    """Return what TLS trusts: the system's authorities, and those of `ca_file`."""
    if ca_file is None:
        return True
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(ca_file)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or "it holds no PEM certificates"
        raise ConfigError(f"ca_file {ca_file} cannot be used: {reason}") from None
    return context


async def _body(response: aiohttp.ClientResponse) -> bytes:
    stream = response.content
    if stream.is_eof():
        return stream.read_nowait(RESPONSE_LIMIT)
    kept = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while len(kept) < RESPONSE_LIMIT and (piece := await stream.read(RESPONSE_LIMIT - len(kept))):
                kept += piece
    except (aiohttp.ClientError, OSError):  # TimeoutError is an OSError
        pass  # the answer stands without the rest of its body
    return bytes(kept)


def _failure(error: Exception, where: str) -> Failure:
    if isinstance(error, AddressBlocked):
        return Failure(kind=OutcomeKind.BLOCKED, detail=error.message)
    if isinstance(error, TimeoutError):
        return Failure(kind=OutcomeKind.TIMEOUT, detail=f"{where} did not answer in time")
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, _SocketBlocked):
        return Failure(kind=OutcomeKind.BLOCKED, detail=str(cause))
    return Failure(kind=OutcomeKind.UNREACHABLE, detail=_unreachable(error, cause, where))


def _unreachable(error: Exception, cause: Exception, where: str) -> str:
    """Say what went wrong from the error's class and code alone: its text may hold the URL."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return f"{where} has no address: the name cannot be resolved"
        case aiohttp.ClientConnectorCertificateError():
            reason = getattr(error.certificate_error, "verify_message", "") or "it does not fit"
            return f"the certificate of {where} is not accepted: {reason}"
        case aiohttp.ClientSSLError():
            return (
                f"{where} does not speak TLS as expected: {getattr(cause, 'reason', None) or 'no handshake'}"
            )
        case aiohttp.ServerDisconnectedError():
            return f"{where} closed the connection without an answer"
        case aiohttp.ClientResponseError() | aiohttp.ClientPayloadError():
            return f"{where} did not answer in HTTP"
    number = getattr(cause, "errno", None)
    reason = os.strerror(number).lower() if isinstance(number, int) and number > 0 else type(cause).__name__
    return f"{where} cannot be reached: {reason}"
