"""The one outbound HTTP client: address guard, no redirects, caps in bytes and time.

Names are resolved here, every address is judged, and the judged addresses are the ones connected to; the last look is taken
at the socket's own address. Where a proxy connects, it resolves the names: only addresses in the URL itself are judged, and the proxy's own
address is not. A pooled connection stays judged for as long as it lives. Nothing of the environment (proxies,
.netrc) is used, no cookies are kept, and replies are not decompressed.

A POST has one short reply, which `receiver.system.http1` bounds. A GET's body is a stream of any length:
`receiver.outbound.streams`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, cast

import aiohappyeyeballs
from msgspec import Struct
from msgspec.structs import replace

from receiver import __version__
from receiver.core.errors import AddressBlocked, ConfigError
from receiver.core.work import Outcome, OutcomeKind
from receiver.outbound.guard import ANYWHERE, Guard, Target, literal, target
from receiver.outbound.proxy import Proxy, ProxyTrouble
from receiver.system.background import Threads
from receiver.system.http1 import (
    Bounds,
    Connection,
    Connections,
    InterimFlood,
    NoAnswer,
    NotHttp,
    Reply,
    Unanswered,
    with_headers,
)

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.abc import AbstractResolver

    from receiver.outbound import streams

USER_AGENT = f"receiver/{__version__}"
RESPONSE_LIMIT = 16 * 1024
"""Bytes of a reply's body that `post` keeps."""
PIECE = 64 * 1024
"""The most bytes of a body that are read at once."""
DNS_SECONDS = 10
"""How long a resolved and judged name is remembered."""
IDLE_SECONDS = 4.0
"""How long a connection is kept for the next request: just under the 5 s after which uvicorn and Node.js hang up."""
CONNECT_SECONDS = 5.0
"""How long connecting may take for a submission."""
_NEXT_ADDRESS_SECONDS = 0.25
"""How long one address of a name is waited for before the next one is tried beside it (RFC 8305)."""

AddrInfo = tuple[int, int, int, str, tuple[Any, ...]]
"""As `socket.getaddrinfo` gives it: family, type, protocol, canonical name, socket address."""
Resolve = Callable[[str, int, int], Awaitable[Sequence[AddrInfo]]]
"""Resolves (host, port, family); raises `OSError`."""


class Failure(Struct, frozen=True, kw_only=True):
    """No answer came."""

    kind: OutcomeKind
    """`TIMEOUT`, `UNREACHABLE` or `BLOCKED`."""
    detail: str
    """For a person; names host and port, never the rest of the URL."""
    sent: bool = True
    """False: there was no connection, so the far side has nothing of a request of `exchange`."""

    @property
    def outcome(self) -> Outcome:
        """The failure as the outcome of an attempt."""
        return Outcome(kind=self.kind, detail=self.detail)


class Prepared(NamedTuple):
    """What all requests to one URL have in common."""

    place: Target
    head: str


class ReplyBroken(Exception):
    """The connection ended, or stopped speaking HTTP, before the reply's body did."""


class _SocketBlocked(OSError):
    """The last look: a socket was about to be opened to an address that the guard refuses."""


class _NoThread(OSError):
    """The name was not looked up: there is no thread to do it."""


class Resolved(TypedDict):
    """One address of a name, as aiohttp wants it told."""

    hostname: str
    host: str
    port: int
    family: int
    proto: int
    flags: int


