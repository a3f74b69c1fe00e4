"""How a command asks the receivers that run on this machine: each listens on a socket of its own in the journal's folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

from receiver.core.errors import Unavailable
from receiver.system.files import make_folder

_MOST_BYTES = 1024 * 1024
_LONGEST_PATH = 100
"""Bytes that the system allows in a socket's path, a few less."""


def _folder(journal: str) -> Path:
    return Path(journal, "running")


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield a path that a socket can have: for a long one, a way to it by its open folder."""
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@contextlib.asynccontextmanager
async def answering(journal: str, answer: Callable[[], Awaitable[bytes]]) -> AsyncIterator[None]:
    """Answer each command with what `answer` returns, until the block ends. Raises `OSError`.

    Whoever may write the journal's folder may ask, and nobody else.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            writer.write(await answer())
            await writer.drain()

    folder = _folder(journal)
    make_folder(folder)
    path = folder / f"{secrets.token_hex(4)}.sock"
    with _short(path) as short:
        server = await asyncio.start_unix_server(serve, short)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


def ask_all(journal: str, *, seconds: float) -> tuple[list[bytes], list[str]]:
    """Return what each running receiver with this journal answers, and a sentence for each that does not."""
    answers: list[bytes] = []
    silent: list[str] = []
    for path in sorted(_folder(journal).glob("*.sock")):
        try:
            answer = _ask(path, seconds)
        except Unavailable as error:  # the others are asked all the same
            silent.append(error.message)
        else:
            answers += [] if answer is None else [answer]
    return answers, silent


def _ask(path: Path, seconds: float) -> bytes | None:
    """Return what one answers; None when its process was killed, and only the socket's name is left: it is removed.

    Raises `Unavailable` when there is no answer.
    """
    with socket.socket(socket.AF_UNIX) as asking, _short(path) as short:
        asking.settimeout(seconds)
        try:
            asking.connect(short)
            answer = b""
            while len(answer) < _MOST_BYTES and (piece := asking.recv(65_536)):
                answer += piece
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return None
        except OSError as error:
            reason = error.strerror or f"it did not answer within {seconds:g} s"
            raise _silent(path, reason) from None
    if not answer:
        raise _silent(path, "it ended, or failed, before it answered; look into its log")
    return answer


def _silent(path: Path, reason: str) -> Unavailable:
    return Unavailable(f"a running receiver cannot be asked ({path}): {reason}")
