"""How bodies get into a bucket: in one request, or in parts; and what proves that they are there."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, suppress
from functools import partial
from typing import Any, TypeVar

from receiver.core.callback import Body
from receiver.core.errors import BlobsUnavailable
from receiver.storage.blobs.s3_client import Calls
from receiver.storage.blobs.s3_errors import code_of, status_of
from receiver.storage.blobs.s3_options import S3Options

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
T = TypeVar("T")


class Window(io.RawIOBase):
    """A part of a file that reads as a file of its own: no byte is held in memory."""

    def __init__(self, path: str, start: int, size: int) -> None:
        super().__init__()
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with the window
        self._start, self._size, self._at = start, size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read on."""
        wanted = memoryview(buffer)[: max(self._size - self._at, 0)]
        count = os.preadv(self._file.fileno(), [wanted], self._start + self._at)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place in the part."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """Return the place in the part."""
        return self._at

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def said_of(options: S3Options, content_type: str, sha256: str) -> dict[str, Any]:
    """Return what a new object is stored with; `receiver check` tries just that."""
    about = {
        "ServerSideEncryption": options.sse,
        "SSEKMSKeyId": options.sse_kms_key_id,
        "StorageClass": options.storage_class,
    }
    said = {"ContentType": content_type, "Metadata": {"sha256": sha256}}
    return said | {name: value for name, value in about.items() if value}


def checksum(options: S3Options, digest: bytes) -> dict[str, str]:
    """Return the argument that tells the store a body's SHA-256, unless it is one that knows none."""
    told = base64.b64encode(digest).decode()
    return {"ChecksumSHA256": told} if options.checksums == "when_supported" else {}


