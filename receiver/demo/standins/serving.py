"""A stand-in's server: real HTTP on 127.0.0.1, in a thread, for as long as a `with` lasts; and what it was asked."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.requests import Request

_START_SECONDS = 10.0
_STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str] = field(repr=False)
    """Names in lower case."""
    body: bytes = field(repr=False)

    @classmethod
    async def of(cls, request: Request) -> Asked:
        """Return what a request asked, its body read."""
        url = request.url
        return cls(request.method, url.path, url.query, dict(request.headers), await request.body())


class _Server(uvicorn.Server):
    """Says when it listens; leaves the process's signals alone, as it does not run in the main thread."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@contextlib.contextmanager
def served(
    app: Any, *, port: int = 0, ssl_certfile: str | None = None, ssl_keyfile: str | None = None
) -> Iterator[str]:
    """Serve an ASGI application on 127.0.0.1 and yield its base URL (`http://127.0.0.1:PORT`); `port` 0 is any free one.

    Raises `OSError` when the port is taken, `RuntimeError` when the server does not start.
    """
    listener = socket.create_server(("127.0.0.1", port), backlog=128)
    scheme, bound = ("https" if ssl_certfile else "http"), listener.getsockname()[1]
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        lifespan="off",
        ws="none",
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        timeout_graceful_shutdown=1,
        server_header=False,
    )
    server = _Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True, name=f"stand-in-{bound}")
    thread.start()
    try:
        if not server.listening.wait(_START_SECONDS):
            raise RuntimeError("the stand-in did not start")
        yield f"{scheme}://127.0.0.1:{bound}"
    finally:
        server.should_exit = True
        thread.join(_STOP_SECONDS)
        listener.close()
