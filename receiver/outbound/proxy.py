"""An HTTP proxy between receiver and a destination: a tunnel (CONNECT) for https, the whole URL in the request for http."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, SecretStr

from receiver.core.proofs import basic_credentials
from receiver.outbound.guard import Target, target

_HEAD_LIMIT = 16 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")


class ProxyTrouble(OSError):
    """The proxy is not there, or makes no tunnel; the text is for a person and holds no secret."""


def _usable(value: SecretStr) -> SecretStr:
    Proxy(value.get_secret_value())
    return value


ProxyUrl = Annotated[SecretStr, AfterValidator(_usable)]
"""The setting `proxy`: secret, since it may hold credentials."""


class Proxy:
    """One proxy, called without TLS."""

    def __init__(self, url: str) -> None:
        """Raises `ValueError`, which quotes nothing, for what is no proxy's URL."""
        parts = urlsplit(url)
        credentials, _, host = parts.netloc.rpartition("@")
        place = target(f"http://{host}")
        if parts.scheme != "http" or isinstance(place, str) or parts.path.strip("/") or parts.query:
            raise ValueError(
                "write a proxy as http://host:port, with user:password@ before it if it asks for them"
            )
        self.place = place
        self.headers: dict[str, str] = {}
        """What a request to the proxy itself says."""
        if credentials:
            pair = base64.b64encode(unquote(credentials).encode()).decode()
            self.headers["proxy-authorization"] = f"Basic {pair}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What an answer that shows the request must not bring into the store."""
        value = self.headers.get("proxy-authorization", "")
        pair = basic_credentials(value) or ""
        return value.partition(" ")[2], pair, pair.partition(":")[2]

    async def tunnel(self, sock: socket.socket, place: Target) -> None:
        """Have a connected socket lead to `place`. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        lines = [f"CONNECT {place.where} HTTP/1.1", f"host: {place.where}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        answer = b""
        try:
            await loop.sock_sendall(sock, ("\r\n".join(lines) + "\r\n\r\n").encode())
            while b"\r\n\r\n" not in answer and len(answer) < _HEAD_LIMIT:
                piece = await loop.sock_recv(sock, _HEAD_LIMIT)
                if not piece:
                    break
                answer += piece
            self._judge(answer, place)
        except BaseException:
            sock.close()
            raise

    def _judge(self, answer: bytes, place: Target) -> None:
        found = _STATUS.match(answer)
        if found is None or (not answer.endswith(b"\r\n\r\n") and found[1].startswith(b"2")):
            raise ProxyTrouble(f"the proxy {self.place.where} did not answer as a proxy does")
        if not found[1].startswith(b"2"):
            status = found[1].decode()
            why = ": it wants other credentials" if status == "407" else ""
            raise ProxyTrouble(
                f"the proxy {self.place.where} answered {status} and makes no tunnel to {place.where}{why}"
            )