class GuardedResolver:
    """Resolves a name and lets no address through unless all of them may be connected to."""

    def __init__(self, guard: Guard, resolve: Resolve | None = None) -> None:
        """`resolve` replaces the system's resolver, which runs in two threads of its own."""
        self._guard = guard
        self._threads = Threads(2, "egress-dns")  # none is started before it is needed
        self._resolve = resolve or self._system

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[Resolved]:
        """Return the addresses of `host`. Raises `AddressBlocked` when any of them is refused, `OSError`."""
        try:
            resolved = await self._resolve(host, port, family)
        except UnicodeError:
            raise socket.gaierror(socket.EAI_NONAME, "the name is not a host name") from None
        results = []
        for kind, _, protocol, _, address in resolved:
            text = str(address[0])
            self._guard.check(text, host)
            results.append(
                Resolved(
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
        """Let go of the threads; a lookup under way ends by itself, or with the process."""
        self._threads.close()

    async def _system(self, host: str, port: int, family: int) -> Sequence[AddrInfo]:
        look_up = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        try:
            lookup = self._threads.submit(look_up)
        except RuntimeError:
            raise _NoThread from None
        return await asyncio.wrap_future(lookup)


class Egress:
    """The outbound client of one destination or source: its guard, its timeout, its connections.

    With `fresh`, each request of `exchange` has a connection of its own. When the far side hangs up on a kept connection, nobody
    can tell whether it had read the request.
    """

    def __init__(
        self,
        *,
        timeout_seconds: float,
        connections: int,
        allow: Iterable[str] = (),
        ca_file: str | None = None,
        resolve: Resolve | None = None,
        body_seconds: float = 2.0,
        connect_seconds: float | None = None,
        answer_seconds: float | None = None,
        client_certificate: str | None = None,
        proxy: str | None = None,
        fresh: bool = False,
    ) -> None:
        """`timeout_seconds` covers a whole request, from the name to the headers of the reply; of a POST, `connect_seconds`
        all until it is connected, `answer_seconds` what comes after. `client_certificate` is a PEM file with a certificate
        and its key. Only POSTs go through `proxy`. `body_seconds` is the longest that `post` waits for a reply's body, once status line and headers are here.
        """
        self._bounds = Bounds(
            seconds=timeout_seconds,
            body_seconds=body_seconds,
            body_bytes=RESPONSE_LIMIT,
            answer_seconds=answer_seconds or timeout_seconds,
        )
        self._connect_seconds = connect_seconds or timeout_seconds
        self._client_certificate = client_certificate
        self._limit = connections
        self._guard = Guard(allow)
        self._proxy = Proxy(proxy) if proxy else None
        self._first_hop = Guard(ANYWHERE) if proxy else self._guard
        """Judges what is connected to, which is the proxy where there is one."""
        self._ca_file = ca_file
        self._resolve = resolve
        self._resolver: GuardedResolver | None = None
        self._names: dict[str, asyncio.Task[list[Resolved]]] = {}
        """What was looked up in the last `DNS_SECONDS`, and what is being looked up."""
        self._connections: Connections[Target] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._fresh = fresh

    async def open(self) -> None:
        """Make ready to send; connects to nothing. Raises `ConfigError` when a certificate cannot be used."""
        # The system's own authorities are loaded when a request needs them.
        if self._ca_file or self._client_certificate:
            trust(self._ca_file, self._client_certificate)
        self._resolver = GuardedResolver(self._first_hop, self._resolve)
        self._connections = Connections(self._connect, IDLE_SECONDS)
        if self._fresh:
            # What bodies of any length take is loaded now, and not while others are answered.
            self._session = self._new_session()

    async def close(self) -> None:
        """Let go of connections and threads."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self._connections is not None:
            await self._connections.close()
            self._connections = None
        for lookup in self._names.values():
            lookup.cancel()
        self._names.clear()
        if self._resolver is not None:
            await self._resolver.close()
            self._resolver = None

    def prepared(
        self, url: str, headers: Mapping[str, str] = MappingProxyType({}), *, method: str = "POST"
    ) -> Prepared | Failure:
        """Take a URL apart, judge its host, and prepare what every request to it says; `headers` can be sent."""
        place = target(url)
        if isinstance(place, str):
            return Failure(kind=OutcomeKind.BLOCKED, detail=place)
        try:
            self._guard.check_host(place.host)
        except AddressBlocked as error:
            return failure_of(error, place.where)
        whole = {"host": place.url.host_port_subcomponent or "", **headers}
        asked = place.url.raw_path_qs
        if self._proxy is not None and not place.secure:
            asked, whole = str(place.url), whole | self._proxy.headers
        return Prepared(place, with_headers(f"{method} {asked} HTTP/1.1\r\n", whole))

    async def post(
        self, prepared: Prepared | Failure, headers: Mapping[str, str], body: bytes
    ) -> Reply | Failure:
        """Send one POST (or PUT, or PATCH), never redirected, and return what came of it.

        The status line and headers are the answer: once they are here, what the body does changes nothing. What comes of the
        body within `body_seconds`, and within the whole timeout, is kept up to `RESPONSE_LIMIT`.
        """
        if self._connections is None:
            raise RuntimeError("the client is not open")
        if isinstance(prepared, Failure):
            return prepared
        place = prepared.place
        try:
            head = with_headers(prepared.head, {**headers, "content-length": str(len(body))}) + "\r\n"
        except ValueError:  # its text holds the header
            return Failure(kind=OutcomeKind.BLOCKED, detail="a header cannot be sent: it holds a line break")
        try:
            return await self._connections.ask(place, head.encode(), body, self._bounds)
        except (OSError, Unanswered, AddressBlocked) as error:
            return failure_of(error, place.where)

    async def get(
        self, place: Target, headers: Mapping[str, str], *, seconds: float
    ) -> streams.Incoming | Failure:
        """Send one GET, never redirected; `seconds` is the longest wait for the head of the reply."""
        try:
            async with asyncio.timeout(seconds):
                return await self.exchange("GET", place, headers)
        except TimeoutError:
            return Failure(kind=OutcomeKind.TIMEOUT, detail=f"{place.where} did not answer in time")

    async def exchange(
        self,
        method: str,
        place: Target,
        headers: Mapping[str, str] | Sequence[tuple[str, str]],
        body: AsyncIterator[bytes] | None = None,
    ) -> streams.Incoming | Failure:
        """Send a request, never redirected; return its answer as soon as the head of that is here. Only connecting is timed."""
        from receiver.outbound import streams  # with aiohttp, which most processes never need

        if self._session is None:
            self._session = self._new_session()
        try:
            self._guard.check_host(place.host)
            response = await self._session.request(
                method, place.url, headers=headers, data=body, allow_redirects=False
            )
        except (streams.ClientError, OSError, Unanswered, AddressBlocked) as error:
            failure = failure_of(streams.translated(error), place.where)
            return replace(failure, sent=not isinstance(error, (AddressBlocked, *streams.UNCONNECTED)))
        except ValueError:  # its text holds the header
            detail = "a header cannot be sent: it holds a line break"
            return Failure(kind=OutcomeKind.BLOCKED, detail=detail, sent=False)
        return streams.Incoming(response, place.where)

    async def _connect(self, place: Target) -> Connection:
        """Connect to one of the judged addresses of a name. Raises `AddressBlocked`, `OSError`."""
        async with asyncio.timeout(self._connect_seconds):
            return await self._connected(place)

    async def _connected(self, place: Target) -> Connection:
        sock = await (self._dialled(place) if self._proxy is None else self._proxied(place, self._proxy))
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection,
            sock=sock,
            ssl=trust(self._ca_file, self._client_certificate) if place.secure else None,
            server_hostname=place.host.rstrip(".") if place.secure else None,
        )
        return connection

    async def _dialled(self, place: Target) -> socket.socket:
        return await aiohappyeyeballs.start_connection(
            await self._addresses(place),
            happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS,
            socket_factory=self._socket,
        )

    async def _proxied(self, place: Target, proxy: Proxy) -> socket.socket:
        try:
            sock = await self._dialled(proxy.place)
        except OSError as error:
            raise ProxyTrouble(f"the proxy {failure_of(error, proxy.place.where).detail}") from None
        if place.secure:
            await proxy.tunnel(sock, place)
        return sock

    async def _addresses(self, place: Target) -> list[AddrInfo]:
        host, port = place.host, place.url.port or 0
        if literal(host) is not None:  # judged already
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
        lookup = self._names.get(place.where)
        if lookup is None:
            lookup = asyncio.create_task(self._opened().resolve(host, port))
            self._names[place.where] = lookup
            lookup.add_done_callback(partial(self._looked_up, place.where))
        results = await asyncio.shield(lookup)
        return [
            (each["family"], socket.SOCK_STREAM, each["proto"], "", (each["host"], port)) for each in results
        ]

    def _looked_up(self, name: str, lookup: asyncio.Task[list[Resolved]]) -> None:
        """Remember addresses for a while, and a failure not at all."""
        if lookup.cancelled() or lookup.exception() is not None:
            self._names.pop(name, None)
        else:
            asyncio.get_running_loop().call_later(DNS_SECONDS, self._names.pop, name, None)

    def _opened(self) -> GuardedResolver:
        if self._resolver is None:
            raise RuntimeError("the client is not open")
        return self._resolver

    def _new_session(self) -> aiohttp.ClientSession:
        from receiver.outbound import streams

        return streams.new_session(
            cast("AbstractResolver", self._opened()),
            limit=self._limit,
            socket_factory=self._socket,
            trust=trust(self._ca_file),
            idle_seconds=None if self._fresh else IDLE_SECONDS,
            connect_seconds=self._connect_seconds if self._fresh else None,
        )

    def _socket(self, info: AddrInfo) -> socket.socket:
        try:
            self._first_hop.check(str(info[4][0]))
        except AddressBlocked as error:
            raise _SocketBlocked(error.message) from None
        return socket.socket(info[0], info[1], info[2])


@lru_cache(maxsize=64)
def trust(ca_file: str | None, client_certificate: str | None = None) -> ssl.SSLContext:
    """Return what TLS trusts (the system's authorities, and those of `ca_file`) and shows."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    if client_certificate is not None:
        try:
            context.load_cert_chain(client_certificate, password="")
        except OSError as error:
            reason = error.strerror if error.errno else None
            message = reason or "it holds no certificate with its unencrypted key (PEM)"
            raise ConfigError(f"client_certificate {client_certificate} cannot be used: {message}") from None
    if ca_file is None:
        return context
    try:
        context.load_verify_locations(ca_file)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or "it holds no PEM certificates"
        raise ConfigError(f"ca_file {ca_file} cannot be used: {reason}") from None
    return context


def failure_of(error: Exception, where: str) -> Failure:
    """Return what an error of a request means."""
    if isinstance(error, AddressBlocked):
        return Failure(kind=OutcomeKind.BLOCKED, detail=error.message)
    if isinstance(error, _SocketBlocked):
        return Failure(kind=OutcomeKind.BLOCKED, detail=str(error))
    if isinstance(error, TimeoutError) and error.errno is None:
        return Failure(kind=OutcomeKind.TIMEOUT, detail=f"{where} did not answer in time")
    return Failure(kind=OutcomeKind.UNREACHABLE, detail=_unreachable(error, where))


def _unreachable(cause: Exception, where: str) -> str:
    """Say what went wrong from the error's class and code alone: its text may hold the URL."""
    match cause:
        case ProxyTrouble():
            return str(cause)
        case _NoThread():
            return f"{where} was not looked up: this process can start no thread (too many, or too little memory)"
        case socket.gaierror():
            return f"{where} has no address: the name cannot be resolved"
        case ssl.CertificateError():
            reason = getattr(cause, "verify_message", "") or "it does not fit"
            return f"the certificate of {where} is not accepted: {reason}"
        case ssl.SSLError():
            return (
                f"{where} does not speak TLS as expected: {getattr(cause, 'reason', None) or 'no handshake'}"
            )
        case InterimFlood():
            return f"{where} sends 1xx answers without end"
        case NoAnswer():
            return f"{where} closed the connection without an answer"
        case NotHttp():
            return f"{where} did not answer in HTTP"
    number = getattr(cause, "errno", None)
    reason = os.strerror(number).lower() if isinstance(number, int) and number > 0 else type(cause).__name__
    return f"{where} cannot be reached: {reason}"


NO_CERTIFICATES = "it cannot be read, or holds no certificates in PEM form"
"""Said of a `ca_file`."""


def holds_certificates(ca_file: str) -> bool:
    """Tell whether a file holds certificates in PEM form."""
    try:
        trust(ca_file)
    except ConfigError:
        return False
    return True
