"""Every provider adapter against its golden folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from receiver.core.errors import CallbackRejected, ConfigError, Finding
from receiver.core.observe import Observers
from receiver.providers import PushProvider, adapters
from receiver.storage.journal import Journal
from tests.contract import provider_suite as suite
from tests.support.golden import ROOT, Case, cases, source_settings, tokens

CASES = cases()


CALLING = [name for name, adapter in adapters().items() if issubclass(adapter, PushProvider)]


def _only(verdict: str) -> list[Case]:
    return [case for case in CASES if case.verdict == verdict]


def _name(case: Case) -> str:
    return f"{case.provider}-{case.name}"


@contextlib.contextmanager
def _named(case: Case) -> Iterator[None]:
    """Let an error say which case it is about."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"golden case {_name(case)}")
        raise


def _check_each(check: Callable[[Case], None], name: str, verdict: str | None = None) -> None:
    for case in CASES:
        if case.provider == name and verdict in (None, case.verdict):
            with _named(case):
                check(case)


each_provider = pytest.mark.parametrize("name", CALLING)


@pytest.mark.parametrize("case", _only("accepted"), ids=_name)
def test_accepted_cases_become_the_expected_event(case: Case) -> None:
    suite.check_accepted(case)


@pytest.mark.parametrize("case", _only("parked"), ids=_name)
def test_parked_cases_are_proved_and_not_understood(case: Case) -> None:
    suite.check_parked(case)


@pytest.mark.parametrize("case", _only("rejected"), ids=_name)
def test_rejected_cases_are_refused_naming_the_setting(case: Case) -> None:
    suite.check_rejected(case)


@each_provider
def test_a_retry_has_the_same_identity(name: str) -> None:
    _check_each(suite.check_same_twice, name, "accepted")


@each_provider
def test_a_doubled_proof_or_a_foreign_token_is_refused(name: str) -> None:
    _check_each(suite.check_variants_refused, name, "accepted")


@each_provider
def test_without_any_proof_it_is_refused(name: str) -> None:
    _check_each(suite.check_unproved, name, "accepted")


def test_a_golden_request_can_be_made_fresh_for_another_time() -> None:
    """Suites that replay the requests over HTTP live in the present."""
    _check_each(_check_fresh, "deapi", "accepted")


def _check_fresh(case: Case) -> None:
    now = case.received_at + 365 * 86_400_000
    provider = suite.make(case)
    with pytest.raises(CallbackRejected):
        suite.prove(provider, case.request, now)
    assert suite.prove(provider, case.fresh_request(now), now).body.load() == case.request.body


@each_provider
def test_no_secret_is_kept_or_told(name: str) -> None:
    _check_each(suite.check_keeps_secrets, name)


@each_provider
def test_each_provider_has_a_golden_folder_with_all_verdicts(name: str) -> None:
    found = {case.verdict for case in CASES if case.provider == name}
    assert found == {"accepted", "parked", "rejected"}, f"tests/golden/{name} lacks cases"


def test_the_providers_that_call_back_are_known() -> None:
    """What the tests here run over, so that none drops out unseen."""
    assert {"deapi", "deepgram", "playht"} <= set(CALLING)


def test_each_golden_folder_belongs_to_a_provider_and_tells_its_origin() -> None:
    folders = {path.parent.parent.name for path in ROOT.glob("*/*/case.toml")}
    assert folders == set(CALLING)
    assert not [path for path in ROOT.glob("*/*/case.toml") if not (path.parent / "origin.md").read_text()]


@pytest.mark.parametrize("name", sorted(adapters()))
def test_a_source_without_a_proof_does_not_start(name: str) -> None:
    """The error names the setting and what to write; `findings` says the same with a code."""
    settings = source_settings("some-source", {"provider": name})
    with pytest.raises(ConfigError) as caught:
        adapters()[name].create(settings, tokens())
    assert "sources.some-source." in caught.value.message
    assert "add " in caught.value.message
    found: list[Finding] = adapters()[name].findings(settings)
    assert [finding.fatal for finding in found] == [True]
    assert found[0].message in caught.value.message


@pytest.mark.parametrize("name", sorted(adapters()))
def test_an_unknown_setting_is_named(name: str) -> None:
    settings = source_settings("some-source", {"provider": name, "basci": "dg:secret-value"})
    with pytest.raises(ConfigError) as caught:
        adapters()[name].create(settings, tokens())
    assert "sources.some-source.basci" in caught.value.message
    assert "secret-value" not in caught.value.message
    assert [finding.fatal for finding in adapters()[name].findings(settings)] == [True]


@each_provider
def test_the_adapter_tells_its_provider_and_source(name: str) -> None:
    case = next(case for case in CASES if case.provider == name)
    provider: PushProvider = suite.make(case)
    assert (provider.provider, provider.source) == (name, case.request.source)


@each_provider
async def test_what_proves_a_callback_never_lies_in_the_journal(name: str, tmp_path: Path) -> None:
    """A header without which, or with another value, the callback is refused: its value is nobody else's to read."""
    for case in _only("accepted"):
        if case.provider == name:
            with _named(case):
                await _check_journal(case, tmp_path / case.name)


async def _check_journal(case: Case, folder: Path) -> None:
    provider = suite.make(case)
    proved = suite.prove(provider, case.request, case.received_at)
    journal = Journal(str(folder), max_bytes=10**9, observer=Observers([]), clock=lambda: case.received_at)
    await journal.open()
    await journal.keep(proved, key="k", reason="store out", secret_headers=provider.secret_headers)
    kept = b"".join(path.read_bytes() for path in folder.rglob("*.json"))
    values = {value for name, value in case.request.headers if _proves(case, name, value)}
    assert kept
    assert not [value for value in values if value.encode() in kept]


def _proves(case: Case, name: str, value: str) -> bool:
    """Tell whether a header's value decides that the callback is believed; a time or a length is no secret."""
    other = case.request.without(name).with_header(name, value[::-1] + "x")
    if len(value) < 12:
        return False
    try:
        suite.prove(suite.make(case), other, case.received_at)
    except CallbackRejected:
        return True
    return False


@each_provider
def test_the_adapter_can_sign_as_its_provider_does(name: str) -> None:
    """What it signs it believes, unless something else than a header proves the callback."""
    _check_each(_check_signing, name, "accepted")


def _check_signing(case: Case) -> None:
    adapter = suite.make(case)
    proof = adapter.sign(case.request.body, now=case.received_at)
    request = case.request
    for name, value in proof.items():
        request = request.without(name).with_header(name, value)
    claims = tokens().read(case.request.token) if case.request.token else None
    if proof and not (claims and claims.job_secret):
        assert suite.prove(suite.make(case), request, case.received_at).proofs
