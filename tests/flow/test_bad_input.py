"""Bad input, each with its clear answer: no 5xx, no traceback, nothing lost. Real uvicorn, real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from receiver.app.wiring import Timing
from receiver.core.event import Recorded, Recording
from receiver.web import protocol
from tests.support.kept_events import kept_events
from tests.support.raw import exchange, head
from tests.support.running import Running, api_token, running, settings_text
from tests.support.senders import Sent, basic, deapi, speech, transcript

JSON = {"content-type": "application/json", "authorization": basic()}


API_SECRET = "operates-in-tests-0123456789abcdef"


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Running]:
    extra = "[sources.small]\nprovider = 'deepgram'\nbasic = ['deepgram:correct-horse-battery']\n"
    extra += "max_audio_bytes = 1000\nmax_json_bytes = 500\nidle_seconds = 0.3\n"
    extra += "[sources.slow]\nprovider = 'deepgram'\nbasic = ['deepgram:correct-horse-battery']\n"
    extra += "idle_seconds = 30\nbody_seconds = 0.3\n" + api_token("ops", API_SECRET)
    async with running(tmp_path, settings_text(tmp_path, extra=extra), work=False) as up:
        yield up


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[Running]:
    """A receiver that waits 0.2 s for a head."""
    extra = "[sources.small]\nprovider = 'deepgram'\nbasic = ['deepgram:correct-horse-battery']\nidle_seconds = 0.3\n"
    text = settings_text(tmp_path, extra=extra)
    async with running(tmp_path, text, work=False, timing=Timing(head_seconds=0.2)) as up:
        yield up


async def _send(live: Running, sent: Sent) -> tuple[int, dict[str, object]]:
    answer = await live.client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    "body",
    [
        b"junk",
        b"{",
        b'{"metadata": {"request_id": "x"}, "results": {"cha',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[1, 2]",
        b'"text"',
        b'{"results": {"channels": [{"alternatives": [{"transcript": 12}]}]}}',
        b'{"metadata": {"duration": 1e999}, "results": {}}',
        b'{"metadata": {"duration": ' + b"9" * 5000 + b'}, "results": {}}',
        b'{"metadata": {"request_id": "\\ud800"}, "results": {}}',
        b"\xff\xfe\x00{",
        b'{"err_msg": "\xc3\x28"}',
        b'{"nothing": "known"}',
        b'{"results": "AAAA"}',
        b"{}",
        b"null",
        b"",
        b"\x00" * 100,
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_a_proved_body_that_is_not_understood_is_kept_and_answered_200(
    live: Running, body: bytes
) -> None:
    """200, an event id, and an event in the store; never a 5xx."""
    status, answer = await _send(live, Sent("x", "/callbacks/deepgram", JSON, body))
    assert status == 200, answer
    assert answer["status"] in ("parked", "recorded")
    event = await live.receiver.store.event(str(answer["event_id"]))
    json.loads(event.data)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (replace(transcript("a"), headers={"content-type": "application/json"}), 401),
        (replace(transcript("a"), headers=JSON | {"authorization": basic("deepgram:wrong")}), 401),
        (replace(transcript("a"), headers=JSON | {"authorization": "Basic %%%"}), 401),
        (replace(transcript("a"), headers=JSON | {"authorization": "Bearer abc"}), 401),
        (replace(transcript("a"), path="/callbacks/deepgram/notatoken"), 401),
        (replace(transcript("a"), path="/callbacks/speech"), 401),
        (replace(deapi("a"), body=b"{}"), 401),
        (deapi("a", at=int(time.time()) - 3600), 401),
        (deapi("a", at=int(time.time()) + 3600), 401),
        (deapi("a", secret="another-secret-of-no-use-at-all-123456"), 401),
        (replace(transcript("a"), path="/callbacks/nobody"), 404),
        (replace(transcript("a"), path="/callbacks/deepgram/a/b"), 404),
        (replace(transcript("a"), path="/callbacks/..%2f..%2fetc%2fpasswd"), 404),
        (replace(transcript("a"), path="/callbacks/%00%0d%0a"), 404),
        (replace(transcript("a"), path="/callbacks/deepgram/..%2f..%2fetc"), 404),
        (replace(transcript("a"), path="/objects/..%2f..%2fetc%2fpasswd"), 404),
        (replace(transcript("a"), method="GET"), 405),
        (replace(transcript("a"), method="DELETE"), 405),
    ],
)
async def test_what_is_not_proved_is_refused_with_its_reason(live: Running, sent: Sent, status: int) -> None:
    """401, 404 or 405 with a sentence; nothing is recorded."""
    answer = await live.client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]
    if status == 401:
        assert answer.headers["www-authenticate"].startswith("Basic ")
    assert await kept_events(live.receiver.store) == []


async def test_a_token_of_another_source_is_403(live: Running) -> None:
    """A token that is ours, but not for this source, is told apart from one that is not ours."""
    token = live.receiver.tokens.issue("speech")
    sent = transcript("a")
    status, answer = await _send(live, replace(sent, path=f"/callbacks/deepgram/{token}"))
    assert (status, answer["status"]) == (403, "wrong_source")


async def test_an_expired_token_is_401(live: Running) -> None:
    token = live.receiver.tokens.issue("speech", expires_at=live.receiver.clock() - 1)
    status, answer = await _send(live, replace(transcript("a"), path=f"/callbacks/speech/{token}"))
    assert status == 401
    assert "expired" in str(answer["error"])


@pytest.mark.parametrize("name", ["authorization", "content-length"])
async def test_a_doubled_header_is_refused(live: Running, name: str) -> None:
    """Two different values of a header that decides are not a choice of ours."""
    body = transcript("a").body
    pairs = [*JSON.items(), ("content-length", str(len(body)))]
    doubled = dict(pairs)[name] if name == "authorization" else str(len(body) - 1)
    status, _, _ = await exchange(
        _port(live), [head("/callbacks/deepgram", [*pairs, (name, doubled)]) + body]
    )
    assert status in (400, 401)


_HEADS = [
    (b"host: a\r\nhost: a", 400, b"two Host headers"),
    (b"host: a\r\nHOST: b", 400, b"two Host headers"),
    (b"x-a: b", 400, b"no Host header"),
    (b"host: a\r\ntransfer-encoding: gzip, chunked", 501, b"Transfer-Encoding"),
    (b"host: a\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked", 501, b"Transfer-Encoding"),
    (b"host: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked", 400, b"Invalid"),
    (b"host: a\r\ntransfer-encoding: identity", 501, b"Transfer-Encoding"),
    (b"host: a\r\ntransfer-encoding: chunked\r\ncontent-length: 5", 400, b"Invalid"),
    (b"host: a\r\ncontent-length: 5\r\ncontent-length: 5", 400, b"Invalid"),
    (b"host: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhost: b", 400, b"two Host headers"),
]


@pytest.mark.parametrize(
    "line", ["POST /callbacks/deepgram", "GET /api/v1/events", "POST /submit/deepgram/x"]
)
@pytest.mark.parametrize(("headers", "status", "says"), _HEADS, ids=lambda value: repr(value)[:60])
async def test_a_head_that_two_servers_could_read_in_two_ways_ends_its_connection(
    live: Running, line: str, headers: bytes, status: int, says: bytes
) -> None:
    """On every path: what a proxy before us takes for one request must not be two here."""
    head = line.encode() + b" HTTP/1.1\r\n" + headers + b"\r\n\r\n"
    came = await _until_closed(_port(live), head + b"0\r\n\r\n" + _WHOLE)
    assert came.startswith(b"HTTP/1.1 %d " % status)
    assert says in came
    assert came.count(b"HTTP/1.1 ") == 1


_WHOLE = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"


async def test_a_trailer_decides_nothing(live: Running) -> None:
    chunked = b"POST /callbacks/nobody HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n"
    trailer = b"1\r\nx\r\n0\r\nhost: b\r\nexpect: 100-continue\r\n\r\n"
    old = _WHOLE.replace(b"1.1\r\nhost: a", b"1.0")  # HTTP/1.0 asks for no Host, and closes
    came = await _until_closed(_port(live), chunked + trailer, old)
    assert [answer[:3] for answer in came.split(b"HTTP/1.1 ")[1:]] == [b"404", b"200"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/api/v1/replays", "application/json"), ("/console/login", "application/x-www-form-urlencoded")],
)
async def test_a_body_whose_announced_length_is_too_much_is_not_asked_for(
    live: Running, path: str, kind: str
) -> None:
    headers = {"content-type": kind, "authorization": f"Bearer {API_SECRET}", "origin": "http://127.0.0.1"}
    announced = {"expect": "100-continue", "content-length": "9999999999"}
    status, answered, _ = await exchange(_port(live), [head(path, headers | announced)])
    assert (status, answered["connection"]) == (413, "close")


async def test_chunked_without_length_is_taken(live: Running) -> None:
    sent = transcript("chunked")

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(sent.body), 50):
            yield sent.body[start : start + 50]

    answer = await live.client.post(sent.path, headers=sent.headers, content=pieces())
    assert answer.json()["status"] == "recorded"


async def test_a_body_over_the_limit_is_413_by_its_length_alone(live: Running) -> None:
    """The head suffices: no byte of the body is waited for."""
    request = head("/callbacks/small", JSON | {"content-type": "audio/mpeg", "content-length": "1001"})
    status, _, body = await exchange(_port(live), [request])
    assert (status, json.loads(body)["status"]) == (413, "too_large")


async def test_a_chunked_body_over_the_limit_is_413(live: Running) -> None:
    request = head("/callbacks/small", JSON | {"transfer-encoding": "chunked"})
    status, _, _ = await exchange(_port(live), [request, b"1f4\r\n" + b"x" * 500 + b"\r\n", b"1\r\nx\r\n"])
    assert status == 413


async def test_a_body_that_stalls_is_408(live: Running) -> None:
    request = head("/callbacks/small", JSON | {"content-length": "400"})
    status, _, body = await exchange(_port(live), [request, b"x" * 10])
    assert (status, json.loads(body)["status"]) == (408, "too_slow")


async def test_a_body_that_takes_longer_than_its_total_time_is_408(live: Running) -> None:
    """The total counts even where the pause between two pieces is allowed."""
    request = head("/callbacks/slow", JSON | {"content-length": "400"})
    status, _, _ = await exchange(_port(live), [request, b"x" * 10])
    assert status == 408


async def test_a_body_cut_off_records_nothing_and_leaves_no_file(live: Running) -> None:
    """The provider sees a broken connection and sends again; nothing half is kept."""
    request = head("/callbacks/deepgram", JSON | {"content-type": "audio/mpeg", "content-length": "1000000"})
    await exchange(_port(live), [request, b"x" * 300_000], half_close=True)
    await live.seen.until(lambda: any(r.answer == "cut_off" for r in live.seen.callbacks))
    assert await kept_events(live.receiver.store) == []
    assert list((live.folder / "data" / "journal" / "spool").iterdir()) == []


async def test_300_mb_without_proof_is_refused_before_it_is_read(live: Running) -> None:
    """The answer comes while the sender still sends; memory does not grow."""
    before = psutil.Process().memory_info().rss
    request = head("/callbacks/deepgram", {"content-type": "audio/mpeg", "content-length": str(300 * 2**20)})
    status, _, _ = await exchange(_port(live), [request] + [b"x" * 2**20] * 8)
    assert status == 401
    assert psutil.Process().memory_info().rss - before < 32 * 2**20


async def test_300_mb_with_proof_is_over_the_default_limit(live: Running) -> None:
    request = head(
        "/callbacks/deepgram", JSON | {"content-type": "audio/mpeg", "content-length": str(300 * 2**20)}
    )
    status, _, _ = await exchange(_port(live), [request] + [b"x" * 2**20] * 8)
    assert status == 413


@pytest.mark.parametrize("piece", [b"x-more: " + b"a" * 500 + b"\r\n", b"a" * 500], ids=["headers", "value"])
async def test_headers_without_end_are_refused(live: Running, piece: bytes) -> None:
    """A stranger cannot make the process collect what never becomes a request."""
    pieces = [b"POST /callbacks/deepgram HTTP/1.1\r\nhost: a\r\nx-first: "] + [piece] * 2000
    status, _, _ = await exchange(_port(live), pieces)
    assert status in (0, 400)
    assert live.seen.callbacks == []


async def _until_closed(port: int, *pieces: bytes) -> bytes:
    """Send pieces, each when something was answered to the one before; return all that came until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    came = b""
    try:
        async with asyncio.timeout(5):
            for number, piece in enumerate(pieces):
                if number:
                    came += await reader.read(65_536)
                writer.write(piece)
            return came + await reader.read()
    finally:
        writer.close()


