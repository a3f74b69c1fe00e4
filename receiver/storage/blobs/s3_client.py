"""boto3 on threads: a pool of its own, time limits that hold, and no thread that works for nobody.

A thread cannot be interrupted. What bounds it: the connection's timeouts; two hooks of botocore's that let no further try begin
when a request's time is over or nobody waits for it any more; and then its socket is shut down, since a store that sends a
byte now and then is never silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, urlsplit

from receiver.core.errors import BlobsUnavailable, ConfigError, NotFound, ReceiverError
from receiver.storage.blobs.s3_options import S3Options, make_client, make_link_client
from receiver.system.threads import Threads

_AGAIN_SECONDS = 3.0
"""Another try of a request begins only this long after the first: with a hung try the callback's 6 s are over."""
_KEEP_SECONDS = 60.0
"""Pause between two looks at credentials that expire; botocore renews them from 15 minutes before their end."""
_END_SECONDS = 2.0
"""How long a thread may take to end after its socket was shut down; then the process ends without it."""
T = TypeVar("T")


class Calls:
    """Runs functions of a boto3 client in threads. Everything it raises is `BlobsUnavailable`, `NotFound` or `ConfigError`."""

    def __init__(self, options: S3Options) -> None:
        self._options = options
        self._threads = Threads(options.connections, "s3")
        self._tickets: set[Ticket] = set()
        self._here = threading.local()
        self._keeper: asyncio.Task[None] | None = None
        self._closing = False
        self.client: Any = None
        self.links: Any = None
        """The client that signs links."""
        self.signer: Any = None

    async def open(self) -> None:
        """Load boto3, make the client, find credentials; no request is made, so that an outage does not hinder a start.

        Raises `ConfigError` when boto3 is missing, `BlobsUnavailable` when there are no credentials.
        """
        credentials = await self.run(self._begin, doing="opening", seconds=30.0)
        if hasattr(credentials, "refresh_needed"):
            self._keeper = asyncio.create_task(self._keep(credentials))

    async def close(self) -> None:
        """Let no further try begin, wait a moment for the requests under way, and cut those off that go on."""
        self._closing = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._threads.close()
        await asyncio.to_thread(self._threads.join, self._options.timeout_seconds)
        for ticket in list(self._tickets):
            ticket.give_up()
        await asyncio.to_thread(self._threads.join, _END_SECONDS)
        if self.client is not None:
            self.client.close()

    async def run(
        self,
        work: Callable[[Any], T],
        *,
        doing: str,
        seconds: float,
        permission: str = "",
        under_way: set[Future[Any]] | None = None,
    ) -> T:
        """Return what `work(client)` returns, called in a thread.

        Past `seconds`, or when cancelled, the thread's connection is cut and it begins no other try; `under_way` keeps
        its future for whoever must wait for that.
        """
        ticket = Ticket()
        try:
            future = self._threads.submit(partial(self._work, ticket, work))
            if under_way is not None:
                under_way.add(future)
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(future)
        except (NotFound, BlobsUnavailable, ConfigError):
            raise
        except Exception as error:  # whatever boto3 and its parts raise, the port promises one kind
            raise unavailable(error, self._options, doing, permission) from None
        finally:
            ticket.give_up()

    def _work(self, ticket: Ticket, work: Callable[[Any], T]) -> T:
        self._here.ticket = ticket
        self._tickets.add(ticket)
        try:
            return work(self.client)
        except GaveUp:
            if ticket.last is not None:
                raise ticket.last from None
            raise
        finally:
            ticket.done()
            self._tickets.discard(ticket)
            self._here.ticket = None

    def _begin(self, _: Any) -> Any:
        client, credentials = make_client(self._options)
        if credentials is None:
            from botocore.exceptions import NoCredentialsError

            raise NoCredentialsError
        events = client.meta.events
        hold_sockets(client, self._on_socket, self._on_release)
        events.register("provide-client-params.s3", self._on_request)
        events.register_last("before-call.s3", _on_call)
        events.register("before-send.s3", self._on_send)
        events.register("response-received.s3", self._on_response)
        self.links = make_link_client(self._options, client)
        self.signer = LinkSigner(self.links, credentials, self._options.bucket)
        self.client = client
        return credentials

    def _on_request(self, **_: Any) -> None:
        ticket: Ticket | None = getattr(self._here, "ticket", None)
        if ticket is not None:
            ticket.sent, ticket.last = 0, None
            ticket.until = time.monotonic() + _AGAIN_SECONDS

    def _on_socket(self, sock: Any) -> None:
        ticket: Ticket | None = getattr(self._here, "ticket", None)
        if ticket is not None:
            ticket.hold(sock)

    def _on_release(self) -> None:
        ticket: Ticket | None = getattr(self._here, "ticket", None)
        if ticket is not None:
            ticket.done()

    def _on_send(self, **_: Any) -> None:
        """Stop a try that is not to begin: botocore does not take this for something to be tried again."""
        ticket: Ticket | None = getattr(self._here, "ticket", None)
        if ticket is None:
            return
        ticket.sent += 1
        late = ticket.sent > 1 and time.monotonic() > ticket.until
        if late or self._closing or not ticket.wanted:
            raise GaveUp

    def _on_response(self, parsed_response: Any, exception: Any, **_: Any) -> None:
        """Remember why a try failed, which is what its giving up is explained by."""
        ticket: Ticket | None = getattr(self._here, "ticket", None)
        if ticket is None or isinstance(exception, GaveUp):
            return
        ticket.last = exception
        if exception is None and isinstance(parsed_response, dict) and parsed_response.get("Error"):
            from botocore.exceptions import ClientError

            ticket.last = ClientError(parsed_response, "")

    async def _keep(self, credentials: Any) -> None:
        """Renew credentials that expire in a thread, before `presign` on the event loop would have to wait for that."""
        while True:
            await asyncio.sleep(_KEEP_SECONDS)
            try:
                await self.run(
                    lambda _: credentials.get_frozen_credentials(),
                    doing="renewing credentials of",
                    seconds=_KEEP_SECONDS,
                )
            except BlobsUnavailable:
                continue


