"""What the simulated providers share: the server that one is, and the client that sends callbacks as one.

Each provider has a file of its own beside this one; simulate.py is the command, demo.py and stage.py are the demo.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.core.errors import UsageError

_START_SECONDS = 10.0
_STOP_SECONDS = 10.0


@dataclass(slots=True)
class RequestRecord:
    """One request as it came, and how it was answered."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str] = field(repr=False)
    """Names in lower case."""
    body: bytes = field(repr=False)
    status: int | None = None
    """None until it is answered."""

    @classmethod
    async def of(cls, request: Request) -> RequestRecord:
        """Return what a request asked, its body read."""
        url = request.url
        return cls(request.method, url.path, url.query, dict(request.headers), await request.body())


class Provider(ABC):
    """A simulated provider: it notes every request, and refuses those without the right credentials."""

    name: ClassVar[str]
    """As `provider = "…"` has it."""
    address: ClassVar[tuple[str, str]]
    """The setting of a source that says where the API is, and the path that it has there."""
    example: ClassVar[Mapping[str, str]]
    """A source's credentials, as an example."""
    port: ClassVar[int]
    """Where it is served, as an example."""
    has_links: ClassVar[bool] = True
    """Results lie behind links, whose hosts a source must allow."""
    app: Starlette
    base: str = ""
    """Where this one is served, without a path."""

    def __init__(self, credentials: Mapping[str, str]) -> None:
        self._credentials = credentials
        """The headers that a request must carry, names in lower case."""
        self.requests: list[RequestRecord] = []
        """Every request, in the order they came."""
        self.on_answer: Callable[[RequestRecord], None] = lambda _: None
        """Called for each request once it is answered."""

    @classmethod
    def settings(cls, base: str = "", **credentials: str) -> dict[str, Any]:
        """Return what a source's table must hold for receiver to poll this provider at `base`; without arguments, an example."""
        setting, path = cls.address
        table = {"provider": cls.name, **(credentials or cls.example)}
        table[setting] = f"{base or f'http://127.0.0.1:{cls.port}'}{path}"
        return table | ({"result_hosts": ["127.0.0.1"]} if cls.has_links else {}) | {"allow": ["127.0.0.0/8"]}

    def route(
        self,
        path: str,
        answer: Callable[[Request], Awaitable[Response]],
        *,
        method: str = "GET",
        public: bool = False,
    ) -> Route:
        """Return a route to `answer`; a `public` one takes requests without credentials."""

        async def respond(request: Request) -> Response:
            record = await RequestRecord.of(request)
            self.requests.append(record)
            if public or self._knows(request):
                response = self.trouble(request) or await answer(request)
            else:
                response = self.refusal()
            record.status = response.status_code
            self.on_answer(record)
            return response

        return Route(path, respond, methods=[method])

    @abstractmethod
    def refusal(self) -> Response:
        """Return the answer to a request whose credentials are wrong."""

    def trouble(self, _request: Request) -> Response | None:
        """Return what is answered in place of the right thing: None here, more where a test needs trouble."""
        return None

    def _knows(self, request: Request) -> bool:
        return all(request.headers.get(name) == value for name, value in self._credentials.items())


def waits_of(real: Sequence[float], *, attempts: int | None = None, scale: float = 1.0) -> list[float]:
    """Return the seconds between `attempts` tries (as many as really if left out), `scale` times the `real` ones."""
    count = len(real) if attempts is None else attempts - 1
    return [real[min(number, len(real) - 1)] * scale for number in range(count)]


def sample_audio() -> bytes:
    """Return a short spoken sentence as MP3."""
    return resources.files("receiver.demo").joinpath("samples/speech.mp3").read_bytes()


def base_url(request: Request) -> str:
    """Return where the server is that a request came to, without a slash at the end."""
    return str(request.base_url).rstrip("/")


