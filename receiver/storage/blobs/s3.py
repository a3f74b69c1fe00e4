"""Audio in an S3 bucket: Amazon's, or any store that speaks S3."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

from receiver.core.callback import Body
from receiver.core.errors import BlobsUnavailable, NotFound
from receiver.core.event import StoredBlob
from receiver.storage.blobs import BlobEntry, LocalObject, disposition
from receiver.storage.blobs.keys import KeyTemplate
from receiver.storage.blobs.s3_client import Calls
from receiver.storage.blobs.s3_errors import code_of, explain, status_of
from receiver.storage.blobs.s3_objects import LARGE, Objects, proves
from receiver.storage.blobs.s3_options import S3Options

_LONGEST_LINK = 7 * 86400
"""Seconds that a signed link may last at most (Signature Version 4)."""
_PROVED_SECONDS = 10.0
"""How long a successful put or ping answers the next ping. Each request costs money, and load balancers ask for readiness often."""
_PAGE = 1000
_ASK_SECONDS = 15.0
_LONG_SECONDS = 120.0
"""Time limit of a whole call, even if the store keeps sending: for one answer, and for reading an object."""
_SLOWEST = 256 * 1024
"""Bytes a second: to put a body may take this in addition."""
_NO_BATCHES = {"MissingContentMD5", "NotImplemented", "InvalidRequest", "MethodNotAllowed"}
"""Error codes of stores that cannot delete many objects with boto3's one request."""