def _on_call(params: Any, **_: Any) -> None:
    """Never ask by `Expect: 100-continue` first: a thread whose socket is cut while botocore waits for that would spin for ever."""
    params["headers"].pop("Expect", None)


class Ticket:
    """What the thread of one call may still do."""

    def __init__(self) -> None:
        self.wanted = True
        self.sent = 0
        self.until = 0.0
        self.last: Any = None
        self._lock = threading.Lock()
        self._socket: Any = None

    def hold(self, sock: Any) -> None:
        """Know the socket that the thread will read from or write to. Raises `GaveUp` when nobody waits any more."""
        with self._lock:
            if not self.wanted:
                raise GaveUp
            self._socket = sock

    def done(self) -> None:
        """The thread uses no socket any more: another call may have it."""
        with self._lock:
            self._socket = None

    def give_up(self) -> None:
        """Let the thread do nothing more: whatever it waits for on its socket ends now."""
        with self._lock:
            self.wanted = False
            if self._socket is not None:
                # Not a TLS socket's own method, which would have the thread read the rest as plain text.
                with contextlib.suppress(OSError, TypeError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def hold_sockets(client: Any, held: Callable[[Any], None], let_go: Callable[[], None]) -> None:
    """Have `held(socket)` called in a client's threads before a socket is used: when it is connected, and for each request.

    `let_go()` is called before a connection goes back to its pool, where the next thread that takes it may have it.
    """
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    pools = getattr(session, "_pool_classes_by_scheme", None)
    if not isinstance(
        pools, dict
    ):  # another botocore: calls end in time all the same, threads when their store lets them
        return
    for scheme, pool in pools.items():
        pools[scheme] = _letting_go(pool, _holding(pool.ConnectionCls, held), let_go)


def _letting_go(kind: Any, connection: Any, let_go: Callable[[], None]) -> Any:
    class LettingGo(kind):  # type: ignore[misc]  # the base is botocore's pool, a class that is known only when it runs
        ConnectionCls = connection

        def _put_conn(self, conn: Any) -> None:
            let_go()
            super()._put_conn(conn)

    return LettingGo


def _holding(kind: Any, held: Callable[[Any], None]) -> Any:
    class Holding(kind):  # type: ignore[misc]  # the base is urllib3's connection, a class that is known only when it runs
        def _new_conn(self) -> Any:
            made = super()._new_conn()
            try:
                held(made)
            except GaveUp:
                made.close()
                raise
            return made

        def request(self, *args: Any, **more: Any) -> Any:
            if self.sock is not None:  # with TLS another one than was connected; or kept from a call before
                held(self.sock)
            return super().request(*args, **more)

    return Holding


_PROBE = "receiver-link"
_USUAL = {
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
}
_TOKEN = "X-Amz-Security-Token"  # noqa: S105 - the name of a parameter


class LinkSigner:
    """Signs GET links for one bucket. Host, path and scope are taken from a link that boto3 made, once."""

    def __init__(self, client: Any, credentials: Any, bucket: str) -> None:
        """Signs nothing by hand where boto3's own link looks unlike what is known here (`usual`)."""
        self._credentials = credentials
        made = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": _PROBE})
        parts = urlsplit(made)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        scope = query.get("X-Amz-Credential", "////").split("/")
        self._region, service = scope[-3], scope[-2]
        usual_port = ":443" if parts.scheme == "https" else ":80"
        self._host = parts.netloc.removesuffix(usual_port)
        self._path = parts.path.removesuffix(_PROBE)
        self._base = f"{parts.scheme}://{parts.netloc}"
        algorithm, headers = query.get("X-Amz-Algorithm"), query.get("X-Amz-SignedHeaders")
        self.usual = (
            set(query) - {_TOKEN} == _USUAL
            and (algorithm, headers, service) == ("AWS4-HMAC-SHA256", "host", "s3")
            and parts.path.endswith(f"/{_PROBE}")
        )
        self._key_of: tuple[str, str] = ("", "")
        self._key = b""

    def sign(self, key: str, about: dict[str, str], seconds: int) -> str:
        """Return a link to `key` that ends in `seconds`; `about` are the `response-…` parameters."""
        credentials = self._credentials.get_frozen_credentials()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time()))
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        query = about | {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{credentials.access_key}/{scope}",
            "X-Amz-Date": stamp,
            "X-Amz-Expires": str(seconds),
            "X-Amz-SignedHeaders": "host",
        }
        if credentials.token:
            query[_TOKEN] = credentials.token
        asked = "&".join(
            f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query)
        )
        path = self._path + quote(key, safe="/~")
        request = f"GET\n{path}\n{asked}\nhost:{self._host}\n\nhost\nUNSIGNED-PAYLOAD"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = _mac(self._signing_key(credentials.secret_key, stamp[:8]), text).hex()
        return f"{self._base}{path}?{asked}&X-Amz-Signature={signature}"

    def _signing_key(self, secret: str, day: str) -> bytes:
        if self._key_of != (secret, day):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = _mac(key, part)
            self._key_of, self._key = (secret, day), key
        return self._key


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


