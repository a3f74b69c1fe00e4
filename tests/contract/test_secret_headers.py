"""What proves a callback is nobody else's to read: no value of a secret header lies on disk or stands in a report.

Every adapter that calls back is found by its golden folder, those to come too.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from receiver.app.wiring import Ports
from receiver.core.clock import wall_clock
from receiver.core.errors import CallbackRejected, StoreUnavailable
from receiver.providers import PushProvider, adapters
from tests.contract import provider_suite as suite
from tests.support.golden import TOKEN_SECRETS, Case, Request, cases
from tests.support.running import running

ACCEPTED = [case for case in cases() if case.verdict == "accepted"]
ADAPTERS = {name for name, adapter in adapters().items() if issubclass(adapter, PushProvider)}
WITH_SECRET_HEADERS = sorted(ADAPTERS - {"sns"})
"""SNS proves a message by its body alone."""
WITH_SECRETS = sorted(ADAPTERS - {"pubsub"})
"""Pub/Sub's tokens are Google's: no setting is a secret."""


class OutStore:
    """A real store in which nothing is recorded while it is out."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.out = True

    def __getattr__(self, name: str) -> Any:
        if self.out and name in ("record", "defer"):
            return self._refuse
        return getattr(self._store, name)

    async def _refuse(self, _: object) -> None:
        raise StoreUnavailable


def _with_all_secret_headers(case: Case) -> tuple[int, Request]:
    """Return the time and a request that carries every header the adapter calls secret, as far as it is believed then."""
    now = wall_clock() if case.provider == "deapi" else case.received_at
    request = case.fresh_request(now)
    for name in sorted(suite.make(case).secret_headers):
        if not any(key.lower() == name for key, _ in request.headers):
            more = request.with_header(name, f"a-value-of-{name}-for-nobody-else")
            try:
                suite.prove(suite.make(case), more, now)
            except CallbackRejected:
                continue
            request = more
    return now, request


def _secrets(case: Case, request: Request) -> set[str]:
    """Return the values that nothing may keep, also what Basic credentials hold."""
    names = suite.proof_headers(case) - {"x-deapi-timestamp"}
    values = {value for name, value in request.headers if name.lower() in names}
    for value in set(values):
        scheme, _, rest = value.partition(" ")
        values |= {rest} if rest else set()
        if scheme == "Basic":
            values |= {base64.b64decode(rest).decode().partition(":")[2]}
    return {value for value in values if len(value) >= 8}


def _settings(folder: Path, case: Case) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in case.settings.items()]
    head = f'data = "{folder}"\n[tokens]\nsecrets = ["{TOKEN_SECRETS[0]}"]\n[sources.{case.request.source}]\n'
    return head + "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", WITH_SECRET_HEADERS)
async def test_a_secret_header_is_neither_kept_nor_reported(name: str, tmp_path: Path) -> None:
    case = max((case for case in ACCEPTED if case.provider == name), key=_shown_proofs)
    now, request = _with_all_secret_headers(case)
    secrets = _secrets(case, request)
    assert secrets, "the case carries no header that could be kept"
    stores: list[OutStore] = []

    def out(ports: Ports) -> Ports:
        stores.append(OutStore(ports.store))
        return replace(ports, store=stores[0])  # type: ignore[arg-type]  # stands for a store

    proofs = suite.proof_headers(case)
    wrong = [(key, _altered(value) if key.lower() in proofs else value) for key, value in request.headers]
    async with running(tmp_path, _settings(tmp_path, case), shape=out, clock=lambda: now, work=False) as up:

        async def send(headers: Any) -> int:
            answer = await up.client.request(
                request.method, request.target, headers=list(headers), content=request.body
            )
            return answer.status_code

        assert await send(wrong) == 401
        assert await send(request.headers) in (200, 503)
        assert up.receiver.journal.depth == 1
        _check(tmp_path, secrets)
        stores[0].out = False
        await up.seen.until(lambda: up.receiver.journal.depth == 0)
        assert await send(request.headers) == 200
        await up.receiver.intake.rejections.flush()
        _check(tmp_path, secrets)
        told = repr([up.seen.callbacks, up.seen.notes])
        assert not [secret for secret in secrets if secret in told]


@pytest.mark.parametrize("name", WITH_SECRETS)
async def test_a_secret_in_the_content_type_is_neither_recorded_nor_reported(
    name: str, tmp_path: Path
) -> None:
    case = max((case for case in ACCEPTED if case.provider == name), key=_shown_proofs)
    now, request = _with_all_secret_headers(case)
    names = ("basic", "secrets", "api_key", "callback_keys", "dg_token", "secret_access_key")
    values = [value for name in names if name in case.settings for value in suite.texts(case.settings[name])]
    kind = request.value("content-type") + "".join(f"; hint={value}" for value in values)
    headers = [*request.without("content-type").headers, ("content-type", kind + "; more=" + "x" * 300)]
    async with running(tmp_path, _settings(tmp_path, case), clock=lambda: now, work=False) as up:
        for path in (request.target, "/callbacks/nobody"):
            await up.client.request(request.method, path, headers=headers, content=request.body)
        assert [report.status for report in up.seen.callbacks] == [200, 404]
        await up.receiver.intake.rejections.flush()
        assert values
        _check(tmp_path, set(values))
        assert not [value for value in values if value in repr(up.seen.callbacks)]
        assert all(len(report.content_type) <= 200 for report in up.seen.callbacks)


def _altered(value: str) -> str:
    return value[:-1] + ("1" if value.endswith("0") else "0")


def _shown_proofs(case: Case) -> int:
    return len(_secrets(case, case.request))


def _check(folder: Path, secrets: set[str]) -> None:
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = [
        (path.name, secret) for path, data in kept.items() for secret in secrets if secret.encode() in data
    ]
    assert not found
