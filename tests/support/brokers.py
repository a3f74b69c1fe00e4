"""Queue servers on loopback, as children that can be frozen, killed and started again on the same port and data."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.s3 import environment, free_ports

BIN = Path(sys.executable).parent
RABBITMQ = "/usr/lib/rabbitmq/bin/rabbitmq-server"


class Broker(ABC):
    """One server. A subclass says how it is started."""

    program: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (self.port, self.other) = free_ports(2)
        self.child: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Return what starts it on `port` with its data in `folder`."""

    def environ(self) -> dict[str, str]:
        """Return its environment."""
        return environment()

    def start(self, seconds: float = 60) -> None:
        """Start it, and wait until it listens."""
        log = (self.folder / "log").open("ab")
        with log:
            self.child = subprocess.Popen(
                self.command(), env=self.environ(), stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + seconds
        while not self.listens():
            assert time.monotonic() < until, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.02)

    def listens(self) -> bool:
        """Tell whether it takes connections."""
        import socket

        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def freeze(self) -> None:
        """Have it do nothing at all."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """End that."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it without a last word."""
        if self.child is not None:
            self._signal(signal.SIGKILL)
            self.child.wait()
            self.child = None

    def _signal(self, number: signal.Signals) -> None:
        if self.child is not None:
            os.killpg(self.child.pid, number)

    async def again(self) -> None:
        """Have it run, whatever became of it."""
        self.thaw()
        if self.child is None:
            await asyncio.to_thread(self.start)


class Roto(Broker):
    """roto-aws: SQS, SNS and EventBridge, which keeps its queues in SQLite. It is not AWS."""

    program = str(BIN / "roto-server")

    def command(self) -> list[str]:
        return [self.program, "--port", str(self.port), "--data-dir", str(self.folder / "data")]

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.port}"


class Moto(Roto):
    """moto: the shapes of AWS's answers; it forgets everything when it is killed."""

    program = str(BIN / "moto_server")

    def command(self) -> list[str]:
        return [self.program, "-H", "127.0.0.1", "-p", str(self.port)]


class Nats(Broker):
    """nats-server with JetStream."""

    program = str(BIN / "nats-server")

    def command(self) -> list[str]:
        config = self.folder / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{self.port}"\njetstream {{ store_dir: "{self.folder}/data" }}\n'
            "max_payload: 100000\n"
            'authorization { users: [ { user: ours, password: hunter2, permissions: { publish: { deny: "forbidden.>" } } } ] }\n'
        )
        return [self.program, "-c", str(config)]


class Rabbit(Broker):
    """RabbitMQ, Debian's."""

    program = RABBITMQ

    def command(self) -> list[str]:
        (self.folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\n")
        shutil.chown(self.folder, "rabbitmq", "rabbitmq")
        user = ["setpriv", "--reuid", "rabbitmq", "--regid", "rabbitmq", "--clear-groups"]
        return [*user, self.program] if os.getuid() == 0 else [self.program]

    def environ(self) -> dict[str, str]:
        return environment(
            HOME=str(self.folder),
            RABBITMQ_CONFIG_FILE=str(self.folder / "rabbitmq"),
            RABBITMQ_NODENAME=f"t{self.port}@localhost",
            RABBITMQ_MNESIA_BASE=str(self.folder / "data"),
            RABBITMQ_LOG_BASE=str(self.folder / "logs"),
            RABBITMQ_DIST_PORT=str(self.other),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(self.folder / "plugins"),
            ERL_EPMD_ADDRESS="127.0.0.1",
            ERL_EPMD_PORT=str(self.other + 10_000),
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none",
        )


@contextlib.contextmanager
def running(kind: type[Broker]) -> Iterator[Broker]:
    """Start one, with a folder that goes with it; skip where its program is not there."""
    if not os.access(kind.program, os.X_OK):
        pytest.skip(f"{Path(kind.program).name} is not installed: {kind.__doc__}")
    folder = Path(tempfile.mkdtemp(prefix="broker-"))
    broker = kind(folder)
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()
        shutil.rmtree(folder, ignore_errors=True)