_CREDENTIALS = (
    "give boto3 credentials, by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or an instance role"
)
_BY_CODE = {
    "InvalidAccessKeyId": "the store does not know the access key id: compare AWS_ACCESS_KEY_ID or the profile",
    "SignatureDoesNotMatch": "the secret access key is wrong (or something on the way changes the Host header)",
    "ExpiredToken": "the temporary credentials have expired: renew them",
    "InvalidToken": "the session token is not valid: compare AWS_SESSION_TOKEN with the access key",
    "RequestTimeTooSkewed": "this machine's clock is too far from the store's: set it (NTP)",
    "SlowDown": "the store asks to slow down (503 SlowDown)",
    "EntityTooLarge": "the object is larger than the store takes",
    "InvalidStorageClass": "the store does not know the storage class: correct blobs.storage_class",
    "InvalidBucketName": "that is no name a bucket may have: correct blobs.url",
    "InvalidObjectState": "the object lies in an archive, and must be restored before it can be read",
    "TemporaryRedirect": "the store sends to another address for now: a new bucket takes some minutes, or set blobs.region",
    "QuotaExceeded": "the store's quota is used up",
    "BadDigest": "the bytes were changed on the way: their checksum does not fit",
    "XAmzContentSHA256Mismatch": "the bytes were changed on the way: their checksum does not fit",
    "XAmzContentChecksumMismatch": "the bytes were changed on the way: their checksum does not fit",
    "MissingContentLength": 'the store does not take a checksum behind the body: set blobs.checksums = "when_required"',
}
_BY_TYPE = {
    "NoCredentialsError": f"no credentials were found: {_CREDENTIALS}",
    "PartialCredentialsError": "the credentials are not whole: both access key id and secret access key are needed",
    "CredentialRetrievalError": "the credentials could not be fetched from their provider",
    "MetadataRetrievalError": "the instance role's credentials could not be fetched",
    "InvalidRegionError": "the region is no valid name: correct blobs.region",
    "FlexibleChecksumError": "the bytes were changed on the way: their checksum does not fit",
    "ConfigParseError": "the AWS configuration file cannot be read: correct AWS_CONFIG_FILE, or ~/.aws/config",
    "RecursionError": "the store sends to another address without end: correct blobs.endpoint_url and blobs.region",
    "NoThread": "this process can start no thread: it has too many, or too little memory",
    "NoRegionError": "no region is known: set blobs.region or AWS_REGION",
}


