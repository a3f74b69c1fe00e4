"""`text/event-stream`, read as it comes. Pure; the reconnecting that a browser does is not done here.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from receiver.core.fetch import ServerSentEvent

MAX_LINE = 64 * 1024
"""The longest line, in bytes."""
_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


class LineTooLong(ValueError):
    """A line of the stream is longer than `MAX_LINE`."""


class EventReader:
    """Turns pieces of bytes into events. An event that no blank line ended is dropped with the reader."""

    def __init__(self, *, max_line: int = MAX_LINE) -> None:
        self._max_line = max_line
        self._line = bytearray()
        self._first = True
        self._after_cr = False
        self._event = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that `data` completes. Raises `LineTooLong`."""
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")  # the second half of a line's end
        self._after_cr = self._after_cr or data.endswith(b"\r")
        start = 0
        for end in _END.finditer(data):
            self._add(data[start : end.start()])
            start = end.end()
            event = self._take(bytes(self._line))
            self._line.clear()
            if event is not None:
                yield event
        self._add(data[start:])

    def _add(self, part: bytes) -> None:
        if len(self._line) + len(part) > self._max_line:
            raise LineTooLong(f"a line of the stream is over {self._max_line} bytes")
        self._line += part

    def _take(self, line: bytes) -> ServerSentEvent | None:
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        if name == b"data":
            self._data.append(text)
        elif name == b"event":
            self._event = text
        return None  # `id` and `retry` serve reconnecting; an empty name is a comment

    def _dispatch(self) -> ServerSentEvent | None:
        event, data = self._event or "message", "\n".join(self._data)
        whole = bool(self._data)
        self._event, self._data = "", []
        return ServerSentEvent(event=event, data=data) if whole else None
