"""The HTTP face: links to audio, probes, metrics, and what strangers are told."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
import uvicorn

from receiver.app.wiring import Ports
from receiver.core.clock import wall_clock
from receiver.core.tokens import ObjectLinks
from receiver.core.work import StoreStats
from receiver.web import server as serving
from receiver.web.app import create_app
from receiver.web.console.sessions import sessions_of
from receiver.web.protocol import HEAD_LINES
from receiver.web.reloading import Serving
from tests.support.raw import exchange, head
from tests.support.running import Running, running, settings_text
from tests.support.senders import SPEECH, speech, transcript

DAY = 86_400_000
AUDIO = SPEECH.read_bytes()


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path, work=False) as up:
        yield up


async def _stored(up: Running) -> str:
    """Store a speech and return its key."""
    sent = speech("job")
    answer = await up.client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)
    event = await up.receiver.store.event(answer.json()["event_id"])
    assert event.blob_key
    return event.blob_key


def _link(up: Running, key: str, *, content_type: str = "audio/mpeg", expires_at: int | None = None) -> str:
    expires_at = wall_clock() + DAY if expires_at is None else expires_at
    return "/objects/" + up.receiver.links.issue(key, content_type=content_type, expires_at=expires_at)


# ---------------------------------------------------------------- links


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        (None, 200, 0, None),
        ("bytes=0-0", 206, 0, 1),
        ("bytes=10-19", 206, 10, 20),
        ("bytes=100-", 206, 100, None),
        ("bytes=-7", 206, len(AUDIO) - 7, None),
        ("bytes=0-999999999", 206, 0, None),
        ("bytes=999999999-, 10-19, -0", 206, 10, 20),
        ("seconds=1-2", 200, 0, None),
        ("bytes", 200, 0, None),
        ("bytes=", 200, 0, None),
        ("bytes=b-c", 200, 0, None),
        ("bytes=0-4,x", 200, 0, None),
        ("bytes=9-3", 200, 0, None),
    ],
)
async def test_a_link_gives_the_bytes_that_are_asked_for(
    live: Running, asked: str | None, status: int, start: int, end: int | None
) -> None:
    answer = await live.client.get(
        _link(live, await _stored(live)), headers={"range": asked} if asked else {}
    )
    assert (answer.status_code, answer.content) == (status, AUDIO[start:end])
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["accept-ranges"] == "bytes"
    if status == 206:
        last = (end or len(AUDIO)) - 1
        assert answer.headers["content-range"] == f"bytes {start}-{last}/{len(AUDIO)}"


@pytest.mark.parametrize("asked", ["bytes=999999999-", f"bytes={len(AUDIO)}-"])
async def test_a_range_past_the_end_is_416_with_the_size(live: Running, asked: str) -> None:
    answer = await live.client.get(_link(live, await _stored(live)), headers={"range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-range"].removeprefix("bytes ") == f"*/{len(AUDIO)}"


async def test_head_tells_all_but_the_bytes(live: Running) -> None:
    link = _link(live, await _stored(live))
    told, got = await live.client.head(link), await live.client.get(link)
    assert (told.status_code, told.content) == (200, b"")
    assert told.headers["content-length"] == got.headers["content-length"] == str(len(AUDIO))
    assert told.headers["content-type"] == "audio/mpeg"


async def test_a_stored_page_cannot_become_one_of_ours(live: Running) -> None:
    """Whatever bytes and type a provider sent: the browser runs none of it."""
    answer = await live.client.get(_link(live, await _stored(live), content_type="text/html"))
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert answer.headers["cache-control"].startswith("private")
    assert answer.headers["content-disposition"].startswith("attachment; filename=")


async def test_audio_is_played_where_its_link_is_opened(live: Running) -> None:
    for content_type in ("audio/mpeg", "audio/ogg;codecs=opus", "video/mp4", "application/json"):
        answer = await live.client.head(_link(live, await _stored(live), content_type=content_type))
        assert answer.headers["content-disposition"].startswith("inline; filename=")
        assert answer.headers["content-type"] == content_type


async def test_what_a_caller_has_already_is_not_sent_again(live: Running) -> None:
    link = _link(live, await _stored(live))
    whole = await live.client.get(link)
    tag, changed = whole.headers["etag"], whole.headers["last-modified"]
    old = "Thu, 01 Jan 2015 00:00:00 GMT"
    for conditions, status in (
        ({"if-none-match": tag}, 304),
        ({"if-none-match": f'"other", W/{tag}'}, 304),
        ({"if-none-match": "*"}, 304),
        ({"if-none-match": '"other"'}, 200),
        ({"if-none-match": '"other"', "if-modified-since": changed}, 200),
        ({"if-modified-since": changed}, 304),
        ({"if-modified-since": old}, 200),
        ({"if-modified-since": "yesterday"}, 200),
        ({"if-match": '"other"'}, 412),
        ({"if-match": f"W/{tag}"}, 412),
        ({"if-match": f'"other", {tag}'}, 200),
        ({"if-match": "*"}, 200),
        ({"if-unmodified-since": old}, 412),
        ({"if-unmodified-since": changed}, 200),
        ({"if-range": tag, "range": "bytes=0-4"}, 206),
        ({"if-range": '"other"', "range": "bytes=0-4"}, 200),
        ({"if-none-match": tag, "range": "bytes=0-4"}, 304),
    ):
        for ask in (live.client.get, live.client.head):
            answer = await ask(link, headers=conditions)
            assert answer.status_code == status, conditions
            assert answer.headers["etag"] == tag
            assert not answer.content or answer.status_code in (200, 206)


async def test_several_ranges_are_served_as_parts(live: Running) -> None:
    answer = await live.client.get(_link(live, await _stored(live)), headers={"range": "bytes=0-1,10-11"})
    assert answer.status_code == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges")


async def test_pages_of_configured_origins_may_read_audio(tmp_path: Path) -> None:
    page = {"origin": "https://app.example.com"}
    text = settings_text(tmp_path, extra='[blobs]\ncors_origins = ["https://app.example.com"]\n')
    async with running(tmp_path, text, work=False) as up:
        link = _link(up, await _stored(up))
        answer = await up.client.get(link, headers=page | {"range": "bytes=0-4"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (206, page["origin"])
        assert "content-range" in answer.headers["access-control-expose-headers"]
        assert answer.headers["vary"].lower() == "origin"
        asked = {"access-control-request-method": "GET", "access-control-request-headers": "range"}
        before = await up.client.request("OPTIONS", link, headers=page | asked)
        assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, page["origin"])
        other = await up.client.get(link, headers={"origin": "https://evil.example.com"})
        assert "access-control-allow-origin" not in other.headers
        assert "access-control-allow-origin" not in (await up.client.get("/healthz", headers=page)).headers


async def test_without_origins_no_page_of_another_origin_may_read(live: Running) -> None:
    link = _link(live, await _stored(live))
    page = {"origin": "https://app.example.com"}
    assert "access-control-allow-origin" not in (await live.client.get(link, headers=page)).headers
    assert (await live.client.request("OPTIONS", link, headers=page)).status_code == 405


async def test_an_expired_link_is_410_and_says_how_to_get_another(live: Running) -> None:
    answer = await live.client.get(_link(live, await _stored(live), expires_at=wall_clock() - 1))
    assert answer.status_code == 410
    assert "receiver replay" in answer.json()["error"]


async def test_a_link_that_we_did_not_make_is_404(live: Running) -> None:
    """One letter changed, cut short, made longer, another receiver's, a callback's token: all the same."""
    link = _link(live, await _stored(live))
    token = link.removeprefix("/objects/")
    changed = token[:-5] + ("a" if token[-5] != "a" else "b") + token[-4:]
    foreign = ObjectLinks(["another-receivers-secret"]).issue(
        "a", content_type="a/b", expires_at=wall_clock() + DAY
    )
    ours_for_callbacks = live.receiver.tokens.issue("deepgram")
    for wrong in (
        changed,
        token[:-1],
        token + "a",
        foreign,
        ours_for_callbacks,
        "a" * 3000,
        "%C2%B2",
        "..",
        "x.mp3",
    ):
        answer = await live.client.get(f"/objects/{wrong}")
        assert answer.status_code == 404, wrong
        assert answer.json()["error"]
    assert (await live.client.get(link)).status_code == 200


@pytest.mark.parametrize(
    "key",
    [
        "../receiver.db",
        "deepgram/../../token-secret",
        "/etc/passwd",
        "a//b",
        "",
        "nobody.mp3",
        "a\0b",
        "deepgram",
    ],
)
async def test_a_link_never_leads_out_of_the_folder_nor_to_a_folder(live: Running, key: str) -> None:
    """Even one that carries our own signature."""
    await _stored(live)
    assert (await live.client.get(_link(live, key))).status_code == 404


async def test_a_link_to_what_was_removed_is_404(live: Running) -> None:
    key = await _stored(live)
    found = live.receiver.blobs.local(key)
    assert found
    Path(found.path).unlink()
    answer = await live.client.get(_link(live, key))
    assert (answer.status_code, answer.json()["error"]) == (404, "the object is not here any more")


# ---------------------------------------------------------------- probes


async def test_probes_say_ok(live: Running) -> None:
    assert (await live.client.get("/healthz")).json() == {"status": "ok"}
    answer = await live.client.get("/readyz")
    parts = {"store": "ok", "blobs": "ok", "journal": "ok", "relay": "ok", "collector": "ok"}
    waiting = {"depth": 0, "oldest_age_seconds": 0.0}
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "parts": parts, "journal": waiting})


@pytest.mark.parametrize("folder", ["blobs", "journal"])
async def test_a_part_that_is_out_is_named_and_alive_stays_alive(live: Running, folder: str) -> None:
    place = live.folder / "data" / folder
    place.rename(live.folder / "away")
    answer = await live.client.get("/readyz")
    assert answer.status_code == 503
    parts = answer.json()["parts"]
    assert [name for name, said in parts.items() if said != "ok"] == [folder]
    assert (await live.client.get("/healthz")).status_code == 200
    (live.folder / "away").rename(place)


class _BrokenStore:
    """Fails as a bug would, with an error that no port names."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def ping(self) -> None:
        raise RuntimeError("postgresql://user:password@host")


