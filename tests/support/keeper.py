"""One PostgreSQL, one S3 store and one process that forks for a whole test run, whichever of its processes asks first.

`python -m tests.support.keeper postgres 4711` runs one until process 4711 is gone, however that ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_OWNER = os.getpid()
"""The process whose end is the end of the run: pytest, of which its workers are forks."""


def _folder() -> Path:
    """Return the run's folder; a process id may come again, together with its start it does not."""
    started = Path(f"/proc/{_OWNER}/stat").read_text("utf-8").rpartition(")")[2].split()[19]
    folder = Path(tempfile.gettempdir()) / f"receiver-tests-{os.getuid()}-{_OWNER}-{started}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextlib.contextmanager
def once_per_run(name: str) -> Iterator[Path]:
    """Hold a lock of the run; give a path where what was made once is noted."""
    folder = _folder()
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder / f"{name}.json"


def server(kind: str) -> Any:
    """Return what is to know of the run's `postgres`, `s3` or `forker`; start it if nobody has."""
    with once_per_run(kind) as note:
        if not note.exists():
            note.write_text(_start(kind, note.with_suffix(".log")), "utf-8")
        return json.loads(note.read_text("utf-8"))


def _start(kind: str, log: Path) -> str:
    module = "tests.support.forking" if kind == "forker" else "tests.support.keeper"
    command = [sys.executable, "-m", module, kind, str(_OWNER), str(log.parent)]
    with log.open("ab") as errors:
        # A session of its own: Ctrl-C ends the run, and that the server.
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            start_new_session=True,
        )
    assert child.stdout is not None
    with child.stdout:
        line = child.stdout.readline().decode()
    if not line:
        raise RuntimeError(f"no {kind} for the tests: {log.read_text('utf-8')[-2000:]}")
    # Not waited for: it outlives this process, and the kernel hands it on.
    child.returncode = 0
    return line


_POSTGRES = ("max_connections=200", "autovacuum=off", "jit=off", "wal_level=minimal", "max_wal_senders=0")
"""Settings of a server that lives for minutes, without what pays off in days."""


def _keep(kind: str, owner: int, folder: Path) -> None:
    """Run a server until `owner` is gone."""
    from tests.support import postgres, s3

    with contextlib.ExitStack() as stack:
        gone = os.pidfd_open(owner)
        stack.callback(remove, kind, folder)
        if kind == "postgres":
            begun_with = folder / "postgres.tar"
            running = stack.enter_context(postgres.server(*_POSTGRES, keep=begun_with))
            note: dict[str, Any] = {
                "port": running.port,
                "folder": str(running.folder),
                "begun_with": str(begun_with),
            }
        else:
            weed = s3.Weed()
            stack.callback(weed.close)
            weed.start()
            note = weed.note()
        print(json.dumps(note), flush=True)
        select.select([gone], [], [])


def remove(kind: str, folder: Path) -> None:
    """Remove what was noted of a server; the last one out removes the run's folder."""
    for path in folder.glob(f"{kind}*"):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


if __name__ == "__main__":
    _keep(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
