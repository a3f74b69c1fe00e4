"""Audio in an S3 bucket: Amazon's, or any store that speaks S3."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from receiver.core.callback import Body
from receiver.core.errors import BlobsUnavailable, NotFound
from receiver.core.event import StoredBlob
from receiver.storage.blobs import BlobEntry, LocalObject
from receiver.storage.blobs.keys import KEY_BYTES, KeyTemplate
from receiver.storage.blobs.s3_client import Calls, code_of, explain, status_of
from receiver.storage.blobs.s3_options import S3Options

_LONGEST_LINK = 7 * 86400
"""Seconds that a signed link may last at most (Signature Version 4)."""
_PROVED_SECONDS = 10.0
"""How long a successful put or ping stands for the next ping: each request costs money, and readiness is asked often."""
_PAGE = 1000
_ASK_SECONDS = 15.0
_LONG_SECONDS = 120.0
"""The longest that a call may take in whole, whatever the store sends meanwhile: one answer; reading an object, many answers."""
_NO_BATCHES = {"MissingContentMD5", "NotImplemented", "InvalidRequest", "MethodNotAllowed"}
"""What stores say that cannot delete many objects with one request as boto3 asks it."""


class S3Blobs:
    """A bucket, or a part of it under a prefix. Links are signed here and served by the bucket's own store."""

    def __init__(self, options: S3Options) -> None:
        self._options = options
        self._keys = KeyTemplate(options.key)
        self._calls = Calls(options)
        self._uploads = Uploads(options, self._calls)
        self._pinging = asyncio.Lock()
        self._proved_at = -math.inf

    async def open(self) -> None:
        """Find credentials; no request is made, so that receiver starts (and journals) during an outage.

        Raises `ConfigError` when boto3 is missing, `BlobsUnavailable` when there are no credentials.
        """
        await self._calls.open()

    async def close(self) -> None:
        """End the requests under way, abort uploads that failed, end the threads."""
        await self._uploads.close()
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
            await self._uploads.put(whole, body, content_type)
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

    async def get(self, key: str) -> bytes:
        """Return an object's bytes. Raises `NotFound`, `BlobsUnavailable`."""
        whole = self._whole(key)

        def work(client: Any) -> bytes:
            answer = client.get_object(Bucket=self._options.bucket, Key=whole)
            with closing(answer["Body"]) as body:  # entered itself, it would hand out what checks nothing
                data: bytes = body.read()
            return data

        return await self._calls.run(
            _found(work, key), doing="reading from", seconds=_LONG_SECONDS, permission="s3:GetObject"
        )

    def presign(self, key: str, *, content_type: str, expires_at: int) -> str | None:
        """Return a link that the store serves, with byte ranges, until `expires_at` (epoch ms), at most for 7 days.

        It ends earlier when temporary credentials (an instance role's) do. Raises `BlobsUnavailable` without credentials.
        """
        whole = self._whole(key)
        seconds = math.ceil(expires_at / 1000 - time.time())
        name = "".join(
            c for c in whole.rpartition("/")[2] if c.isascii() and c.isprintable() and c not in '"\\'
        )
        life = min(max(seconds, 1), _LONGEST_LINK)
        disposition = f'inline; filename="{name}"'
        try:
            if self._calls.signer.usual:
                about = {"response-content-type": content_type, "response-content-disposition": disposition}
                signed: str = self._calls.signer.sign(whole, about, life)
                return signed
            made: str = self._calls.links.generate_presigned_url(
                "get_object",
                Params={
                    "Bucket": self._options.bucket,
                    "Key": whole,
                    "ResponseContentType": content_type,
                    "ResponseContentDisposition": disposition,
                },
                ExpiresIn=life,
            )
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
        """Tell whether receiver makes such keys here: neither others' nor those of an earlier template are."""
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
        """Abort our uploads in parts that were begun before `before` (epoch ms) and never ended. Raises `BlobsUnavailable`."""
        bucket, prefix = self._options.bucket, self._options.prefix

        def work(client: Any) -> int:
            count = 0
            for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
                for upload in page.get("Uploads", []):
                    old = upload["Initiated"].timestamp() * 1000 < before
                    if old and self.is_ours(upload["Key"].removeprefix(prefix)):
                        _abort(client, bucket, upload["Key"], upload["UploadId"])
                        count += 1
            return count

        return await self._calls.run(
            work,
            doing="aborting old uploads in",
            seconds=_LONG_SECONDS,
            permission="s3:ListBucketMultipartUploads and s3:AbortMultipartUpload",
        )

    def _whole(self, key: str) -> str:
        parts = key.split("/")
        whole = self._options.prefix + key
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise BlobsUnavailable("an object key has plain parts between its slashes")
        if len(whole.encode("utf-8", "replace")) > KEY_BYTES:
            raise BlobsUnavailable(f"an object key has at most {KEY_BYTES} bytes")
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