async def test_a_probe_answers_even_when_a_part_has_a_bug(tmp_path: Path) -> None:
    """503 with the error's kind; what it says may hold credentials and is not told."""

    def shape(ports: Ports) -> Ports:
        ports.store = _BrokenStore(ports.store)  # type: ignore[assignment]
        return ports

    async with running(tmp_path, shape=shape, work=False) as up:
        answer = await up.client.get("/readyz")
        assert (answer.status_code, answer.json()["parts"]["store"]) == (503, "failed (RuntimeError)")


async def test_a_delivery_that_nobody_relays_makes_it_unready(tmp_path: Path) -> None:
    """Intake alone works on, but the oldest due delivery tells that no worker runs."""
    ahead = [0]
    text = settings_text(tmp_path, destination="http://127.0.0.1:9/hooks")
    async with running(tmp_path, text, work=False, clock=lambda: wall_clock() + ahead[0]) as up:
        sent = transcript("job")
        await up.client.post(sent.path, headers=sent.headers, content=sent.body)
        assert (await up.client.get("/readyz")).status_code == 200
        ahead[0] = 901_000
        answer = await up.client.get("/readyz")
        assert answer.status_code == 503
        assert "app has been due for over 900 s" in answer.json()["parts"]["relay"]


async def test_a_process_without_intake_has_no_journal_to_wait_for(tmp_path: Path) -> None:
    """A worker on a machine of its own is ready, serves links, and takes no callbacks."""
    async with running(tmp_path, work=False) as up:
        link = _link(up, await _stored(up))
        (tmp_path / "data" / "journal" / "spool").rmdir()
        (tmp_path / "data" / "journal").rmdir()
        transport = httpx2.ASGITransport(create_app(up.receiver, intake=False))
        async with httpx2.AsyncClient(transport=transport, base_url="http://worker") as worker:
            ready = await worker.get("/readyz")
            assert ready.json() == {
                "status": "ok",
                "parts": dict.fromkeys(("store", "blobs", "relay", "collector"), "ok"),
            }
            assert (await worker.get(link)).content == AUDIO
            sent = transcript("job")
            assert (await worker.post(sent.path, headers=sent.headers, content=sent.body)).status_code == 404
            assert (await worker.get("/metrics")).status_code == 200