class _Server(uvicorn.Server):
    """Says when it listens; leaves the process's signals alone, as it does not run in the main thread."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@contextlib.contextmanager
def served(
    app: Any, *, port: int = 0, ssl_certfile: str | None = None, ssl_keyfile: str | None = None
) -> Iterator[str]:
    """Serve an ASGI application on 127.0.0.1 and yield its base URL (`http://127.0.0.1:PORT`); `port` 0 is any free one.

    Raises `OSError` when the port is taken, `RuntimeError` when the server does not start.
    """
    listener = socket.create_server(("127.0.0.1", port), backlog=128)
    scheme, bound = ("https" if ssl_certfile else "http"), listener.getsockname()[1]
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        lifespan="off",
        ws="none",
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        timeout_graceful_shutdown=1,
        server_header=False,
    )
    server = _Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True, name=f"provider-{bound}")
    thread.start()
    try:
        if not server.listening.wait(_START_SECONDS):
            raise RuntimeError("the simulated provider did not start")
        yield f"{scheme}://127.0.0.1:{bound}"
    finally:
        server.should_exit = True
        thread.join(_STOP_SECONDS)
        listener.close()


CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 10.0
"""What Deepgram's self-hosted defaults allow (deepgram/self-hosted-resources); deAPI documents the same 10 s."""
_PIECE = 16 * 1024


@dataclass(frozen=True, slots=True)
class Callback:
    """One request as a provider would make it. Credentials in `url` travel as `Authorization: Basic`."""

    method: str
    url: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    chunked: bool = False
    """Send without a Content-Length."""


@dataclass(frozen=True, slots=True)
class CallbackAttempt:
    """One try and what it was answered."""

    number: int
    label: str
    """What was sent, for example `job.completed`."""
    status: int | None
    """None when there was no answer."""
    answer: str
    """The first 300 characters of the answer, or what went wrong."""
    seconds: float

    @property
    def accepted(self) -> bool:
        """True when it was answered 2xx."""
        return self.status is not None and 200 <= self.status < 300


def send(client: httpx2.Client, callback: Callback, *, label: str, number: int = 1) -> CallbackAttempt:
    """Make one try. Trouble on the way is a `CallbackAttempt` without a status, never an exception."""
    content = _pieces(callback.body) if callback.chunked else callback.body
    began = time.perf_counter()
    try:
        response = client.request(callback.method, callback.url, headers=callback.headers, content=content)
        status, answer = response.status_code, response.text[:300]
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        status, answer = None, _trouble(error, callback.url)
    return CallbackAttempt(number, label, status, answer, time.perf_counter() - began)


def send_until_accepted(
    client: httpx2.Client,
    make: Callable[[], Callback],
    *,
    label: str,
    waits: Sequence[float],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[CallbackAttempt]:
    """Try until one is taken, `waits` (seconds) apart; yield every try. `make` is called for each, as signatures age."""
    for number, wait in enumerate([*waits, None], start=1):
        attempt = send(client, make(), label=label, number=number)
        yield attempt
        if attempt.accepted or wait is None:
            return
        sleep(wait)


@cache
def authorities(ca_file: str | None = None) -> ssl.SSLContext:
    """Return the usual certificate authorities, and those of `ca_file` (PEM): reading them takes longer than a call.

    Raises `OSError` when the file cannot be used.
    """
    trusted = httpx2.create_ssl_context(trust_env=False)
    if ca_file is not None:
        trusted.load_verify_locations(ca_file)
    return trusted


def open_client(ca_file: str | None = None) -> httpx2.Client:
    """Return a client with a provider's patience; it follows no redirects and asks no proxy.

    `ca_file` holds more certificate authorities to trust (PEM). Raises `UsageError` when it cannot be used.
    """
    timeout = httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    try:
        trusted = authorities(ca_file)
    except OSError:  # ssl.SSLError is one
        raise UsageError(f"{ca_file} cannot be read, or holds no certificates in PEM form") from None
    return httpx2.Client(verify=trusted, timeout=timeout, follow_redirects=False, trust_env=False)


def _pieces(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]


def _trouble(error: Exception, url: str) -> str:
    secured = _cause(error, ssl.SSLError)
    if secured is not None:
        return _untrusted(secured, urlsplit(url).hostname or "it")
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return "no connection: is receiver running there?"
    if isinstance(error, httpx2.TimeoutException):
        return f"no answer within {ANSWER_SECONDS:g} s"
    return f"the connection broke ({type(error).__name__})"


def _untrusted(error: BaseException, host: str) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {host} is not trusted: give --ca-file, or call receiver itself by http://"
    return f"{host} could not be spoken with by TLS: does it speak http:// there?"


def _cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """Return the first error of a kind among those that led to this one."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error
