"""How a stand-in sends: a request made afresh for every try, until it is answered 2xx or the waits run out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import httpx2

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
class Try:
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
    def taken(self) -> bool:
        """True when it was answered 2xx."""
        return self.status is not None and 200 <= self.status < 300


def send(client: httpx2.Client, callback: Callback, *, label: str, number: int = 1) -> Try:
    """Make one try. Trouble on the way is a `Try` without a status, never an exception."""
    content = _pieces(callback.body) if callback.chunked else callback.body
    began = time.perf_counter()
    try:
        response = client.request(callback.method, callback.url, headers=callback.headers, content=content)
        status, answer = response.status_code, response.text[:300]
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        status, answer = None, _trouble(error)
    return Try(number, label, status, answer, time.perf_counter() - began)


def send_until_taken(
    client: httpx2.Client,
    make: Callable[[], Callback],
    *,
    label: str,
    waits: Sequence[float],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Try]:
    """Try until one is taken, `waits` (seconds) apart; yield every try. `make` is called for each, as signatures age."""
    for number, wait in enumerate([*waits, None], start=1):
        tried = send(client, make(), label=label, number=number)
        yield tried
        if tried.taken or wait is None:
            return
        sleep(wait)


def open_client() -> httpx2.Client:
    """Return a client with a provider's patience; it follows no redirects and asks no proxy."""
    timeout = httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    return httpx2.Client(timeout=timeout, follow_redirects=False, trust_env=False)


def _pieces(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]


def _trouble(error: Exception) -> str:
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return "no connection: is receiver running there?"
    if isinstance(error, httpx2.TimeoutException):
        return f"no answer within {ANSWER_SECONDS:g} s"
    return f"the connection broke ({type(error).__name__})"