# ---------------------------------------------------------------- metrics


async def test_who_asks_for_metrics_again_and_again_shares_few_pages_and_none_is_old(
    live: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By many connections it took all of the processor's time, and good callbacks waited for it."""
    made, stats = [], live.receiver.store.stats

    async def counted(now: int) -> StoreStats:
        made.append(now)
        return await stats(now)

    monkeypatch.setattr(live.receiver.store, "stats", counted)
    first = [asyncio.create_task(live.client.get("/metrics")) for _ in range(20)]
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    await _stored(live)
    then = await asyncio.gather(*first, *(live.client.get("/metrics") for _ in range(20)))
    assert {answer.status_code for answer in then} == {200}
    assert all(
        'receiver_callbacks_total{answer="recorded",source="deepgram"} 1.0' in answer.text
        for answer in then[20:]
    )
    assert len(made) <= 5


async def test_metrics_tell_what_happened(tmp_path: Path) -> None:
    text = settings_text(tmp_path, destination="http://127.0.0.1:9/hooks")
    async with running(tmp_path, text, work=False) as up:
        for sent in (transcript("one"), transcript("one"), speech("two")):
            await up.client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)
        answer = await up.client.get("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        lines = answer.text.splitlines()
        for line in (
            'receiver_callbacks_total{answer="recorded",source="deepgram"} 2.0',
            'receiver_callbacks_total{answer="duplicate",source="deepgram"} 1.0',
            'receiver_ack_seconds_count{source="deepgram"} 3.0',
            'receiver_due_deliveries{destination="app"} 2.0',
            'receiver_dead_deliveries{destination="app"} 0.0',
            "receiver_journal_depth 0.0",
        ):
            assert line in lines
        assert any(line.startswith("process_resident_memory_bytes") for line in lines)


async def test_counters_are_there_from_the_start_at_zero(tmp_path: Path) -> None:
    """An alert on the growth of a counter misses the first occurrence of one that is not there yet."""
    text = settings_text(tmp_path, destination="http://127.0.0.1:9/hooks")
    async with running(tmp_path, text, work=False) as up:
        lines = (await up.client.get("/metrics")).text.splitlines()
    for line in (
        'receiver_callbacks_total{answer="rejected",source="deepgram"} 0.0',
        'receiver_callbacks_total{answer="not_kept",source="deepgram"} 0.0',
        'receiver_attempts_total{destination="app",outcome="refused"} 0.0',
        'receiver_deliveries_total{destination="app",state="dead"} 0.0',
        'receiver_pickups_total{source="deepgram",state="gone"} 0.0',
    ):
        assert line in lines


async def test_a_disk_that_is_nearly_full_is_warned_of_while_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In `/readyz`, still 200, and in a metric."""
    async with running(tmp_path, work=False) as up:
        assert "warnings" not in (await up.client.get("/readyz")).json()
        found = os.statvfs(tmp_path)
        full = os.statvfs_result((found.f_bsize, 4096, 1_000_000, 10_000, 10_000, *tuple(found)[5:]))
        monkeypatch.setattr(os, "statvfs", lambda path: full)
        answer = await up.client.get("/readyz")
        assert answer.status_code == 200
        assert "only 39 MiB are free" in answer.json()["warnings"]["journal.path"]
        metrics = (await up.client.get("/metrics")).text.splitlines()
        assert 'receiver_disk_free_bytes{setting="journal.path"} 4.096e+07' in metrics
        assert 'receiver_disk_free_bytes{setting="blobs.url"} 4.096e+07' in metrics


async def test_strangers_add_no_label_to_the_metrics(live: Running) -> None:
    """Sources that are not there, odd methods, types and ids: as many series after a thousand as after the first."""

    async def knock(number: int) -> None:
        method = ("POST", "PUT", "GET", "BREW", f"M{number}")[number % 5]
        path = f"/callbacks/nobody-{number}" if number % 2 else "/callbacks/deepgram"
        await live.client.request(
            method, path, headers={"content-type": f"audio/x{number}", "user-agent": f"u{number}"}
        )

    for number in range(30):
        await knock(number)
    before = _series((await live.client.get("/metrics")).text)
    for number in range(30, 130):
        await knock(number)
    after = _series((await live.client.get("/metrics")).text)
    assert after == before
    assert 'receiver_callbacks_total{answer="unknown_source",source="unknown"}' in after
    assert not any("nobody" in series or "BREW" in series for series in after)


def _series(text: str) -> set[str]:
    return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


async def test_metrics_come_while_the_store_is_out(tmp_path: Path) -> None:
    async with running(tmp_path, work=False) as up:
        await up.receiver.store.close()
        answer = await up.client.get("/metrics")
        assert answer.status_code == 200
        assert "receiver_journal_depth" in answer.text


async def test_asking_for_metrics_writes_no_log(live: Running) -> None:
    """A scrape every few seconds must not fill the log while something waits in the journal."""
    before = len(live.seen.journal_depths)
    await live.client.get("/metrics")
    assert len(live.seen.journal_depths) == before


# ---------------------------------------------------------------- strangers


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/callbacks", 404, "not_found"),
        ("POST", "/callbacks/", 404, "not_found"),
        ("POST", "/healthz", 405, "wrong_method"),
        ("DELETE", "/metrics", 405, "wrong_method"),
        ("POST", "/objects/abc", 405, "wrong_method"),
        ("GET", "/callbacks/deepgram", 405, "wrong_method"),
        ("OPTIONS", "/callbacks/deepgram", 405, "wrong_method"),
        ("POST", "/callbacks/nobody", 404, "unknown_source"),
    ],
)
async def test_a_wrong_turn_is_answered_in_json(
    live: Running, method: str, path: str, status: int, word: str
) -> None:
    answer = await live.client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["status"] == word
    assert answer.json()["error"]
    if status == 405:
        assert answer.headers["allow"]


async def test_a_bug_answers_500_without_a_word_about_it(
    live: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(token: str) -> None:
        raise RuntimeError("secret-in-a-message")

    monkeypatch.setattr(live.receiver.links, "read", broken)
    app = create_app(live.receiver)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
        answer = await client.get("/objects/abc")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


async def test_no_answer_tells_a_version_or_a_secret(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` sends no Server header, and no answer repeats what came in."""
    made: list[uvicorn.Config] = []
    real = uvicorn.Config

    def config(*args: object, **kwargs: object) -> uvicorn.Config:
        made.append(real(*args, **kwargs))  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn, "Config", config)

    settings = live.receiver.settings
    whole = Serving(
        live.receiver,
        sessions_of(settings),
        settings=settings,
        intake=True,
        work=False,
        read=lambda: settings,
    )
    with pytest.raises(KeyboardInterrupt):
        serving._config(whole, intake=True)
    assert made[0].server_header is False
    sent = transcript("job")
    headers = sent.headers | {"authorization": "Basic c2VjcmV0OnZhbHVl", "dg-token": "token-value"}
    for path in (
        "/callbacks/deepgram",
        "/callbacks/deepgram/token-in-path",
        "/callbacks/nobody",
        "/objects/key-in-path",
    ):
        answer = await live.client.post(path, headers=headers, content=sent.body)
        told = answer.text + str(answer.headers)
        assert not re.search(
            r"c2VjcmV0|secret:value|token-value|in-path|correct-horse|starlette|python", told, re.I
        )


