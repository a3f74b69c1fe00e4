"""How an S3 bucket is reached: the options, and the one place that makes a boto3 client."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, ClassVar
from urllib.parse import urlsplit

from receiver import __version__
from receiver.core.errors import ConfigError, install
from receiver.settings.model import BlobSettings
from receiver.storage.blobs.keys import KEY_BYTES, KeyTemplate

CONNECT_SECONDS = 3.0


class S3Options(BlobSettings):
    """[blobs] for S3. Credentials are no part of it: boto3 finds them (environment, profile, instance role)."""

    again_seconds: ClassVar[float] = 3.0
    """Another try of a request begins only this long after the first: with a hung try the callback's 6 s are over."""

    bucket: str
    prefix: str = ""
    """What all keys begin with, "" or ending in a slash."""
    # Checked as settings already.
    endpoint_url: str | None = None
    link_endpoint_url: str | None = None

    @classmethod
    def of(cls, settings: BlobSettings) -> S3Options:
        """Return how the bucket that `[blobs] url` names is reached. Raises `ConfigError`."""
        bucket, prefix = parse_url(settings.url or "")
        longest = len(prefix.encode())
        with suppress(ConfigError):  # a template that makes no keys is told where it is used
            longest += KeyTemplate(settings.key).longest
        if longest > KEY_BYTES:
            raise ConfigError(
                f"blobs.url: with this prefix and blobs.key, keys may have {longest} bytes, and S3 takes {KEY_BYTES}"
            )
        return cls(bucket=bucket, prefix=prefix, **settings.model_dump())

    @property
    def place(self) -> str:
        """The bucket and prefix, for people."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def host(self) -> str:
        """Who is asked, for people."""
        return urlsplit(self.endpoint_url).netloc.rpartition("@")[2] if self.endpoint_url else "Amazon S3"


def parse_url(url: str) -> tuple[str, str]:
    """Return bucket and prefix ("" or ending in a slash) of `s3://bucket/prefix`. Raises `ConfigError`."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    plain = bucket.replace("-", "").replace(".", "").replace("_", "").isalnum() and bucket.isascii()
    if not url.startswith("s3://") or not plain:
        raise ConfigError(
            "blobs.url must begin with s3:// and a bucket's name, for example s3://bucket/prefix"
        )
    if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
        raise ConfigError("blobs.url: the prefix must have plain parts between its slashes")
    return bucket, f"{prefix}/" if prefix else ""


def _lowered(url: str | None) -> str | None:
    """Return an endpoint with its host in small letters: a link is signed for the host as clients write it."""
    if url is None:
        return None
    scheme, colon, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}{colon}{host.lower()}{slash}{path}" if colon and "@" not in host else url


def make_link_client(options: S3Options, client: Any) -> Any:
    """Return the client that signs links: another than `client` only where links lead to an address of their own."""
    if options.link_endpoint_url is None:
        return client
    return make_client(options.model_copy(update={"endpoint_url": options.link_endpoint_url}))[0]


def make_client(options: S3Options, *, tries: int = 1) -> tuple[Any, Any]:
    """Return a boto3 S3 client and the credentials it found. Takes half a second the first time, and may read credentials: call it in a thread.

    Each request has `tries` of botocore's own.

    Raises `ConfigError` when boto3 is not installed, botocore's errors for a profile or URL that is none, or no credentials.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import NoCredentialsError
    except ImportError:
        raise ConfigError(f"blobs.url is s3://…, which needs boto3: {install('s3')}") from None
    addressing = options.addressing
    if addressing == "auto":
        addressing = "path" if options.endpoint_url else "virtual"
    config = Config(
        region_name=options.region,
        signature_version="s3v4",
        connect_timeout=CONNECT_SECONDS,
        read_timeout=options.timeout_seconds,
        max_pool_connections=options.connections,
        retries={"total_max_attempts": tries, "mode": "standard"},
        tcp_keepalive=True,
        request_checksum_calculation=options.checksums,
        response_checksum_validation=options.checksums,
        # The signature covers the body's SHA-256 over HTTPS as well: every store that checks signatures proves the bytes.
        s3={"addressing_style": addressing, "payload_signing_enabled": True},
        # Given whole: botocore would put its own together anew for each request, a tenth of what a put costs.
        user_agent=f"receiver/{__version__}",
    )
    session = boto3.session.Session()
    client = session.client(
        "s3", endpoint_url=_lowered(options.endpoint_url), config=config, verify=options.ca_file or None
    )
    credentials = session.get_credentials()
    if credentials is None:
        raise NoCredentialsError
    return client, credentials
