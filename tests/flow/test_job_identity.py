"""Whoever holds one job's URL speaks for that job only: another job's identity stays with the provider."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.kept_events import kept_events
from tests.support.running import Running, running
from tests.support.senders import Sent, deapi, speech


async def _send(up: Running, sent: Sent) -> dict[str, Any]:
    answer = await up.client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def _own(up: Running, token: str, name: str, event: str) -> Sent:
    """A callback about the job `name`, signed with the secret of the job that `token` was made for."""
    secret = up.receiver.tokens.job_secrets(token)[0]
    return replace(deapi(name, event, secret=secret), path=f"/callbacks/deapi/{token}")


@pytest.mark.parametrize("event", ["job.failed", "job.processing"])
async def test_a_jobs_own_secret_does_not_take_another_jobs_identity(event: str, tmp_path: Path) -> None:
    async with running(tmp_path) as up:
        mine, theirs = (up.receiver.tokens.issue("deapi", ref=ref, job_secret=True) for ref in ("a", "b"))
        forged = _own(up, mine, "job-b", event)
        first = await _send(up, forged)
        assert (await _send(up, forged))["event_id"] == first["event_id"], "a retry is still a retry"
        own = await _send(up, _own(up, theirs, "job-b", event))
        account = await _send(up, deapi("job-b", event))
        assert [own["status"], account["status"]] == ["recorded", "recorded"]
        assert len({first["event_id"], own["event_id"], account["event_id"]}) == 3
        assert (await _send(up, deapi("job-b", event)))["status"] == "duplicate"


async def test_a_token_without_another_proof_does_not_take_another_jobs_identity(tmp_path: Path) -> None:
    async with running(tmp_path) as up:
        mine, theirs = (up.receiver.tokens.issue("speech", ref=ref) for ref in ("a", "b"))
        told = [
            await _send(up, replace(speech("job-b"), path=f"/callbacks/speech/{t}")) for t in (mine, theirs)
        ]
        assert [answer["status"] for answer in told] == ["recorded", "recorded"]
        events = await kept_events(up.receiver.store)
        assert {event.ref: event.id for event in events} == {
            "a": told[0]["event_id"],
            "b": told[1]["event_id"],
        }


async def test_credentials_of_the_account_speak_for_every_job_over_any_url(tmp_path: Path) -> None:
    """One job gives one event, whichever of its URLs the account's callback comes over."""
    async with running(tmp_path) as up:
        token = up.receiver.tokens.issue("deapi", ref="a")
        first = await _send(up, replace(deapi("job-a", "job.failed"), path=f"/callbacks/deapi/{token}"))
        again = await _send(up, deapi("job-a", "job.failed"))
        assert again == {"status": "duplicate", "event_id": first["event_id"]}
