"""A token secret is changed on a fleet while callbacks come: every machine takes the URLs of every other, all the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from receiver.core.errors import ConfigError
from receiver.settings.load import parse
from tests.support.running import Running, running, settings_text
from tests.support.senders import speech

OLD, NEW = "the-older-token-secret-0123", "the-newer-token-secret-0123"
STEPS = (
    f'secrets = ["{OLD}"]',
    f'secrets = ["{OLD}", "{NEW}"]\nsigning = 1',
    f'secrets = ["{OLD}", "{NEW}"]',
    f'secrets = ["{NEW}"]',
)


async def _taken(up: Running, name: str, token: str) -> int:
    sent = replace(speech(name), path=f"/callbacks/speech/{token}")
    answer = await up.client.request(sent.method, sent.path, headers=sent.headers, content=sent.body)
    return answer.status_code


def _text(folder: Path, step: str) -> str:
    return settings_text(folder, extra=f"[tokens]\n{step}\n")


@pytest.mark.parametrize("step", [0, 1, 2])
async def test_machines_a_step_apart_take_each_others_urls(tmp_path: Path, step: int) -> None:
    """But for the last step: it ends the URLs of the old secret, once the metrics count none of them any more."""
    folders = [tmp_path / "one", tmp_path / "two"]
    async with (
        running(folders[0], _text(folders[0], STEPS[step]), work=False) as one,
        running(folders[1], _text(folders[1], STEPS[step + 1]), work=False) as two,
    ):
        for number, (issuer, taker) in enumerate([(one, two), (two, one), (one, one), (two, two)]):
            if step == 2 and issuer is one and taker is two:
                continue
            token = issuer.receiver.tokens.issue("speech", job_secret=True)
            assert await _taken(taker, f"job-{number}", token) == 200
            secrets = [up.receiver.tokens.job_secrets(token) for up in (issuer, taker)]
            assert secrets[0][0] in secrets[1], "so is a job's own secret"


async def test_log_and_metrics_tell_which_secret_still_proves_callbacks(tmp_path: Path) -> None:
    async with running(tmp_path, _text(tmp_path, STEPS[0]), work=False) as up:
        token = up.receiver.tokens.issue("speech")
    async with running(tmp_path, _text(tmp_path, STEPS[2]), work=False) as up:
        assert await _taken(up, "by-the-old", token) == 200
        assert await _taken(up, "by-the-new", up.receiver.tokens.issue("speech")) == 200
        assert await _taken(up, "by-the-new-too", up.receiver.tokens.issue("speech")) == 200
        assert [report.token_secret for report in up.seen.callbacks] == [1, 2, 2]
        text = (await up.client.get("/metrics")).text
        assert 'receiver_token_secret_callbacks_total{secret="1"} 1.0' in text
        assert 'receiver_token_secret_callbacks_total{secret="2"} 2.0' in text
        assert OLD not in text
        assert NEW not in text


@pytest.mark.parametrize("signing", [0, 2])
def test_a_secret_that_is_not_there_cannot_sign(signing: int) -> None:
    with pytest.raises(ConfigError, match=r"tokens\.signing"):
        parse(f'[tokens]\nsecrets = ["{OLD}"]\nsigning = {signing}\n', {}, lambda name: "")
