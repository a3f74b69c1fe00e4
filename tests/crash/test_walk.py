"""Kill -9 at each step of the walk, restart, and the promise holds: what was answered 2xx is delivered, under one id."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from tests.support.callbacks import Sent, deapi, speech, transcript
from tests.support.processes import Acknowledged, Process, send_once
from tests.support.running import settings_text
from tests.support.sink import Sink
from tests.support.crashing import STEPS

IN = [step for step in STEPS if not step.startswith(("store.claim", "destination", "store.settle"))]
OUT = [step for step in STEPS if step not in IN]


def _config(folder: Path, destination: str) -> Path:
    path = folder / "receiver.toml"
    text = settings_text(folder, destination=destination, retry="{retries = 100, wait = 0.2}")
    # A short timeout makes a short lease, so that a crashed claim is due again within the test.
    path.write_text(text.replace("[destinations.app]", "[destinations.app]\ntimeout_seconds = 0.5"))
    return path


async def _send(process: Process, sent: Sent, oracle: Acknowledged) -> bool:
    async with httpx2.AsyncClient(trust_env=False) as client:
        answer = await send_once(client, process.port, sent.path, sent.headers, sent.body, sent.method)
    if answer is not None and answer.is_success:
        oracle.note(sent.name, answer.json().get("event_id"))
        return True
    return False


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_kill_at_this_step_loses_and_doubles_nothing(step: str, when: str, tmp_path: Path) -> None:
    """The provider keeps sending until 2xx; every acknowledged callback reaches the application under one id."""
    oracle = Acknowledged()
    kinds = [speech("job-speech")] if step in IN else [speech("job-speech"), transcript("job-text")]
    async with Sink() as sink:
        config = _config(tmp_path, sink.url)
        dying = Process(config, step, when)
        await dying.start()
        for sent in kinds:
            await _send(dying, sent, oracle)
        assert await dying.died() == -9
        healthy = Process(config)
        await healthy.start()
        try:
            for sent in [*kinds, deapi("job-deapi")]:
                assert await _send(healthy, sent, oracle)
            names = {sent.name for sent in kinds} | {"job-deapi"}
            await sink.until(lambda: {body["data"]["job_id"] for body in sink.bodies()} >= names, 45)
        finally:
            await healthy.stop()
        delivered: dict[str, set[str]] = {}
        for body in sink.bodies():
            delivered.setdefault(body["data"]["job_id"], set()).add(body["data"]["event_id"])
        assert {name: ids for name, ids in delivered.items() if len(ids) > 1} == {}
        assert oracle.events == delivered
