"""`receiver simulate` over TLS: whom it trusts, and what it says when it does not."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trustme

from receiver.demo.stage import clean_environment
from tests.support.house import House, build_house


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    for name in set(os.environ) - set(clean_environment(os.environ)):
        monkeypatch.delenv(name)
    built = build_house(tmp_path)
    yield built
    built.close()


@pytest.fixture
def certified(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """The port of a server with a certificate of its own authority, which takes whatever is posted; and the authority."""
    authority = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Taking) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port, str(ca_file)
        server.shutdown()
        thread.join()


def test_a_certificate_that_is_not_trusted_is_told_and_can_be(
    house: House, certified: tuple[int, str]
) -> None:
    port, ca_file = certified
    words = ["simulate", "deepgram", "--attempts", "1", "--url", f"https://127.0.0.1:{port}"]
    said = house.run(*words)
    assert said.status == 1
    assert "the certificate of 127.0.0.1 is not trusted: give --ca-file" in said.out
    assert house.run(*words, "--ca-file", ca_file).status == 0
    said = house.run(*words, "--ca-file", house.config)
    assert (said.status, "holds no certificates" in said.err) == (2, True)


def test_a_server_that_speaks_no_tls_is_told(house: House) -> None:
    house.start("serve", "--port", "0")
    said = house.run(
        "simulate", "deepgram", "--attempts", "1", "--url", house.base.replace("http:", "https:")
    )
    assert "127.0.0.1 could not be spoken with by TLS: does it speak http:// there?" in said.out
