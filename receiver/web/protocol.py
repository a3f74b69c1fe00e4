"""HTTP as it comes over the wire (floor 8): uvicorn's protocol, with a bound on what precedes a body."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024
"""Most bytes of a request line with its headers; the parser itself would collect them without end."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    _plain = 0
    """Bytes since the last request's head, or since a piece of a body."""
    _had_body = False

    def data_received(self, data: bytes) -> None:
        """Parse, and refuse a head that does not end."""
        self._had_body = False
        super().data_received(data)
        self._plain = 0 if self._had_body else self._plain + len(data)
        if self._plain > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's headers are too long.")

    def on_headers_complete(self) -> None:
        """The head ended."""
        self._plain = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self._had_body = True
        super().on_body(body)
