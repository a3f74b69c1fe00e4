"""Every provider adapter against its golden folder."""

from __future__ import annotations

import pytest

from receiver.core.errors import CallbackRejected, ConfigError
from receiver.providers.base import PushProvider
from receiver.settings.model import Finding
from tests.contract import provider_suite as suite
from tests.support.golden import ROOT, Case, cases, source_settings, tokens

CASES = cases()
MODULES = suite.provider_modules()


def _calls_back(name: str) -> bool:
    """Tell whether a provider calls back; the others are only asked, and have no golden requests."""
    made = (value for value in vars(MODULES[name]).values() if isinstance(value, type))
    return any(hasattr(value, "admit") for value in made)


CALLING = sorted(filter(_calls_back, MODULES))


def _only(verdict: str) -> list[Case]:
    return [case for case in CASES if case.verdict == verdict]


def _name(case: Case) -> str:
    return f"{case.provider}-{case.name}"


accepted = pytest.mark.parametrize("case", _only("accepted"), ids=_name)


@accepted
def test_accepted_cases_become_the_expected_event(case: Case) -> None:
    suite.check_accepted(case)


@pytest.mark.parametrize("case", _only("parked"), ids=_name)
def test_parked_cases_are_proved_and_not_understood(case: Case) -> None:
    suite.check_parked(case)


@pytest.mark.parametrize("case", _only("rejected"), ids=_name)
def test_rejected_cases_are_refused_naming_the_setting(case: Case) -> None:
    suite.check_rejected(case)


@accepted
def test_a_retry_has_the_same_identity(case: Case) -> None:
    suite.check_same_twice(case)


@accepted
def test_a_doubled_proof_or_a_foreign_token_is_refused(case: Case) -> None:
    suite.check_variants_refused(case)


@accepted
def test_without_any_proof_it_is_refused(case: Case) -> None:
    suite.check_unproved(case)


@pytest.mark.parametrize("case", [case for case in _only("accepted") if case.provider == "deapi"], ids=_name)
def test_a_golden_request_can_be_made_fresh_for_another_time(case: Case) -> None:
    """Suites that replay the requests over HTTP live in the present."""
    now = case.received_at + 365 * 86_400_000
    provider = suite.make(case)
    with pytest.raises(CallbackRejected):
        suite.prove(provider, case.request, now)
    assert suite.prove(provider, case.fresh_request(now), now).body.load() == case.request.body


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_no_secret_is_kept_or_told(case: Case) -> None:
    suite.check_keeps_secrets(case)


@pytest.mark.parametrize("name", CALLING)
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


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_source_without_a_proof_does_not_start(name: str) -> None:
    """The error names the setting and what to write; `findings` says the same with a code."""
    settings = source_settings("some-source", {"provider": name})
    with pytest.raises(ConfigError) as caught:
        MODULES[name].create(settings, tokens())
    assert "sources.some-source." in caught.value.message
    assert "add " in caught.value.message
    found: list[Finding] = MODULES[name].findings(settings)
    assert [finding.fatal for finding in found] == [True]
    assert found[0].message in caught.value.message


@pytest.mark.parametrize("name", sorted(MODULES))
def test_an_unknown_setting_is_named(name: str) -> None:
    settings = source_settings("some-source", {"provider": name, "basci": "dg:secret-value"})
    with pytest.raises(ConfigError) as caught:
        MODULES[name].create(settings, tokens())
    assert "sources.some-source.basci" in caught.value.message
    assert "secret-value" not in caught.value.message
    assert [finding.fatal for finding in MODULES[name].findings(settings)] == [True]


@pytest.mark.parametrize("name", CALLING)
def test_the_adapter_tells_its_provider_and_source(name: str) -> None:
    case = next(case for case in CASES if case.provider == name)
    provider: PushProvider = suite.make(case)
    assert (provider.provider, provider.source) == (name, case.request.source)