_PASSING = (
    *("ReadTimeoutError", "ConnectTimeoutError", "EndpointConnectionError", "ConnectionClosedError"),
    # An instance role's credentials, of a service that is slow just after a boot, or asked by too many.
    *("ProxyConnectionError", "CredentialRetrievalError", "MetadataRetrievalError"),
)
_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")


class GaveUp(Exception):
    """The request's time is over, or nobody waits for it any more."""


def code_of(error: BaseException) -> str:
    """Return the store's error code (`AccessDenied`, or the status as text), "" when it did not answer."""
    response: Any = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def status_of(error: BaseException) -> int:
    """Return the HTTP status of the store's answer, 0 when it did not answer."""
    response: Any = getattr(error, "response", None)
    if not isinstance(response, dict):
        return 0
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def is_outage(error: BaseException) -> bool:
    """Tell whether the store is out, or too busy: what only waiting mends."""
    status = status_of(error)
    if code_of(error) or status:
        return status in (429, 503) or (status >= 500 and status != 501)
    if (
        type(error).__name__ == "SSLError"
    ):  # broken off in the middle, as by a load balancer that has nobody behind it
        return not any(words in str(error) for words in (_UNTRUSTED, *_NO_TLS))
    return isinstance(error, GaveUp | TimeoutError) or type(error).__name__ in _PASSING


def explain(error: BaseException, options: S3Options, doing: str, permission: str) -> str:
    """Return one sentence: what was done, why it failed, and what to do. `permission` is what it needs (`s3:PutObject`)."""
    return f"{doing} {options.place} failed: {_reason(error, options, permission)}"


def unavailable(error: BaseException, options: S3Options, doing: str, permission: str) -> BlobsUnavailable:
    """Return the error that the port promises."""
    if isinstance(error, BlobsUnavailable):
        return error
    return BlobsUnavailable(explain(error, options, doing, permission))


