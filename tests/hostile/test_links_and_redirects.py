"""Names in our folders that lead elsewhere, answers that name the caller's host, types a browser would run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from receiver.core.callback import MemoryBody
from receiver.providers import results, toolkit
from tests.hostile.attack import target
from tests.support.raw import exchange


def test_the_lock_of_the_journal_is_not_opened_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("private")
    victim.chmod(0o600)
    with target(tmp_path) as process:
        lock = tmp_path / "data" / "journal" / ".draining"
        lock.unlink(missing_ok=True)
        lock.symlink_to(victim)
        process.run("journal", "drain")
    assert victim.stat().st_mode & 0o777 == 0o600
    assert victim.read_text() == "private"


@pytest.mark.parametrize("name", ["ready.json"])
def test_the_ready_file_is_not_written_through_a_link(tmp_path: Path, name: str) -> None:
    from receiver.web.server import write_ready_file

    victim = tmp_path / "victim"
    victim.write_text("private")
    (tmp_path / f"{name}.{os.getpid()}").symlink_to(victim)
    write_ready_file(str(tmp_path / name), {})
    assert victim.read_text() == "private"


@pytest.mark.parametrize("path", ["/healthz/", "/api/v1/pickups/", "/metrics/"])
async def test_no_answer_leads_to_the_callers_host(tmp_path: Path, path: str) -> None:
    with target(tmp_path) as process:
        request = f"GET {path} HTTP/1.1\r\nhost: evil.example\r\n\r\n".encode()
        _, headers, body = await exchange(process.port, [request])
    assert "evil.example" not in str(headers) + body.decode()


@pytest.mark.parametrize("media_type", ["audio/svg+xml", "video/svg+xml", "audio/html"])
def test_a_callback_does_not_choose_a_type_that_a_browser_would_run(media_type: str) -> None:
    assert toolkit.audio_draft(media_type, {}, b"<svg/>", {}).content_type == "application/octet-stream"


@pytest.mark.parametrize("media_type", ["audio/svg+xml", "video/svg+xml", "audio/html", "audio/xml"])
def test_media_that_a_browser_would_run_lose_their_type(media_type: str) -> None:
    body = MemoryBody(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>")
    result = results.classify(body, content_type=media_type, format={}, wanted="any")
    assert getattr(result, "content_type", "") != media_type