def _abort(client: Any, bucket: str, key: str, upload_id: str) -> None:
    from botocore.exceptions import ClientError

    try:
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
    except ClientError as error:
        if status_of(error) != 404:
            raise


def _found(work: Any, key: str) -> Any:
    """Say `NotFound` where the store says 404 for the object (not for the bucket)."""

    def guarded(client: Any) -> bytes:
        from botocore.exceptions import ClientError

        try:
            data: bytes = work(client)
        except ClientError as error:
            if status_of(error) == 404 and code_of(error) != "NoSuchBucket":
                raise NotFound(f"no object has the key {key}") from None
            raise
        return data

    return guarded


MIB = 1024 * 1024
WHOLE_LIMIT = 16 * MIB
"""Bytes up to which a body goes in one request."""
PART_BYTES = 8 * MIB
_PARTS_LIMIT = 10_000
_AT_ONCE = 3
"""Parts of one body under way at once."""
_READ = MIB
_SLOWEST = 256 * 1024
"""Bytes a second: a request may take a quarter of a minute and this in addition."""
_SECONDS = 15.0


class Window:
    """A part of a file that reads as a file: no byte is held in memory."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd, self._start, self._size, self._at = fd, start, size, 0

    def read(self, count: int | None = -1) -> bytes:
        """Read on."""
        left = max(self._size - self._at, 0)
        wanted = left if count is None or count < 0 else min(count, left)
        data = os.pread(self._fd, wanted, self._start + self._at)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place in the part."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Return the place in the part."""
        return self._at


def digest_of(window: Window | io.BytesIO) -> bytes:
    """Return a part's SHA-256; the window stands at its beginning again."""
    digest = hashlib.sha256()
    while piece := window.read(_READ):
        digest.update(piece)
    window.seek(0)
    return digest.digest()


def said_of(options: S3Options, content_type: str, sha256: str) -> dict[str, Any]:
    """Return what a new object is stored with; `receiver check` tries just that."""
    about: dict[str, Any] = {"ContentType": content_type, "Metadata": {"sha256": sha256}}
    if options.sse:
        about["ServerSideEncryption"] = options.sse
    if options.sse_kms_key_id:
        about["SSEKMSKeyId"] = options.sse_kms_key_id
    if options.storage_class:
        about["StorageClass"] = options.storage_class
    return about


@dataclass(slots=True)
class _Parts:
    """A body on its way in parts."""

    key: str
    body: Body
    fd: int = -1
    upload_id: str = ""
    digests: dict[int, bytes] = field(default_factory=dict)
    done: dict[int, dict[str, Any]] = field(default_factory=dict)
    under_way: set[Future[Any]] = field(default_factory=set)


