"""Callbacks whose bodies came compressed, as a proxy or a client library may send them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from receiver.core.proofs import hmac_sha256_hex
from tests.support.kept_events import kept_events
from tests.support.running import DEAPI_SECRET, Running, running, settings_text
from tests.support.senders import SPEECH, Sent, deapi, speech, transcript

LIMIT = 2_000_000


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


CODINGS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("GZip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("identity", bytes),
]


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Running]:
    text = settings_text(tmp_path).replace("[sources.speech]", f"max_audio_bytes = {LIMIT}\n[sources.speech]")
    async with running(tmp_path, text, work=False) as up:
        yield up


async def _send(live: Running, sent: Sent, coding: str, body: bytes) -> tuple[int, dict[str, str]]:
    headers = sent.headers | {"content-encoding": coding}
    answer = await live.client.request(sent.method, sent.path, headers=headers, content=body)
    return answer.status_code, answer.json()


async def _only(live: Running) -> dict[str, object]:
    (event,) = await kept_events(live.receiver.store)
    data: dict[str, object] = json.loads(event.data)
    return {"type": event.type, "job": event.job_id} | data


def _spooled(live: Running) -> list[Path]:
    return list((live.folder / "data" / "journal" / "spool").iterdir())


@pytest.mark.parametrize("times", [1, 30])
@pytest.mark.parametrize(("coding", "pack"), CODINGS)
async def test_audio_is_kept_as_it_was_before_its_coding(
    live: Running, coding: str, pack: Callable[[bytes], bytes], times: int
) -> None:
    sent = speech("spoken", times=times)
    assert (await _send(live, sent, coding, pack(sent.body)))[1]["status"] == "recorded"
    event = await _only(live)
    audio = event["audio"]
    assert isinstance(audio, dict)
    assert (event["type"], event["job"], (audio["bytes"], audio["content_type"])) == (
        "speech.completed",
        "spoken",
        (len(sent.body), "audio/mpeg"),
    )
    blob = await live.receiver.blobs.get((await kept_events(live.receiver.store))[0].blob_key or "")
    assert blob == SPEECH.read_bytes() * times
    again = await live.client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)
    assert again.json()["status"] == "duplicate"
    assert _spooled(live) == []


async def test_json_is_understood(live: Running) -> None:
    sent = transcript("text", "Your order is ready. " * 20_000)
    assert (await _send(live, sent, "gzip", gzip.compress(sent.body)))[1]["status"] == "recorded"
    assert (await _only(live))["type"] == "transcript.completed"


async def test_a_signature_is_checked_over_the_bytes_that_were_sent(live: Running) -> None:
    sent = deapi("signed", "job.failed")
    assert (await _send(live, sent, "gzip", gzip.compress(sent.body)))[0] == 401, "that of the decoded bytes"
    packed, stamp = gzip.compress(sent.body), sent.headers["x-deapi-timestamp"]
    proof = "sha256=" + hmac_sha256_hex(DEAPI_SECRET, f"{stamp}.".encode() + packed)
    signed = replace(sent, headers=sent.headers | {"x-deapi-signature": proof})
    assert (await _send(live, signed, "gzip", packed))[1]["status"] == "recorded"
    assert (await _only(live))["type"] == "speech.failed"


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "compress"])
async def test_a_coding_that_is_not_known_is_refused_and_those_known_are_named(
    live: Running, coding: str
) -> None:
    sent = transcript("strange")
    answer = await live.client.post(
        sent.path, headers=sent.headers | {"content-encoding": coding}, content=sent.body
    )
    assert (answer.status_code, answer.json()["status"]) == (415, "unknown_coding")
    assert answer.headers["accept-encoding"] == "gzip, deflate"
    assert "gzip, deflate" in answer.json()["error"]
    assert await kept_events(live.receiver.store) == []


@pytest.mark.parametrize(
    "body",
    [b"plain text", gzip.compress(b"x" * 5000)[:-4], gzip.compress(b"x") + b"y"],
    ids=("none", "cut", "more"),
)
async def test_bytes_that_are_not_their_coding_are_refused(live: Running, body: bytes) -> None:
    status, answer = await _send(live, transcript("broken"), "gzip", body)
    assert (status, answer["status"]) == (400, "bad_request")
    assert "Content-Encoding" in answer["error"]
    assert _spooled(live) == []


async def test_a_body_is_as_large_as_what_it_decodes_to(live: Running) -> None:
    """A bomb ends at the limit, and leaves nothing behind; what its coding made longer is within it."""
    bomb = gzip.compress(bytes(100 * LIMIT))
    assert len(bomb) < LIMIT
    status, answer = await _send(live, speech("bomb"), "gzip", bomb)
    assert (status, answer["status"]) == (413, "too_large")
    assert _spooled(live) == []
    stored = gzip.compress(SPEECH.read_bytes() * (LIMIT // len(SPEECH.read_bytes())), compresslevel=0)
    assert (await _send(live, speech("stored"), "gzip", stored))[0] == 200


async def test_a_long_body_that_decodes_to_nothing_is_refused(live: Running) -> None:
    nothing = b"\0\0\0\xff\xff" * 100_000 + b"\1\0\0\xff\xff"
    status, answer = await _send(live, speech("nothing"), "deflate", nothing)
    assert (status, answer["status"]) == (400, "bad_request")
    assert _spooled(live) == []


async def test_what_waits_in_the_journal_is_decoded(live: Running) -> None:
    other = apsw.Connection(str(live.folder / "data" / "receiver.db"))
    other.execute("BEGIN EXCLUSIVE")
    sent = transcript("waits")
    status, _ = await _send(live, sent, "gzip", gzip.compress(sent.body))
    other.execute("ROLLBACK")
    other.close()
    assert status == 503
    await live.seen.until(lambda: live.receiver.journal.depth == 0)
    assert (await _only(live))["type"] == "transcript.completed"