class S3Blobs:
    """A bucket, or a part of it under a prefix. Links are signed here and served by the bucket's own store."""

    def __init__(self, options: S3Options) -> None:
        self._options = options
        self._keys = KeyTemplate(options.key)
        self._calls = Calls(options)
        self._objects = Objects(options)
        self._large = asyncio.Semaphore(max(1, options.connections // 2))
        """Half of the threads at most put large bodies, so that these never stop small ones."""
        self._pinging = asyncio.Lock()
        self._proved_at = -math.inf

    async def open(self) -> None:
        """Find credentials; no request is made, so that receiver starts (and journals) during an outage.

        Raises `ConfigError` when boto3 is missing, `BlobsUnavailable` when there are no credentials.
        """
        await self._calls.open()

    async def close(self) -> None:
        """End the requests under way, end the threads."""
        await self._calls.close()

    async def ping(self) -> None:
        """Prove that the bucket answers these credentials; a put or ping that worked in the last 10 s is proof enough.

        That objects may be put is what `receiver check` proves. Raises `BlobsUnavailable`.
        """
        async with self._pinging:
            if time.monotonic() - self._proved_at < _PROVED_SECONDS:
                return
            await self._calls.run(
                lambda client: client.head_bucket(Bucket=self._options.bucket),
                doing="asking",
                seconds=_ASK_SECONDS,
                permission="s3:ListBucket",
            )
            self._proved_at = time.monotonic()

    async def put(self, key: str, body: Body, *, content_type: str) -> StoredBlob:
        """Store `body`; returns after the store acknowledged it. Raises `BlobsUnavailable`.

        An object that is there already is left as it is: it must have the same size and SHA-256.
        """
        whole = self._whole(key)
        try:
            await self._put(whole, body, content_type)
        except BaseException:
            self._proved_at = -math.inf
            raise
        self._proved_at = time.monotonic()
        return StoredBlob(
            key=key,
            uri=f"s3://{self._options.bucket}/{whole}",
            content_type=content_type,
            size=body.size,
            sha256=body.sha256,
        )

    async def _put(self, key: str, body: Body, content_type: str) -> None:
        """Put a body whole: the first try may be the event loop's, the others are boto3's in a thread."""
        about, longer = self._objects.about(body, content_type), body.size / _SLOWEST
        tries, first = self._calls.first_tries, None
        if tries is not None and tries.takes(body):
            seconds = self._options.timeout_seconds + longer
            first = await tries.put(key, body, about | self._objects.condition, seconds)
            if isinstance(first, dict) and proves(first, body):
                return
        async with self._large if body.size > LARGE else nullcontext():
            await self._calls.run(
                partial(self._objects.put, key=key, body=body, about=about, first=first),
                doing="storing in",
                seconds=_ASK_SECONDS + longer,
                permission="s3:PutObject",
            )
        if tries is not None and isinstance(first, Exception):
            tries.stored_by_boto3(first)

    async def get(self, key: str) -> bytes:
        """Return an object's bytes. Raises `NotFound`, `BlobsUnavailable`."""
        work = partial(self._get, key=key, whole=self._whole(key))
        return await self._calls.run(
            work, doing="reading from", seconds=_LONG_SECONDS, permission="s3:GetObject"
        )

    def _get(self, client: Any, key: str, whole: str) -> bytes:
        from botocore.exceptions import ClientError

        try:
            answer = client.get_object(Bucket=self._options.bucket, Key=whole)
        except ClientError as error:
            if status_of(error) == 404 and code_of(error) != "NoSuchBucket":
                raise NotFound(f"no object has the key {key}") from None
            raise
        with closing(answer["Body"]) as body:  # entered itself, it would hand out what checks nothing
            data: bytes = body.read()
        return data

    def presign(self, key: str, *, content_type: str, expires_at: int) -> str | None:
        """Return a link that the store serves, with byte ranges, until `expires_at` (epoch ms), at most for 7 days.

        It ends earlier when temporary credentials (an instance role's) do. Raises `BlobsUnavailable` without credentials.
        """
        whole = self._whole(key)
        seconds = math.ceil(expires_at / 1000 - time.time())
        life = min(max(seconds, 1), _LONGEST_LINK)
        kind, shown = content_type, disposition(whole, content_type)
        try:
            signer = self._calls.signers[-1]
            if signer.usual:
                about = {"response-content-type": kind, "response-content-disposition": shown}
                return signer.link(whole, about, life)
            about = {"ResponseContentType": kind, "ResponseContentDisposition": shown}
            params = {"Bucket": self._options.bucket, "Key": whole} | about
            made: str = self._calls.links.generate_presigned_url("get_object", Params=params, ExpiresIn=life)
        except Exception as error:  # credentials that cannot be renewed, above all
            raise BlobsUnavailable(explain(error, self._options, "signing a link to", "")) from None
        return made

    def local(self, key: str) -> LocalObject | None:
        """Return None: the store serves its objects itself."""
        return None

    # ------------------------------------------------------------ for the janitor

    async def entries(self, prefix: str = "", *, after: str = "", limit: int = _PAGE) -> Sequence[BlobEntry]:
        """Return a page of objects by key; an empty one is the end. Raises `BlobsUnavailable`."""
        base = self._options.prefix
        start = {"StartAfter": base + after} if after else {}
        answer = await self._calls.run(
            lambda client: client.list_objects_v2(
                Bucket=self._options.bucket, Prefix=base + prefix, MaxKeys=min(limit, _PAGE), **start
            ),
            doing="listing",
            seconds=2 * _ASK_SECONDS,
            permission="s3:ListBucket",
        )
        return [
            BlobEntry(
                key=item["Key"].removeprefix(base),
                size=item["Size"],
                modified_at=int(item["LastModified"].timestamp() * 1000),
            )
            for item in answer.get("Contents", [])
        ]

    def is_ours(self, key: str) -> bool:
        """Tell whether receiver, with its current prefix and template, makes such keys."""
        return self._keys.is_ours(key)

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects, up to a thousand with a request. Raises `BlobsUnavailable`."""
        names = [self._whole(key) for key in keys]
        for first in range(0, len(names), _PAGE):
            page = names[first : first + _PAGE]
            await self._calls.run(
                partial(self._delete, names=page),
                doing="deleting in",
                seconds=_LONG_SECONDS,
                permission="s3:DeleteObject",
            )

    def _delete(self, client: Any, names: Sequence[str]) -> None:
        from botocore.exceptions import ClientError

        bucket = self._options.bucket
        try:
            batch = {"Objects": [{"Key": name} for name in names], "Quiet": True}
            failed = client.delete_objects(Bucket=bucket, Delete=batch).get("Errors", [])
        except ClientError as error:
            if code_of(error) not in _NO_BATCHES and status_of(error) not in (405, 501):
                raise
            _delete_each(client, bucket, names)
            return
        if failed:
            code = str(failed[0].get("Code", ""))
            status = 403 if code == "AccessDenied" else 500
            answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise ClientError(answer, "DeleteObjects")

    async def abort_abandoned(self, *, before: int) -> int:
        """Return 0: a body is put in one request, which leaves all of it or nothing."""
        return 0

    def _whole(self, key: str) -> str:
        parts = key.split("/")
        whole = self._options.prefix + key
        if not {"", ".", ".."}.isdisjoint(parts) or "\0" in key:
            raise BlobsUnavailable("an object key has plain parts between its slashes")
        return whole


def _delete_each(client: Any, bucket: str, names: Sequence[str]) -> None:
    from botocore.exceptions import ClientError

    refused: ClientError | None = None
    for name in names:
        try:
            client.delete_object(Bucket=bucket, Key=name)
        except ClientError as error:
            refused = error
    if refused is not None:
        raise refused
