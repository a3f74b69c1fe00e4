"""Kill -9 at each step of the walk, restart, and the promise holds: what was answered 2xx is delivered, under one id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.crash.conftest import Place
from tests.support.clients import local_client
from tests.support.crashing import DRAIN, JOURNAL, ON_DISK, SHARED, STEPS, fast_clock
from tests.support.delivered import Delivered
from tests.support.processes import Acknowledged, Process, send_once
from tests.support.running import settings_text
from tests.support.senders import Sent, deapi, speech, transcript
from tests.support.sink import Sink

pytestmark = pytest.mark.usefixtures("nothing_left_running")

LONG = 140
"""How many times the sample makes a body that is held in a file: 1.1 MB."""
OUT = [step for step in STEPS if step.startswith(("store.claim", "destination", "store.settle"))]


_QUICK = {
    ("blobs.put", "after"),
    ("store.claim", "after"),
    ("store.settle", "before"),
    ("journal.remove", "before"),
    *SHARED,
}
"""Over PostgreSQL and S3, those that differ most from the embedded parts; the others run with `-m soak`."""


def _places(moments: Iterable[tuple[str, str]]) -> Iterator[object]:
    for step, when in moments:
        if (step, when) not in SHARED:
            yield pytest.param(step, when, "embedded")
        if step not in ON_DISK:
            marks = () if (step, when) in _QUICK else (pytest.mark.soak,)
            yield pytest.param(step, when, "shared", marks=marks)


WALK = [*((step, when) for step in STEPS for when in ("before", "after")), *SHARED]


def _config(folder: Path, destination: str, place: Place) -> Path:
    path = folder / "receiver.toml"
    text = settings_text(
        folder, destination=destination, retry="{retries = 100, wait = 0.2}", extra=place.settings
    )
    path.write_text(text)
    return path


async def _send(process: Process, sent: Sent, oracle: Acknowledged) -> bool:
    async with local_client() as client:
        answer = await send_once(client, process.port, sent.path, sent.headers, sent.body, sent.method)
    if answer is not None and answer.is_success:
        oracle.note(sent.name, answer.json().get("event_id"))
        return True
    return False


@pytest.mark.parametrize(("step", "when", "place"), [*_places(WALK)], indirect=["place"])
async def test_a_kill_at_this_step_loses_and_doubles_nothing(
    step: str, when: str, place: Place, tmp_path: Path
) -> None:
    """The provider keeps sending until 2xx; every acknowledged callback reaches the application under one id."""
    oracle = Acknowledged()
    sound = speech("job-speech", times=LONG if step == "body.finish" else 20)
    kinds = [sound] if step not in OUT else [sound, transcript("job-text")]
    async with Sink() as sink:
        config = _config(tmp_path, sink.url, place)
        dying = Process(config, step, when, environ=place.environ)
        await dying.start()
        for sent in kinds:
            await _send(dying, sent, oracle)
        assert await dying.died() == -9
        healthy = Process(config, environ=place.environ)
        await healthy.start()
        try:
            for sent in [*kinds, deapi("job-deapi", at=fast_clock() // 1000)]:
                assert await _send(healthy, sent, oracle)
            names = {sent.name for sent in kinds} | {"job-deapi"}
            delivered = Delivered(sink)
            await delivered.until(lambda: delivered.ids.keys() >= names)
        finally:
            await healthy.stop()
        delivered.look()
        assert delivered.ids == oracle.events
        assert all(len(ids) == 1 for ids in delivered.ids.values())


@pytest.mark.parametrize(("step", "when", "place"), [*_places([*JOURNAL, *DRAIN])], indirect=["place"])
async def test_a_kill_at_this_step_of_the_journal_loses_and_doubles_nothing(
    step: str, when: str, place: Place, tmp_path: Path
) -> None:
    """The store is out for the first two callbacks; deAPI's is answered 200 by the journal and is never sent again."""
    oracle = Acknowledged()
    environ = place.environ | {"CRASHING_STORE_OUT": "all" if (step, when) in JOURNAL else "2"}
    async with Sink() as sink:
        config = _config(tmp_path, sink.url, place)
        dying = Process(config, step, when, environ=environ)
        await dying.start()
        sent_once = deapi("job-deapi", at=fast_clock() // 1000)
        kept = await _send(dying, sent_once, oracle)
        await _send(dying, speech("job-speech", times=LONG), oracle)
        assert await dying.died() == -9
        # Killed while it was kept: no answer came. Killed while it was taken out: the answer was 200, before.
        assert kept is ((step, when) in DRAIN)
        healthy = Process(config, environ=place.environ)
        await healthy.start()
        try:
            if not kept:
                assert await _send(healthy, deapi("job-deapi", at=fast_clock() // 1000), oracle)
            assert await _send(healthy, speech("job-speech", times=LONG), oracle)
            delivered = Delivered(sink)
            await delivered.until(lambda: delivered.ids.keys() >= {"job-deapi", "job-speech"})
        finally:
            await healthy.stop()
        delivered.look()
        assert all(len(ids) == 1 for ids in delivered.ids.values())
        assert delivered.ids["job-speech"] == oracle.events["job-speech"]
        assert not list((tmp_path / "data" / "journal").glob("*.json"))