def _reason(error: BaseException, options: S3Options, permission: str) -> str:
    if isinstance(error, ReceiverError):
        return error.message
    kind = type(error).__name__
    code, status = code_of(error), status_of(error)
    host = _host(error, options)
    if code or status:
        return _answered(error, code, status, options, permission)
    if isinstance(error, GaveUp | TimeoutError) or kind in ("ReadTimeoutError", "ConnectTimeoutError"):
        return f"{host} did not answer in time"
    if kind in _BY_TYPE:
        return _BY_TYPE[kind]
    if kind == "SSLError":
        return _unsecured(error, options)
    if kind in ("EndpointConnectionError", "ProxyConnectionError"):
        return f"{host} cannot be reached (name, port or network)"
    if kind in ("ConnectionClosedError", "ConnectionError", "ResponseStreamingError", "IncompleteReadError"):
        return f"{host} broke the connection off"
    if kind == "ProfileNotFound":
        return "AWS_PROFILE names a profile that is not there"
    if kind == "ParamValidationError":
        return "the bucket's name or the key is not one that S3 takes"
    if isinstance(error, ValueError) and "endpoint" in str(error).lower():
        return "blobs.endpoint_url must begin with https:// (or http://) and a host"
    if kind == "FileNotFoundError":
        return "the body's temporary file is gone"
    if "Token" in kind or "SSO" in kind:
        return "the sign-in behind the credentials has ended: sign in again"
    return f"an unexpected {kind}"


def _host(error: BaseException, options: S3Options) -> str:
    """Return who was asked: without `endpoint_url`, environment or profile may have named another than Amazon's."""
    told: Any = getattr(error, "kwargs", {})
    asked = urlsplit(str(told.get("endpoint_url", ""))).netloc if isinstance(told, dict) else ""
    if options.endpoint_url or not asked or asked.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return options.host
    return f"{asked.rpartition('@')[2]} (blobs.endpoint_url is not set, AWS_ENDPOINT_URL_S3 or the profile names it)"


def _unsecured(error: BaseException, options: S3Options) -> str:
    if _UNTRUSTED in str(error):
        return f"the TLS certificate of {options.host} was not trusted: name its authority in blobs.ca_file"
    if any(words in str(error) for words in _NO_TLS):
        return f"{options.host} speaks no TLS: correct its port, or write http:// in blobs.endpoint_url"
    return f"no TLS could be agreed on with {options.host}: compare blobs.ca_file"


def _answered(error: BaseException, code: str, status: int, options: S3Options, permission: str) -> str:
    if code in _BY_CODE:
        return _BY_CODE[code]
    if code.startswith("KMS.") or code == "KMSDisabledException":
        return "the encryption key cannot be used: compare blobs.sse_kms_key_id and its key policy"
    if code == "NoSuchBucket":
        return f"there is no bucket {options.bucket}: create it, or correct blobs.url"
    if status == 404 and code in ("", "404"):  # to a HEAD, whose answer has no body to say more
        return (
            f"there is no bucket {options.bucket} at {options.host}: create it, or correct blobs.url and "
            "blobs.endpoint_url (which does not name the bucket)"
        )
    if status == 307:
        return _BY_CODE["TemporaryRedirect"]
    if status == 301 or code in (
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    ):
        region = _region(error)
        told = f'set blobs.region = "{region}"' if region else "set blobs.region to the bucket's"
        return f"the bucket {options.bucket} lies in another region: {told}"
    if status == 403:
        return f"access denied: the credentials need {permission} (and the key's use, where it is encrypted)"
    if status in (429, 503):
        return f"the store is overloaded ({status})"
    if status >= 500:
        return f"the store failed ({status})"
    shown = f"{status} {code}" if code and code != str(status) else str(status)
    return f"the store refused it ({shown})"


def _region(error: BaseException) -> str:
    response: Any = getattr(error, "response", {})
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = headers.get("x-amz-bucket-region") or response.get("Error", {}).get("Region") or ""
    return region if region.replace("-", "").isalnum() else ""
