"""The S3 requests that store a body as an object. `receiver check` makes the same requests."""

from __future__ import annotations

import base64
import hashlib
import io
from contextlib import closing
from typing import Any

from receiver.core.callback import Body
from receiver.core.errors import BlobsUnavailable
from receiver.storage.blobs.s3_errors import status_of
from receiver.storage.blobs.s3_options import S3Options

LARGE = 16 * 1024 * 1024
"""Bytes of a body that is worth a request to see whether it is there already."""
_READ = 1024 * 1024


class Objects:
    """Makes objects of one bucket with a boto3 client. Its methods block, and raise boto3's errors or `BlobsUnavailable`."""

    def __init__(self, options: S3Options) -> None:
        self._options = options
        kept_as = {
            "ServerSideEncryption": options.sse,
            "SSEKMSKeyId": options.sse_kms_key_id,
            "StorageClass": options.storage_class,
        }
        self._kept_as = {name: value for name, value in kept_as.items() if value}
        self.checksums = options.checksums == "when_supported"
        self.conditional = True
        """False once the store said that it does not know `If-None-Match` on a put; keys are derived from content."""

    def about(self, body: Body, content_type: str) -> dict[str, Any]:
        """Return what a new object is stored with; its checksum, unless the store is one that knows none."""
        about = {"ContentType": content_type, "Metadata": {"sha256": body.sha256}} | self._kept_as
        return about | ({"ChecksumSHA256": _in_base64(body)} if self.checksums else {})

    @property
    def condition(self) -> dict[str, str]:
        """The argument by which nothing is written over, unless the store does not know it."""
        return {"IfNoneMatch": "*"} if self.conditional else {}

    def put(self, client: Any, key: str, body: Body, about: dict[str, Any], first: Any = None) -> None:
        """Put a body. `first` is the result of the first try, an answer or an error; tries continue from there."""
        from botocore.exceptions import ClientError

        if body.size > LARGE and self.is_there(client, key, body):
            return
        condition = self.condition
        try:
            if isinstance(first, dict):
                answer = first
            elif first is not None and status_of(first) in (409, 412, 501):
                raise first
            else:
                answer = self._send(client, key, body, about | condition)
        except ClientError as error:
            if not condition or status_of(error) not in (409, 412, 501):
                raise
            if status_of(error) == 501:
                self.conditional = False
                answer = self._send(client, key, body, about)
            elif self.is_there(client, key, body):
                return  # stored by an earlier try whose answer was lost, or by another replica at this moment
            else:
                raise BlobsUnavailable(
                    f"another object than this one lies at {self._options.place} under the same key, or is being written; "
                    "it is left as it is"
                ) from None
        # Not every 200 is the store's: something before it may have said that it is under maintenance.
        if not proves(answer, body) and not self.is_there(client, key, body):
            raise BlobsUnavailable(
                f"{self._options.place} answered as if it had stored an object, and it is not there: "
                f"does {self._options.host} speak S3?"
            )

    def _send(self, client: Any, key: str, body: Body, about: dict[str, Any]) -> dict[str, Any]:
        with io.BytesIO(body.load()) if body.path is None else open(body.path, "rb") as file:
            answer: dict[str, Any] = client.put_object(
                Bucket=self._options.bucket, Key=key, Body=file, **about
            )
        return answer

    def is_there(self, client: Any, key: str, body: Body) -> bool:
        """Return whether the object lies there with this size and SHA-256."""
        from botocore.exceptions import ClientError

        place = {"Bucket": self._options.bucket, "Key": key}
        try:
            found = client.head_object(**place, **({"ChecksumMode": "ENABLED"} if self.checksums else {}))
        except ClientError as error:
            if status_of(error) in (403, 404):  # without s3:ListBucket, 403 says that it is not there
                return False
            raise
        if found.get("ContentLength") != body.size:
            return False
        known = found.get("Metadata", {}).get("sha256")
        if known is None and "-" not in found.get("ChecksumSHA256", "-"):
            known = base64.b64decode(found["ChecksumSHA256"]).hex()
        if known is None:  # the store keeps no metadata (rclone's, of large bodies): by its bytes
            digest = hashlib.sha256()
            with closing(client.get_object(**place)["Body"]) as stream:
                for piece in stream.iter_chunks(_READ):
                    digest.update(piece)
            known = digest.hexdigest()
        return bool(known == body.sha256)


def proves(answer: dict[str, Any], body: Body) -> bool:
    """Tell whether an answer to a put proves that the store has the object."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    # Some stores call no body at all a page.
    page = "html" in headers.get("content-type", "") and headers.get("content-length") != "0"
    echoed = answer.get("ChecksumSHA256")
    if echoed is None:
        return bool(answer.get("ETag")) and not page
    return bool(echoed == _in_base64(body))


def _in_base64(body: Body) -> str:
    return base64.b64encode(bytes.fromhex(body.sha256)).decode()
