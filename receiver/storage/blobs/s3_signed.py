"""Requests to a bucket that are signed here (Signature Version 4): links, and the first try of a put, sent by the event loop.

boto3 takes a thread and a millisecond of processor time for each put, and its threads wait for each other. What is unusual
(a proxy, a directory bucket, a redirect to another region, any failure) stays with it, and so does each second try.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import aiohappyeyeballs

from receiver import __version__
from receiver.core.callback import Body
from receiver.storage.blobs.s3_errors import is_outage, unavailable
from receiver.storage.blobs.s3_options import CONNECT_SECONDS, S3Options
from receiver.system.aws_signature import Signature
from receiver.system.background import Threads
from receiver.system.http1 import Bounds, Connection, Connections, Unanswered, with_headers

FIRST_LIMIT = 1024 * 1024
"""Bytes up to which a body's first try is made here."""
_PAUSE_SECONDS = 60.0
"""How long boto3 makes all puts after it stored one that failed here, as when the bucket is in another region."""
_ANSWER_LIMIT = 64 * 1024
_IDLE_SECONDS = 15.0
"""How long a connection is kept: S3 keeps them for longer."""
_PROBE = "receiver-link"
_USUAL = {
    f"X-Amz-{name}" for name in ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature")
}
_TOKEN = "X-Amz-Security-Token"  # noqa: S105 - the name of a parameter
_HEADERS = {
    "ContentType": "content-type",
    "ChecksumSHA256": "x-amz-checksum-sha256",
    "IfNoneMatch": "if-none-match",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    "StorageClass": "x-amz-storage-class",
}
"""The headers of boto3's arguments of a put."""


class Signer:
    """Signs for one bucket. Host, path and region are taken from a link that boto3 made, once."""

    def __init__(self, client: Any, credentials: Any, bucket: str) -> None:
        """`usual` is False where boto3's own link looks unlike what is known here: nothing is signed by hand then."""
        self.credentials = credentials
        """What boto3's `get_frozen_credentials` returned last, or the error that it raised."""
        made = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": _PROBE})
        parts = urlsplit(made)
        query = dict(parse_qsl(parts.query))
        region, service = query.get("X-Amz-Credential", "////").split("/")[-3:-1]
        self._signature = Signature(region, service)
        self._host = parts.netloc.removesuffix(":443" if parts.scheme == "https" else ":80")
        self._path = parts.path.removesuffix(_PROBE)
        self.base = f"{parts.scheme}://{parts.netloc}"
        algorithm, headers = query.get("X-Amz-Algorithm"), query.get("X-Amz-SignedHeaders")
        self.usual = (
            set(query) - {_TOKEN} == _USUAL
            and (algorithm, headers, service) == ("AWS4-HMAC-SHA256", "host", "s3")
            and parts.path.endswith(f"/{_PROBE}")
        )

    def link(self, key: str, about: dict[str, str], seconds: int) -> str:
        """Return a link to `key` that ends in `seconds`; `about` are the `response-…` parameters.

        Raises the error of credentials that could not be renewed.
        """
        credentials = self._usable()
        stamp, scope = self._signature.now()
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
        signature = self._signature.of(request, stamp, scope, credentials.secret_key)
        return f"{self.base}{path}?{asked}&X-Amz-Signature={signature}"

    def put(self, key: str, headers: dict[str, str], sha256: str) -> tuple[str, dict[str, str]]:
        """Return path and signed headers of a put of a body with this digest. Raises as `link` does."""
        credentials, path = self._usable(), self._path + quote(key, safe="/~")
        headers |= {"host": self._host, "x-amz-content-sha256": sha256}
        return path, self._signature.headers("PUT", path, headers, sha256, credentials)

    def _usable(self) -> Any:
        if isinstance(self.credentials, Exception):
            raise self.credentials
        return self.credentials