@pytest.mark.parametrize(
    ("trusted", "said", "peer"),
    [
        ('["127.0.0.1"]', "203.0.113.9", "203.0.113.9"),
        ('["127.0.0.1"]', "198.51.100.7, 203.0.113.9", "203.0.113.9"),
        ('["127.0.0.0/8", "203.0.113.9"]', "198.51.100.7, 203.0.113.9", "198.51.100.7"),
        ('["127.0.0.1"]', "203.0.113.9:4711", "203.0.113.9"),
        ('["127.0.0.1"]', "[2001:db8::1]:4711", "2001:db8::1"),
        ('["127.0.0.1"]', "made up", "127.0.0.1"),
        ("[]", "203.0.113.9", "127.0.0.1"),
        ('["*"]', "2001:db8::1, 203.0.113.9", "2001:db8::1"),
    ],
)
async def test_the_peer_is_who_called_as_far_as_proxies_are_trusted(
    tmp_path: Path, trusted: str, said: str, peer: str
) -> None:
    """What stands before the first address that nobody trusted wrote is a stranger's word."""
    text = settings_text(tmp_path, extra=f"[server]\ntrusted_proxies = {trusted}\n")
    async with running(tmp_path, text, work=False) as up:
        await up.client.post("/callbacks/deepgram", headers={"x-forwarded-for": said})
        assert up.seen.callbacks[-1].peer == peer