class Uploads:
    """Puts bodies under whole keys."""

    def __init__(self, options: S3Options, calls: Calls) -> None:
        self._options = options
        self._calls = calls
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
        about = said_of(self._options, content_type, body.sha256)
        if body.size > WHOLE_LIMIT:
            await self._put_parts(key, body, about)
        else:
            about |= checksum(self._options, bytes.fromhex(body.sha256))
            await self._put_whole(key, body, about)

    async def _run(self, work: Callable[[Any], T], size: int, under_way: set[Future[Any]] | None = None) -> T:
        seconds = _SECONDS + size / _SLOWEST
        permission = "s3:PutObject" if under_way is None else "s3:PutObject and s3:GetObject"
        return await self._calls.run(
            work, doing="storing in", permission=permission, seconds=seconds, under_way=under_way
        )

    # ------------------------------------------------------------ in one request

    async def _put_whole(self, key: str, body: Body, about: dict[str, Any]) -> None:
        tries, first = self._calls.first_tries, None
        if tries is not None and tries.takes(body):
            condition = {"IfNoneMatch": "*"} if self.conditional else {}
            seconds = self._options.timeout_seconds + body.size / _SLOWEST
            first = await tries.put(key, body, about | condition, seconds)
            if isinstance(first, dict) and _proves(first, body):
                return
        await self._run(lambda client: self._put_in_thread(client, key, body, about, first), body.size)
        if tries is not None and isinstance(first, Exception):
            tries.stored_by_boto3(first)

    def _put_in_thread(
        self,
        client: Any,
        key: str,
        body: Body,
        about: dict[str, Any],
        first: dict[str, Any] | Exception | None,
    ) -> None:
        """Put, or go on after the first try where its answer says already what there is to do."""
        answered = isinstance(first, dict) or (first is not None and status_of(first) in (409, 412, 501))
        call = _after(first, client.put_object) if answered else client.put_object
        with io.BytesIO(body.load()) if body.path is None else open(body.path, "rb") as file:
            answer = self._create(call, key, body, Body=file, **about)
        # Not every 200 is the store's: something before it may have said that it is under maintenance.
        if answer is not None and not _proves(answer, body) and not self.is_there(key, body):
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

        client, place = self._calls.client, {"Bucket": self._options.bucket, "Key": key}
        mode = {"ChecksumMode": "ENABLED"} if self._options.checksums == "when_supported" else {}
        try:
            found = client.head_object(**place, **mode)
        except ClientError as error:
            if status_of(error) in (403, 404):  # without s3:ListBucket, 403 says that it is not there
                return False
            raise
        if found.get("ContentLength") != body.size:
            return False
        known = found.get("Metadata", {}).get("sha256")
        if known is None and "-" not in found.get("ChecksumSHA256", "-"):
            known = base64.b64decode(found["ChecksumSHA256"]).hex()
        if known is None:  # the store keeps no metadata (rclone's, of parts): by its bytes
            digest = hashlib.sha256()
            with closing(client.get_object(**place)["Body"]) as stream:
                for piece in stream.iter_chunks(_READ):
                    digest.update(piece)
            known = digest.hexdigest()
        return bool(known == body.sha256)

    # ------------------------------------------------------------ in parts

    async def _put_parts(self, key: str, body: Body, about: dict[str, Any]) -> None:
        under_way: set[Future[Any]] = set()
        upload = {"Bucket": self._options.bucket, "Key": key}
        size = max(PART_BYTES, -(-body.size // _PARTS_LIMIT))
        numbers = iter(range(1, -(-body.size // size) + 1))
        done: list[dict[str, Any]] = []
        tasks: list[asyncio.Task[None]] = []

        async def send() -> None:
            for number in numbers:
                part = partial(self._send_part, upload=upload, body=body, number=number, size=size)
                async with self._slots:
                    done.append(await self._run(part, size, under_way))

        try:
            if await self._run(lambda client: self._begin(client, upload, body, about), body.size, under_way):
                tasks = [asyncio.create_task(send()) for _ in range(_AT_ONCE)]
                await asyncio.gather(*tasks)
                parts = sorted(done, key=lambda part: int(part["PartNumber"]))
                await self._run(
                    lambda client: self._complete(client, upload, body, parts), body.size, under_way
                )
        finally:
            for task in tasks:
                task.cancel()
            ending = asyncio.create_task(self._end(upload, under_way))
            self._aborting.add(ending)
            ending.add_done_callback(self._aborting.discard)

    def _begin(self, client: Any, upload: dict[str, str], body: Body, about: dict[str, Any]) -> bool:
        """Begin an upload and note its id, unless the object is there already: False."""
        if self.is_there(upload["Key"], body):
            return False
        algorithm = {"ChecksumAlgorithm": "SHA256"} if self._options.checksums == "when_supported" else {}
        answer = client.create_multipart_upload(**upload, **algorithm, **about)
        if not answer.get("UploadId"):
            raise BlobsUnavailable(
                f"{self._options.place} began no upload in parts: does {self._options.host} speak S3?"
            )
        upload["UploadId"] = answer["UploadId"]
        return True

    def _send_part(
        self, client: Any, upload: dict[str, str], body: Body, number: int, size: int
    ) -> dict[str, Any]:
        """Send a part; return what completing the upload must say of it."""
        start = (number - 1) * size
        if body.path is None:
            window: io.BytesIO | Window = io.BytesIO(memoryview(body.load())[start : start + size])
        else:
            window = Window(body.path, start, min(size, body.size - start))
        with window:
            told = checksum(self._options, hashlib.file_digest(window, "sha256").digest())
            window.seek(0)
            answer = client.upload_part(**upload, PartNumber=number, Body=window, **told)
        echoed = {name: answer[name] for name in told if name in answer}
        if not answer.get("ETag") or echoed not in ({}, told):
            raise BlobsUnavailable(f"a part was changed on its way to {self._options.place}, or not taken")
        return {"PartNumber": number, "ETag": answer["ETag"]} | echoed

    def _complete(self, client: Any, upload: dict[str, str], body: Body, parts: list[dict[str, Any]]) -> None:
        call = partial(client.complete_multipart_upload, UploadId=upload["UploadId"])
        answer = self._create(call, upload["Key"], body, MultipartUpload={"Parts": parts})
        there = self.is_there(upload["Key"], body)
        if answer is not None and there:  # else this upload is still to be aborted
            del upload["UploadId"]
        digests = b"".join(base64.b64decode(part.get("ChecksumSHA256", "")) for part in parts)
        composite = f"{base64.b64encode(hashlib.sha256(digests).digest()).decode()}-{len(parts)}"
        if not there or (answer or {}).get("ChecksumSHA256", composite) != composite:
            raise BlobsUnavailable(f"what {self._options.place} made of the parts is not what was sent")

    async def _end(self, upload: dict[str, str], under_way: set[Future[Any]]) -> None:
        """Wait for the threads that still send, and abort what did not become an object."""
        pending = [asyncio.wrap_future(future) for future in under_way if not future.done()]
        await asyncio.gather(*pending, return_exceptions=True)
        if "UploadId" not in upload:
            return
        with suppress(BlobsUnavailable):  # the janitor finds it later
            await self._calls.run(
                lambda client: client.abort_multipart_upload(**upload),
                doing="aborting an upload in",
                seconds=_SECONDS,
                permission="s3:AbortMultipartUpload",
            )


def _after(first: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call`, whose first time has been already and came to `first`."""
    outcomes = [first]

    def go_on(**arguments: Any) -> Any:
        if not outcomes:
            return call(**arguments)
        outcome = outcomes.pop()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return go_on


def _proves(answer: dict[str, Any], body: Body) -> bool:
    """Tell whether an answer to a put can only be that of a store which has the object."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    # Some stores call no body at all a page.
    page = "html" in headers.get("content-type", "") and headers.get("content-length") != "0"
    echoed = answer.get("ChecksumSHA256")
    if echoed is None:
        return bool(answer.get("ETag")) and not page
    return bool(echoed == base64.b64encode(bytes.fromhex(body.sha256)).decode())