class Uploads:
    """Puts bodies under whole keys."""

    def __init__(self, options: S3Options, calls: Calls) -> None:
        self._options = options
        self._calls = calls
        self._checksums = options.checksums == "when_supported"
        self._slots = asyncio.Semaphore(max(1, options.connections // 2))
        """Half of the threads at most send parts, so that large bodies never stop small ones."""
        self._aborting: set[asyncio.Task[None]] = set()
        self.conditional = True
        """False once the store said that it does not know `If-None-Match` on a put; keys are derived from content."""

    async def close(self) -> None:
        """Wait until uploads that failed are aborted, as far as that works."""
        ending = list(self._aborting)
        if ending:
            await asyncio.wait(ending, timeout=2 * self._options.timeout_seconds)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def put(self, key: str, body: Body, content_type: str) -> None:
        """Store `body`. Raises `BlobsUnavailable`."""
        if body.size <= WHOLE_LIMIT:
            await self._calls.run(
                lambda client: self._put_whole(client, key, body, content_type),
                doing="storing in",
                permission="s3:PutObject",
                seconds=_seconds(body.size),
            )
            return
        await self._put_parts(key, body, content_type)

    # ------------------------------------------------------------ in one request

    def _put_whole(self, client: Any, key: str, body: Body, content_type: str) -> None:
        about = said_of(self._options, content_type, body.sha256)
        told = base64.b64encode(bytes.fromhex(body.sha256)).decode()
        if self._checksums:
            about["ChecksumSHA256"] = told
        if body.path is None or body.size == 0:
            answer = self._create(client.put_object, key, body, Body=body.load(), **about)
        else:
            with open(body.path, "rb", buffering=0) as file:
                window = Window(file.fileno(), 0, body.size)
                answer = self._create(client.put_object, key, body, Body=window, **about)
        # Not every 200 is the store's: something before it may have said that it is under maintenance.
        if answer is not None and not _proves(answer, told) and not self.is_there(key, body):
            raise BlobsUnavailable(
                f"{self._options.place} answered as if it had stored an object, and it is not there: "
                f"does {self._options.host} speak S3?"
            )

    def _create(self, call: Any, key: str, body: Body, **arguments: Any) -> dict[str, Any] | None:
        """Make the object unless it is there, which is None; one that is there must be the same."""
        from botocore.exceptions import ClientError

        place = {"Bucket": self._options.bucket, "Key": key}
        condition = {"IfNoneMatch": "*"} if self.conditional else {}
        try:
            answer: dict[str, Any] = call(**place, **condition, **arguments)
        except ClientError as error:
            if status_of(error) == 501 and condition:
                self.conditional = False
                return self._create(call, key, body, **arguments)
            taken = status_of(error) in (409, 412) and condition
            if not taken and code_of(error) != "NoSuchUpload":
                raise
            # Stored by an earlier try whose answer was lost, or by another replica at this moment.
            if self.is_there(key, body):
                return None
            if not taken:
                raise
            raise BlobsUnavailable(
                f"another object than this one lies at {self._options.place} under the same key, or is being written; "
                "it is left as it is"
            ) from None
        return answer

    def is_there(self, key: str, body: Body) -> bool:
        """Return whether the object lies there with this size and SHA-256."""
        from botocore.exceptions import ClientError

        mode = {"ChecksumMode": "ENABLED"} if self._checksums else {}
        try:
            found = self._calls.client.head_object(Bucket=self._options.bucket, Key=key, **mode)
        except ClientError as error:
            if status_of(error) in (403, 404):  # without s3:ListBucket, 403 says that it is not there
                return False
            raise
        if found.get("ContentLength") != body.size:
            return False
        known = found.get("Metadata", {}).get("sha256")
        if known is None and "-" not in found.get("ChecksumSHA256", "-"):
            known = base64.b64decode(found["ChecksumSHA256"]).hex()
        return (known or self._read_back(key)) == body.sha256

    def _read_back(self, key: str) -> str:
        """Return an object's SHA-256 by its bytes, where the store keeps no metadata (rclone's, of parts)."""
        digest = hashlib.sha256()
        with closing(self._calls.client.get_object(Bucket=self._options.bucket, Key=key)["Body"]) as body:
            for piece in body.iter_chunks(_READ):
                digest.update(piece)
        return digest.hexdigest()

    # ------------------------------------------------------------ in parts

    async def _put_parts(self, key: str, body: Body, content_type: str) -> None:
        parts = _Parts(key, body)
        tasks: list[asyncio.Task[None]] = []
        try:
            there = await self._calls.run(
                lambda client: self._begin(client, parts, content_type),
                doing="storing in",
                seconds=_seconds(body.size),
                permission="s3:PutObject",
                under_way=parts.under_way,
            )
            if not there:
                numbers = iter(range(1, -(-body.size // _part_size(body)) + 1))
                tasks = [asyncio.create_task(self._send(parts, numbers)) for _ in range(_AT_ONCE)]
                await asyncio.gather(*tasks)
                await self._calls.run(
                    lambda client: self._complete(client, parts),
                    doing="storing in",
                    seconds=_seconds(body.size),
                    permission="s3:PutObject and s3:GetObject",
                    under_way=parts.under_way,
                )
        finally:
            for task in tasks:
                task.cancel()
            ending = asyncio.create_task(self._end(parts))
            self._aborting.add(ending)
            ending.add_done_callback(self._aborting.discard)

    def _begin(self, client: Any, parts: _Parts, content_type: str) -> bool:
        body = parts.body
        if self.is_there(parts.key, body):
            return True
        if body.path is not None:
            parts.fd = os.open(body.path, os.O_RDONLY)
        checksum = {"ChecksumAlgorithm": "SHA256"} if self._checksums else {}
        answer = client.create_multipart_upload(
            Bucket=self._options.bucket,
            Key=parts.key,
            **checksum,
            **said_of(self._options, content_type, body.sha256),
        )
        if not answer.get("UploadId"):
            raise BlobsUnavailable(
                f"{self._options.place} began no upload in parts: does {self._options.host} speak S3?"
            )
        parts.upload_id = answer["UploadId"]
        return False

    async def _send(self, parts: _Parts, numbers: Iterator[int]) -> None:
        for number in numbers:
            async with self._slots:
                await self._calls.run(
                    partial(self._send_one, parts=parts, number=number),
                    doing="storing in",
                    permission="s3:PutObject",
                    seconds=_seconds(_part_size(parts.body)),
                    under_way=parts.under_way,
                )

    def _send_one(self, client: Any, parts: _Parts, number: int) -> None:
        size = _part_size(parts.body)
        start = (number - 1) * size
        window: Window | io.BytesIO
        if parts.fd < 0:
            window = io.BytesIO(memoryview(parts.body.load())[start : start + size])
        else:
            window = Window(parts.fd, start, min(size, parts.body.size - start))
        digest = digest_of(window)
        told = base64.b64encode(digest).decode()
        checksum = {"ChecksumSHA256": told} if self._checksums else {}
        answer = client.upload_part(
            Bucket=self._options.bucket,
            Key=parts.key,
            UploadId=parts.upload_id,
            PartNumber=number,
            Body=window,
            **checksum,
        )
        echoed = answer.get("ChecksumSHA256")
        if not answer.get("ETag") or (checksum and echoed not in (None, told)):
            raise BlobsUnavailable(f"a part was changed on its way to {self._options.place}, or not taken")
        parts.digests[number] = digest
        parts.done[number] = {"PartNumber": number, "ETag": answer["ETag"]} | (checksum if echoed else {})

    def _complete(self, client: Any, parts: _Parts) -> None:
        numbers = sorted(parts.done)
        answer = self._create(
            client.complete_multipart_upload,
            parts.key,
            parts.body,
            UploadId=parts.upload_id,
            MultipartUpload={"Parts": [parts.done[number] for number in numbers]},
        )
        there = self.is_there(parts.key, parts.body)
        if answer is not None and there:  # else this upload is still to be aborted
            parts.upload_id = ""
        whole = hashlib.sha256(b"".join(parts.digests[number] for number in numbers)).digest()
        told = (answer or {}).get("ChecksumSHA256")
        composite = f"{base64.b64encode(whole).decode()}-{len(numbers)}"
        if (told is not None and told != composite) or not there:
            raise BlobsUnavailable(f"what {self._options.place} made of the parts is not what was sent")

    async def _end(self, parts: _Parts) -> None:
        """Wait for the threads that still send, close the file, and abort what did not become an object."""
        pending = [asyncio.wrap_future(future) for future in parts.under_way if not future.done()]
        await asyncio.gather(*pending, return_exceptions=True)
        if parts.fd >= 0:
            os.close(parts.fd)
        if not parts.upload_id:
            return
        try:
            await self._calls.run(
                lambda client: client.abort_multipart_upload(
                    Bucket=self._options.bucket, Key=parts.key, UploadId=parts.upload_id
                ),
                doing="aborting an upload in",
                seconds=_SECONDS,
                permission="s3:AbortMultipartUpload",
            )
        except BlobsUnavailable:  # the janitor finds it later
            return


def _proves(answer: dict[str, Any], told: str) -> bool:
    """Tell whether an answer to a put can only be that of a store which has the object."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    # Some stores call no body at all a page.
    page = "html" in headers.get("content-type", "") and headers.get("content-length") != "0"
    echoed = answer.get("ChecksumSHA256")
    return echoed == told or (echoed is None and bool(answer.get("ETag")) and not page)


def _seconds(size: int) -> float:
    """Return how long a call may take that sends so many bytes, or reads them back."""
    return _SECONDS + size / _SLOWEST


def _part_size(body: Body) -> int:
    """Return the bytes of a part: 8 MiB, more only where 10,000 parts would not do."""
    return max(PART_BYTES, -(-body.size // _PARTS_LIMIT))
