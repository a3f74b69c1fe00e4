"""The event stream reader gives what the WHATWG's rules give, however the bytes are cut."""

from __future__ import annotations

import pytest

from receiver.outbound.fetcher import EventReader, LineTooLong

Events = list[tuple[str, str]]


def read(*pieces: bytes, max_line: int = 1024) -> Events:
    reader = EventReader(max_line=max_line)
    return [(event.event, event.data) for piece in pieces for event in reader.feed(piece)]


CASES: list[tuple[bytes, Events]] = [
    (b"data: one\n\n", [("message", "one")]),
    (b"data:one\n\n", [("message", "one")]),
    (b"data:  two spaces\n\n", [("message", " two spaces")]),
    (b"data: a\ndata: b\n\n", [("message", "a\nb")]),
    (b"data\n\n", [("message", "")]),
    (b"data\ndata\n\n", [("message", "\n")]),
    (b"event: generating\ndata: {}\n\n", [("generating", "{}")]),
    (b"data: x\nevent: late\n\n", [("late", "x")]),
    (b"event:\ndata: x\n\n", [("message", "x")]),
    (b"event: nothing\n\ndata: x\n\n", [("message", "x")]),
    (b"event: a\nevent: b\ndata: x\n\n", [("b", "x")]),
    (b": a comment\n\ndata: x\n\n", [("message", "x")]),
    (b": ping\n: ping\n", []),
    (b"id: 1\nretry: 10\ndata: x\n\n", [("message", "x")]),
    (b"id: 1\n\n", []),
    (b"unknown: y\ndata: x\n\n", [("message", "x")]),
    (b"Data: x\n\n", []),
    (b" data: x\n\n", []),
    (b"data: x:y: z\n\n", [("message", "x:y: z")]),
    (b"data: cut", []),
    (b"data: no blank line\n", []),
    (b"data: a\n\ndata: dropped\n", [("message", "a")]),
    (b"data: a\r\n\r\ndata: b\r\n\r\n", [("message", "a"), ("message", "b")]),
    (b"event: two\r\ndata: a\r\ndata: b\r\n\r\n", [("two", "a\nb")]),
    (b"data: a\r\rdata: b\r\r", [("message", "a"), ("message", "b")]),
    (b"data: a\r\n\ndata: b\n\r\n", [("message", "a"), ("message", "b")]),
    (b"data: a\rdata: b\ndata: c\r\n\r\n", [("message", "a\nb\nc")]),
    (b"\n\n\r\n\rdata: x\n\n", [("message", "x")]),
    (b"\xef\xbb\xbfdata: bom\n\n", [("message", "bom")]),
    (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [("message", "a")]),
    ("data: grüße ✓\n\n".encode(), [("message", "grüße ✓")]),
    (b"data: \xff\xfe\n\n", [("message", "��")]),
    (b"data: a\x00b\n\n", [("message", "a\x00b")]),
    (
        b"data: \xe2\x80\xa8 is no line's end\x0b\x0c\x85\n\n",
        [("message", "\u2028 is no line's end\x0b\x0c�")],
    ),
    (b"", []),
]


@pytest.mark.parametrize(("stream", "events"), CASES)
def test_a_stream_gives_its_events(stream: bytes, events: Events) -> None:
    assert read(stream) == events


@pytest.mark.parametrize(("stream", "events"), CASES)
def test_byte_by_byte_it_gives_the_same(stream: bytes, events: Events) -> None:
    assert read(*(stream[i : i + 1] for i in range(len(stream)))) == events


@pytest.mark.parametrize(("stream", "events"), CASES)
def test_cut_in_two_anywhere_it_gives_the_same(stream: bytes, events: Events) -> None:
    for cut in range(len(stream)):
        assert read(stream[:cut], b"", stream[cut:]) == events


def test_an_event_comes_with_its_last_byte_and_waits_for_no_other() -> None:
    """Of a line that ends in CR, the LF may come much later, or never."""
    reader = EventReader()
    assert list(reader.feed(b"data: x\r\n")) == []
    assert [event.data for event in reader.feed(b"\r")] == ["x"]
    assert list(reader.feed(b"\n")) == []


def test_a_line_at_the_limit_is_read_and_one_over_it_is_not() -> None:
    line = b"data: " + b"x" * 94
    assert read(line + b"\n\n", max_line=100) == [("message", "x" * 94)]
    with pytest.raises(LineTooLong):
        read(line + b"x\n\n", max_line=100)
    with pytest.raises(LineTooLong):
        read(*[b"x"] * 101, max_line=100)


def test_what_came_before_a_line_too_long_is_not_lost() -> None:
    coming = EventReader(max_line=100).feed(b"data: first\n\n" + b"x" * 101)
    assert next(coming).data == "first"
    with pytest.raises(LineTooLong):
        next(coming)
