"""The providers that are asked, as stand-ins of this process, and how results are handed over for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from receiver.app.wiring import build
from receiver.core.work import Pickup
from receiver.demo.deapi import ApiJob, Deapi
from receiver.demo.deepdub import BASE_PATH, Deepdub
from receiver.demo.playht import API, Playht
from receiver.demo.serving import served
from receiver.engine.pickups import new_pickup
from receiver.settings.load import parse
from receiver.settings.model import Settings
from receiver.storage.store.sqlite import SqliteStore
from receiver.system.body_buffer import HELD_LIMIT
from tests.support.running import DEAPI_SECRET
from tests.support.senders import SPEECH, Sent, deapi

KEY = "provider-key-0123456789abcdef"
USER = "user-0123456789"
AUDIO = SPEECH.read_bytes() * (HELD_LIMIT // SPEECH.stat().st_size + 2)
"""A little too long to stay in memory: each download is a temporary file."""


@dataclass(frozen=True)
class Providers:
    """deAPI, Deepdub and PlayHT, and where each is served."""

    deapi: Deapi
    deapi_base: str
    deepdub: Deepdub
    deepdub_base: str
    playht: Playht
    playht_base: str

    def settings(self, more: str = "") -> str:
        """Return the sources `deapi`, `deepdub` and `playht`; `more` goes into each."""
        common = f'api_key = "{KEY}"\nallow = ["127.0.0.0/8"]\n{more}\n'
        return f"""
[sources.deapi]
provider = "deapi"
secrets = ["{DEAPI_SECRET}"]
api_url = "{self.deapi_base}"
result_hosts = ["127.0.0.1"]
{common}
[sources.deepdub]
provider = "deepdub"
base_url = "{self.deepdub_base}"
{common}
[sources.playht]
provider = "playht"
user_id = "{USER}"
base_url = "{self.playht_base}"
result_hosts = ["127.0.0.1"]
{common}
"""

    def text(self, folder: Path, destination: str, *, retry: str = '"deepgram"', more: str = "") -> str:
        """Return a whole receiver.toml."""
        return f"""
data = "{folder / "data"}"
[destinations.app]
url = "{destination}"
allow = ["127.0.0.0/8"]
retry = {retry}
{self.settings(more)}"""

    def pushed(self, job: str, *, at: int | None = None) -> Sent:
        """Return deAPI's callback about a job that is done, with a link that is good."""
        return deapi(job, at=at, result_url=self.deapi.link(self.deapi_base, job))

    def deapi_job(self, *statuses: str) -> str:
        """Return a new job of deAPI's that is told as `statuses`, one for each time it is asked about."""
        return self.deapi.add(ApiJob(statuses=statuses or ("done",), result=AUDIO))

    def playht_job(self) -> str:
        """Return a new job of PlayHT's."""
        return self.playht.add(audio=AUDIO).id


@contextlib.contextmanager
def asked_providers() -> Iterator[Providers]:
    """Serve all three."""
    with contextlib.ExitStack() as stack:
        one, two, three = Deapi(KEY), Deepdub(KEY, audio=AUDIO), Playht(api_key=KEY, user_id=USER)
        bases = [stack.enter_context(served(provider.app)) for provider in (one, two, three)]
        yield Providers(one, bases[0], two, bases[1] + BASE_PATH, three, bases[2] + API)


def settings_of(text: str) -> Settings:
    """Return settings as a process reads them."""
    return parse(text, {}, lambda name: Path(name).read_text("utf-8"))


async def hand_over(text: str, jobs: dict[str, str], now: int) -> dict[str, Pickup]:
    """Do what `receiver pickup` does, in another process than the receiver's: source by job id. Returns pickups by job id."""
    receiver = build(settings_of(text), observers=[])
    store = receiver.store
    if isinstance(store, SqliteStore):
        await store.migrate()
    await store.open()
    try:
        made = {job: new_pickup(receiver.ports.pulls[source], job, now=now) for job, source in jobs.items()}
        return {job: (await store.add_pickup(pickup))[0] for job, pickup in made.items()}
    finally:
        await store.close()