def _keep_alive(monkeypatch: pytest.MonkeyPatch, seconds: float) -> asyncio.Queue[float]:
    """Let connections be kept for so long; return what tells for how long each new one may say nothing."""
    made, kept = protocol.Protocol.connection_made, asyncio.Queue[float]()

    def connection_made(self: protocol.Protocol, transport: asyncio.Transport) -> None:
        self.timeout_keep_alive = seconds  # type: ignore[assignment]  # parts of a second do no harm
        made(self, transport)
        kept.put_nowait(self._until - self.loop.time())

    monkeypatch.setattr(protocol.Protocol, "connection_made", connection_made)
    return kept


@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "an empty line"])
async def test_a_peer_that_says_nothing_is_left(
    live: Running, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Each holds a file descriptor: a thousand of them would leave none for callbacks."""
    _keep_alive(monkeypatch, 0.2)
    assert await _until_closed(_port(live), sent) == b""


async def test_a_connection_that_was_opened_ahead_is_kept_as_long_as_an_idle_one(
    live: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As load balancers do: closed by us, it may be used just then, and the callback be lost on it."""
    made = _keep_alive(monkeypatch, 75)
    _, writer = await asyncio.open_connection("127.0.0.1", _port(live))
    writer.write(head("/healthz", {}, method="GET")[:-2])
    async with asyncio.timeout(5):
        ahead = await made.get()
    assert ahead > 70
    writer.close()


async def test_half_a_head_is_408_on_a_new_connection_and_on_a_kept_one(impatient: Running) -> None:
    half = b"POST /callbacks/deepgram HTTP/1.1\r\nhost: a\r\nx-fir"
    for pieces in ([half], [head("/healthz", {}, method="GET"), half]):
        answers = await _until_closed(_port(impatient), *pieces)
        *_, last = answers.split(b"HTTP/1.1 ")
        assert answers.count(b"HTTP/1.1 ") == len(pieces)
        assert last.startswith(b"408 ")
        assert b"\r\nconnection: close\r\n" in last
        assert last.endswith(b"took too long.")


async def test_a_head_that_trickles_has_no_more_time_than_one_that_stops(impatient: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", _port(impatient))
    writer.write(b"POST /callbacks/deepgram HTTP/1.1\r\nhost: a\r\nx-first: ")
    answer = asyncio.create_task(reader.read(12))
    for _ in range(300):
        writer.write(b"a")
        await asyncio.wait({answer}, timeout=0.02)
        if answer.done():
            break
    assert answer.done()
    assert await answer == b"HTTP/1.1 408"
    writer.close()


async def test_requests_that_come_faster_than_answers_end_the_connection_after_two(live: Running) -> None:
    """One is answered and one waits: what comes besides is dropped, and its sender is to see that."""
    came = await _until_closed(_port(live), _WHOLE * 5)
    assert came.count(b"HTTP/1.1 200") == 2


async def test_a_head_that_came_in_time_may_be_followed_by_a_slow_body(impatient: Running) -> None:
    """Its own limits count: here 0.3 s without a byte."""
    request = head("/callbacks/small", JSON | {"content-length": "400"})
    status, _, body = await exchange(_port(impatient), [request, b"x" * 10])
    assert (status, json.loads(body)["status"]) == (408, "too_slow")


async def test_half_a_head_does_not_come_between_an_answer_that_is_being_given(
    impatient: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is over, and the request before it is not answered yet: that comes first, and whole."""
    looked, go_on = asyncio.Event(), asyncio.Event()
    late, record = protocol.Protocol._look, impatient.receiver.store.record

    def look(self: protocol.Protocol) -> None:
        late(self)
        looked.set()

    async def slowly(recording: Recording) -> Recorded:
        await go_on.wait()
        return await record(recording)

    monkeypatch.setattr(protocol.Protocol, "_look", look)
    monkeypatch.setattr(impatient.receiver.store, "record", slowly)
    sent = transcript("slow")
    whole = head(sent.path, JSON | {"content-length": str(len(sent.body))})
    coming = asyncio.create_task(_until_closed(_port(impatient), whole + sent.body + whole[:-10]))
    async with asyncio.timeout(5):
        await looked.wait()
    go_on.set()
    assert [answer[:3] for answer in (await coming).split(b"HTTP/1.1 ")[1:]] == [b"200", b"408"]


async def test_a_body_that_stalls_after_its_answer_does_not_keep_the_connection(
    live: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after an answer ends uvicorn's own timer, which nothing began again."""
    _keep_alive(monkeypatch, 0.2)
    refused = head("/callbacks/nobody", JSON | {"content-length": "400"})
    answers = await _until_closed(_port(live), refused, b"x" * 10)
    assert answers.startswith(b"HTTP/1.1 404 ")


async def test_a_replayed_callback_is_a_duplicate_of_the_first(live: Running) -> None:
    """The very same bytes again are answered 200 with the first event's id."""
    for sent in (speech("one"), transcript("two"), deapi("three")):
        _, first = await _send(live, sent)
        status, again = await _send(live, sent)
        assert (status, again["status"], again["event_id"]) == (200, "duplicate", first["event_id"])


async def test_a_late_processing_is_recorded_and_delivered_to_nobody(live: Running) -> None:
    """DeAPI's retries can bring `processing` after the end."""
    await _send(live, deapi("job", "job.failed"))
    status, answer = await _send(live, deapi("job", "job.processing"))
    assert (status, answer["status"]) == (200, "recorded")
    assert live.seen.callbacks[-1].answer == "late"


async def test_a_strangers_text_draws_no_line_of_its_own(
    live: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    """Line breaks and terminal codes in headers and payloads stay inside their field."""
    from receiver.app.log import LogObserver

    sent = transcript("a\r\nlevel=error \x1b[31m forged")
    await _send(live, replace(sent, headers=sent.headers | {"content-type": "application/json; a=b\t31m"}))
    for style in ("json", "console"):
        log = LogObserver(style=style, level="info")
        await asyncio.to_thread(log.callback, live.seen.callbacks[-1])
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert "\x1b[31m" not in lines[0]


async def test_secrets_reach_no_event_no_report_and_no_file(live: Running) -> None:
    """Whatever carries credentials on its way in leaves them at the door."""
    sent = transcript("secretive")
    document = json.loads(sent.body)
    document["metadata"]["extra"] = {"callback_secret": "s3cr3t-value", "keep": "me"}
    headers = sent.headers | {"dg-token": "key-identifier-1", "dg-project-id": "project-1"}
    status, answer = await _send(live, replace(sent, body=json.dumps(document).encode(), headers=headers))
    assert status == 200
    event = await live.receiver.store.event(str(answer["event_id"]))
    assert b'"keep":"me"' in event.data
    held = b"".join(path.read_bytes() for path in (live.folder / "data").rglob("*") if path.is_file())
    told = event.data + repr(live.seen.callbacks + live.seen.notes).encode() + held
    for secret in (b"s3cr3t-value", b"key-identifier-1", b"project-1", b"correct-horse-battery"):
        assert secret not in told


def _port(live: Running) -> int:
    return int(live.base.rsplit(":", 1)[1])


async def test_a_completed_job_without_its_result_is_kept_for_a_person(live: Running) -> None:
    """No application gets a `….completed` event that has no result."""
    status, answer = await _send(live, deapi("no-link", "job.completed"))
    assert (status, answer["status"]) == (200, "parked")
    (event,) = await kept_events(live.receiver.store)
    assert event.type == "callback.parked"
    assert "sources.deapi.api_key" in json.loads(event.data)["error"]["message"]
