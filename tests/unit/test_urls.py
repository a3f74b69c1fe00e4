"""Building and checking callback URLs."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

import pytest

from receiver.core.errors import ConfigError
from receiver.core.tokens import CallbackTokens
from receiver.core.urls import callback_url, compose, is_private, public_url_problems

PUBLIC = "https://hooks.example.com"


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com",
        "http://hooks.example.com/",
        "https://hooks.example.com:8443/under/here",
        "http://hooks.example.com:8080",
        "http://[2001:db8::1]:80",
    ],
)
def test_a_public_url_that_deepgram_can_call_has_no_problem(url: str) -> None:
    assert public_url_problems(url) == []


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("hooks.example.com", "E003"),
        ("ftp://hooks.example.com", "E003"),
        ("https://", "E003"),
        ("https://hooks.example.com:port", "E003"),
        ("https://hooks.example.com:0", "E003"),
        ("https://[::1", "E003"),
        ("https://user:pass@hooks.example.com", "E003"),
        ("https://hooks.example.com/?a=b", "E003"),
        ("https://hooks.example.com/#", "E003"),
        ("https://höoks.example.com", "E003"),
        ("https://hooks.example.com/a b", "E003"),
        ("https://hooks.example.com:9000", "E004"),
        ("https://my_hooks.example.com", "E005"),
        ("https://hooks.example.com/a_b", "E005"),
    ],
)
def test_each_reason_against_a_public_url_is_told(url: str, code: str) -> None:
    assert [found.code for found in public_url_problems(url)] == [code]


def test_every_reason_is_told_at_once() -> None:
    codes = [found.code for found in public_url_problems("http://a_b.example.com:81", https_only=True)]
    assert codes == ["E004", "E005", "E006"]


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("http://localhost:3000/hooks", True),
        ("http://app.localhost/", True),
        ("http://127.0.0.1/", True),
        ("http://10.1.2.3/", True),
        ("http://[::1]:80/", True),
        ("https://app.example.com/", False),
        ("https://9.9.9.9/", False),
        ("http://[broken", False),
    ],
)
def test_private_hosts_are_told_from_public_ones(url: str, private: bool) -> None:
    assert is_private(url) is private


def test_a_callback_url_holds_encoded_credentials_source_and_token() -> None:
    token = CallbackTokens(["0123456789abcdef"]).issue("deepgram", ref="order_42")
    url = callback_url(PUBLIC, "deepgram", token=token, basic="us/er:p@ss:wörd?")
    parts = urlsplit(url)
    assert unquote(parts.username or "") == "us/er"
    assert unquote(parts.password or "") == "p@ss:wörd?"
    assert parts.hostname == "hooks.example.com"
    assert parts.path == f"/callbacks/deepgram/{token}"
    assert "_" not in url
    assert re.fullmatch(r"[!-~]+", url)


def test_a_path_before_ours_stays() -> None:
    url = callback_url(f"{PUBLIC}/speech/", "deapi", https_only=True)
    assert url == f"{PUBLIC}/speech/callbacks/deapi"


def test_an_ipv6_base_keeps_its_brackets_and_port() -> None:
    assert compose("http://[::1]:8080", "a", basic="u:p") == "http://u:p@[::1]:8080/callbacks/a"


@pytest.mark.parametrize(
    ("public_url", "provider", "basic", "token", "reason"),
    [
        (None, "deepgram", None, None, "public_url is not set"),
        ("https://hooks.example.com:9000", "deepgram", None, None, "port 9000"),
        ("https://my_hooks.example.com", "deepgram", None, None, "underscore"),
        (PUBLIC, "deepgram", "dg:pass_word", None, "underscore"),
        ("http://hooks.example.com", "deapi", None, None, "https"),
        (PUBLIC, "deapi", None, "a" * 2048, "2048"),
    ],
)
def test_a_url_that_no_provider_could_call_is_refused_with_the_reason(
    public_url: str | None, provider: str, basic: str | None, token: str | None, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        callback_url(public_url, "deepgram", https_only=provider == "deapi", basic=basic, token=token)
    assert "pass_word" not in caught.value.message


def test_deepgrams_rules_of_port_and_underscore_are_for_deepgram_alone() -> None:
    url = callback_url("https://my_hooks.example.com:9000", "daily", deepgram=False)
    assert url == "https://my_hooks.example.com:9000/callbacks/daily"


def test_http_is_good_enough_for_deepgram() -> None:
    assert callback_url("http://hooks.example.com", "deepgram").startswith("http://")
