"""What lies in store and blobs when no receiver runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import apsw

from tests.support.fleet import Shared
from tests.support.postgres import execute
from tests.support.pulling import AUDIO
from tests.support.s3 import BUCKET, Weed

SHA = hashlib.sha256(AUDIO).hexdigest()


class Kept:
    """In SQLite and a folder."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "data" / "blobs"
        self._store = folder / "data" / "receiver.db"

    def rows(self, statement: str) -> list[Any]:
        """Return what a query finds."""
        connection = apsw.Connection(str(self._store))
        try:
            return list(connection.execute(statement))
        finally:
            connection.close()

    def blob(self, key: str) -> bytes:
        """Return an object's bytes."""
        return (self._blobs / key).read_bytes()

    def audio(self, uris: Iterable[str]) -> dict[str, bytes]:
        """Return what lies under each of these URIs, as events name them."""
        return {uri: Path(uri.removeprefix("file://")).read_bytes() for uri in uris}

    def check_events(self) -> None:
        """No event refers to a blob that is not there, whole."""
        for job, key in self.rows("SELECT job_id, blob_key FROM events WHERE type LIKE '%.completed'"):
            assert hashlib.sha256(self.blob(key)).hexdigest() == SHA, job

    def check_ends(self, jobs: set[str]) -> None:
        """Every job has one event that ends it, every pickup is collected, its attempts numbered without a gap."""
        ends = self.rows("SELECT job_id, count(*) FROM events WHERE type NOT LIKE '%.processing' GROUP BY 1")
        assert dict(ends) == dict.fromkeys(jobs, 1)
        assert self.rows("SELECT DISTINCT state FROM pickups") == [("collected",)]
        assert len(self.rows("SELECT id FROM pickups")) == len(jobs)
        numbered = self.rows(
            "SELECT p.attempts, count(a.number), min(a.number), max(a.number) FROM pickups AS p "
            "JOIN pickup_attempts AS a ON a.pickup_id = p.id GROUP BY p.id"
        )
        assert all(row == (row[0], row[0], 1, row[0]) for row in numbered), numbered
        assert len(numbered) == len(jobs)


class SharedKept(Kept):
    """In PostgreSQL and S3."""

    def __init__(self, folder: Path, weed: Weed, shared: Shared) -> None:
        super().__init__(folder)
        self._weed = weed
        self._shared = shared

    def rows(self, statement: str) -> list[Any]:
        return execute(self._shared.database, statement)

    def blob(self, key: str) -> bytes:
        client = self._weed.client()
        try:
            found = client.get_object(Bucket=BUCKET, Key=self._shared.prefix + key)
            data: bytes = found["Body"].read()
        finally:
            client.close()
        return data

    def audio(self, uris: Iterable[str]) -> dict[str, bytes]:
        ours = f"s3://{BUCKET}/"
        client = self._weed.client()
        try:
            found: dict[str, bytes] = {}
            for uri in uris:
                assert uri.startswith(ours + self._shared.prefix), uri
                answer = client.get_object(Bucket=BUCKET, Key=uri.removeprefix(ours))
                found[uri] = answer["Body"].read()
        finally:
            client.close()
        return found