@pytest.mark.parametrize(
    "path", ["//callbacks/deepgram", "/callbacks/deepgram/", "/callbacks/deepgram/{token}/"]
)
async def test_a_slash_more_in_the_path_costs_no_callback(live: Running, path: str) -> None:
    token = live.receiver.tokens.issue("deepgram")
    sent = speech("slashes")
    answer = await live.client.put(
        live.base + path.format(token=token), headers=sent.headers, content=sent.body
    )
    assert answer.status_code == 200


async def test_blanks_behind_a_header_value_are_not_part_of_it(live: Running) -> None:
    sent = speech("blanks")
    lines = "".join(f"{name}: {value} \t\r\n" for name, value in sent.headers.items())
    request = f"PUT {sent.path} HTTP/1.1\r\nhost: x\r\n{lines}content-length: {len(sent.body)}\r\n\r\n"
    status, _, _ = await exchange(int(live.base.rpartition(":")[2]), [request.encode() + sent.body])
    assert status == 200


async def test_what_stands_in_a_trailer_says_nothing(tmp_path: Path) -> None:
    """Some proxies pass trailers on: who calls, and what proves it, they vouch for in the head alone."""
    text = settings_text(tmp_path, extra='[server]\ntrusted_proxies = ["127.0.0.1"]\n')
    sent = transcript("trailer")
    lines = sent.headers | {"x-forwarded-for": "203.0.113.9", "transfer-encoding": "chunked"}
    body = b"%x\r\n%b\r\n0\r\n" % (len(sent.body), sent.body)
    trailer = b"x-forwarded-for: 198.51.100.7\r\nauthorization: Basic eA==\r\n" + b"x-more: \r\n" * HEAD_LINES
    async with running(tmp_path, text, work=False) as up:
        status, _, _ = await exchange(
            int(up.base.rpartition(":")[2]), [head(sent.path, lines) + body + trailer + b"\r\n"]
        )
        assert (status, up.seen.callbacks[-1].peer) == (200, "203.0.113.9")


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        ("/callbacks/deepgram", 401),
        ("/api/v1/replays", 403),
        ("/submit/deepgram/v1/listen", 404),
        ("/console", 404),
    ],
)
async def test_a_refused_sender_that_was_not_asked_for_its_body_sends_the_next_by_another_connection(
    live: Running, path: str, refusal: int
) -> None:
    """By the same, the next request would be taken for the body."""
    lines = {"expect": "100-continue", "content-length": "1000"}
    status, headers, _ = await exchange(int(live.base.rpartition(":")[2]), [head(path, lines)])
    assert (status, headers.get("connection")) == (refusal, "close")


async def test_a_source_name_with_odd_characters_is_only_unknown(live: Running) -> None:
    for name in ("%F0%9F%92%A9", "a%20b", "%22%3Cscript%3E", "a" * 4000):
        sent = replace(transcript("x"), path=f"/callbacks/{name}")
        answer = await live.client.post(sent.path, headers=sent.headers, content=sent.body)
        assert (answer.status_code, answer.json()["status"]) == (404, "unknown_source")
        assert live.seen.callbacks[-1].source == "unknown"
