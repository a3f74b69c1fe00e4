"""What `receiver check` says of the mistakes that who describes a provider for the first time makes."""

from __future__ import annotations

import pytest

from receiver.providers import instead_of
from receiver.providers.custom import CustomProvider
from receiver.settings.load import parse

GOOD = """
[sources.acme]
provider = "custom"
secrets = ["example-secret"]

[[sources.acme.proof]]
kind = "hmac"
header = "Acme-Signature"
message = "{timestamp}.{body}"
timestamp = {from = "header:Acme-Time"}

[sources.acme.event]
family = "media"
job = "id"
state = "status"
completed = "DONE"
"""


def told(text: str) -> list[str]:
    found = CustomProvider.findings(parse(text, {}, str).sources["acme"])
    return [f"{each.where}: {each.message}; {each.fix}" for each in found]


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ('provider = "custom"', 'recipe = "elevenlab"', "sources.acme: there is no recipe 'elevenlab'; did you mean elevenlabs?"),
        ("{body}", "{payload}", "sources.acme.proof[0].message: {payload} is no variable of a signed message"),
        ('"hmac"', '"hmca"', "sources.acme.proof[0]: kind is missing, or none that there is; write one of address, basic"),
        ('kind = "hmac"\n', "", "sources.acme.proof[0]: kind is missing, or none that there is; write one of address, basic"),
        ("job =", "jobid =", "sources.acme.event.jobid: no such setting; did you mean job?"),
        ("[sources.acme.event]", '[sources.acme.result]\nform = "text"\n[sources.acme.event]', "result.form: no such setting; did you mean from?"),
        ('timestamp = {from = "header:Acme-Time"}', "no_clock = true", "sources.acme.proof[0]: say where the time is"),
        ("[sources.acme.event]", '[sources.acme.result]\nthen = {from = "text", at = "a"}\n[sources.acme.event]', 'then goes with from = "get"'),
        ("[sources.acme.event]", '[sources.acme.result]\nfrom = "get"\nurl = "{job}"\nhosts = ["a.example"]\nthen = {from = "body"}\n[sources.acme.event]', "its own from is document, text, base64, link or get"),
        ('"media"', '"video"', "sources.acme.event.family: Input should be 'speech', 'transcript', 'analysis' or 'media'"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place_and_the_right_word(written: str, instead: str, said: str) -> None:
    assert told(GOOD) == []
    (found,) = [each for each in told(GOOD.replace(written, instead, 1)) if said in each]
    assert "docs/sources.md" in found or "did you mean" in found or "write one of" in found


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("[[sources.acme.proof]]", "[sources.acme.proof]"),
        ('{from = "header:Acme-Time"}', '"header:Acme-Time"'),
    ],
)
def test_what_can_mean_one_thing_only_is_taken_for_it(written: str, instead: str) -> None:
    """A single proof without the second bracket; a time of which only the place is told."""
    own, short = (parse(text, {}, str).sources["acme"] for text in (GOOD, GOOD.replace(written, instead)))
    assert CustomProvider.Settings.model_validate(own.options) == CustomProvider.Settings.model_validate(
        short.options
    )


def test_a_provider_that_has_a_recipe_or_none_is_told_how_it_is_written() -> None:
    assert instead_of("elevenlabs") == 'write recipe = "elevenlabs"'
    assert '"custom" takes any other provider (docs/sources.md)' in instead_of("nobody-knows-this")