class FirstTries:
    """Sends the first try of each put. Its connections trust what boto3's do."""

    def __init__(
        self, options: S3Options, client: Any, signer: Signer, trust: ssl.SSLContext | bool, threads: Threads
    ) -> None:
        """`client` is boto3's, which knows what an error looks like; names are looked up in `threads`."""
        self._options, self._signer = options, signer
        self._shape = client.meta.service_model.operation_model("PutObject").output_shape
        self._slots = asyncio.Semaphore(options.connections)
        self._paused_until = 0.0
        self._trust = trust if isinstance(trust, ssl.SSLContext) else None
        self._threads = threads
        self._connections = Connections(self._connect, _IDLE_SECONDS)

    async def close(self) -> None:
        """Hang up, whatever is under way."""
        await self._connections.close()

    def takes(self, body: Body) -> bool:
        """Tell whether this class makes a body's first try: if it is in memory, and boto3 does not make all puts at present."""
        return body.path is None and body.size <= FIRST_LIMIT and time.monotonic() > self._paused_until

    async def put(
        self, key: str, body: Body, about: dict[str, Any], seconds: float
    ) -> dict[str, Any] | Exception:
        """Put with boto3's arguments `about`; return what boto3 would return, or the error after which another try may be made.

        Raises `BlobsUnavailable` when there is no time for another try.
        """
        from botocore.exceptions import ClientError

        async with self._slots:
            began = time.monotonic()
            try:
                answer = await self._send(key, body, about, seconds)
                if "Error" not in answer:
                    return answer
                failed: Exception = ClientError(answer, "PutObject")
            except (Unanswered, OSError) as error:
                failed = TimeoutError() if isinstance(error, TimeoutError) else ConnectionError()
            except (
                Exception
            ) as error:  # credentials that could not be renewed, an answer that is none of S3's
                failed = error
        if time.monotonic() - began > self._options.again_seconds:
            raise unavailable(failed, self._options, "storing in", "s3:PutObject")
        return failed

    def stored_by_boto3(self, refused: Exception) -> None:
        """Note that boto3 stored a put that was `refused` here. Unless the cause has passed, boto3 makes the next puts."""
        if not is_outage(refused) and not isinstance(refused, ConnectionError):
            self._paused_until = time.monotonic() + _PAUSE_SECONDS

    async def _send(self, key: str, body: Body, about: dict[str, Any], seconds: float) -> dict[str, Any]:
        headers = {_HEADERS[name]: value for name, value in about.items() if name in _HEADERS}
        headers |= {f"x-amz-meta-{name}": value for name, value in about["Metadata"].items()}
        path, headers = self._signer.put(key, headers, body.sha256)
        headers["user-agent"] = f"receiver/{__version__}"
        bounds = Bounds(seconds=seconds, body_seconds=seconds, body_bytes=_ANSWER_LIMIT)
        lines = headers | {"content-length": str(body.size)}
        head = (with_headers(f"PUT {path} HTTP/1.1\r\n", lines) + "\r\n").encode()
        answer = await self._connections.ask(self._signer.base, head, body.load(), bounds)
        if not answer.whole:
            raise TimeoutError
        headers = answer.headers
        if answer.status == 200:
            found = {"ETag": headers.get("etag"), "ChecksumSHA256": headers.get("x-amz-checksum-sha256")}
            return found | {"ResponseMetadata": {"HTTPStatusCode": 200, "HTTPHeaders": headers}}
        from botocore.parsers import create_parser

        response = {"status_code": answer.status, "headers": headers, "body": answer.body}
        parsed: dict[str, Any] = create_parser("rest-xml").parse(response, self._shape)
        return {"Error": {}} | parsed

    async def _connect(self, base: str) -> Connection:
        """Connect; the names are looked up in daemon threads, since the event loop's own would hold the process's end."""
        host, port = urlsplit(base).hostname, urlsplit(base).port or (80 if self._trust is None else 443)
        async with asyncio.timeout(CONNECT_SECONDS):
            ask = partial(socket.getaddrinfo, host, port, socket.AF_UNSPEC, socket.SOCK_STREAM)
            found = await asyncio.wrap_future(self._threads.submit(ask))
            sock = await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=0.25)
            _, connection = await asyncio.get_running_loop().create_connection(
                Connection, sock=sock, ssl=self._trust, server_hostname=host if self._trust else None
            )
        return connection


def trust_of(options: S3Options, signer: Signer) -> ssl.SSLContext | bool | None:
    """Return what boto3's connections trust; None where boto3 is to make all tries. Reads files: call it in a thread."""
    from botocore.httpsession import get_cert_path
    from botocore.session import get_session
    from botocore.utils import get_environ_proxies

    scheme = urlsplit(signer.base).scheme
    if not signer.usual or get_environ_proxies(signer.base).get(scheme):
        return None
    if scheme == "http":
        return True
    named = options.ca_file or get_session().get_config_variable("ca_bundle") or True
    try:
        return ssl.create_default_context(cafile=get_cert_path(named))
    except OSError:  # a file that is not there, or holds no certificates: boto3 says so at each call
        return None
