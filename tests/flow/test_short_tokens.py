"""Callback URLs with a short token: what it stands for comes from the store, and the token proves itself without."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from receiver.app.wiring import Ports
from receiver.core.errors import StoreUnavailable
from receiver.core.retention import Erasure, Subject, SubjectKind
from receiver.storage.store.store import Store
from tests.support.kept_events import kept_events
from tests.support.running import Running, api_token, running, settings_text

ADMIN = "an-admin-token-of-some-length"
BEFORE = 'public_url = "https://hooks.example.com"\n'
AFTER = api_token("app", ADMIN)
AUDIO = b"ID3\x04" + bytes(600)


class Out:
    """A store that can be out."""

    def __init__(self, store: Store) -> None:
        self.store, self.out = store, False

    def __getattr__(self, name: str) -> object:
        if self.out and name in ("token_claims", "record"):
            raise StoreUnavailable("the store is out")
        return getattr(self.store, name)


async def _path(up: Running, **asked: object) -> str:
    """Return the path of a fresh short URL of the source `speech`."""
    answer = await up.client.post(
        "/api/v1/callback-urls",
        json={"source": "speech", "short": True, **asked},
        headers={"authorization": f"Bearer {ADMIN}"},
    )
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert len(made["token"]) == 40
    return str(urlsplit(made["url"]).path)


async def _call(up: Running, path: str) -> tuple[int, str]:
    answer = await up.client.post(path, content=AUDIO, headers={"content-type": "audio/mpeg"})
    return answer.status_code, answer.json()["status"]


async def test_a_short_url_of_a_long_ref_brings_it_back_also_after_an_outage(tmp_path: Path) -> None:
    """While the store is out the callback is proved and kept; its ref is read when the store is back."""
    stores: list[Out] = []

    def shape(ports: Ports) -> Ports:
        stores.append(Out(ports.store))
        ports.store = stores[0]  # type: ignore[assignment]
        return ports

    async with running(tmp_path, BEFORE + settings_text(tmp_path) + AFTER, shape=shape, work=False) as up:
        long, erased, late = "r" * 500, "somebody", "late"
        paths = {ref: await _path(up, ref=ref, expires_seconds=3600) for ref in (long, erased, late)}
        assert await _call(up, paths[long]) == (200, "recorded")
        assert await _call(up, paths[long]) == (200, "duplicate")
        stores[0].out = True
        assert await _call(up, paths[late]) == (503, "unavailable")
        assert await _call(up, "/callbacks/speech/" + "a" * 40) == (401, "rejected")
        assert up.receiver.journal.depth == 1
        stores[0].out = False
        await up.seen.until(lambda: up.receiver.journal.depth == 0)
        subject = Subject(kind=SubjectKind.REF, key=erased)
        await up.receiver.store.erase(Erasure(subject=subject, tombstone_id="tmb_1", digest="d", now=1))
        assert await _call(up, paths[erased]) == (200, "recorded")
        events = await kept_events(up.receiver.store)
        assert {event.ref for event in events} == {long, late, None}


async def test_a_short_url_that_has_expired_or_is_of_another_source_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, BEFORE + settings_text(tmp_path) + AFTER, work=False) as up:
        path = await _path(up, expires_seconds=0.001)
        assert await _call(up, path) == (401, "rejected")
        assert await _call(up, path.replace("/speech/", "/deapi/")) == (401, "rejected")
